/* Entry points of the rotary embedding, alone and with the norm behind it. */
#include <math.h>

#include "ops/check.h"

static int check_table(const char *op, const char *name, const lm_tensor *table,
                       const lm_tensor *x) {
  const long long steps = x->shape[1], half = x->shape[3] / 2;
  LM__TRY(lm__need_dtype(op, name, table, LM_F32));
  LM__TRY(lm__need_contiguous(op, name, table));
  if (table->ndim != 2 || table->shape[1] != half)
    return lm__fail(LM_ESHAPE, "%s: %s must be (positions, %lld) for x %s, got %s", op, name, half,
                    lm__describe(x), lm__describe(table));
  if (table->shape[0] < steps)
    return lm__fail(LM_ESHAPE,
                    "%s: x has %lld positions, %s only %lld; make the tables longer or the "
                    "sequence shorter",
                    op, steps, name, (long long)table->shape[0]);
  return LM_OK;
}

static int check_heads(const char *op, const lm_tensor *x, const lm_tensor *cos_table,
                       const lm_tensor *sin_table) {
  LM__TRY(lm__need_activation(op, "x", x));
  if (x->ndim != 4)
    return lm__fail(LM_ESHAPE, "%s: x must be (batch, time, heads, head_dim), got %s", op,
                    lm__describe(x));
  if (x->shape[3] % 2)
    return lm__fail(LM_ESHAPE, "%s: head_dim must be even, got %lld in x %s", op,
                    (long long)x->shape[3], lm__describe(x));
  LM__TRY(check_table(op, "the cos table", cos_table, x));
  return check_table(op, "the sin table", sin_table, x);
}

/* Where the result of op goes: like x, apart from the tables. */
static int prepare(const char *op, lm_tensor **out, bool *fresh, const lm_tensor *x,
                   const lm_tensor *cos_table, const lm_tensor *sin_table) {
  LM__TRY(lm__prepare_activation(op, out, fresh, x));
  LM__TRY(lm__need_apart(op, *out, "the cos table", cos_table, false));
  return lm__need_apart(op, *out, "the sin table", sin_table, false);
}

int lm_rotary(lm_tensor **out, const lm_tensor *x, const lm_tensor *cos_table,
              const lm_tensor *sin_table, int inverse) {
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin("rotary", 3, x, cos_table, sin_table));
  LM__OP(backend, rotary, x->device);
  LM__TRY(check_heads("rotary", x, cos_table, sin_table));
  LM__TRY(prepare("rotary", out, &fresh, x, cos_table, sin_table));
  LM__TRY(lm__need_apart("rotary", *out, "x", x, true));
  return lm__finish(out, fresh, backend->rotary(*out, x, cos_table, sin_table, inverse));
}

static int check_norm(const char *op, const lm_tensor *x, double *eps, double scale) {
  if (isnan(*eps) || isinf(*eps))
    return lm__fail(LM_EINVAL, "%s: eps must be finite, got %g", op, *eps);
  if (isnan(scale) || isinf(scale))
    return lm__fail(LM_EINVAL, "%s: scale must be finite, got %g", op, scale);
  if (*eps < 0) *eps = lm__machine_epsilon(x->dtype);
  return LM_OK;
}

int lm_rotary_norm(lm_tensor **out, const lm_tensor *x, const lm_tensor *cos_table,
                   const lm_tensor *sin_table, double eps, double scale) {
  const char *op = "rotary_norm";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 3, x, cos_table, sin_table));
  LM__OP(backend, rotary_norm, x->device);
  LM__TRY(check_heads(op, x, cos_table, sin_table));
  LM__TRY(check_norm(op, x, &eps, scale));
  LM__TRY(prepare(op, out, &fresh, x, cos_table, sin_table));
  LM__TRY(lm__need_apart(op, *out, "x", x, true));
  return lm__finish(out, fresh,
                    backend->rotary_norm(*out, x, cos_table, sin_table, (float)eps, (float)scale));
}

int lm_rotary_norm_backward(lm_tensor **grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                            const lm_tensor *cos_table, const lm_tensor *sin_table, double eps,
                            double scale) {
  const char *op = "rotary_norm_backward";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 4, grad_out, x, cos_table, sin_table));
  LM__OP(backend, rotary_norm_backward, x->device);
  LM__TRY(check_heads(op, x, cos_table, sin_table));
  LM__TRY(check_norm(op, x, &eps, scale));
  LM__TRY(lm__need_activation(op, "grad_out", grad_out));
  LM__TRY(lm__need_shape(op, "grad_out", grad_out, x->ndim, x->shape));
  LM__TRY(prepare(op, grad_x, &fresh, x, cos_table, sin_table));
  LM__TRY(lm__need_apart(op, *grad_x, "grad_out", grad_out, true));
  LM__TRY(lm__need_apart(op, *grad_x, "x", x, false));
  return lm__finish(grad_x, fresh,
                    backend->rotary_norm_backward(*grad_x, grad_out, x, cos_table, sin_table,
                                                  (float)eps, (float)scale));
}
