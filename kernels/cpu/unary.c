/* out = op(a), elementwise. */
#include <math.h>

#include "cpu/walk.h"
#include "math/functions.h"

/* Is there an argument that lm_sinf and lm_cosf do not take? */
static bool any_large(const float *a, int64_t n) {
  int any = 0;
  _Pragma("omp simd reduction(|:any)") for (int64_t i = 0; i < n; i++) any |=
      !(fabsf(a[i]) <= LM_TRIG_MAX);
  return any != 0;
}

static void run_unary(const lm__run *run, int64_t n, void *arg) {
  float in[LM__CHUNK], buffer[LM__CHUNK];
  const float *a = lm__as_f32(in, run->p[1], run->dtype[1], run->stride[1], n);
  float *y = lm__result(run, buffer);
  int op = *(const int *)arg;
  if ((op == LM_SIN || op == LM_COS) && any_large(a, n)) {
    for (int64_t i = 0; i < n; i++) y[i] = op == LM_SIN ? sinf(a[i]) : cosf(a[i]);
    op = LM_UNARY_OPS;
  }
  switch (op) {
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
    OP(LM_LOG, lm_logf(x))
    OP(LM_SIN, lm_sinf(x))
    OP(LM_COS, lm_cosf(x))
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
