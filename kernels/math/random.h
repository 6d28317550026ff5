/* Numbers from Philox's words, compiled into CPU and CUDA kernels alike: element i of a tensor is
 * number p = position + i of (seed, stream), word p mod 4 of block p / 4, whoever computes it.
 *   uniform   low + (high - low) w, w = the word's upper 24 bits / 2^24
 *   integers  low + floor((high - low) word / 2^32)
 *   normal    words in pairs (a, b): r = sqrt(-2 ln u), u = (a + 1/2) / 2^32, t = 2 pi b / 2^32;
 *             mean + std r cos t for the even number, mean + std r sin t for the odd one
 *             (Box & Muller 1958)
 * Files that use it are compiled without fused multiply-adds, so that all agree to the last bit. */
#ifndef LM_KERNELS_MATH_RANDOM_H
#define LM_KERNELS_MATH_RANDOM_H

#include "lumuon.h"
#include "math/functions.h"
#include "math/philox.h"

/* Largest value of a float dtype below high (low, if there is none): rounding must not reach high.
 */
static inline float lm_random_most(int dtype, double low, double high) {
  const float least = (float)low;
  const uint32_t step = dtype == LM_F32 ? 1 : dtype == LM_BF16 ? 1u << 16 : 1u << 13;
  float most = lm_bits_f32(lm_f32_bits((float)high) / step * step);
  if (most == 0) most = dtype == LM_F16 ? -0x1p-24f : lm_bits_f32(0x80000000u + step);
  while ((double)most >= high && most > least)
    most = lm_bits_f32(lm_f32_bits(most) + (most > 0 ? 0u - step : step));
  return most > least ? most : least;
}

/* step: (high - low) / 2^24. */
LM_MATH float lm_random_uniform_f32(uint32_t word, double low, double step, float most) {
  const float value = (float)(low + (double)(int32_t)(word >> 8) * step);
  return value > most ? most : value;
}

/* width: high - low. */
LM_MATH int64_t lm_random_whole(uint32_t word, int64_t low, uint64_t width) {
  return low + (int64_t)(word * width >> 32);
}

LM_MATH void lm_random_normal_pair(float *even, float *odd, uint32_t a, uint32_t b, float mean,
                                   float std) {
  const float u = ((float)a + 0.5f) * 0x1p-32f;
  const float angle = (float)(int32_t)(b >> 8) * 0x1.921fb6p-22f; /* 2 pi / 2^24 */
  const float r = std * sqrtf(-2.0f * lm_logf(u));
  *even = mean + r * lm_cosf(angle);
  *odd = mean + r * lm_sinf(angle);
}

#endif
