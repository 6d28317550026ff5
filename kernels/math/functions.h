/* Elementary functions as polynomials that vectorise, the same on every CPU variant and on CUDA.
 *
 * The polynomials are minimax fits (Remez exchange) of the relative error, with the leading Taylor
 * terms held. Bounds are measured against f64 over every 37th float of the domain named, with and
 * without fused multiply-add; spec/math_spec.lua measures them again through tensors. An ulp is
 * that of the true result. */
#ifndef LM_KERNELS_MATH_FUNCTIONS_H
#define LM_KERNELS_MATH_FUNCTIONS_H

#include <math.h>

#include "math/float.h"

/* exp(x): x = n ln 2 + r, |r| <= ln2/2, 1 + r + r^2 q(r), 2^n by exponent bits in two halves so
 * that subnormal results come out right. At most 1.2 ulp; 0 below -104, Inf above 88.73. */
LM_MATH float lm_expf(float x) {
  const float clamped = x < 89.0f ? (x > -105.0f ? x : -105.0f) : 89.0f;
  const float shifted = clamped * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to integer */
  const float n = shifted - 12582912.0f;
  float r = clamped - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  float q = 1.38131413e-3f;
  q = q * r + 8.36941879e-3f;
  q = q * r + 4.16684560e-2f;
  q = q * r + 1.66665152e-1f;
  q = q * r + 4.99999940e-1f;
  const float p = 1.0f + (r + r * r * q);
  const int32_t whole = (int32_t)n, half = whole >> 1;
  const float y = p * lm_bits_f32((uint32_t)(half + 127) << 23) *
                  lm_bits_f32((uint32_t)(whole - half + 127) << 23);
  return x == x ? y : x;
}

/* 1 / (1 + exp(-x)), from exp(-|x|) so that both tails keep their relative precision.
 * At most 2.4 ulp. */
LM_MATH float lm_sigmoidf(float x) {
  const float e = lm_expf(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

/* tanh(x) for |x| < LM_TANH_SMALL: x + x^3 P(x^2). */
#define LM_TANH_SMALL 0.55f
LM_MATH float lm_tanhf_small(float x) {
  const float s = x * x;
  float p = -6.27423007e-3f;
  p = p * s + 2.10716724e-2f;
  p = p * s - 5.38523085e-2f;
  p = p * s + 1.33325860e-1f;
  p = p * s - 3.33333164e-1f;
  return x + x * (s * p);
}

/* tanh(x), odd: with a = |x|, the above for a < LM_TANH_SMALL, (1 - e) / (1 + e), e = exp(-2a),
 * beyond. At most 1.6 ulp. The part beyond may come from a device's own instructions (`far`). */
LM_MATH float lm_tanh_with(float x, float far) {
  const uint32_t sign = lm_f32_bits(x) & 0x80000000u;
  const float a = lm_bits_f32(lm_f32_bits(x) ^ sign), near = lm_tanhf_small(a);
  return lm_bits_f32(lm_f32_bits(a < LM_TANH_SMALL ? near : far) | sign);
}
LM_MATH float lm_tanhf(float x) {
  const float e = lm_expf(-2.0f * lm_bits_f32(lm_f32_bits(x) & 0x7fffffffu));
  return lm_tanh_with(x, (1.0f - e) / (1.0f + e));
}

/* log(x): x = 2^k m, m in [sqrt(1/2), sqrt(2)), f = m - 1: k ln 2 + f - f^2/2 + f^3 P(f).
 * -Inf at 0, NaN below, subnormals too. At most 0.9 ulp. */
LM_MATH float lm_logf(float x) {
  const float scaled = x < 1.17549435e-38f ? x * 33554432.0f : x; /* 2^25 */
  const uint32_t u = lm_f32_bits(scaled) - 0x3f3504f3u;           /* sqrt(1/2) */
  const float k = (float)((int32_t)u >> 23) - (x < 1.17549435e-38f ? 25.0f : 0.0f);
  const float f = lm_bits_f32((u & 0x7fffffu) + 0x3f3504f3u) - 1.0f, s = f * f;
  float p = 6.74666315e-2f;
  p = p * f - 1.16756402e-1f;
  p = p * f + 1.18881449e-1f;
  p = p * f - 1.24055892e-1f;
  p = p * f + 1.42195553e-1f;
  p = p * f - 1.66679963e-1f;
  p = p * f + 2.00021192e-1f;
  p = p * f - 2.50000089e-1f;
  p = p * f + 3.33333135e-1f;
  const float small = k * 1.42860677e-6f + (f * s * p - 0.5f * s);
  const float y = k * 0.693145752f + (f + small);
  const float edge = x == 0 ? -INFINITY : x > 0 ? x : NAN; /* 0, Inf, negative, NaN */
  return x > 0 && x <= 3.40282347e38f ? y : edge;
}

/* sin and cos: x = n pi/2 + r, |r| <= pi/4, reduced in f64 (pi/2 in a 33-bit part and the rest, so
 * that n times the first is exact), then polynomials in r^2; n mod 4 says which and the sign. At
 * most 1.6 ulp. Only for |x| <= LM_TRIG_MAX: beyond it n no longer fits and the caller takes the C
 * library's. */
#define LM_TRIG_MAX 1e6f

LM_MATH float lm_sin_quadrant(float x, int32_t quadrant) {
  const double shifted = (double)x * 0.63661977236758134 + 6755399441055744.0; /* 1.5 * 2^52 */
  const double n = shifted - 6755399441055744.0;
  const double reduced = ((double)x - n * 1.5707963267341256) - n * 6.077100506506192e-11;
  const int32_t q = (int32_t)n + quadrant;
  const float r = (float)reduced, s = r * r;
  float a = -1.95146320e-4f;
  a = a * s + 8.33215564e-3f;
  a = a * s - 1.66666552e-1f;
  float b = 2.44324128e-5f;
  b = b * s - 1.38873095e-3f;
  b = b * s + 4.16666456e-2f;
  const float sine = r + r * (s * a), cosine = (1.0f - 0.5f * s) + s * s * b;
  const float y = q & 1 ? cosine : r == 0 ? r : sine; /* -0 stays -0 */
  return q & 2 ? -y : y;
}
LM_MATH float lm_sinf(float x) { return lm_sin_quadrant(x, 0); }
LM_MATH float lm_cosf(float x) { return lm_sin_quadrant(x, 1); }

#endif
