/* Conversions between f32 and the storage dtypes, round to nearest even; compiled into CPU and
 * CUDA kernels alike. */
#ifndef LM_KERNELS_MATH_FLOAT_H
#define LM_KERNELS_MATH_FLOAT_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define LM_MATH static __host__ __device__ inline
#else
#define LM_MATH static inline
#endif

LM_MATH uint32_t lm_f32_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
LM_MATH float lm_bits_f32(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

LM_MATH float lm_bf16_to_f32(uint16_t h) { return lm_bits_f32((uint32_t)h << 16); }
LM_MATH uint16_t lm_f32_to_bf16(float x) {
  const uint32_t u = lm_f32_bits(x);
  const uint32_t rounded = u + 0x7fffu + (u >> 16 & 1), quiet = u | 0x400000u; /* a NaN stays one */
  return (uint16_t)((x == x ? rounded : quiet) >> 16);
}

/* IEEE half by scaling with powers of two, which handles subnormals as well. */
LM_MATH float lm_f16_to_f32(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, body = (uint32_t)(h & 0x7fff) << 13;
  const float scaled = lm_bits_f32(body) * lm_bits_f32(0x77800000u); /* 2^112 */
  const uint32_t magnitude = (h & 0x7c00) == 0x7c00 ? body | 0x7f800000u : lm_f32_bits(scaled);
  return lm_bits_f32(sign | magnitude);
}
LM_MATH uint16_t lm_f32_to_f16(float x) {
  const uint32_t u = lm_f32_bits(x), sign = u >> 16 & 0x8000, body = u & 0x7fffffffu;
  if (body > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
  if (body >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and more */
  if (body < 0x38800000u) /* subnormal: let an addition do the rounding */
    return (uint16_t)(sign | (lm_f32_bits(lm_bits_f32(body) + 0.5f) - lm_f32_bits(0.5f)));
  return (uint16_t)(sign | ((body - 0x38000000u + 0xfffu + (body >> 13 & 1)) >> 13));
}

/* Towards zero; out of range ends at the nearest bound, NaN at 0. */
LM_MATH int32_t lm_f32_to_i32(float x) {
  const float clamped =
      x > -2147483648.0f ? (x < 2147483520.0f ? x : 2147483520.0f) : -2147483648.0f;
  const int32_t i = (int32_t)clamped;
  return x == x ? (x >= 2147483648.0f ? INT32_MAX : i) : 0;
}
LM_MATH uint16_t lm_f32_to_u16(float x) {
  const int32_t i = lm_f32_to_i32(x);
  return (uint16_t)(i < 0 ? 0 : i > 65535 ? 65535 : i);
}
LM_MATH uint8_t lm_f32_to_u8(float x) {
  const int32_t i = lm_f32_to_i32(x);
  return (uint8_t)(i < 0 ? 0 : i > 255 ? 255 : i);
}

#endif
