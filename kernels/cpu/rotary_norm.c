/* With R the rotation of rotary.c and s r the factor of rms_norm.c, r = 1 / sqrt(mean(x^2) + eps):
 *   y = s r R x,  dx = s r (R' dy - x r^2 mean(x R' dy)).
 * A rotation keeps the norm, so r comes from x itself and neither R x nor its gradient is ever
 * stored. One pass over whole heads; heads that are too long for it take the two ops. */
#include <math.h>

#include "cpu/kernel.h"

enum { LONGEST = 1024 }; /* elements of the heads that are dealt with at once */

typedef struct rotary_norm_args {
  char *out;
  const char *x, *grad; /* grad NULL: forward */
  const float *cos_table, *sin_table;
  int out_dtype, x_dtype, grad_dtype;
  int64_t steps, heads, half;
  float eps, scale;
} rotary_norm_args;

static inline void forward_head(float *restrict y, const float *restrict x, const float *restrict c,
                                const float *restrict s, int64_t half, float eps, float scale) {
  float squares = 0;
  _Pragma("omp simd reduction(+:squares)") for (int64_t i = 0; i < 2 * half; i++) squares +=
      x[i] * x[i];
  const float r = scale / sqrtf(squares / (float)(2 * half) + eps);
  LM_SIMD
  for (int64_t i = 0; i < half; i++) {
    const float u = r * x[i], v = r * x[i + half];
    y[i] = u * c[i] + v * s[i];
    y[i + half] = v * c[i] - u * s[i];
  }
}

/* dx may be dy. */
static inline void backward_head(float *dx, const float *dy, const float *restrict x,
                                 const float *restrict c, const float *restrict s, int64_t half,
                                 float eps, float scale) {
  const float inverse = 1.0f / (float)(2 * half);
  float squares = 0, products = 0;
  _Pragma("omp simd reduction(+:squares,products)") for (int64_t i = 0; i < half; i++) {
    const float p = dy[i], q = dy[i + half], u = x[i], v = x[i + half];
    squares += u * u + v * v;
    products += (p * c[i] - q * s[i]) * u + (q * c[i] + p * s[i]) * v;
  }
  const float r = 1.0f / sqrtf(squares * inverse + eps), a = scale * r;
  const float b = a * r * r * products * inverse;
  LM_SIMD
  for (int64_t i = 0; i < half; i++) {
    const float p = dy[i], q = dy[i + half];
    dx[i] = a * (p * c[i] - q * s[i]) - b * x[i];
    dx[i + half] = a * (q * c[i] + p * s[i]) - b * x[i + half];
  }
}

/* Range over (b, t): as many whole heads at a time as fit. */
static void range_heads(int64_t begin, int64_t end, void *arg) {
  const rotary_norm_args *a = arg;
  const int64_t dim = 2 * a->half, together = LONGEST / dim, x_size = lm_dtype_size(a->x_dtype);
  const int64_t out_size = lm_dtype_size(a->out_dtype), grad_size = lm_dtype_size(a->grad_dtype);
  float in[LONGEST], in_grad[LONGEST], result[LONGEST];
  for (int64_t row = begin; row < end; row++) {
    const float *c = a->cos_table + row % a->steps * a->half;
    const float *s = a->sin_table + row % a->steps * a->half;
    for (int64_t head = 0; head < a->heads; head += together) {
      const int64_t count = a->heads - head < together ? a->heads - head : together;
      const int64_t at = (row * a->heads + head) * dim;
      const float *x = lm__as_f32(in, a->x + at * x_size, a->x_dtype, 1, count * dim);
      const bool direct = a->out_dtype == LM_F32;
      float *y = direct ? (float *)(void *)(a->out + at * out_size) : result;
      if (a->grad) {
        const float *dy =
            lm__as_f32(in_grad, a->grad + at * grad_size, a->grad_dtype, 1, count * dim);
        for (int64_t i = 0; i < count; i++)
          backward_head(y + i * dim, dy + i * dim, x + i * dim, c, s, a->half, a->eps, a->scale);
      } else {
        for (int64_t i = 0; i < count; i++)
          forward_head(y + i * dim, x + i * dim, c, s, a->half, a->eps, a->scale);
      }
      if (!direct) lm__store(a->out + at * out_size, result, a->out_dtype, 1, count * dim);
    }
  }
}

static void run(lm_tensor *out, const lm_tensor *grad, const lm_tensor *x,
                const lm_tensor *cos_table, const lm_tensor *sin_table, float eps, float scale) {
  rotary_norm_args a = {.out = lm__data(out),
                        .x = lm__data(x),
                        .grad = grad ? lm__data(grad) : NULL,
                        .cos_table = lm__data(cos_table),
                        .sin_table = lm__data(sin_table),
                        .out_dtype = out->dtype,
                        .x_dtype = x->dtype,
                        .grad_dtype = grad ? grad->dtype : LM_F32,
                        .steps = x->shape[1],
                        .heads = x->shape[2],
                        .half = x->shape[3] / 2,
                        .eps = eps,
                        .scale = scale};
  if (lm__numel(x) == 0) return;
  lm__parallel_for(x->shape[0] * x->shape[1], LM__GRAIN / (a.heads * a.half * 2) + 1, range_heads,
                   &a);
}

int LM_KERNEL(rotary_norm)(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                           const lm_tensor *sin_table, float eps, float scale) {
  if (x->shape[3] > LONGEST) {
    LM__TRY(LM_KERNEL(rotary)(out, x, cos_table, sin_table, 0));
    return LM_KERNEL(rms_norm)(out, out, eps, scale);
  }
  run(out, NULL, x, cos_table, sin_table, eps, scale);
  return LM_OK;
}

int LM_KERNEL(rotary_norm_backward)(lm_tensor *grad_x, const lm_tensor *grad_out,
                                    const lm_tensor *x, const lm_tensor *cos_table,
                                    const lm_tensor *sin_table, float eps, float scale) {
  if (x->shape[3] <= LONGEST) {
    run(grad_x, grad_out, x, cos_table, sin_table, eps, scale);
    return LM_OK;
  }
  lm_tensor *turned = NULL;
  LM__TRY(lm_tensor_new(&turned, LM_F32, LM_CPU, x->ndim, x->shape));
  int status = LM_KERNEL(rotary)(turned, x, cos_table, sin_table, 0);
  if (status == LM_OK) status = LM_KERNEL(rms_norm_backward)(turned, grad_out, turned, eps, scale);
  if (status == LM_OK) status = LM_KERNEL(rotary)(grad_x, turned, cos_table, sin_table, 1);
  lm_tensor_free(turned);
  return status;
}
