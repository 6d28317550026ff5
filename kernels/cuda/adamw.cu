/* AdamW, fused (math/adamw.h): one pass over parameter, gradient and both moments, in place, 28
 * bytes an element in f32.
 *
 * The host computes the factors of the step that it believes this to be. Where steps were skipped
 * that it has not heard of, the tally on the device says another one: then each block computes them
 * again.
 *
 * A launch takes many tensors, as kernel arguments: each block has BLOCK_ELEMENTS of one of them. A
 * thread has 8 elements of each of the four in flight, by loads of 16 bytes. */
#include "math/adamw.h"

#include "cuda/kernel.cuh"

namespace {
constexpr int TENSORS = 76, THREADS = 256, AT_ONCE = 8, BLOCK_ELEMENTS = THREADS * AT_ONCE * 4;

struct tensor {
  void *param;
  const void *grad;
  void *exp_avg, *exp_avg_sq;
  int64_t n;
  unsigned first_block;
  unsigned short halves; /* bits 0..3: param, grad, exp_avg, exp_avg_sq are bf16 */
  unsigned short aligned;
};
struct tensors {
  tensor at[TENSORS];
  int count;
};
struct settings {
  lm_adamw_args args;
  lm_adamw_factors factors;
};
static_assert(sizeof(tensors) + sizeof(settings) + 24 <= 4096, "a kernel's arguments have 4 KB");

template <bool half> LM_DEVICE void load(float (&x)[AT_ONCE], const void *p, int64_t i) {
  if constexpr (half) {
    const lm__pack<lm_bf16> a = lm__load_pack(static_cast<const lm_bf16 *>(p) + i);
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) x[j] = lm__to_float(a.at[j]);
  } else {
    const lm__pack<float> a = lm__load_pack(static_cast<const float *>(p) + i);
    const lm__pack<float> b = lm__load_pack(static_cast<const float *>(p) + i + 4);
#pragma unroll
    for (int j = 0; j < 4; j++) x[j] = a.at[j], x[4 + j] = b.at[j];
  }
}
template <bool half> LM_DEVICE void store(void *p, int64_t i, const float (&x)[AT_ONCE]) {
  if constexpr (half) {
    lm__pack<lm_bf16> a;
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) a.at[j] = lm__from_float<lm_bf16>(x[j]);
    lm__store_pack(static_cast<lm_bf16 *>(p) + i, a);
  } else {
    lm__pack<float> a, b;
#pragma unroll
    for (int j = 0; j < 4; j++) a.at[j] = x[j], b.at[j] = x[4 + j];
    lm__store_pack(static_cast<float *>(p) + i, a);
    lm__store_pack(static_cast<float *>(p) + i + 4, b);
  }
}
template <bool half> LM_DEVICE float load_one(const void *p, int64_t i) {
  return half ? lm__to_float(static_cast<const lm_bf16 *>(p)[i]) : static_cast<const float *>(p)[i];
}
template <bool half> LM_DEVICE void store_one(void *p, int64_t i, float x) {
  if constexpr (half)
    static_cast<lm_bf16 *>(p)[i] = lm__from_float<lm_bf16>(x);
  else
    static_cast<float *>(p)[i] = x;
}

/* Elements begin..end of t. */
template <bool p16, bool g16, bool m16, bool v16>
LM_DEVICE void run(const tensor &t, int64_t begin, int64_t end, const lm_adamw_factors &f) {
  const int64_t whole = t.aligned ? begin + (end - begin) / AT_ONCE * AT_ONCE : begin;
  for (int64_t i = begin + (int64_t)threadIdx.x * AT_ONCE; i < whole; i += THREADS * AT_ONCE) {
    float p[AT_ONCE], g[AT_ONCE], m[AT_ONCE], v[AT_ONCE];
    load<p16>(p, t.param, i);
    load<g16>(g, t.grad, i);
    load<m16>(m, t.exp_avg, i);
    load<v16>(v, t.exp_avg_sq, i);
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) lm_adamw_element(&p[j], g[j], &m[j], &v[j], &f);
    store<p16>(t.param, i, p);
    store<m16>(t.exp_avg, i, m);
    store<v16>(t.exp_avg_sq, i, v);
  }
  for (int64_t i = whole + threadIdx.x; i < end; i += THREADS) {
    float p = load_one<p16>(t.param, i), m = load_one<m16>(t.exp_avg, i),
          v = load_one<v16>(t.exp_avg_sq, i);
    lm_adamw_element(&p, load_one<g16>(t.grad, i), &m, &v, &f);
    store_one<p16>(t.param, i, p);
    store_one<m16>(t.exp_avg, i, m);
    store_one<v16>(t.exp_avg_sq, i, v);
  }
}

LM_GLOBAL __launch_bounds__(THREADS)
    adamw(const __grid_constant__ tensors list, const __grid_constant__ settings given,
          const settings *there, const int *tally, const int *skip) {
  LM_SHARED(lm_adamw_factors, corrected, [1]);
  if (*skip) return;
  const settings &now = there ? *there : given;
  lm_adamw_factors factors = now.factors;
  if (tally && (double)tally[LM_TALLY_MADE] != now.args.step) { /* for all threads or none */
    if (threadIdx.x == 0) {
      lm_adamw_args args = now.args;
      args.step = (double)tally[LM_TALLY_MADE];
      corrected[0] = lm_adamw_prepare(&args);
    }
    __syncthreads();
    factors = corrected[0];
  }
  int low = 0, high = list.count; /* the last tensor that begins at or before this block */
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.at[middle].first_block <= blockIdx.x)
      low = middle;
    else
      high = middle;
  }
  const tensor &t = list.at[low];
  const int64_t begin = (int64_t)(blockIdx.x - t.first_block) * BLOCK_ELEMENTS;
  const int64_t end = begin + BLOCK_ELEMENTS < t.n ? begin + BLOCK_ELEMENTS : t.n;
  switch (t.halves) {
#define CASE(h)                                                                                    \
  case h:                                                                                          \
    run<(h & 1) != 0, (h & 2) != 0, (h & 4) != 0, (h & 8) != 0>(t, begin, end, factors);           \
    break;
    CASE(0)
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
    CASE(5)
    CASE(6)
    CASE(7)
    CASE(8)
    CASE(9)
    CASE(10)
    CASE(11)
    CASE(12)
    CASE(13)
    CASE(14)
    CASE(15)
#undef CASE
    default:
      break;
  }
}

tensor describe(lm_tensor *p, const lm_tensor *g, lm_tensor *m, lm_tensor *v) {
  tensor t = {lm__data(p), lm__data(g), lm__data(m), lm__data(v), lm__numel(p), 0, 0, 0};
  t.halves = (unsigned short)((p->dtype == LM_BF16) | (g->dtype == LM_BF16) << 1 |
                              (m->dtype == LM_BF16) << 2 | (v->dtype == LM_BF16) << 3);
  t.aligned = lm__is_aligned(t.param) && lm__is_aligned(t.grad) && lm__is_aligned(t.exp_avg) &&
              lm__is_aligned(t.exp_avg_sq);
  return t;
}
} // namespace

extern "C" int lm__adamw_step_cuda(int n, lm_tensor *const *param, const lm_tensor *const *grad,
                                   lm_tensor *const *exp_avg, lm_tensor *const *exp_avg_sq,
                                   const lm_adamw_args *args) {
  const int *const tally = args->tally ? lm__pointer<int>(args->tally) : nullptr;
  settings given = {*args, lm_adamw_prepare(args)};
  const void *there = nullptr;
  tensors list;
  given.args.tally = nullptr;
  const bool launches = lm__cuda_graph_settings(&given, sizeof given, &there);
  lm__cuda_graph_key(&tally, sizeof tally);
  for (int i = 0; i < n;) {
    unsigned blocks = 0;
    memset(&list, 0, sizeof list);
    for (; i < n && list.count < TENSORS; i++) {
      tensor t = describe(param[i], grad[i], exp_avg[i], exp_avg_sq[i]);
      if (t.n == 0) continue;
      t.first_block = blocks;
      blocks += lm__blocks(t.n, BLOCK_ELEMENTS);
      list.at[list.count++] = t;
    }
    lm__cuda_graph_key(&list, sizeof list);
    if (launches && lm__cuda_graph_goes_on())
      LM__TRY(lm__launch({"adamw_step", blocks, THREADS}, adamw, list, given,
                         static_cast<const settings *>(there), tally, lm__cuda_skip()));
  }
  return LM_OK;
}
