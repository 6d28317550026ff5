/* Numbers of a Philox stream: element i of a tensor is number p = position + i of (seed, stream),
 * word p mod 4 of block p / 4, whoever computes it.
 *   uniform   low + (high - low) w, w = the word's upper 24 bits / 2^24
 *   integers  low + floor((high - low) word / 2^32)
 *   normal    words in pairs (a, b): r = sqrt(-2 ln u), u = (a + 1/2) / 2^32, t = 2 pi b / 2^32;
 *             mean + std r cos t for the even number, mean + std r sin t for the odd one
 *             (Box & Muller 1958)
 */
#include <math.h>

#include "cpu/walk.h"
#include "math/functions.h"
#include "math/philox.h"

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
      const int64_t value = (int64_t)a->low + (int64_t)(w[i] * width >> 32);
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
  for (int64_t i = 0; i < n; i++) {
    const float value = (float)(low + (double)(int32_t)(w[i] >> 8) * step);
    y[i] = value > most ? most : value;
  }
  lm__put(run, y, buffer, n);
}

int LM_KERNEL(random_uniform)(lm_tensor *t, double low, double high, uint64_t seed, uint64_t stream,
                              uint64_t position) {
  random_args a = {low, high, (float)high, seed, stream, position};
  if (lm__is_float(t->dtype)) { /* rounding must not reach high */
    const float least = (float)low;
    const uint32_t step = t->dtype == LM_F32 ? 1 : t->dtype == LM_BF16 ? 1u << 16 : 1u << 13;
    float most = lm_bits_f32(lm_f32_bits((float)high) / step * step);
    if (most == 0) most = t->dtype == LM_F16 ? -0x1p-24f : lm_bits_f32(0x80000000u + step);
    while ((double)most >= high && most > least)
      most = lm_bits_f32(lm_f32_bits(most) + (most > 0 ? -step : step));
    a.most = most > least ? most : least;
  }
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
  for (int64_t j = 0; j < WORDS / 2; j++) {
    const float u = ((float)words[2 * j] + 0.5f) * 0x1p-32f;
    const float angle = (float)(int32_t)(words[2 * j + 1] >> 8) * 0x1.921fb6p-22f; /* 2 pi / 2^24 */
    const float r = std * sqrtf(-2.0f * lm_logf(u));
    pairs[2 * j] = mean + r * lm_cosf(angle);
    pairs[2 * j + 1] = mean + r * lm_sinf(angle);
  }
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
