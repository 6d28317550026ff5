/* y = s r x,  r = 1 / sqrt(mean(x^2) + eps), over rows of the last dim;
 * dx = s r (dy - x r^2 mean(dy x)). */
#include <math.h>

#include "cpu/kernel.h"

typedef struct norm_args {
  char *out;
  const char *x, *grad; /* grad NULL: forward */
  int out_dtype, x_dtype, grad_dtype;
  int64_t out_size, x_size, grad_size; /* bytes an element */
  int64_t columns;
  float eps, scale, inverse; /* 1 / columns */
} norm_args;

static inline float square_sum(const float *restrict x, int64_t n) {
  float sum = 0;
  _Pragma("omp simd reduction(+:sum)") for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static inline float product_sum(const float *restrict x, const float *restrict y, int64_t n) {
  float sum = 0;
  _Pragma("omp simd reduction(+:sum)") for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

/* One row: its sums over chunks, then the result over the chunks again, still in cache. */
static void norm_row(const norm_args *a, int64_t row) {
  const int64_t c = a->columns, x_size = a->x_size, out_size = a->out_size;
  const int64_t grad_size = a->grad_size;
  const char *x = a->x + row * c * x_size, *grad = a->grad + row * c * grad_size;
  char *out = a->out + row * c * out_size;
  float x_buffer[LM__CHUNK], grad_buffer[LM__CHUNK], result[LM__CHUNK];
  double squares = 0, products = 0;
  for (int64_t at = 0; at < c; at += LM__CHUNK) {
    const int64_t n = c - at < LM__CHUNK ? c - at : LM__CHUNK;
    const float *v = lm__as_f32(x_buffer, x + at * x_size, a->x_dtype, 1, n);
    squares += square_sum(v, n);
    if (a->grad)
      products +=
          product_sum(v, lm__as_f32(grad_buffer, grad + at * grad_size, a->grad_dtype, 1, n), n);
  }
  const float r = 1.0f / sqrtf((float)squares * a->inverse + a->eps), s = a->scale * r;
  const float t = s * r * r * (float)products * a->inverse;
  for (int64_t at = 0; at < c; at += LM__CHUNK) {
    const int64_t n = c - at < LM__CHUNK ? c - at : LM__CHUNK;
    const float *v = lm__as_f32(x_buffer, x + at * x_size, a->x_dtype, 1, n);
    float *y = a->out_dtype == LM_F32 ? (float *)(void *)(out + at * out_size) : result;
    if (a->grad) {
      const float *g = lm__as_f32(grad_buffer, grad + at * grad_size, a->grad_dtype, 1, n);
      LM_SIMD
      for (int64_t i = 0; i < n; i++) y[i] = s * g[i] - t * v[i];
    } else {
      LM_SIMD
      for (int64_t i = 0; i < n; i++) y[i] = s * v[i];
    }
    if (y == result) lm__store(out + at * out_size, result, a->out_dtype, 1, n);
  }
}

static void range_norm(int64_t begin, int64_t end, void *arg) {
  for (int64_t row = begin; row < end; row++) norm_row(arg, row);
}

int LM_KERNEL(rms_norm)(lm_tensor *out, const lm_tensor *x, float eps, float scale) {
  const int64_t c = x->shape[x->ndim - 1];
  norm_args a = {.out = lm__data(out),
                 .x = lm__data(x),
                 .out_dtype = out->dtype,
                 .x_dtype = x->dtype,
                 .out_size = lm_dtype_size(out->dtype),
                 .x_size = lm_dtype_size(x->dtype),
                 .columns = c,
                 .eps = eps,
                 .scale = scale,
                 .inverse = 1.0f / (float)c};
  if (c > 0) lm__parallel_for(lm__numel(x) / c, LM__GRAIN / c + 1, range_norm, &a);
  return LM_OK;
}

int LM_KERNEL(rms_norm_backward)(lm_tensor *grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                                 float eps, float scale) {
  const int64_t c = x->shape[x->ndim - 1];
  norm_args a = {.out = lm__data(grad_x),
                 .x = lm__data(x),
                 .grad = lm__data(grad_out),
                 .out_dtype = grad_x->dtype,
                 .x_dtype = x->dtype,
                 .out_size = lm_dtype_size(grad_x->dtype),
                 .x_size = lm_dtype_size(x->dtype),
                 .grad_dtype = grad_out->dtype,
                 .grad_size = lm_dtype_size(grad_out->dtype),
                 .columns = c,
                 .eps = eps,
                 .scale = scale,
                 .inverse = 1.0f / (float)c};
  if (c > 0) lm__parallel_for(lm__numel(x) / c, LM__GRAIN / c + 1, range_norm, &a);
  return LM_OK;
}
