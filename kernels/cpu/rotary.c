/* y1 = x1 cos + x2 sin,  y2 = -x1 sin + x2 cos  (inverse: sin changes sign);
 * x1, x2 the halves of a head's channels, cos and sin of the position. */
#include "cpu/kernel.h"

enum { HALF_CHUNK = LM__CHUNK / 2 };

typedef struct rotary_args {
  char *out;
  const char *x;
  const float *cos_table, *sin_table;
  int out_dtype, x_dtype;
  int64_t steps, heads, half;
  float sign;
} rotary_args;

/* Range over (b, t). */
static void range_rotary(int64_t begin, int64_t end, void *arg) {
  const rotary_args *a = arg;
  const int64_t half = a->half, x_size = lm_dtype_size(a->x_dtype);
  const int64_t out_size = lm_dtype_size(a->out_dtype);
  float in1[HALF_CHUNK], in2[HALF_CHUNK], result1[HALF_CHUNK], result2[HALF_CHUNK];
  for (int64_t row = begin; row < end; row++) {
    const int64_t t = row % a->steps;
    for (int64_t head = row * a->heads; head < (row + 1) * a->heads; head++)
      for (int64_t at = 0; at < half; at += HALF_CHUNK) {
        const int64_t n = half - at < HALF_CHUNK ? half - at : HALF_CHUNK;
        const int64_t first = head * 2 * half + at, second = first + half;
        const float *c = a->cos_table + t * half + at, *s = a->sin_table + t * half + at;
        const float *x1 = lm__as_f32(in1, a->x + first * x_size, a->x_dtype, 1, n);
        const float *x2 = lm__as_f32(in2, a->x + second * x_size, a->x_dtype, 1, n);
        const bool direct = a->out_dtype == LM_F32;
        float *y1 = direct ? (float *)(void *)(a->out + first * out_size) : result1;
        float *y2 = direct ? (float *)(void *)(a->out + second * out_size) : result2;
        LM_SIMD
        for (int64_t i = 0; i < n; i++) {
          const float u = x1[i], v = x2[i], sine = a->sign * s[i];
          y1[i] = u * c[i] + v * sine;
          y2[i] = v * c[i] - u * sine;
        }
        if (direct) continue;
        lm__store(a->out + first * out_size, result1, a->out_dtype, 1, n);
        lm__store(a->out + second * out_size, result2, a->out_dtype, 1, n);
      }
  }
}

int LM_KERNEL(rotary)(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                      const lm_tensor *sin_table, int inverse) {
  rotary_args a = {.out = lm__data(out),
                   .x = lm__data(x),
                   .cos_table = lm__data(cos_table),
                   .sin_table = lm__data(sin_table),
                   .out_dtype = out->dtype,
                   .x_dtype = x->dtype,
                   .steps = x->shape[1],
                   .heads = x->shape[2],
                   .half = x->shape[3] / 2,
                   .sign = inverse ? -1.0f : 1.0f};
  if (lm__numel(x) == 0) return LM_OK;
  lm__parallel_for(x->shape[0] * x->shape[1], LM__GRAIN / (a.heads * a.half * 2) + 1, range_rotary,
                   &a);
  return LM_OK;
}
