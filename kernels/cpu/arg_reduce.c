/* out = index of the first largest or smallest element along a dim; a NaN counts as either.
 * count_nonfinite = how many elements have all exponent bits set. */
#include "cpu/walk.h"

typedef struct arg_args {
  lm_tensor *out; /* keepdim form */
  const lm_tensor *a;
  int dim;
  bool largest;
} arg_args;

/* Does x win over best, which stands before it? */
static inline bool wins(float x, float best, bool largest) {
  return (largest ? x > best : x < best) || (x != x && best == best);
}

static int32_t find(const void *p, int dtype, int64_t stride, int64_t n, bool largest) {
  float buffer[LM__CHUNK], best = 0;
  int64_t found = -1;
  if (dtype == LM_I32) { /* f32 does not tell large integers apart */
    const int32_t *v = p;
    for (int64_t i = found = 0; i < n; i++)
      if (largest ? v[i * stride] > v[found * stride] : v[i * stride] < v[found * stride])
        found = i;
    return (int32_t)found;
  }
  for (int64_t at = 0; at < n; at += LM__CHUNK) {
    const int64_t m = n - at < LM__CHUNK ? n - at : LM__CHUNK;
    const float *x =
        lm__as_f32(buffer, (const char *)p + at * stride * lm_dtype_size(dtype), dtype, stride, m);
    if (found < 0) {
      best = x[0];
      found = 0;
    }
    /* Most chunks hold nothing better: ask that first, in a loop that vectorises. */
    int any = 0;
    _Pragma("omp simd reduction(|:any)") for (int64_t i = 0; i < m; i++) any |=
        (largest ? x[i] > best : x[i] < best) | (x[i] != x[i]);
    for (int64_t i = 0; any && i < m; i++)
      if (wins(x[i], best, largest)) {
        best = x[i];
        found = at + i;
      }
  }
  return (int32_t)found;
}

static void range_arg(int64_t begin, int64_t end, void *arg) {
  const arg_args *r = arg;
  const lm_tensor *a = r->a, *out = r->out;
  for (int64_t i = begin; i < end; i++) {
    int64_t rest = i, from = 0, to = 0;
    for (int d = out->ndim - 1; d >= 0; d--) {
      from += rest % out->shape[d] * a->strides[d];
      to += rest % out->shape[d] * out->strides[d];
      rest /= out->shape[d];
    }
    ((int32_t *)lm__data(out))[to] =
        find((const char *)lm__data(a) + from * lm_dtype_size(a->dtype), a->dtype,
             a->strides[r->dim], a->shape[r->dim], r->largest);
  }
}

int LM_KERNEL(arg_reduce)(lm_tensor *out, int op, const lm_tensor *a, int dim) {
  arg_args r = {out, a, dim, op == LM_MAX};
  lm__parallel_for(lm__numel(out), LM__GRAIN / a->shape[dim] + 1, range_arg, &r);
  return LM_OK;
}

static void run_count(const lm__run *run, int64_t n, void *arg) {
  int64_t *total = arg;
  const int64_t stride = run->stride[0];
  int found = 0;
  switch (run->dtype[0]) {
#define COUNT(tag, type, mask)                                                                     \
  case tag: {                                                                                      \
    const type *p = (const type *)(const void *)run->p[0];                                         \
    if (stride == 1) {                                                                             \
      _Pragma("omp simd reduction(+:found)") for (int i = 0; i < (int)n; i++) found +=             \
          (p[i] & (mask)) == (mask);                                                               \
    } else {                                                                                       \
      for (int64_t i = 0; i < n; i++) found += (p[i * stride] & (mask)) == (mask);                 \
    }                                                                                              \
  } break;
    COUNT(LM_F32, uint32_t, 0x7f800000u)
    COUNT(LM_BF16, uint16_t, 0x7f80u)
    COUNT(LM_F16, uint16_t, 0x7c00u)
#undef COUNT
    default:
      break;
  }
  if (found) (void)__atomic_add_fetch(total, found, __ATOMIC_RELAXED);
}

int LM_KERNEL(count_nonfinite)(double *out, const lm_tensor *a) {
  int64_t total = 0;
  if (lm__is_float(a->dtype)) lm__walk_all(1, (const lm_tensor *const[]){a}, run_count, &total);
  *out = (double)total;
  return LM_OK;
}
