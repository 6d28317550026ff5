/* One element of a tensor, by index: bounds-checked, for looking and for small literals. */
#include <math.h>

#include "backend/backend.h"
#include "core/error.h"
#include "core/tensor.h"
#include "math/float.h"

/* Address of t's element at index, or an error. */
static int locate(const char *op, void **out, const lm_tensor *t, const int64_t *index) {
  int64_t offset = 0;
  LM__TRY(lm__begin(op, 1, t));
  for (int d = 0; d < t->ndim; d++) {
    if (index[d] < 0 || index[d] >= t->shape[d])
      return lm__fail(LM_EINDEX, "%s: index %lld is not in 1..%lld of dim %d of %s", op,
                      (long long)index[d] + 1, (long long)t->shape[d], d + 1, lm__describe(t));
    offset += index[d] * t->strides[d];
  }
  *out = (char *)lm__data(t) + offset * lm_dtype_size(t->dtype);
  return LM_OK;
}

int lm_tensor_get(double *out, const lm_tensor *t, const int64_t *index) {
  void *p = NULL;
  uint32_t here = 0;
  LM__TRY(locate("item", &p, t, index));
  if (t->device != LM_CPU) {
    LM__TRY(lm__backend(t->device)->read("item", &here, p, (size_t)lm_dtype_size(t->dtype)));
    p = &here;
  }
  switch (t->dtype) {
    case LM_F32:
      *out = (double)*(const float *)p;
      break;
    case LM_BF16:
      *out = (double)lm_bf16_to_f32(*(const uint16_t *)p);
      break;
    case LM_F16:
      *out = (double)lm_f16_to_f32(*(const uint16_t *)p);
      break;
    case LM_I32:
      *out = *(const int32_t *)p;
      break;
    case LM_U16:
      *out = *(const uint16_t *)p;
      break;
    default:
      *out = *(const uint8_t *)p;
      break;
  }
  /* LuaJIT keeps other types of value in NaNs: one with bits of a file's choosing is not for it. */
  if (*out != *out) *out = (double)NAN;
  return LM_OK;
}

int lm_tensor_set(lm_tensor *t, const int64_t *index, double value) {
  void *p = NULL, *there = NULL;
  uint32_t here = 0;
  LM__TRY(locate("set", &p, t, index));
  LM__TRY(lm__need_in_range("set", t->dtype, value));
  if (t->device != LM_CPU) {
    there = p;
    p = &here;
  }
  switch (t->dtype) {
    case LM_F32:
      *(float *)p = (float)value;
      break;
    case LM_BF16:
      *(uint16_t *)p = lm_f32_to_bf16((float)value);
      break;
    case LM_F16:
      *(uint16_t *)p = lm_f32_to_f16((float)value);
      break;
    case LM_I32:
      *(int32_t *)p = (int32_t)value;
      break;
    case LM_U16:
      *(uint16_t *)p = (uint16_t)value;
      break;
    default:
      *(uint8_t *)p = (uint8_t)value;
      break;
  }
  if (!there) return LM_OK;
  return lm__backend(t->device)->write("set", there, &here, (size_t)lm_dtype_size(t->dtype));
}
