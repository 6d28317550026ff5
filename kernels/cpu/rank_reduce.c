/* out[i] = op over ranks 0..n-1 of sources[rank][i], in rank order, f64 accumulators, rounded once:
 * a function of the data alone, so the same bits on every rank and whatever the transport. Runs on
 * the communication thread, beside the arithmetic: no threads. */
#include <math.h>

#include "cpu/kernel.h"

enum { BLOCK = 512 };

static double combine(int op, double a, double b) {
  if (op == LM_DIST_MAX) return isnan(a) || a > b ? a : b;
  if (op == LM_DIST_MIN) return isnan(a) || a < b ? a : b;
  return a + b;
}

static void accumulate(double *acc, const double *x, int n, int op) {
  if (op == LM_DIST_SUM || op == LM_DIST_MEAN) {
    LM_SIMD
    for (int i = 0; i < n; i++) acc[i] += x[i];
  } else {
    for (int i = 0; i < n; i++) acc[i] = combine(op, acc[i], x[i]);
  }
}

static void load(double *x, int dtype, const void *source, int64_t at, int n) {
  if (dtype == LM_F32) {
    const float *s = (const float *)source + at;
    for (int i = 0; i < n; i++) x[i] = (double)s[i];
  } else if (dtype == LM_BF16) {
    const uint16_t *s = (const uint16_t *)source + at;
    for (int i = 0; i < n; i++) x[i] = (double)lm_bf16_to_f32(s[i]);
  } else { /* i32: exact in f64, sums up to 2^53 */
    const int32_t *s = (const int32_t *)source + at;
    for (int i = 0; i < n; i++) x[i] = (double)s[i];
  }
}

static void store(void *out, int dtype, int64_t at, const double *x, int n) {
  if (dtype == LM_F32) {
    float *o = (float *)out + at;
    for (int i = 0; i < n; i++) o[i] = (float)x[i];
  } else if (dtype == LM_BF16) {
    uint16_t *o = (uint16_t *)out + at;
    for (int i = 0; i < n; i++) o[i] = lm_f32_to_bf16((float)x[i]);
  } else { /* wraps, as a sum of i32 does */
    int32_t *o = (int32_t *)out + at;
    for (int i = 0; i < n; i++) o[i] = (int32_t)(uint32_t)(int64_t)x[i];
  }
}

/* Two ranks and f32, the most frequent: without the detour through arrays. */
static void pair(const float *a, const float *b, float *out, int64_t count, double factor) {
  LM_SIMD
  for (int64_t i = 0; i < count; i++) out[i] = (float)(((double)a[i] + (double)b[i]) * factor);
}

void LM_KERNEL(rank_reduce)(int dtype, int op, int n, const void *const *sources, void *out,
                            int64_t count) {
  double acc[BLOCK], x[BLOCK];
  if (n == 2 && dtype == LM_F32 && (op == LM_DIST_SUM || op == LM_DIST_MEAN)) {
    pair(sources[0], sources[1], out, count, op == LM_DIST_MEAN ? 0.5 : 1);
    return;
  }
  for (int64_t at = 0; at < count; at += BLOCK) {
    const int size = (int)(count - at < BLOCK ? count - at : BLOCK);
    load(acc, dtype, sources[0], at, size);
    for (int s = 1; s < n; s++) {
      load(x, dtype, sources[s], at, size);
      accumulate(acc, x, size, op);
    }
    if (op == LM_DIST_MEAN)
      for (int i = 0; i < size; i++) acc[i] /= n;
    store(out, dtype, at, acc, size);
  }
}
