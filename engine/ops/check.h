/* What the entry points of the model's ops check beyond core/tensor.h. */
#ifndef LM_OPS_CHECK_H
#define LM_OPS_CHECK_H

#include "backend/backend.h"
#include "core/error.h"

/* An activation: f32 or bf16, contiguous. */
static inline int lm__need_activation(const char *op, const char *name, const lm_tensor *t) {
  LM__TRY(lm__need_float(op, name, t));
  return lm__need_contiguous(op, name, t);
}

/* lm__prepare_out for an activation shaped like `like`, allocated with its dtype. */
static inline int lm__prepare_activation(const char *op, lm_tensor **out, bool *fresh,
                                         const lm_tensor *like) {
  LM__TRY(lm__prepare_out(op, out, fresh, LM__ANY_BUT(like->dtype), like->device, like->ndim,
                          like->shape));
  return *fresh ? LM_OK : lm__need_activation(op, "the result", *out);
}

/* The eps of a norm that names none. */
static inline double lm__machine_epsilon(int dtype) {
  return dtype == LM_BF16 ? 0.0078125 : 1.1920928955078125e-07;
}

/* Refuse a contiguous result that overlaps a contiguous input; with may_be_same the very same
 * elements in the same dtype are fine. */
static inline int lm__need_apart(const char *op, const lm_tensor *result, const char *name,
                                 const lm_tensor *input, bool may_be_same) {
  if (!result || result->storage != input->storage) return LM_OK;
  const int size = lm_dtype_size(result->dtype), other = lm_dtype_size(input->dtype);
  const int64_t first = result->offset * size, last = first + lm__numel(result) * size;
  const int64_t begin = input->offset * other, end = begin + lm__numel(input) * other;
  if (first >= end || begin >= last) return LM_OK;
  if (may_be_same && first == begin && result->dtype == input->dtype) return LM_OK;
  return lm__fail(LM_EINVAL, "%s: the result %s overlaps %s %s in memory; give it one of its own",
                  op, lm__describe(result), name, lm__describe(input));
}

#endif
