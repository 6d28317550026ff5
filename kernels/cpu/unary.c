/* out = op(a), elementwise. */
#include <math.h>

#include "cpu/walk.h"
#include "math/functions.h"

static void run_unary(const lm__run *run, int64_t n, void *arg) {
  float in[LM__CHUNK], buffer[LM__CHUNK];
  const float *a = lm__as_f32(in, run->p[1], run->dtype[1], run->stride[1], n);
  float *y = lm__result(run, buffer);
  switch (*(const int *)arg) {
#define OP(tag, expression)                                                                        \
  case tag:                                                                                        \
    LM_SIMD                                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
      const float x = a[i];                                                                        \
      y[i] = (expression);                                                                         \
    }                                                                                              \
    break;
    OP(LM_NEG, -x)
    OP(LM_ABS, fabsf(x))
    OP(LM_SIGN, x > 0 ? 1.0f : x < 0 ? -1.0f : x)
    OP(LM_SQUARE, x * x)
    OP(LM_SQRT, sqrtf(x))
    OP(LM_RSQRT, 1.0f / sqrtf(x))
    OP(LM_RECIPROCAL, 1.0f / x)
    OP(LM_EXP, lm_expf(x))
    OP(LM_TANH, lm_tanhf(x))
    OP(LM_SIGMOID, lm_sigmoidf(x))
    OP(LM_RELU, x < 0 ? 0.0f : x)
    OP(LM_RELU2, x < 0 ? 0.0f : x * x)
    OP(LM_FLOOR, floorf(x))
    OP(LM_CEIL, ceilf(x))
    OP(LM_ROUND, rintf(x))
    OP(LM_ISFINITE, fabsf(x) <= 3.40282347e38f ? 1.0f : 0.0f)
    OP(LM_LOG, logf(x))
    OP(LM_SIN, sinf(x))
    OP(LM_COS, cosf(x))
#undef OP
    default:
      break;
  }
  lm__put(run, y, buffer, n);
}

int LM_KERNEL(unary)(lm_tensor *out, int op, const lm_tensor *a) {
  lm__walk_all(2, (const lm_tensor *const[]){out, a}, run_unary, &op);
  return LM_OK;
}
