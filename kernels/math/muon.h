/* The elementwise parts of Muon, compiled into CPU and CUDA kernels alike.
 *
 *   M += (1 - momentum) (G - M)
 *   U  = G + momentum (M - G)           Nesterov's look-ahead, or U = M
 *   p -= lr X + lr wd p [X p >= 0]      cautious decay: only where it does not fight the update
 */
#ifndef LM_KERNELS_MATH_MUON_H
#define LM_KERNELS_MATH_MUON_H

#include "math/float.h"

/* The momentum buffer's next value. */
LM_MATH float lm_muon_momentum(float m, float g, float one_minus_momentum) {
  return m + one_minus_momentum * (g - m);
}

/* What is orthogonalised; m is the next value. lookahead: momentum with Nesterov, else 1. */
LM_MATH float lm_muon_lookahead(float m, float g, float lookahead) {
  return g + lookahead * (m - g);
}

/* The parameter's next value; x: the orthogonal update. A zero x decays: [0 >= 0]. */
LM_MATH float lm_muon_update(float p, float x, float lr, float lr_decay) {
  return p - (lr * x + (x * p >= 0.0f ? lr_decay * p : 0.0f));
}

#endif
