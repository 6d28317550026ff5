/* out = a x + b y for scalars a and b, which stay on the device;
 * grad_a += sum(grad x), grad_b += sum(grad y), grad_x = a grad, grad_y += b grad. */
#include "cuda/reduce.cuh"
#include "cuda/walk.cuh"

namespace {

enum { BLOCK = 1 << 13 }; /* elements behind one partial sum: f64, added in order */

typedef struct scalar {
  const void *p;
  int dtype;
} scalar;
LM_DEVICE float value_of(const scalar &s) { return lm__load(s.p, s.dtype, 0); }

struct mix {
  scalar a, b;
  __device__ float operator()(int64_t, const float *in) const {
    return value_of(a) * in[1] + value_of(b) * in[2];
  }
};

typedef struct operand {
  void *p; /* NULL: not wanted */
  int dtype;
} operand;

typedef struct backward_args {
  operand grad_x, grad_y, grad, x, y;
  scalar a, b;
  int64_t n;
  double *sums; /* (blocks, 2) */
} backward_args;

LM_GLOBAL backward(backward_args m) {
  const float a = value_of(m.a), b = value_of(m.b);
  const int64_t begin = (int64_t)blockIdx.x * BLOCK;
  const int64_t end = begin + BLOCK < m.n ? begin + BLOCK : m.n;
  double sum_x = 0, sum_y = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += LM_THREADS) {
    const float g = lm__load(m.grad.p, m.grad.dtype, i);
    sum_x += (double)(g * lm__load(m.x.p, m.x.dtype, i));
    sum_y += (double)(g * lm__load(m.y.p, m.y.dtype, i));
    if (m.grad_y.p)
      lm__store(m.grad_y.p, m.grad_y.dtype, i, lm__load(m.grad_y.p, m.grad_y.dtype, i) + b * g);
    if (m.grad_x.p) lm__store(m.grad_x.p, m.grad_x.dtype, i, a * g); /* last: it may be grad */
  }
  sum_x = lm__block_reduce<lm__sum, LM_THREADS>(sum_x, 0.0);
  sum_y = lm__block_reduce<lm__sum, LM_THREADS>(sum_y, 0.0);
  if (threadIdx.x == 0) {
    m.sums[2 * (int64_t)blockIdx.x] = sum_x;
    m.sums[2 * (int64_t)blockIdx.x + 1] = sum_y;
  }
}

LM_GLOBAL add_sums(const double *sums, int64_t blocks, operand grad_a, operand grad_b) {
  double sum_a = 0, sum_b = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += LM_THREADS) {
    sum_a += sums[2 * i];
    sum_b += sums[2 * i + 1];
  }
  sum_a = lm__block_reduce<lm__sum, LM_THREADS>(sum_a, 0.0);
  sum_b = lm__block_reduce<lm__sum, LM_THREADS>(sum_b, 0.0);
  if (threadIdx.x != 0) return;
  if (grad_a.p)
    lm__store(grad_a.p, grad_a.dtype, 0,
              (float)((double)lm__load(grad_a.p, grad_a.dtype, 0) + sum_a));
  if (grad_b.p)
    lm__store(grad_b.p, grad_b.dtype, 0,
              (float)((double)lm__load(grad_b.p, grad_b.dtype, 0) + sum_b));
}

operand of(const lm_tensor *t) {
  return t ? operand{lm__data(t), t->dtype} : operand{nullptr, LM_F32};
}
scalar scalar_of(const lm_tensor *t) { return scalar{lm__data(t), t->dtype}; }
} // namespace

extern "C" int lm__scaled_add_cuda(lm_tensor *out, const lm_tensor *a, const lm_tensor *x,
                                   const lm_tensor *b, const lm_tensor *y) {
  const lm_tensor *const tensors[] = {out, x, y};
  return lm__map<3, false>("scaled_add", tensors, mix{scalar_of(a), scalar_of(b)});
}

extern "C" int lm__scaled_add_backward_cuda(lm_tensor *grad_a, lm_tensor *grad_x, lm_tensor *grad_b,
                                            lm_tensor *grad_y, const lm_tensor *grad_out,
                                            const lm_tensor *a, const lm_tensor *x,
                                            const lm_tensor *b, const lm_tensor *y) {
  const char *op = "scaled_add_backward";
  backward_args m = {};
  void *scratch = nullptr;
  m.grad_x = of(grad_x);
  m.grad_y = of(grad_y);
  m.grad = of(grad_out);
  m.x = of(x);
  m.y = of(y);
  m.a = scalar_of(a);
  m.b = scalar_of(b);
  m.n = lm__numel(x);
  const unsigned blocks = lm__blocks(m.n, BLOCK);
  if (blocks == 0) return LM_OK;
  LM__TRY(lm__cuda_scratch(op, &scratch, (size_t)blocks * 2 * sizeof(double)));
  m.sums = static_cast<double *>(scratch);
  int status = lm__launch({op, blocks, LM_THREADS}, backward, m);
  if (status == LM_OK && (grad_a || grad_b))
    status = lm__launch({op, 1, LM_THREADS}, add_sums, m.sums, blocks, of(grad_a), of(grad_b));
  lm__cuda_scratch_free(scratch);
  return status;
}
