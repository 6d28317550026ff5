/* The largest of a row: a float maximum as a reduction is not vectorised by every compiler (NaN),
 * so the lanes are written out. */
#ifndef LM_KERNELS_CPU_ROW_MAX_H
#define LM_KERNELS_CPU_ROW_MAX_H

#include "cpu/kernel.h"

/* max(most, x[0], ..., x[n - 1]); NaNs are passed over. */
static inline float lm__row_max(float most, const float *x, int64_t n) {
  enum { LANES = 32 };
  float lane[LANES];
  int64_t i = 0;
  if (n >= LANES) {
    for (int l = 0; l < LANES; l++) lane[l] = most;
    for (; i + LANES <= n; i += LANES) {
      LM_SIMD
      for (int l = 0; l < LANES; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    }
    for (int l = 0; l < LANES; l++) most = lane[l] > most ? lane[l] : most;
  }
  for (; i < n; i++) most = x[i] > most ? x[i] : most;
  return most;
}

#endif
