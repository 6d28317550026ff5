/* t = numbers of a Philox stream: math/random.h says which. */
#include <math.h>

#include "cpu/walk.h"
#include "math/random.h"

typedef struct random_args {
  double low, high; /* or mean, std */
  float most;       /* largest value of the dtype below high */
  uint64_t seed, stream, position;
} random_args;

enum { WORDS = LM__CHUNK + 8 };

/* Words first .. first + n - 1, and those that complete their blocks: word p lies at
 * words[p - first / 4 * 4]. */
static void make_words(uint32_t *restrict words, uint64_t first, int64_t n, const random_args *a) {
  const uint64_t block = first / 4;
  const int64_t blocks = (int64_t)((first % 4 + (uint64_t)n + 3) / 4);
  const uint64_t stream = a->stream, seed = a->seed;
  uint32_t lane[4][WORDS / 4]; /* apart first: the loop then vectorises (and without omp simd) */
  for (int64_t b = 0; b < blocks; b++) {
    uint32_t out[4];
    lm_philox(out, block + (uint64_t)b, stream, seed);
    lane[0][b] = out[0];
    lane[1][b] = out[1];
    lane[2][b] = out[2];
    lane[3][b] = out[3];
  }
  for (int64_t b = 0; b < blocks; b++)
    for (int l = 0; l < 4; l++) words[4 * b + l] = lane[l][b];
}

static void run_uniform(const lm__run *run, int64_t n, void *arg) {
  const random_args *a = arg;
  const uint64_t first = a->position + (uint64_t)run->at;
  uint32_t words[WORDS];
  float buffer[LM__CHUNK];
  make_words(words, first, n, a);
  const uint32_t *w = words + first % 4;
  if (!lm__is_float(run->dtype[0])) { /* exact, which f32 would not be */
    const uint64_t width = (uint64_t)((int64_t)a->high - (int64_t)a->low);
    for (int64_t i = 0; i < n; i++) {
      const int64_t value = lm_random_whole(w[i], (int64_t)a->low, width);
      char *p = run->p[0] + i * run->stride[0] * lm_dtype_size(run->dtype[0]);
      if (run->dtype[0] == LM_I32)
        *(int32_t *)(void *)p = (int32_t)value;
      else if (run->dtype[0] == LM_U16)
        *(uint16_t *)(void *)p = (uint16_t)value;
      else
        *(uint8_t *)p = (uint8_t)value;
    }
    return;
  }
  const double low = a->low, step = (a->high - a->low) * 0x1p-24;
  const float most = a->most;
  float *y = lm__result(run, buffer);
  LM_SIMD
  for (int64_t i = 0; i < n; i++) y[i] = lm_random_uniform_f32(w[i], low, step, most);
  lm__put(run, y, buffer, n);
}

int LM_KERNEL(random_uniform)(lm_tensor *t, double low, double high, uint64_t seed, uint64_t stream,
                              uint64_t position) {
  random_args a = {low, high, (float)high, seed, stream, position};
  if (lm__is_float(t->dtype)) a.most = lm_random_most(t->dtype, low, high);
  lm__walk_all(1, (const lm_tensor *const[]){t}, run_uniform, &a);
  return LM_OK;
}

static void run_normal(const lm__run *run, int64_t n, void *arg) {
  const random_args *a = arg;
  const uint64_t first = a->position + (uint64_t)run->at;
  uint32_t words[WORDS];
  float pairs[WORDS], buffer[LM__CHUNK];
  make_words(words, first, n, a);
  const float mean = (float)a->low, std = (float)a->high;
  LM_SIMD
  for (int64_t j = 0; j < WORDS / 2; j++)
    lm_random_normal_pair(&pairs[2 * j], &pairs[2 * j + 1], words[2 * j], words[2 * j + 1], mean,
                          std);
  float *y = lm__result(run, buffer);
  memcpy(y, pairs + first % 4, (size_t)n * sizeof *y);
  lm__put(run, y, buffer, n);
}

int LM_KERNEL(random_normal)(lm_tensor *t, double mean, double std, uint64_t seed, uint64_t stream,
                             uint64_t position) {
  random_args a = {mean, std, 0, seed, stream, position};
  lm__walk_all(1, (const lm_tensor *const[]){t}, run_normal, &a);
  return LM_OK;
}
