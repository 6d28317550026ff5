/* AdamW with decoupled decay for one element, compiled into CPU and CUDA kernels alike.
 *
 *   p *= 1 - lr wd
 *   m += (1 - beta1) (g - m)
 *   v += (1 - beta2) (g g - v)
 *   p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
 *
 * Arithmetic in f32; the bias corrections are powers of the step count in f64, never a running
 * product, so that a resumed run computes the same ones.
 */
#ifndef LM_KERNELS_MATH_ADAMW_H
#define LM_KERNELS_MATH_ADAMW_H

#include <math.h>

#include "lumuon.h"
#include "math/float.h"

typedef struct lm_adamw_factors {
  float decay;       /* 1 - lr wd */
  float rate1;       /* 1 - beta1 */
  float rate2;       /* 1 - beta2 */
  float step_size;   /* lr / (1 - beta1^t) */
  float correction2; /* 1 / (1 - beta2^t) */
  float eps;
} lm_adamw_factors;

LM_MATH lm_adamw_factors lm_adamw_prepare(const lm_adamw_args *a) {
  const lm_adamw_factors f = {.decay = (float)(1.0 - a->lr * a->weight_decay),
                              .rate1 = (float)(1.0 - a->beta1),
                              .rate2 = (float)(1.0 - a->beta2),
                              .step_size = (float)(a->lr / (1.0 - pow(a->beta1, a->step))),
                              .correction2 = (float)(1.0 / (1.0 - pow(a->beta2, a->step))),
                              .eps = (float)a->eps};
  return f;
}

LM_MATH void lm_adamw_element(float *p, float g, float *m, float *v, const lm_adamw_factors *f) {
  *m += f->rate1 * (g - *m);
  *v += f->rate2 * (g * g - *v);
  *p = *p * f->decay - f->step_size * *m / (sqrtf(*v * f->correction2) + f->eps);
}

#endif
