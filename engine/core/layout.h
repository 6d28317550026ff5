/* How one to three strided operands of one shape lie: dims of size 1 dropped, and neighbouring dims
 * that every operand crosses with one stride joined, so that contiguous operands have one dim. */
#ifndef LM_CORE_LAYOUT_H
#define LM_CORE_LAYOUT_H

#include "core/tensor.h"

enum { LM__OPERANDS = 3 };

typedef struct lm__layout {
  int operands, ndim;                                                /* ndim >= 1 */
  int64_t n, shape[LM_MAX_DIMS], strides[LM__OPERANDS][LM_MAX_DIMS]; /* in elements */
  char *data[LM__OPERANDS];
  int dtype[LM__OPERANDS];
} lm__layout;

/* Every tensor has tensors[0]'s shape, or broadcasts to it (size 1 or missing dims: stride 0). */
static inline lm__layout lm__layout_of(int operands, const lm_tensor *const *tensors) {
  lm__layout w = {};
  w.operands = operands;
  w.n = lm__numel(tensors[0]);
  for (int o = 0; o < operands; o++) {
    w.data[o] = (char *)lm__data(tensors[o]);
    w.dtype[o] = tensors[o]->dtype;
  }
  for (int d = 0; d < tensors[0]->ndim; d++) {
    int64_t stride[LM__OPERANDS];
    bool joins = w.ndim > 0;
    const int64_t size = tensors[0]->shape[d];
    if (size == 1) continue;
    for (int o = 0; o < operands; o++) {
      const int own = d - (tensors[0]->ndim - tensors[o]->ndim);
      stride[o] = own < 0 || tensors[o]->shape[own] == 1 ? 0 : tensors[o]->strides[own];
      joins = joins && w.strides[o][w.ndim - 1] == stride[o] * size;
    }
    if (!joins) w.ndim++;
    w.shape[w.ndim - 1] = joins ? w.shape[w.ndim - 1] * size : size;
    for (int o = 0; o < operands; o++) w.strides[o][w.ndim - 1] = stride[o];
  }
  if (w.ndim == 0) {
    w.ndim = 1;
    w.shape[0] = 1;
  }
  return w;
}

#endif
