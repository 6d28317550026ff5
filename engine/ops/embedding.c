/* Entry points of the embedding. Indices are checked where they lie, by the backend. */
#include "ops/check.h"

static int check_table(const char *op, const char *name, const lm_tensor *table,
                       const lm_tensor *idx) {
  LM__TRY(lm__need_activation(op, name, table));
  if (table->ndim != 2)
    return lm__fail(LM_ESHAPE, "%s: %s must be (vocabulary, channels), got %s", op, name,
                    lm__describe(table));
  LM__TRY(lm__need_dtype(op, "idx", idx, LM_I32));
  LM__TRY(lm__need_contiguous(op, "idx", idx));
  if (idx->ndim == LM_MAX_DIMS)
    return lm__fail(LM_ESHAPE, "%s: idx %s has no room for another dim", op, lm__describe(idx));
  return LM_OK;
}

/* idx's shape and the table's channels. */
static int rows_shape(int64_t *shape, const lm_tensor *idx, const lm_tensor *table) {
  for (int d = 0; d < idx->ndim; d++) shape[d] = idx->shape[d];
  shape[idx->ndim] = table->shape[1];
  return idx->ndim + 1;
}

int lm_embedding(lm_tensor **out, const lm_tensor *table, const lm_tensor *idx) {
  const lm__backend_table *backend;
  int64_t shape[LM_MAX_DIMS];
  bool fresh = false;
  LM__TRY(lm__begin("embedding", 2, table, idx));
  LM__OP(backend, embedding, table->device);
  LM__TRY(check_table("embedding", "table", table, idx));
  const int ndim = rows_shape(shape, idx, table);
  LM__TRY(lm__prepare_out("embedding", out, &fresh, LM__ANY_BUT(table->dtype), table->device, ndim,
                          shape));
  if (!fresh) {
    LM__TRY(lm__need_activation("embedding", "the result", *out));
    LM__TRY(lm__need_apart("embedding", *out, "table", table, false));
    LM__TRY(lm__need_apart("embedding", *out, "idx", idx, false));
  }
  return lm__finish(out, fresh, backend->embedding(*out, table, idx));
}

int lm_embedding_backward(lm_tensor *grad_table, const lm_tensor *grad_out, const lm_tensor *idx) {
  const lm__backend_table *backend;
  int64_t shape[LM_MAX_DIMS];
  LM__TRY(lm__begin("embedding_backward", 3, grad_table, grad_out, idx));
  LM__OP(backend, embedding_backward, grad_table->device);
  LM__TRY(check_table("embedding_backward", "grad_table", grad_table, idx));
  LM__TRY(lm__need_activation("embedding_backward", "grad_out", grad_out));
  const int ndim = rows_shape(shape, idx, grad_table);
  LM__TRY(lm__need_shape("embedding_backward", "grad_out", grad_out, ndim, shape));
  LM__TRY(lm__need_apart("embedding_backward", grad_table, "grad_out", grad_out, false));
  LM__TRY(lm__need_apart("embedding_backward", grad_table, "idx", idx, false));
  return backend->embedding_backward(grad_table, grad_out, idx);
}
