/* out = a op b, a op value, y += alpha x; elementwise and broadcast. */
#include <math.h>

#include "cpu/walk.h"

/* One list serves tensor-tensor and tensor-scalar forms. */
#define LM__BINARY_OPS                                                                             \
  OP(LM_ADD, x + y)                                                                                \
  OP(LM_SUB, x - y)                                                                                \
  OP(LM_MUL, x *y)                                                                                 \
  OP(LM_DIV, x / y)                                                                                \
  OP(LM_POW, powf(x, y))                                                                           \
  OP(LM_MAXIMUM, x > y || x != x ? x : y)                                                          \
  OP(LM_MINIMUM, x < y || x != x ? x : y)                                                          \
  OP(LM_EQ, x == y ? 1.0f : 0.0f)                                                                  \
  OP(LM_NE, x != y ? 1.0f : 0.0f)                                                                  \
  OP(LM_LT, x < y ? 1.0f : 0.0f)                                                                   \
  OP(LM_LE, x <= y ? 1.0f : 0.0f)                                                                  \
  OP(LM_GT, x > y ? 1.0f : 0.0f)                                                                   \
  OP(LM_GE, x >= y ? 1.0f : 0.0f)                                                                  \
  OP(LM_TANH_GRAD, y *(1.0f - x * x))                                                              \
  OP(LM_SIGMOID_GRAD, y *x *(1.0f - x))                                                            \
  OP(LM_RELU_GRAD, x > 0 ? y : 0.0f)                                                               \
  OP(LM_RELU2_GRAD, x > 0 ? 2.0f * x * y : 0.0f)

static void run_binary(const lm__run *run, int64_t n, void *arg) {
  float in_a[LM__CHUNK], in_b[LM__CHUNK], buffer[LM__CHUNK];
  const float *a = lm__as_f32(in_a, run->p[1], run->dtype[1], run->stride[1], n);
  const float *b = lm__as_f32(in_b, run->p[2], run->dtype[2], run->stride[2], n);
  float *out = lm__result(run, buffer);
  switch (*(const int *)arg) {
#define OP(tag, expression)                                                                        \
  case tag:                                                                                        \
    LM_SIMD                                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
      const float x = a[i], y = b[i];                                                              \
      out[i] = (expression);                                                                       \
    }                                                                                              \
    break;
    LM__BINARY_OPS
#undef OP
    default:
      break;
  }
  lm__put(run, out, buffer, n);
}

int LM_KERNEL(binary)(lm_tensor *out, int op, const lm_tensor *a, const lm_tensor *b) {
  lm__walk_all(3, (const lm_tensor *const[]){out, a, b}, run_binary, &op);
  return LM_OK;
}

typedef struct scalar_args {
  int op, reversed;
  float value;
} scalar_args;

static void run_scalar(const lm__run *run, int64_t n, void *arg) {
  const scalar_args *s = arg;
  float in[LM__CHUNK], buffer[LM__CHUNK];
  const float *a = lm__as_f32(in, run->p[1], run->dtype[1], run->stride[1], n), value = s->value;
  float *out = lm__result(run, buffer);
  switch (s->op * 2 + (s->reversed ? 1 : 0)) {
#define OP(tag, expression)                                                                        \
  case (tag)*2:                                                                                    \
    LM_SIMD                                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
      const float x = a[i], y = value;                                                             \
      out[i] = (expression);                                                                       \
    }                                                                                              \
    break;                                                                                         \
  case (tag)*2 + 1:                                                                                \
    LM_SIMD                                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
      const float x = value, y = a[i];                                                             \
      out[i] = (expression);                                                                       \
    }                                                                                              \
    break;
    LM__BINARY_OPS
#undef OP
    default:
      break;
  }
  lm__put(run, out, buffer, n);
}

int LM_KERNEL(binary_scalar)(lm_tensor *out, int op, const lm_tensor *a, float value,
                             int reversed) {
  scalar_args s = {op, reversed, value};
  lm__walk_all(2, (const lm_tensor *const[]){out, a}, run_scalar, &s);
  return LM_OK;
}

static void run_axpy(const lm__run *run, int64_t n, void *arg) {
  float in_y[LM__CHUNK], in_x[LM__CHUNK], buffer[LM__CHUNK];
  const float alpha = *(const float *)arg;
  const float *y = lm__as_f32(in_y, run->p[0], run->dtype[0], run->stride[0], n);
  const float *x = lm__as_f32(in_x, run->p[1], run->dtype[1], run->stride[1], n);
  float *out = lm__result(run, buffer);
  LM_SIMD
  for (int64_t i = 0; i < n; i++) out[i] = y[i] + alpha * x[i];
  lm__put(run, out, buffer, n);
}

int LM_KERNEL(axpy)(lm_tensor *y, float alpha, const lm_tensor *x) {
  lm__walk_all(2, (const lm_tensor *const[]){y, x}, run_axpy, &alpha);
  return LM_OK;
}
