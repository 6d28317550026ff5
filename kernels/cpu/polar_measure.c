/* How long a path of Polar Express takes: what engine/backend/tuning.c asks before it chooses.
 *
 * As a step would, but for what lies around the products: random numbers are written straight into
 * the bank, and as many matrices as a step has in work at once are enough. So a measurement takes
 * no more memory than a step of that group on that path. */
#include <math.h>
#include <time.h>

#include "cpu/polar.h"

static const double LARGE = 5e8; /* m^2 n of a matrix of which one, on all threads, tells enough */

static double now(void) {
  struct timespec t;
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct noise {
  const lm__bank *bank;
  const lm__slot *slot;
  int64_t k;
} noise;

/* Rows begin..end of a matrix whose Frobenius norm is about 1: tame for Newton-Schulz. */
static void range_noise(int64_t begin, int64_t end, void *arg) {
  const noise *w = arg;
  const lm__bank *bank = w->bank;
  const int64_t cols = bank->cols;
  const float size = (float)sqrt(12.0 / ((double)bank->rows * (double)cols));
  float block[LM__BLOCK][LM__WIDTH] = {{0}};
  for (int64_t i = begin; i < end; i += LM__BLOCK)
    for (int64_t j = 0; j < cols; j += LM__WIDTH) {
      const int64_t n = cols - j < LM__WIDTH ? cols - j : LM__WIDTH;
      if (n < LM__WIDTH || end - i < LM__BLOCK) memset(block, 0, sizeof block);
      for (int64_t r = i; r < end && r < i + LM__BLOCK; r++) {
        const uint32_t first = (uint32_t)(r * cols + j);
        float *x = block[r - i];
        LM_SIMD
        for (int64_t e = 0; e < n; e++) {
          uint32_t hash = (first + (uint32_t)e + 1) * 2654435761u;
          hash = (hash ^ hash >> 15) * 2246822519u;
          x[e] = size * ((float)((hash ^ hash >> 13) >> 8) / 16777216.0f - 0.5f);
        }
      }
      LM_KERNEL(bank_put)(bank, w->k, w->slot, i, j, n, block[0]);
    }
}

static void put_noise(lm__bank *bank, int64_t k, const lm__slot *slot) {
  noise w = {bank, slot, k};
  lm__parallel_for(bank->rows, lm__bank_grain(bank), range_noise, &w);
}

/* As lm__measure_fn says. */
double LM_KERNEL(muon_measure)(int64_t group, int64_t rows, int64_t cols, int precision, int path,
                               int steps) {
  const double m = (double)(rows < cols ? rows : cols), n = (double)(rows < cols ? cols : rows);
  lm_polar_args args = {.ns_steps = steps, .precision = precision};
  lm__bank bank;
  double seconds = -1;
  for (int i = 0; i < steps; i++) { /* Newton-Schulz */
    static const double abc[3] = {1.875, -1.25, 0.375};
    memcpy(args.coefficients + (ptrdiff_t)3 * i, abc, sizeof abc);
  }
  const int64_t count =
      m * m * n < LARGE ? LM_KERNEL(bank_at_once)(group, rows, cols, &args, path) : 1;
  if (LM_KERNEL(bank_new)(&bank, count, rows, cols, &args, path) != LM_OK) return -1;
  bank.prepare = put_noise;
  bank.alone = count > 1;
  const double start = now();
  if (LM_KERNEL(bank_run)(&bank) == LM_OK) seconds = (now() - start) / (double)count;
  lm__bank_free(&bank);
  return seconds;
}
