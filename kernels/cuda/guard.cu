/* Does a step go ahead? Counts what is not finite in the gradients, on the device, and leaves a
 * word there that the optimizers' kernels look at: 1 where a gradient holds a NaN or Inf, or where
 * a kernel has reported something that the host has not seen yet (backend/cuda.h). The optimizer's
 * tally counts the steps that went ahead, so that AdamW's bias corrections need no word from the
 * host. */
#include "cuda/reduce.cuh"

namespace {

/* Elements with all exponent bits set. */
LM_DEVICE int is_bad(float x) { return (lm_f32_bits(x) & 0x7f800000u) == 0x7f800000u; }
LM_DEVICE int is_bad(lm_bf16 x) { return (x.bits & 0x7f80u) == 0x7f80u; }

template <class T, bool packs> LM_GLOBAL count(const T *p, int64_t n, unsigned *bad) {
  enum { SIZE = packs ? (int)lm__pack<T>::size : 1 };
  int mine = 0;
  LM_GRID_STRIDE(i, n / SIZE) {
    if (packs) {
      const lm__pack<T> pack = lm__load_pack(p + i * SIZE);
#pragma unroll
      for (int j = 0; j < SIZE; j++) mine += is_bad(pack.at[j]);
    } else {
      mine += is_bad(p[i]);
    }
  }
  if (blockIdx.x == 0) /* what is left over */
    for (int64_t i = n / SIZE * SIZE + threadIdx.x; i < n; i += blockDim.x) mine += is_bad(p[i]);
  const int all = lm__block_reduce<lm__sum, LM_THREADS>(mine, 0);
  if (threadIdx.x == 0 && all) atomicAdd(bad, (unsigned)all);
}

template <class T> int start_count(const char *op, const lm_tensor *t, T, unsigned *bad) {
  const int64_t size = lm__numel(t);
  const T *p = lm__pointer<T>(t);
  const lm__launch_shape shape = {op, lm__round_blocks(size, 8 * LM_THREADS), LM_THREADS};
  return lm__is_aligned(p) ? lm__launch(shape, count<T, true>, p, size, bad)
                           : lm__launch(shape, count<T, false>, p, size, bad);
}

typedef struct op_name {
  char at[32];
} op_name;

LM_GLOBAL decide(const unsigned *bad, int n, int *skip, int *tally, int policy,
                 lm__reporter reporter, op_name op, long long names) {
  int first = -1, others = 0;
  for (int i = 0; i < n; i++) {
    if (!bad[i]) continue;
    if (first < 0)
      first = i;
    else
      others++;
  }
  if (first >= 0 && policy == LM_NONFINITE_ERROR)
    lm__report_found(reporter, LM_REPORT_NONFINITE, op.at, bad[first], others, names << 32 | first);
  *skip = first >= 0 || *reporter.taken;
  if (!tally) return;
  tally[*skip ? LM_TALLY_SKIPPED : LM_TALLY_MADE]++;
  if (first < 0) return;
  tally[LM_TALLY_GRADIENT] = first;
  tally[LM_TALLY_BAD] = bad[first] < 0x7fffffffu ? (int)bad[first] : 0x7fffffff;
  tally[LM_TALLY_OTHERS] = others;
}
} // namespace

extern "C" int lm__guard_cuda(int n, const lm_tensor *const *grads, int64_t names, lm_tensor *tally,
                              int policy) {
  struct {
    int64_t n, policy, names;
    const void *tally;
  } key = {n, policy, names, tally ? lm__pointer<int>(tally) : nullptr};
  void *scratch = nullptr;
  lm__cuda_graph_key(&key, sizeof key);
  for (int i = 0; i < n; i++) {
    const struct {
      const void *data;
      int64_t numel, dtype;
    } one = {lm__data(grads[i]), lm__numel(grads[i]), grads[i]->dtype};
    lm__cuda_graph_key(&one, sizeof one);
  }
  if (!lm__cuda_graph_goes_on()) return LM_OK;
  if (n == 0)
    return lm__cuda_launched("step",
                             cudaMemsetAsync(lm__cuda_skip(), 0, sizeof(int), lm__cuda_stream()));
  LM__TRY(lm__cuda_scratch("step", &scratch, (size_t)n * sizeof(unsigned)));
  unsigned *bad = static_cast<unsigned *>(scratch);
  int status = lm__cuda_launched(
      "step", cudaMemsetAsync(bad, 0, (size_t)n * sizeof *bad, lm__cuda_stream()));
  for (int i = 0; i < n && status == LM_OK; i++) {
    if (lm__numel(grads[i]) == 0) continue;
    status = lm__by_float(grads[i]->dtype,
                          [&](auto zero) { return start_count("step", grads[i], zero, bad + i); });
  }
  if (status == LM_OK)
    status = lm__launch({"step", 1, 1}, decide, bad, n, lm__cuda_skip(),
                        tally ? lm__pointer<int>(tally) : nullptr, policy, lm__cuda_reporter(),
                        op_name{"step"}, names);
  lm__cuda_scratch_free(scratch);
  return status;
}

/* Of one tensor, for the host to know. Integers are finite; what is no f32 or bf16, or does not lie
 * side by side, is copied first. */
extern "C" int lm__count_nonfinite_cuda(double *out, const lm_tensor *a) {
  lm_tensor *copy = nullptr;
  void *counter = nullptr;
  unsigned found = 0;
  *out = 0;
  if (!lm__is_float(a->dtype) || lm__numel(a) == 0) return LM_OK;
  int status = lm__cuda_scratch("count_nonfinite", &counter, sizeof found);
  if (status == LM_OK)
    status = lm__cuda_launched("count_nonfinite",
                               cudaMemsetAsync(counter, 0, sizeof found, lm__cuda_stream()));
  if (status == LM_OK && (a->dtype == LM_F16 || !lm__is_contiguous(a))) {
    status = lm_tensor_new(&copy, LM_F32, LM_CUDA, a->ndim, a->shape);
    if (status == LM_OK) status = lm__copy_cuda(copy, a);
    a = copy;
  }
  if (status == LM_OK)
    status = lm__by_float(a->dtype, [&](auto zero) {
      return start_count("count_nonfinite", a, zero, static_cast<unsigned *>(counter));
    });
  if (status == LM_OK) status = lm__cuda_read("count_nonfinite", &found, counter, sizeof found);
  if (status == LM_OK) *out = (double)found;
  lm__cuda_scratch_free(counter);
  lm_tensor_free(copy);
  return status;
}
