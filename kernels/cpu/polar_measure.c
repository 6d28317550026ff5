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
    const uint32_t hash = (uint32_t)(i + 1) * 2654435761u;
    x[i] = (float)(hash >> 8) / 16777216.0f - 0.5f;
  }
}

/* As lm__measure_fn says. A matrix a thread where a group of them would be done so. */
double LM_KERNEL(muon_measure)(int64_t rows, int64_t cols, int precision, int path, int steps) {
  const int64_t smaller = rows < cols ? rows : cols;
  const double work = (double)smaller * (double)rows * (double)cols;
  const int64_t count = work < 5e8 ? lm_threads() : 1, shape[3] = {count, rows, cols};
  lm_tensor *x = NULL;
  lm_polar_args args = {.ns_steps = steps, .precision = precision, .norm_scale = 1.02};
  double seconds = -1;
  for (int i = 0; i < steps; i++) { /* 1.5, -0.5: tame for any input */
    args.coefficients[3 * i] = 1.5;
    args.coefficients[3 * i + 1] = -0.5;
  }
  if (lm_tensor_new(&x, LM_F32, LM_CPU, 3, shape) == LM_OK) {
    lm__parallel_for(count * rows * cols, LM__GRAIN, range_noise, lm__data(x));
    const double start = now();
    if (LM_KERNEL(polar_on_path)(x, x, &args, path) == LM_OK)
      seconds = (now() - start) / (double)count;
  }
  lm_tensor_free(x);
  return seconds;
}
