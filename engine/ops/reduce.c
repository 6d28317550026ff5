/* Entry points of the reductions. */
#include "backend/backend.h"
#include "core/error.h"

static const char *const names[LM_REDUCE_OPS] = {
    [LM_SUM] = "sum", [LM_MEAN] = "mean", [LM_MAX] = "max",
    [LM_MIN] = "min", [LM_PROD] = "prod", [LM_NORM] = "norm",
};

/* *out as the kernel writes it: with the reduced dims as dims of size 1. Borrows its storage. */
static lm_tensor with_reduced_dims(const lm_tensor *out, const lm_tensor *a, uint32_t dims,
                                   int keepdim) {
  lm_tensor full = *out;
  if (keepdim) return full;
  full.ndim = a->ndim;
  for (int d = 0, own = 0; d < a->ndim; d++) {
    const bool reduced = dims >> d & 1;
    full.shape[d] = reduced ? 1 : out->shape[own];
    full.strides[d] = reduced ? 0 : out->strides[own];
    own += !reduced;
  }
  return full;
}

static int result_shape(int64_t *shape, const lm_tensor *a, uint32_t dims, int keepdim) {
  int ndim = 0;
  for (int d = 0; d < a->ndim; d++) {
    const bool reduced = dims >> d & 1;
    if (!reduced || keepdim) shape[ndim++] = reduced ? 1 : a->shape[d];
  }
  return ndim;
}

int lm_reduce(lm_tensor **out, int op, const lm_tensor *a, uint32_t dims, int keepdim) {
  const lm__backend_table *backend;
  bool fresh = false;
  int64_t shape[LM_MAX_DIMS], reduced = 1;
  if (op < 0 || op >= LM_REDUCE_OPS) return lm__fail(LM_EINVAL, "reduce: %d is no op", op);
  LM__TRY(lm__begin(names[op], 1, a));
  LM__OP(backend, reduce, a->device);
  if (dims >> a->ndim)
    return lm__fail(LM_EINVAL, "%s: a dim to reduce is not among the %d of %s", names[op], a->ndim,
                    lm__describe(a));
  for (int d = 0; d < a->ndim; d++)
    if (dims >> d & 1) reduced *= a->shape[d];
  if (reduced == 0 && (op == LM_MAX || op == LM_MIN))
    return lm__fail(LM_ESHAPE, "%s: of no elements (%s reduced over an empty dim)", names[op],
                    lm__describe(a));
  const int ndim = result_shape(shape, a, dims, keepdim);
  LM__TRY(lm__prepare_out(names[op], out, &fresh,
                          LM__ANY_BUT(lm__is_float(a->dtype) ? a->dtype : LM_F32), a->device, ndim,
                          shape));
  lm_tensor full = with_reduced_dims(*out, a, dims, keepdim);
  return lm__finish(out, fresh, backend->reduce(&full, op, a, dims));
}

int lm_arg_reduce(lm_tensor **out, int op, const lm_tensor *a, int dim, int keepdim) {
  const lm__backend_table *backend;
  bool fresh = false;
  int64_t shape[LM_MAX_DIMS];
  const char *name = op == LM_MAX ? "argmax" : "argmin";
  if (op != LM_MAX && op != LM_MIN)
    return lm__fail(LM_EINVAL, "arg_reduce: op %d is neither max nor min", op);
  LM__TRY(lm__begin(name, 1, a));
  LM__OP(backend, arg_reduce, a->device);
  if (dim < 0 || dim >= a->ndim)
    return lm__fail(LM_EINVAL, "%s: no dim %d in %s", name, dim + 1, lm__describe(a));
  if (a->shape[dim] == 0 || a->shape[dim] > INT32_MAX)
    return lm__fail(LM_ESHAPE, "%s: needs 1 to 2^31-1 elements along dim %d, got %s", name, dim + 1,
                    lm__describe(a));
  const uint32_t dims = 1u << dim;
  const int ndim = result_shape(shape, a, dims, keepdim);
  LM__TRY(lm__prepare_out(name, out, &fresh, LM_I32, a->device, ndim, shape));
  lm_tensor full = with_reduced_dims(*out, a, dims, keepdim);
  return lm__finish(out, fresh, backend->arg_reduce(&full, op, a, dim));
}

int lm_count_nonfinite(double *out, const lm_tensor *a) {
  const lm__backend_table *backend;
  LM__TRY(lm__begin("count_nonfinite", 1, a));
  LM__OP(backend, count_nonfinite, a->device);
  return backend->count_nonfinite(out, a);
}
