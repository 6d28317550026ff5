/* The elementwise parts of Muon, compiled into CPU and CUDA kernels alike.
 *
 *   M += (1 - momentum) (G - M)
 *   U  = G + momentum (M - G)           Nesterov's look-ahead, or U = M
 *   p -= lr X + lr wd p [X p >= 0]      cautious decay: only where it does not fight the update
 */
#ifndef LM_KERNELS_MATH_MUON_H
#define LM_KERNELS_MATH_MUON_H

#include <math.h>

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

/* Sums of squares are added in f64: a gradient of 1e20 has a finite norm as well. What a row of U
 * is multiplied by to have the rows' mean norm; total: of all rows' sums. */
LM_MATH double lm_muon_equilibrate(double sum, double total, double rows) {
  return sqrt(total / rows) / fmax(sqrt(sum), 1e-6);
}

/* 1 / (|U| s + 1e-6) */
LM_MATH double lm_muon_inverse_norm(double sum, double norm_scale) {
  return 1.0 / (sqrt(sum) * norm_scale + 1e-6);
}

/* What X is multiplied by to have the norm of an orthogonal matrix; least: its smaller side. */
LM_MATH double lm_muon_renormalize(double sum, double least) {
  return sqrt(least) / fmax(sqrt(sum), 1e-6);
}

/* NorMuon's V, v a mean of squares, and the factor it gives before the norm is restored. */
LM_MATH float lm_muon_second(float old, double v, double rate) {
  return (float)((double)old + rate * (v - (double)old));
}
LM_MATH double lm_muon_even_out(float second) { return 1.0 / sqrt(fmax((double)second, 1e-10)); }

/* The factor that restores the norm: sums of squares before and after evening out. */
LM_MATH double lm_muon_restore(double before, double after) {
  return sqrt(before) / fmax(sqrt(after), 1e-10);
}

#endif
