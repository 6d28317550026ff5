/* out = a op b, a op value, y += alpha x; elementwise and broadcast: the formulas of
 * kernels/cpu/binary.c. */
#include "cuda/walk.cuh"

namespace {
LM_DEVICE float apply(int op, float x, float y) {
  switch (op) {
    case LM_ADD:
      return x + y;
    case LM_SUB:
      return x - y;
    case LM_MUL:
      return x * y;
    case LM_DIV:
      return x / y;
    case LM_POW:
      return powf(x, y);
    case LM_MAXIMUM:
      return x > y || x != x ? x : y;
    case LM_MINIMUM:
      return x < y || x != x ? x : y;
    case LM_EQ:
      return x == y ? 1.0f : 0.0f;
    case LM_NE:
      return x != y ? 1.0f : 0.0f;
    case LM_LT:
      return x < y ? 1.0f : 0.0f;
    case LM_LE:
      return x <= y ? 1.0f : 0.0f;
    case LM_GT:
      return x > y ? 1.0f : 0.0f;
    case LM_GE:
      return x >= y ? 1.0f : 0.0f;
    case LM_TANH_GRAD:
      return y * (1.0f - x * x);
    case LM_SIGMOID_GRAD:
      return y * x * (1.0f - x);
    case LM_RELU_GRAD:
      return x > 0 ? y : 0.0f;
    default: /* LM_RELU2_GRAD */
      return x > 0 ? 2.0f * x * y : 0.0f;
  }
}

struct binary {
  int op;
  __device__ float operator()(int64_t, const float *in) const { return apply(op, in[1], in[2]); }
};
struct binary_scalar {
  int op, reversed;
  float value;
  __device__ float operator()(int64_t, const float *in) const {
    return reversed ? apply(op, value, in[1]) : apply(op, in[1], value);
  }
};
struct axpy {
  float alpha;
  __device__ float operator()(int64_t, const float *in) const { return in[0] + alpha * in[1]; }
};
} // namespace

extern "C" int lm__binary_cuda(lm_tensor *out, int op, const lm_tensor *a, const lm_tensor *b) {
  const lm_tensor *const tensors[] = {out, a, b};
  return lm__map<3, false>("binary", tensors, binary{op});
}

extern "C" int lm__binary_scalar_cuda(lm_tensor *out, int op, const lm_tensor *a, float value,
                                      int reversed) {
  const lm_tensor *const tensors[] = {out, a};
  return lm__map<2, false>("binary_scalar", tensors, binary_scalar{op, reversed, value});
}

extern "C" int lm__axpy_cuda(lm_tensor *y, float alpha, const lm_tensor *x) {
  const lm_tensor *const tensors[] = {y, x};
  return lm__map<2, true>("axpy", tensors, axpy{alpha});
}
