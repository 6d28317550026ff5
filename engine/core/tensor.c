#include "core/tensor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "core/error.h"

/* ---- what messages say ---- */

static char *next_buffer(size_t *size) {
  static _Thread_local char buffers[8][160];
  static _Thread_local unsigned turn;
  *size = sizeof buffers[0];
  return buffers[turn++ % 8];
}

const char *lm__shape_string(int ndim, const int64_t *shape) {
  size_t size = 0, used = 0;
  char *s = next_buffer(&size);
  used += (size_t)snprintf(s, size, "(");
  for (int d = 0; d < ndim && d < LM_MAX_DIMS; d++)
    used += (size_t)snprintf(s + used, size - used, d ? ", %lld" : "%lld", (long long)shape[d]);
  (void)snprintf(s + used, size - used, ")");
  return s;
}

const char *lm__describe(const lm_tensor *t) {
  size_t size = 0;
  char *s = next_buffer(&size);
  (void)snprintf(s, size, "%s %s", lm_dtype_name(t->dtype), lm__shape_string(t->ndim, t->shape));
  return s;
}

/* ---- life ---- */

/* Bytes of a tensor, or an error where they do not fit. */
static int count_bytes(const char *op, int dtype, int ndim, const int64_t *shape, size_t *bytes) {
  int64_t n = lm_dtype_size(dtype);
  bool empty = false;
  if (n == 0) return lm__fail(LM_EDTYPE, "%s: %d is no dtype", op, dtype);
  if (ndim < 0 || ndim > LM_MAX_DIMS)
    return lm__fail(LM_ESHAPE, "%s: %d dims; a tensor has 0 to %d", op, ndim, LM_MAX_DIMS);
  for (int d = 0; d < ndim; d++) {
    if (shape[d] < 0)
      return lm__fail(LM_ESHAPE, "%s: negative size in shape %s", op,
                      lm__shape_string(ndim, shape));
    empty = empty || shape[d] == 0; /* strides of the other dims must still fit */
    if (__builtin_mul_overflow(n, shape[d] > 0 ? shape[d] : 1, &n))
      return lm__fail(LM_ENOMEM, "%s: shape %s has more bytes than can be counted", op,
                      lm__shape_string(ndim, shape));
  }
  *bytes = empty ? 0 : (size_t)n;
  return LM_OK;
}

int lm_tensor_new(lm_tensor **out, int dtype, int device, int ndim, const int64_t *shape) {
  size_t bytes = 0;
  *out = NULL;
  LM__TRY(count_bytes("tensor", dtype, ndim, shape, &bytes));
  if (!lm__backend(device))
    return lm__fail(LM_EDEVICE, "tensor: no device %s: %s",
                    lm_device_name(device) ? lm_device_name(device) : "?",
                    device == LM_CUDA ? lm_cuda_problem() : "there is no such device");
  lm_tensor *t = calloc(1, sizeof *t);
  if (!t) return lm__fail(LM_ENOMEM, "tensor: out of memory for a handle");
  t->dtype = dtype;
  t->device = device;
  t->ndim = ndim;
  int64_t stride = 1;
  for (int d = ndim - 1; d >= 0; d--) {
    t->shape[d] = shape[d];
    t->strides[d] = stride;
    stride *= shape[d] > 0 ? shape[d] : 1;
  }
  const int status = lm__storage_new(&t->storage, bytes, device);
  if (status) {
    free(t);
    return status;
  }
  *out = t;
  return LM_OK;
}

int lm_tensor_view(lm_tensor **out, const lm_tensor *base, int ndim, const int64_t *shape,
                   const int64_t *strides, int64_t offset) {
  size_t bytes = 0;
  *out = NULL;
  LM__TRY(lm__begin("view", 1, base));
  LM__TRY(count_bytes("view", base->dtype, ndim, shape, &bytes));
  const int64_t capacity = (int64_t)base->storage->bytes / lm_dtype_size(base->dtype);
  int64_t first = 0, last = 0;
  bool bad = __builtin_add_overflow(base->offset, offset, &first) || first < 0;
  last = first;
  for (int d = 0; d < ndim && !bad; d++) {
    int64_t reach = 0;
    bad = strides[d] < 0 ||
          __builtin_mul_overflow(strides[d], shape[d] > 0 ? shape[d] - 1 : 0, &reach) ||
          __builtin_add_overflow(last, reach, &last);
  }
  if (bytes == 0 && lm__numel(base) == 0) first = base->offset; /* nothing lies anywhere in it */
  if (bad || (bytes > 0 && last >= capacity) || first > capacity)
    return lm__fail(LM_ESHAPE, "view: shape %s at offset %lld lies outside the storage of %s",
                    lm__shape_string(ndim, shape), (long long)offset, lm__describe(base));
  lm_tensor *t = calloc(1, sizeof *t);
  if (!t) return lm__fail(LM_ENOMEM, "view: out of memory for a handle");
  t->dtype = base->dtype;
  t->device = base->device;
  t->ndim = ndim;
  for (int d = 0; d < ndim; d++) {
    t->shape[d] = shape[d];
    t->strides[d] = strides[d];
  }
  t->offset = first;
  t->storage = base->storage;
  lm__storage_retain(t->storage);
  *out = t;
  return LM_OK;
}

void lm_tensor_free(lm_tensor *t) {
  if (!t) return;
  lm__storage_release(t->storage);
  free(t);
}

/* ---- what a tensor is ---- */

int64_t lm__numel(const lm_tensor *t) {
  int64_t n = 1;
  for (int d = 0; d < t->ndim; d++) n *= t->shape[d];
  return n;
}

bool lm__is_contiguous(const lm_tensor *t) {
  int64_t stride = 1;
  for (int d = t->ndim - 1; d >= 0; d--) {
    if (t->shape[d] != 1 && t->strides[d] != stride) return lm__numel(t) == 0;
    stride *= t->shape[d];
  }
  return true;
}

bool lm__same_shape(const lm_tensor *a, const lm_tensor *b) {
  if (a->ndim != b->ndim) return false;
  for (int d = 0; d < a->ndim; d++)
    if (a->shape[d] != b->shape[d]) return false;
  return true;
}

int lm_tensor_dtype(const lm_tensor *t) { return t ? t->dtype : -1; }
int lm_tensor_device(const lm_tensor *t) { return t ? t->device : -1; }
int lm_tensor_ndim(const lm_tensor *t) { return t ? t->ndim : -1; }
double lm_tensor_size(const lm_tensor *t, int dim) {
  return t && dim >= 0 && dim < t->ndim ? (double)t->shape[dim] : -1;
}
double lm_tensor_stride(const lm_tensor *t, int dim) {
  return t && dim >= 0 && dim < t->ndim ? (double)t->strides[dim] : -1;
}
double lm_tensor_offset(const lm_tensor *t) { return t ? (double)t->offset : -1; }
double lm_tensor_numel(const lm_tensor *t) { return t ? (double)lm__numel(t) : -1; }
int lm_tensor_is_contiguous(const lm_tensor *t) { return t && lm__is_contiguous(t); }
void *lm_tensor_data(const lm_tensor *t) { return t && t->device == LM_CPU ? lm__data(t) : NULL; }
double lm_tensor_address(const lm_tensor *t) { return t ? (double)(uintptr_t)lm__data(t) : 0; }
int lm_tensor_shares_storage(const lm_tensor *a, const lm_tensor *b) {
  return a && b && a->storage == b->storage;
}

/* ---- what entry points check ---- */

int lm__begin(const char *op, int n, ...) {
  va_list args;
  const lm_tensor *first = NULL;
  int status = LM_OK;
  if (lm_interrupted()) return lm__fail(LM_EINTERRUPT, "%s: interrupted", op);
  va_start(args, n);
  for (int i = 0; i < n && status == LM_OK; i++) {
    const lm_tensor *t = va_arg(args, const lm_tensor *);
    if (!t)
      status = lm__fail(LM_EINVAL,
                        "%s: tensor %d is missing or was freed (tensors made inside lm.scope end "
                        "with it: return them, or :keep() them)",
                        op, i + 1);
    else if (!first)
      first = t;
    else if (t->device != first->device)
      status = lm__fail(LM_EDEVICE, "%s: tensors on different devices, %s and %s; use :to()", op,
                        lm_device_name(first->device), lm_device_name(t->device));
  }
  va_end(args);
  return status;
}

int lm__prepare_out(const char *op, lm_tensor **out, bool *fresh, int dtype, int device, int ndim,
                    const int64_t *shape) {
  *fresh = *out == NULL;
  if (*fresh) return lm_tensor_new(out, dtype < 0 ? -1 - dtype : dtype, device, ndim, shape);
  if ((*out)->device != device)
    return lm__fail(LM_EDEVICE, "%s: the result lies on %s, its inputs on %s", op,
                    lm_device_name((*out)->device), lm_device_name(device));
  if (dtype >= 0 && (*out)->dtype != dtype)
    return lm__fail(LM_EDTYPE, "%s: the result must be %s, got %s", op, lm_dtype_name(dtype),
                    lm__describe(*out));
  LM__TRY(lm__need_writable(op, *out));
  return lm__need_shape(op, "the result", *out, ndim, shape);
}

int lm__finish(lm_tensor **out, bool fresh, int status) {
  if (status != LM_OK && fresh) {
    lm_tensor_free(*out);
    *out = NULL;
  }
  return status;
}

int lm__need_contiguous(const char *op, const char *name, const lm_tensor *t) {
  if (lm__is_contiguous(t)) return LM_OK;
  return lm__fail(LM_ESHAPE, "%s: %s %s is not contiguous; use :contiguous()", op, name,
                  lm__describe(t));
}

int lm__need_dtype(const char *op, const char *name, const lm_tensor *t, int dtype) {
  if (t->dtype == dtype) return LM_OK;
  return lm__fail(LM_EDTYPE, "%s: %s must be %s, got %s", op, name, lm_dtype_name(dtype),
                  lm__describe(t));
}

int lm__need_float(const char *op, const char *name, const lm_tensor *t) {
  if (t->dtype == LM_F32 || t->dtype == LM_BF16) return LM_OK;
  return lm__fail(LM_EDTYPE, "%s: %s must be f32 or bf16, got %s", op, name, lm__describe(t));
}

int lm__need_shape(const char *op, const char *name, const lm_tensor *t, int ndim,
                   const int64_t *shape) {
  bool same = t->ndim == ndim;
  for (int d = 0; d < ndim && same; d++) same = t->shape[d] == shape[d];
  if (same) return LM_OK;
  return lm__fail(LM_ESHAPE, "%s: %s must have shape %s, got %s", op, name,
                  lm__shape_string(ndim, shape), lm__shape_string(t->ndim, t->shape));
}

int lm__need_in_range(const char *op, int dtype, double value) {
  if (lm__is_float(dtype)) return LM_OK;
  const double low = dtype == LM_I32 ? -2147483648.0 : 0;
  const double high = dtype == LM_I32 ? 2147483647.0 : dtype == LM_U16 ? 65535.0 : 255.0;
  if (value >= low && value <= high && value == (double)(int64_t)value) return LM_OK;
  return lm__fail(LM_EINVAL, "%s: %.10g does not fit %s, whole numbers from %.0f to %.0f", op,
                  value, lm_dtype_name(dtype), low, high);
}

int lm__need_writable(const char *op, const lm_tensor *t) {
  for (int d = 0; d < t->ndim; d++)
    if (t->strides[d] == 0 && t->shape[d] > 1)
      return lm__fail(LM_ESHAPE,
                      "%s: cannot write into %s: it was expanded along dim %d, where all elements "
                      "are one; use :clone() first",
                      op, lm__describe(t), d + 1);
  return LM_OK;
}

/* ---- operands that share memory ---- */

/* Bytes from the storage's start: the first byte of t's elements and the one behind the last. */
static void extent(const lm_tensor *t, int64_t *first, int64_t *end) {
  const int64_t size = lm_dtype_size(t->dtype);
  int64_t last = t->offset;
  for (int d = 0; d < t->ndim; d++) last += (t->shape[d] - 1) * t->strides[d];
  *first = t->offset * size;
  *end = (last + 1) * size;
}

bool lm__overlap(const lm_tensor *a, const lm_tensor *b) {
  int64_t first = 0, end = 0, other_first = 0, other_end = 0;
  if (a->storage != b->storage || lm__numel(a) == 0 || lm__numel(b) == 0) return false;
  extent(a, &first, &end);
  extent(b, &other_first, &other_end);
  return first < other_end && other_first < end;
}

bool lm__partly_shared(const lm_tensor *out, const lm_tensor *in) {
  if (!lm__overlap(out, in)) return false;
  bool same = out->dtype == in->dtype && out->offset == in->offset && lm__same_shape(out, in);
  for (int d = 0; d < out->ndim && same; d++)
    same = out->shape[d] == 1 || out->strides[d] == in->strides[d];
  return !same;
}
