/* The dims of a reduction in two sides, the kept and the reduced ones, each sorted by falling
 * stride and joined where strides allow; dims of size 1 are dropped, those of stride 0 (broadcast)
 * are outermost. */
#ifndef LM_CORE_SIDES_H
#define LM_CORE_SIDES_H

#include "core/tensor.h"

typedef struct lm__side {
  int ndim; /* >= 1 */
  int64_t n, shape[LM_MAX_DIMS], strides[LM_MAX_DIMS], out_strides[LM_MAX_DIMS];
} lm__side;

/* a, reduced over the dims whose bits are set, into out in keepdim form. Returns true if the
 * innermost dim is a kept one. */
static inline bool lm__split_dims(lm__side *kept, lm__side *gone, const lm_tensor *a,
                                  const lm_tensor *out, uint32_t dims) {
  int order[LM_MAX_DIMS], count = 0;
  bool inner_kept = true;
  lm__side *const sides[2] = {kept, gone};
  kept->ndim = gone->ndim = 0;
  kept->n = gone->n = 1;
  for (int d = 0; d < a->ndim; d++) {
    if (a->shape[d] == 1) continue;
    int i = count++;
    for (; i > 0; i--) {
      const int64_t before = a->strides[order[i - 1]], own = a->strides[d];
      if (before == 0 || (own != 0 && before >= own)) break;
      order[i] = order[i - 1];
    }
    order[i] = d;
  }
  for (int i = 0; i < count; i++) {
    const int d = order[i];
    const bool reduced = dims >> d & 1;
    lm__side *s = reduced ? gone : kept;
    const int64_t size = a->shape[d], stride = a->strides[d];
    const int64_t out_stride = reduced ? 0 : out->strides[d];
    const bool joins = s->ndim > 0 && s->strides[s->ndim - 1] == stride * size &&
                       s->out_strides[s->ndim - 1] == out_stride * size;
    if (!joins) s->ndim++;
    s->shape[s->ndim - 1] = joins ? s->shape[s->ndim - 1] * size : size;
    s->strides[s->ndim - 1] = stride;
    s->out_strides[s->ndim - 1] = out_stride;
    s->n *= size;
    inner_kept = !reduced;
  }
  for (int i = 0; i < 2; i++)
    if (sides[i]->ndim == 0) {
      sides[i]->ndim = 1;
      sides[i]->shape[0] = 1;
      sides[i]->strides[0] = sides[i]->out_strides[0] = 0;
    }
  return inner_kept;
}

#endif
