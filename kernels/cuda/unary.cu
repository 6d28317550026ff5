/* out = op(a), elementwise: the formulas of kernels/cpu/unary.c. */
#include "cuda/walk.cuh"
#include "math/functions.h"

namespace {
struct unary {
  int op;
  __device__ float operator()(int64_t, const float *in) const {
    const float x = in[1];
    switch (op) {
      case LM_NEG:
        return -x;
      case LM_ABS:
        return fabsf(x);
      case LM_SIGN:
        return x > 0 ? 1.0f : x < 0 ? -1.0f : x;
      case LM_SQUARE:
        return x * x;
      case LM_SQRT:
        return sqrtf(x);
      case LM_RSQRT:
        return 1.0f / sqrtf(x);
      case LM_RECIPROCAL:
        return 1.0f / x;
      case LM_EXP:
        return lm_expf(x);
      case LM_LOG:
        return lm_logf(x);
      case LM_SIN:
        return fabsf(x) <= LM_TRIG_MAX ? lm_sinf(x) : sinf(x);
      case LM_COS:
        return fabsf(x) <= LM_TRIG_MAX ? lm_cosf(x) : cosf(x);
      case LM_TANH:
        return lm_tanhf(x);
      case LM_SIGMOID:
        return lm_sigmoidf(x);
      case LM_RELU:
        return x < 0 ? 0.0f : x;
      case LM_RELU2:
        return x < 0 ? 0.0f : x * x;
      case LM_FLOOR:
        return floorf(x);
      case LM_CEIL:
        return ceilf(x);
      case LM_ROUND:
        return rintf(x);
      default: /* LM_ISFINITE */
        return fabsf(x) <= 3.40282347e38f ? 1.0f : 0.0f;
    }
  }
};
} // namespace

extern "C" int lm__unary_cuda(lm_tensor *out, int op, const lm_tensor *a) {
  const lm_tensor *const tensors[] = {out, a};
  return lm__map<2, false>("unary", tensors, unary{op});
}
