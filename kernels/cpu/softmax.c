/* y = exp(x - max x) / sum exp(x - max x), over rows of the last dim. */
#include <math.h>

#include "cpu/row_max.h"
#include "math/functions.h"

typedef struct softmax_args {
  char *out;
  const char *x;
  int out_dtype, x_dtype;
  int64_t columns;
} softmax_args;

static void softmax_row(const softmax_args *a, int64_t row) {
  const int64_t c = a->columns, x_size = lm_dtype_size(a->x_dtype);
  const int64_t out_size = lm_dtype_size(a->out_dtype);
  const char *x = a->x + row * c * x_size;
  char *out = a->out + row * c * out_size;
  float in[LM__CHUNK], result[LM__CHUNK], most = -INFINITY;
  double sum = 0;
  for (int64_t at = 0; at < c; at += LM__CHUNK) {
    const int64_t n = c - at < LM__CHUNK ? c - at : LM__CHUNK;
    const float *v = lm__as_f32(in, x + at * x_size, a->x_dtype, 1, n);
    most = lm__row_max(most, v, n);
  }
  for (int64_t at = 0; at < c; at += LM__CHUNK) {
    const int64_t n = c - at < LM__CHUNK ? c - at : LM__CHUNK;
    const float *v = lm__as_f32(in, x + at * x_size, a->x_dtype, 1, n);
    float part = 0;
    _Pragma("omp simd reduction(+:part)") for (int64_t i = 0; i < n; i++) part +=
        lm_expf(v[i] - most);
    sum += part;
  }
  const float inverse = (float)(1.0 / sum);
  for (int64_t at = 0; at < c; at += LM__CHUNK) {
    const int64_t n = c - at < LM__CHUNK ? c - at : LM__CHUNK;
    const float *v = lm__as_f32(in, x + at * x_size, a->x_dtype, 1, n);
    LM_SIMD
    for (int64_t i = 0; i < n; i++) result[i] = lm_expf(v[i] - most) * inverse;
    lm__store(out + at * out_size, result, a->out_dtype, 1, n);
  }
}

static void range_softmax(int64_t begin, int64_t end, void *arg) {
  for (int64_t row = begin; row < end; row++) softmax_row(arg, row);
}

int LM_KERNEL(softmax)(lm_tensor *out, const lm_tensor *a) {
  const int64_t c = a->shape[a->ndim - 1];
  softmax_args s = {lm__data(out), lm__data(a), out->dtype, a->dtype, c};
  if (c > 0) lm__parallel_for(lm__numel(a) / c, LM__GRAIN / c / 8 + 1, range_softmax, &s);
  return LM_OK;
}
