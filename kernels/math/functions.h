/* Elementary functions as polynomials that vectorise, the same on every CPU variant and on CUDA.
 * Errors are bounds measured over the whole range against f64 (spec/math_spec.lua). */
#ifndef LM_KERNELS_MATH_FUNCTIONS_H
#define LM_KERNELS_MATH_FUNCTIONS_H

#include "math/float.h"

/* exp(x): x = n ln 2 + r, |r| <= ln2/2, a degree-6 polynomial in r, 2^n by exponent bits in two
 * halves so that subnormal results come out right. Relative error under 2 units in the last place;
 * 0 below -104, Inf above 88.73, NaN stays. */
LM_MATH float lm_expf(float x) {
  const float clamped = x < 89.0f ? (x > -104.0f ? x : -104.0f) : 89.0f;
  const float shifted = clamped * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to integer */
  const float n = shifted - 12582912.0f;
  float r = clamped - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  float p = 1.39887390e-3f;
  p = p * r + 8.37577041e-3f;
  p = p * r + 4.16642353e-2f;
  p = p * r + 1.66664243e-1f;
  p = p * r + 5.00000060e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t whole = (int32_t)n, half = whole >> 1;
  const float y = p * lm_bits_f32((uint32_t)(half + 127) << 23) *
                  lm_bits_f32((uint32_t)(whole - half + 127) << 23);
  return x == x ? y : x;
}

/* 1 / (1 + exp(-x)). */
LM_MATH float lm_sigmoidf(float x) { return 1.0f / (1.0f + lm_expf(-x)); }

/* tanh(x): x (1 + x^2 P(x^2)) for |x| < 0.5, (1 - e) / (1 + e) with e = exp(-2|x|) beyond. */
LM_MATH float lm_tanhf(float x) {
  const float a = x < 0 ? -x : x, s = x * x;
  const float e = lm_expf(-2.0f * a);
  const float far = (1.0f - e) / (1.0f + e);
  float p = -5.70498872745e-3f;
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const float near = x + x * (s * p);
  const float wide = x < 0 ? -far : far;
  return a < 0.5f ? near : (x == x ? wide : x);
}

#endif
