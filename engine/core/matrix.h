/* Matrices: the last two dims of a tensor, as products take them. */
#ifndef LM_CORE_MATRIX_H
#define LM_CORE_MATRIX_H

#include "core/tensor.h"

/* Can a product read the matrix as it lies? *transposed: its unit stride is in the rows' dim; *ld:
 * elements from one row (or, transposed, column) to the next. */
static inline bool lm__matrix_serves(const lm_tensor *t, bool *transposed, int64_t *ld) {
  const int64_t rows = t->shape[t->ndim - 2], cols = t->shape[t->ndim - 1];
  const int64_t row = t->strides[t->ndim - 2], col = t->strides[t->ndim - 1];
  if ((col == 1 || cols == 1) && (row >= cols || rows == 1)) {
    *transposed = false;
    *ld = rows == 1 ? cols : row;
    return true;
  }
  if ((row == 1 || rows == 1) && (col >= rows || cols == 1)) {
    *transposed = true;
    *ld = cols == 1 ? rows : col;
    return true;
  }
  return false;
}

/* A (rows, cols) tensor seen as (cols, rows); owns nothing. */
static inline lm_tensor lm__transposed(const lm_tensor *t) {
  lm_tensor turned = *t;
  turned.shape[0] = t->shape[1];
  turned.shape[1] = t->shape[0];
  turned.strides[0] = t->strides[1];
  turned.strides[1] = t->strides[0];
  return turned;
}

/* Rows [first, first + rows), and of these the first `columns`, of a contiguous tensor whose
 * leading dims are taken as one; owns nothing. */
static inline lm_tensor lm__rows_of(const lm_tensor *t, int64_t first, int64_t rows,
                                    int64_t columns) {
  lm_tensor part = *t;
  part.ndim = 2;
  part.shape[0] = rows;
  part.shape[1] = columns;
  part.strides[0] = t->shape[t->ndim - 1];
  part.strides[1] = 1;
  part.offset += first * part.strides[0];
  return part;
}

#endif
