/* dst = value, start + i step, or src cast to dst's dtype. */
#include "cpu/walk.h"

static void run_fill(const lm__run *run, int64_t n, void *arg) {
  const double value = *(const double *)arg;
  if (run->dtype[0] == LM_I32) { /* f32 does not hold every int32 */
    int32_t *p = (int32_t *)(void *)run->p[0];
    for (int64_t i = 0; i < n; i++) p[i * run->stride[0]] = (int32_t)value;
    return;
  }
  float buffer[LM__CHUNK];
  for (int64_t i = 0; i < n; i++) buffer[i] = (float)value;
  lm__store(run->p[0], buffer, run->dtype[0], run->stride[0], n);
}

int LM_KERNEL(fill)(lm_tensor *t, double value) {
  lm__walk_all(1, (const lm_tensor *const[]){t}, run_fill, &value);
  return LM_OK;
}

typedef struct arange_args {
  lm_tensor *t;
  double start, step;
} arange_args;

static void range_arange(int64_t begin, int64_t end, void *arg) {
  const arange_args *a = arg;
  const lm_tensor *t = a->t;
  const int size = lm_dtype_size(t->dtype);
  for (int64_t i = begin; i < end; i++) {
    const double value = a->start + (double)i * a->step;
    char *p = (char *)lm__data(t) + i * t->strides[0] * size;
    const float f = (float)value;
    if (t->dtype == LM_I32)
      *(int32_t *)(void *)p = (int32_t)value;
    else
      lm__store(p, &f, t->dtype, 1, 1);
  }
}

int LM_KERNEL(arange)(lm_tensor *t, double start, double step) {
  arange_args a = {t, start, step};
  lm__parallel_for(t->shape[0], LM__GRAIN, range_arange, &a);
  return LM_OK;
}

static void run_copy(const lm__run *run, int64_t n, void *arg) {
  float buffer[LM__CHUNK];
  (void)arg;
  if (run->dtype[0] == run->dtype[1]) { /* the bits as they are */
    switch (lm_dtype_size(run->dtype[0])) {
#define SAME(bytes, type)                                                                          \
  case bytes: {                                                                                    \
    type *d = (type *)(void *)run->p[0];                                                           \
    const type *s = (const type *)(const void *)run->p[1];                                         \
    const int64_t ds = run->stride[0], ss = run->stride[1];                                        \
    if (ds == 1 && ss == 1)                                                                        \
      memmove(d, s, (size_t)n * sizeof(type));                                                     \
    else                                                                                           \
      for (int64_t i = 0; i < n; i++) d[i * ds] = s[i * ss];                                       \
  } break;
      SAME(1, uint8_t)
      SAME(2, uint16_t)
      SAME(4, uint32_t)
#undef SAME
      default:
        break;
    }
    return;
  }
  if (run->dtype[0] == LM_I32 && !lm__is_float(run->dtype[1])) { /* u8, u16 to i32 */
    int32_t *d = (int32_t *)(void *)run->p[0];
    for (int64_t i = 0; i < n; i++)
      d[i * run->stride[0]] = run->dtype[1] == LM_U8
                                  ? ((const uint8_t *)run->p[1])[i * run->stride[1]]
                                  : ((const uint16_t *)(const void *)run->p[1])[i * run->stride[1]];
    return;
  }
  const float *s = lm__as_f32(buffer, run->p[1], run->dtype[1], run->stride[1], n);
  lm__store(run->p[0], s, run->dtype[0], run->stride[0], n);
}

typedef struct bulk_args {
  char *dst;
  const char *src;
} bulk_args;

static void range_bulk(int64_t begin, int64_t end, void *arg) {
  const bulk_args *a = arg;
  memmove(a->dst + begin, a->src + begin, (size_t)(end - begin));
}

int LM_KERNEL(copy)(lm_tensor *dst, const lm_tensor *src) {
  if (dst->dtype == src->dtype && lm__same_shape(dst, src) && lm__is_contiguous(dst) &&
      lm__is_contiguous(
          src)) { /* long runs: past the cache, memmove need not read what it writes */
    bulk_args a = {lm__data(dst), lm__data(src)};
    lm__parallel_for(lm__numel(dst) * lm_dtype_size(dst->dtype), LM__GRAIN * 4, range_bulk, &a);
    return LM_OK;
  }
  lm__walk_all(2, (const lm_tensor *const[]){dst, src}, run_copy, NULL);
  return LM_OK;
}
