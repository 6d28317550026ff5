/* Entry points of unary, binary and fused elementwise ops: shapes, dtypes, broadcasting. */
#include <math.h>

#include "backend/backend.h"
#include "core/error.h"
#include "ops/transfer.h"

static const char *const unary_names[LM_UNARY_OPS] = {
    [LM_NEG] = "neg",
    [LM_ABS] = "abs",
    [LM_SIGN] = "sign",
    [LM_SQUARE] = "square",
    [LM_SQRT] = "sqrt",
    [LM_RSQRT] = "rsqrt",
    [LM_RECIPROCAL] = "reciprocal",
    [LM_EXP] = "exp",
    [LM_LOG] = "log",
    [LM_SIN] = "sin",
    [LM_COS] = "cos",
    [LM_TANH] = "tanh",
    [LM_SIGMOID] = "sigmoid",
    [LM_RELU] = "relu",
    [LM_RELU2] = "relu2",
    [LM_FLOOR] = "floor",
    [LM_CEIL] = "ceil",
    [LM_ROUND] = "round",
    [LM_ISFINITE] = "isfinite",
};
static const char *const binary_names[LM_BINARY_OPS] = {
    [LM_ADD] = "add",
    [LM_SUB] = "sub",
    [LM_MUL] = "mul",
    [LM_DIV] = "div",
    [LM_POW] = "pow",
    [LM_MAXIMUM] = "maximum",
    [LM_MINIMUM] = "minimum",
    [LM_EQ] = "eq",
    [LM_NE] = "ne",
    [LM_LT] = "lt",
    [LM_LE] = "le",
    [LM_GT] = "gt",
    [LM_GE] = "ge",
    [LM_TANH_GRAD] = "tanh_grad",
    [LM_SIGMOID_GRAD] = "sigmoid_grad",
    [LM_RELU_GRAD] = "relu_grad",
    [LM_RELU2_GRAD] = "relu2_grad",
};

/* Where writing out would change elements of *in before they are read, put a copy in its place;
 * *copy is to be freed. */
static int set_apart(const lm_tensor *out, const lm_tensor **in, lm_tensor **copy) {
  *copy = NULL;
  if (!lm__partly_shared(out, *in)) return LM_OK;
  LM__TRY(lm_tensor_new(copy, (*in)->dtype, (*in)->device, (*in)->ndim, (*in)->shape));
  LM__TRY(lm__finish(copy, true, lm__backend((*in)->device)->copy(*copy, *in)));
  *in = *copy;
  return LM_OK;
}

/* Refuse to store fractions in an integer tensor. */
static int holds(const char *op, const lm_tensor *out, int dtype) {
  if (lm__is_float(out->dtype) || !lm__is_float(dtype)) return LM_OK;
  return lm__fail(LM_EDTYPE, "%s: the result is %s and would be cut to integers in %s; use :to()",
                  op, lm_dtype_name(dtype), lm__describe(out));
}

/* Whether a unary op of whole numbers gives whole numbers. */
static bool stays_whole(int op) {
  return op == LM_NEG || op == LM_ABS || op == LM_SIGN || op == LM_SQUARE || op == LM_RELU ||
         op == LM_RELU2 || op == LM_FLOOR || op == LM_CEIL || op == LM_ROUND || op == LM_ISFINITE;
}

int lm_unary(lm_tensor **out, int op, const lm_tensor *a) {
  const lm__backend_table *backend;
  bool fresh = false;
  if (op < 0 || op >= LM_UNARY_OPS) return lm__fail(LM_EINVAL, "unary: %d is no op", op);
  LM__TRY(lm__begin(unary_names[op], 1, a));
  LM__OP(backend, unary, a->device);
  const int dtype = op == LM_ISFINITE ? LM_U8 : lm__is_float(a->dtype) ? a->dtype : LM_F32;
  LM__TRY(lm__prepare_out(unary_names[op], out, &fresh, LM__ANY_BUT(dtype), a->device, a->ndim,
                          a->shape));
  lm_tensor *copy = NULL;
  int status =
      lm__is_float(a->dtype) || !stays_whole(op) ? holds(unary_names[op], *out, dtype) : LM_OK;
  if (status == LM_OK) status = set_apart(*out, &a, &copy);
  if (status == LM_OK) status = backend->unary(*out, op, a);
  lm_tensor_free(copy);
  return lm__finish(out, fresh, status);
}

/* The dtype of a op b: see lumuon.h. */
static int binary_dtype(int op, int a, int b) {
  if (op >= LM_EQ && op <= LM_GE) return LM_U8;
  if (lm__is_float(a) && lm__is_float(b)) return a == b ? a : LM_F32;
  if (lm__is_float(a)) return a;
  if (lm__is_float(b)) return b;
  return op == LM_DIV || op == LM_POW ? LM_F32 : LM_I32;
}

int lm_binary(lm_tensor **out, int op, const lm_tensor *a, const lm_tensor *b) {
  const lm__backend_table *backend;
  int64_t shape[LM_MAX_DIMS];
  bool fresh = false;
  if (op < 0 || op >= LM_BINARY_OPS) return lm__fail(LM_EINVAL, "binary: %d is no op", op);
  LM__TRY(lm__begin(binary_names[op], 2, a, b));
  LM__OP(backend, binary, a->device);
  const int ndim = a->ndim > b->ndim ? a->ndim : b->ndim;
  for (int d = 0; d < ndim; d++) {
    const int da = d - (ndim - a->ndim), db = d - (ndim - b->ndim);
    const int64_t sa = da < 0 ? 1 : a->shape[da], sb = db < 0 ? 1 : b->shape[db];
    if (sa != sb && sa != 1 && sb != 1)
      return lm__fail(LM_ESHAPE, "%s: shapes %s and %s do not broadcast (dim %d: %lld and %lld)",
                      binary_names[op], lm__shape_string(a->ndim, a->shape),
                      lm__shape_string(b->ndim, b->shape), d + 1, (long long)sa, (long long)sb);
    shape[d] = sa == 1 ? sb : sa;
  }
  const int dtype = binary_dtype(op, a->dtype, b->dtype);
  LM__TRY(
      lm__prepare_out(binary_names[op], out, &fresh, LM__ANY_BUT(dtype), a->device, ndim, shape));
  lm_tensor *copy_a = NULL, *copy_b = NULL;
  int status = holds(binary_names[op], *out, dtype);
  if (status == LM_OK) status = set_apart(*out, &a, &copy_a);
  if (status == LM_OK) status = set_apart(*out, &b, &copy_b);
  if (status == LM_OK) status = backend->binary(*out, op, a, b);
  lm_tensor_free(copy_a);
  lm_tensor_free(copy_b);
  return lm__finish(out, fresh, status);
}

int lm_binary_scalar(lm_tensor **out, int op, const lm_tensor *a, double value, int reversed) {
  const lm__backend_table *backend;
  bool fresh = false;
  if (op < 0 || op >= LM_BINARY_OPS) return lm__fail(LM_EINVAL, "binary: %d is no op", op);
  LM__TRY(lm__begin(binary_names[op], 1, a));
  LM__OP(backend, binary_scalar, a->device);
  const bool whole = value >= INT32_MIN && value <= INT32_MAX && value == (double)(int32_t)value;
  const int dtype = binary_dtype(op, a->dtype,
                                 whole                    ? LM_I32
                                 : lm__is_float(a->dtype) ? a->dtype
                                                          : LM_F32);
  LM__TRY(lm__prepare_out(binary_names[op], out, &fresh, LM__ANY_BUT(dtype), a->device, a->ndim,
                          a->shape));
  lm_tensor *copy = NULL;
  int status = holds(binary_names[op], *out, dtype);
  if (status == LM_OK) status = set_apart(*out, &a, &copy);
  if (status == LM_OK) status = backend->binary_scalar(*out, op, a, (float)value, reversed);
  lm_tensor_free(copy);
  return lm__finish(out, fresh, status);
}

/* src has dst's shape or broadcasts to it. */
static int broadcasts_to(const char *op, const lm_tensor *dst, const lm_tensor *src) {
  bool fits = src->ndim <= dst->ndim;
  for (int d = 0; d < src->ndim && fits; d++)
    fits = src->shape[d] == 1 || src->shape[d] == dst->shape[d + dst->ndim - src->ndim];
  if (fits) return LM_OK;
  return lm__fail(LM_ESHAPE, "%s: shape %s does not broadcast to %s", op,
                  lm__shape_string(src->ndim, src->shape), lm__shape_string(dst->ndim, dst->shape));
}

int lm_axpy(lm_tensor *y, double alpha, const lm_tensor *x) {
  const lm__backend_table *backend;
  lm_tensor *copy = NULL;
  LM__TRY(lm__begin("axpy", 2, y, x));
  LM__OP(backend, axpy, y->device);
  LM__TRY(lm__need_writable("axpy", y));
  LM__TRY(broadcasts_to("axpy", y, x));
  LM__TRY(holds("axpy", y, lm__is_float(x->dtype) || alpha != rint(alpha) ? LM_F32 : LM_I32));
  LM__TRY(set_apart(y, &x, &copy));
  const int status = backend->axpy(y, (float)alpha, x);
  lm_tensor_free(copy);
  return status;
}

/* One of src's extremes as a number. */
static int extreme(double *value, int op, const lm_tensor *src) {
  lm_tensor *result = NULL;
  LM__TRY(lm_reduce(&result, op, src, (1u << src->ndim) - 1, 0));
  const int status = lm_tensor_get(value, result, NULL);
  lm_tensor_free(result);
  return status;
}

/* Values that truncate into the dtype's range. */
static int fits(const lm_tensor *src, int dtype) {
  double low = 0, high = 0;
  if (lm__is_float(dtype) || dtype == src->dtype || src->dtype == LM_U8) return LM_OK;
  if ((src->dtype == LM_U16 && dtype == LM_I32) || lm__numel(src) == 0) return LM_OK;
  LM__TRY(extreme(&low, LM_MIN, src));
  LM__TRY(extreme(&high, LM_MAX, src));
  const double least = dtype == LM_I32 ? -2147483648.0 : 0;
  const double most = dtype == LM_I32 ? 2147483647.0 : dtype == LM_U16 ? 65535.0 : 255.0;
  if (low > least - 1 && high < most + 1) return LM_OK;
  if (low != low || high != high)
    return lm__fail(LM_EINVAL, "copy: %s holds NaN, which %s cannot", lm__describe(src),
                    lm_dtype_name(dtype));
  return lm__fail(LM_EINVAL, "copy: values from %g to %g do not fit %s, %.0f to %.0f", low, high,
                  lm_dtype_name(dtype), least, most);
}

int lm_copy(lm_tensor *dst, const lm_tensor *src) {
  const lm__backend_table *backend;
  lm_tensor *copy = NULL;
  if (dst && src && dst->device != src->device) return lm__transfer(dst, src);
  LM__TRY(lm__begin("copy", 2, dst, src));
  LM__OP(backend, copy, dst->device);
  LM__TRY(lm__need_writable("copy", dst));
  LM__TRY(broadcasts_to("copy", dst, src));
  LM__TRY(fits(src, dst->dtype));
  LM__TRY(set_apart(dst, &src, &copy));
  const int status = backend->copy(dst, src);
  lm_tensor_free(copy);
  return status;
}

int lm_fill(lm_tensor *t, double value) {
  const lm__backend_table *backend;
  LM__TRY(lm__begin("fill", 1, t));
  LM__OP(backend, fill, t->device);
  LM__TRY(lm__need_in_range("fill", t->dtype, value));
  return backend->fill(t, value);
}

int lm_arange(lm_tensor *t, double start, double step) {
  const lm__backend_table *backend;
  LM__TRY(lm__begin("arange", 1, t));
  LM__OP(backend, arange, t->device);
  LM__TRY(lm__need_writable("arange", t));
  if (t->ndim != 1) return lm__fail(LM_ESHAPE, "arange: needs 1 dim, got %s", lm__describe(t));
  if (t->shape[0] > 0) {
    LM__TRY(lm__need_in_range("arange", t->dtype, start));
    LM__TRY(lm__need_in_range("arange", t->dtype, start + step * (double)(t->shape[0] - 1)));
    if (t->shape[0] > 1) LM__TRY(lm__need_in_range("arange", t->dtype, start + step));
  }
  return backend->arange(t, start, step);
}
