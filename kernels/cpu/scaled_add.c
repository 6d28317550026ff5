/* out = a x + b y for scalars a and b;
 * grad_a += sum(grad x), grad_b += sum(grad y), grad_x = a grad, grad_y += b grad. */
#include "cpu/kernel.h"

enum { BLOCK = 1 << 14 }; /* elements behind one partial sum: f32 in chunks, f64 across them */

typedef struct mix_args {
  char *out, *grad_y;
  const char *x, *y, *grad;
  int out_dtype, x_dtype, y_dtype, grad_dtype, grad_y_dtype;
  int64_t n;
  float a, b;
  double *sums; /* (blocks, 2) */
} mix_args;

static float scalar(const lm_tensor *t) {
  float value = 0;
  lm__load(&value, lm__data(t), t->dtype, 1, 1);
  return value;
}

static inline const char *at_element(const char *p, int dtype, int64_t i) {
  return p + i * lm_dtype_size(dtype);
}

static void range_add(int64_t begin, int64_t end, void *arg) {
  const mix_args *m = arg;
  const float a = m->a, b = m->b;
  float in_x[LM__CHUNK], in_y[LM__CHUNK], result[LM__CHUNK];
  for (int64_t at = begin; at < end; at += LM__CHUNK) {
    const int64_t n = end - at < LM__CHUNK ? end - at : LM__CHUNK;
    const float *x = lm__as_f32(in_x, at_element(m->x, m->x_dtype, at), m->x_dtype, 1, n);
    const float *y = lm__as_f32(in_y, at_element(m->y, m->y_dtype, at), m->y_dtype, 1, n);
    void *out = m->out + at * lm_dtype_size(m->out_dtype);
    float *z = m->out_dtype == LM_F32 ? out : result;
    LM_SIMD
    for (int64_t i = 0; i < n; i++) z[i] = a * x[i] + b * y[i];
    if (z == result) lm__store(out, result, m->out_dtype, 1, n);
  }
}

int LM_KERNEL(scaled_add)(lm_tensor *out, const lm_tensor *a, const lm_tensor *x,
                          const lm_tensor *b, const lm_tensor *y) {
  mix_args m = {.out = lm__data(out),
                .x = lm__data(x),
                .y = lm__data(y),
                .out_dtype = out->dtype,
                .x_dtype = x->dtype,
                .y_dtype = y->dtype,
                .a = scalar(a),
                .b = scalar(b)};
  lm__parallel_for(lm__numel(x), LM__GRAIN, range_add, &m);
  return LM_OK;
}

/* One block: everything the chunk of grad is needed for while it is in cache. */
static void backward_block(const mix_args *m, int64_t block) {
  const float a = m->a, b = m->b;
  const int64_t begin = block * BLOCK, end = begin + BLOCK < m->n ? begin + BLOCK : m->n;
  float in_g[LM__CHUNK], in_x[LM__CHUNK], in_y[LM__CHUNK], result[LM__CHUNK];
  double sum_x = 0, sum_y = 0;
  for (int64_t at = begin; at < end; at += LM__CHUNK) {
    const int64_t n = end - at < LM__CHUNK ? end - at : LM__CHUNK;
    const float *g = lm__as_f32(in_g, at_element(m->grad, m->grad_dtype, at), m->grad_dtype, 1, n);
    const float *x = lm__as_f32(in_x, at_element(m->x, m->x_dtype, at), m->x_dtype, 1, n);
    const float *y = lm__as_f32(in_y, at_element(m->y, m->y_dtype, at), m->y_dtype, 1, n);
    float part_x = 0, part_y = 0;
    _Pragma("omp simd reduction(+:part_x,part_y)") for (int64_t i = 0; i < n; i++) {
      part_x += g[i] * x[i];
      part_y += g[i] * y[i];
    }
    sum_x += part_x;
    sum_y += part_y;
    if (m->grad_y) {
      char *p = m->grad_y + at * lm_dtype_size(m->grad_y_dtype);
      float sum[LM__CHUNK];
      const float *old = lm__as_f32(sum, p, m->grad_y_dtype, 1, n);
      float *z = m->grad_y_dtype == LM_F32 ? (float *)(void *)p : sum;
      LM_SIMD
      for (int64_t i = 0; i < n; i++) z[i] = old[i] + b * g[i];
      if (z == sum) lm__store(p, sum, m->grad_y_dtype, 1, n);
    }
    if (m->out) { /* last: it may be grad itself */
      char *p = m->out + at * lm_dtype_size(m->out_dtype);
      float *z = m->out_dtype == LM_F32 ? (float *)(void *)p : result;
      LM_SIMD
      for (int64_t i = 0; i < n; i++) z[i] = a * g[i];
      if (z == result) lm__store(p, result, m->out_dtype, 1, n);
    }
  }
  m->sums[2 * block] = sum_x;
  m->sums[2 * block + 1] = sum_y;
}

static void range_backward(int64_t begin, int64_t end, void *arg) {
  for (int64_t block = begin; block < end; block++) backward_block(arg, block);
}

static void add_to(lm_tensor *t, double value) {
  if (!t) return;
  const float sum = (float)((double)scalar(t) + value);
  lm__store(lm__data(t), &sum, t->dtype, 1, 1);
}

int LM_KERNEL(scaled_add_backward)(lm_tensor *grad_a, lm_tensor *grad_x, lm_tensor *grad_b,
                                   lm_tensor *grad_y, const lm_tensor *grad_out, const lm_tensor *a,
                                   const lm_tensor *x, const lm_tensor *b, const lm_tensor *y) {
  mix_args m = {.out = grad_x ? lm__data(grad_x) : NULL,
                .grad_y = grad_y ? lm__data(grad_y) : NULL,
                .x = lm__data(x),
                .y = lm__data(y),
                .grad = lm__data(grad_out),
                .out_dtype = grad_x ? grad_x->dtype : LM_F32,
                .x_dtype = x->dtype,
                .y_dtype = y->dtype,
                .grad_dtype = grad_out->dtype,
                .grad_y_dtype = grad_y ? grad_y->dtype : LM_F32,
                .n = lm__numel(x),
                .a = scalar(a),
                .b = scalar(b)};
  const int64_t blocks = (m.n + BLOCK - 1) / BLOCK;
  lm__storage *scratch = NULL;
  double sum_x = 0, sum_y = 0;
  LM__TRY(lm__storage_new(&scratch, (size_t)blocks * 2 * sizeof(double), LM_CPU));
  m.sums = scratch->data;
  lm__parallel_for(blocks, 1, range_backward, &m);
  for (int64_t i = 0; i < blocks; i++) {
    sum_x += m.sums[2 * i];
    sum_y += m.sums[2 * i + 1];
  }
  lm__storage_release(scratch);
  add_to(grad_a, sum_x);
  add_to(grad_b, sum_y);
  return LM_OK;
}
