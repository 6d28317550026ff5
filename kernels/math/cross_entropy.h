/* The softcap of logits and its derivative, compiled into CPU and CUDA kernels alike. */
#ifndef LM_KERNELS_MATH_CROSS_ENTROPY_H
#define LM_KERNELS_MATH_CROSS_ENTROPY_H

#include "math/functions.h"

/* cap * tanh(x / cap); cap 0: x. */
LM_MATH float lm_softcapf(float x, float cap) { return cap > 0 ? cap * lm_tanhf(x / cap) : x; }

/* d softcap(x) / dx = 1 - tanh(x / cap)^2, from z = softcap(x). */
LM_MATH float lm_softcap_gradf(float z, float cap) {
  const float t = cap > 0 ? z / cap : 0.0f;
  return 1.0f - t * t;
}

#endif
