/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, 2011):
 * 128 random bits as a function of a 128-bit counter and a 64-bit key, ten rounds of
 *   (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)).
 * Here the key is the seed; the counter is the number of a block of four and the stream. */
#ifndef LM_KERNELS_MATH_PHILOX_H
#define LM_KERNELS_MATH_PHILOX_H

#include "math/float.h"

LM_MATH void lm_philox_round(uint32_t c[4], uint32_t k0, uint32_t k1) {
  const uint64_t p0 = (uint64_t)c[0] * 0xd2511f53u, p1 = (uint64_t)c[2] * 0xcd9e8d57u;
  c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
  c[1] = (uint32_t)p1;
  c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
  c[3] = (uint32_t)p0;
}

LM_MATH void lm_philox(uint32_t c[4], uint64_t block, uint64_t stream, uint64_t seed) {
  const uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  c[0] = (uint32_t)block;
  c[1] = (uint32_t)(block >> 32);
  c[2] = (uint32_t)stream;
  c[3] = (uint32_t)(stream >> 32);
#define LM__ROUND(n) lm_philox_round(c, k0 + (n)*0x9e3779b9u, k1 + (n)*0xbb67ae85u)
  LM__ROUND(0); /* written out: compilers vectorise over blocks only without an inner loop */
  LM__ROUND(1);
  LM__ROUND(2);
  LM__ROUND(3);
  LM__ROUND(4);
  LM__ROUND(5);
  LM__ROUND(6);
  LM__ROUND(7);
  LM__ROUND(8);
  LM__ROUND(9);
#undef LM__ROUND
}

#endif
