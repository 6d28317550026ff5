#include "ops/transfer.h"

#include "backend/backend.h"
#include "core/error.h"

/* Bytes of a contiguous tensor to one on another device. */
static int send(lm_tensor *dst, const lm_tensor *src) {
  const size_t bytes = (size_t)lm__numel(dst) * (size_t)lm_dtype_size(dst->dtype);
  if (bytes == 0) return LM_OK;
  if (src->device == LM_CPU)
    return lm__backend(dst->device)->write("copy", lm__data(dst), lm__data(src), bytes);
  return lm__backend(src->device)->read("copy", lm__data(dst), lm__data(src), bytes);
}

int lm__transfer(lm_tensor *dst, const lm_tensor *src) {
  const lm__backend_table *there;
  lm_tensor *ready = NULL, *landed = NULL;
  LM__TRY(lm__begin("copy", 1, dst));
  LM__TRY(lm__begin("copy", 1, src));
  LM__OP(there, copy, dst->device);
  LM__TRY(lm__need_writable("copy", dst));
  const bool as_is = src->dtype == dst->dtype && lm__is_contiguous(src);
  const bool direct = lm__is_contiguous(dst) && lm__same_shape(dst, src);
  int status = LM_OK;
  if (!as_is) { /* lm_copy checks that the values fit */
    status = lm_tensor_new(&ready, dst->dtype, src->device, src->ndim, src->shape);
    if (status == LM_OK) status = lm_copy(ready, src);
  }
  if (status == LM_OK && !direct)
    status = lm_tensor_new(&landed, dst->dtype, dst->device, src->ndim, src->shape);
  if (status == LM_OK) status = send(landed ? landed : dst, ready ? ready : src);
  if (status == LM_OK && landed) status = lm_copy(dst, landed); /* broadcast and strides there */
  lm_tensor_free(ready);
  lm_tensor_free(landed);
  return status;
}
