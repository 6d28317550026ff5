/* How long a path of Polar Express takes: what engine/backend/tuning.c asks before it chooses. */
#include <time.h>

#include "cpu/polar.h"

static double now(void) {
  struct timespec t;
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void range_noise(int64_t begin, int64_t end, void *arg) {
  float *x = arg;
  for (int64_t i = begin; i < end; i++) {
    uint32_t hash = (uint32_t)(i + 1) * 2654435761u;
    hash = (hash ^ hash >> 15) * 2246822519u;
    x[i] = (float)((hash ^ hash >> 13) >> 8) / 16777216.0f - 0.5f;
  }
}

/* As lm__measure_fn says. A matrix a thread where a group of them would be done so. */
double LM_KERNEL(muon_measure)(int64_t asked, int64_t rows, int64_t cols, int precision, int path,
                               int steps) {
  (void)asked;
  const int64_t smaller = rows < cols ? rows : cols;
  const double work = (double)smaller * (double)rows * (double)cols;
  const int64_t count = work < 5e8 ? lm_threads() : 1, shape[3] = {count, rows, cols};
  lm_tensor *x = NULL;
  lm_polar_args args = {.ns_steps = steps, .precision = precision, .norm_scale = 1.02};
  double seconds = -1;
  for (int i = 0; i < steps; i++) { /* Newton-Schulz: tame for any input */
    static const double abc[3] = {1.875, -1.25, 0.375};
    memcpy(args.coefficients + (ptrdiff_t)3 * i, abc, sizeof abc);
  }
  if (lm_tensor_new(&x, LM_F32, LM_CPU, 3, shape) == LM_OK) {
    lm__parallel_for(count * rows * cols, LM__GRAIN, range_noise, lm__data(x));
    const double start = now();
    if (LM_KERNEL(polar_on_path)(x, x, &args, path, true) == LM_OK)
      seconds = (now() - start) / (double)count;
  }
  lm_tensor_free(x);
  return seconds;
}
