/* Entry points of the residual mixes: scaled_add and gated_add. */
#include <math.h>

#include "ops/check.h"

static int need_scalar(const char *op, const char *name, const lm_tensor *t) {
  LM__TRY(lm__need_float(op, name, t));
  if (lm__numel(t) == 1) return LM_OK;
  return lm__fail(LM_ESHAPE, "%s: %s must have one element, got %s", op, name, lm__describe(t));
}

int lm_scaled_add(lm_tensor **out, const lm_tensor *a, const lm_tensor *x, const lm_tensor *b,
                  const lm_tensor *y) {
  const char *op = "scaled_add";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 4, a, x, b, y));
  LM__OP(backend, scaled_add, x->device);
  LM__TRY(need_scalar(op, "a", a));
  LM__TRY(need_scalar(op, "b", b));
  LM__TRY(lm__need_activation(op, "x", x));
  LM__TRY(lm__need_activation(op, "y", y));
  LM__TRY(lm__need_shape(op, "y", y, x->ndim, x->shape));
  LM__TRY(lm__prepare_activation(op, out, &fresh, x));
  LM__TRY(lm__need_apart(op, *out, "x", x, true));
  LM__TRY(lm__need_apart(op, *out, "y", y, true));
  LM__TRY(lm__need_apart(op, *out, "a", a, false));
  LM__TRY(lm__need_apart(op, *out, "b", b, false));
  return lm__finish(out, fresh, backend->scaled_add(*out, a, x, b, y));
}

int lm_scaled_add_backward(lm_tensor *grad_a, lm_tensor **grad_x, lm_tensor *grad_b,
                           lm_tensor *grad_y, const lm_tensor *grad_out, const lm_tensor *a,
                           const lm_tensor *x, const lm_tensor *b, const lm_tensor *y) {
  const char *op = "scaled_add_backward";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 5, grad_out, a, x, b, y));
  LM__OP(backend, scaled_add_backward, x->device);
  LM__TRY(need_scalar(op, "a", a));
  LM__TRY(need_scalar(op, "b", b));
  LM__TRY(lm__need_activation(op, "x", x));
  LM__TRY(lm__need_activation(op, "y", y));
  LM__TRY(lm__need_shape(op, "y", y, x->ndim, x->shape));
  LM__TRY(lm__need_activation(op, "grad_out", grad_out));
  LM__TRY(lm__need_shape(op, "grad_out", grad_out, x->ndim, x->shape));
  lm_tensor *sums[] = {grad_a, grad_b};
  for (int i = 0; i < 2; i++) {
    if (!sums[i]) continue;
    LM__TRY(lm__begin(op, 2, x, sums[i]));
    LM__TRY(need_scalar(op, i ? "grad_b" : "grad_a", sums[i]));
  }
  const lm_tensor *in[] = {grad_out, x, y, a, b};
  static const char *const names[] = {"grad_out", "x", "y", "a", "b"};
  if (grad_y) {
    LM__TRY(lm__begin(op, 2, x, grad_y));
    LM__TRY(lm__need_activation(op, "grad_y", grad_y));
    LM__TRY(lm__need_shape(op, "grad_y", grad_y, x->ndim, x->shape));
    for (int i = 0; i < 5; i++) LM__TRY(lm__need_apart(op, grad_y, names[i], in[i], false));
  }
  if (grad_x) {
    LM__TRY(lm__prepare_activation(op, grad_x, &fresh, x));
    if (!fresh) {
      LM__TRY(lm__need_apart(op, *grad_x, "grad_out", grad_out, true));
      for (int i = 1; i < 5; i++) LM__TRY(lm__need_apart(op, *grad_x, names[i], in[i], false));
      if (grad_y) LM__TRY(lm__need_apart(op, *grad_x, "grad_y", grad_y, false));
    }
  }
  const int status = backend->scaled_add_backward(grad_a, grad_x ? *grad_x : NULL, grad_b, grad_y,
                                                  grad_out, a, x, b, y);
  return grad_x ? lm__finish(grad_x, fresh, status) : status;
}

/* gate has y's shape without the last dim. */
static int check_gate(const char *op, const lm_tensor *gate, const lm_tensor *y, double scale) {
  LM__TRY(lm__need_activation(op, "gate", gate));
  LM__TRY(lm__need_activation(op, "y", y));
  if (y->ndim == 0) return lm__fail(LM_ESHAPE, "%s: y needs at least 1 dim", op);
  LM__TRY(lm__need_shape(op, "gate", gate, y->ndim - 1, y->shape));
  if (isnan(scale) || isinf(scale))
    return lm__fail(LM_EINVAL, "%s: scale must be finite, got %g", op, scale);
  return LM_OK;
}

int lm_gated_add(lm_tensor **out, const lm_tensor *x, const lm_tensor *gate, const lm_tensor *y,
                 double scale) {
  const char *op = "gated_add";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 3, x, gate, y));
  LM__OP(backend, gated_add, x->device);
  LM__TRY(lm__need_activation(op, "x", x));
  LM__TRY(lm__need_shape(op, "y", y, x->ndim, x->shape));
  LM__TRY(check_gate(op, gate, y, scale));
  LM__TRY(lm__prepare_activation(op, out, &fresh, x));
  LM__TRY(lm__need_apart(op, *out, "x", x, true));
  LM__TRY(lm__need_apart(op, *out, "y", y, true));
  LM__TRY(lm__need_apart(op, *out, "gate", gate, false));
  return lm__finish(out, fresh, backend->gated_add(*out, x, gate, y, (float)scale));
}

int lm_gated_add_backward(lm_tensor **grad_gate, lm_tensor **grad_y, const lm_tensor *grad_out,
                          const lm_tensor *gate, const lm_tensor *y, double scale) {
  const char *op = "gated_add_backward";
  const lm__backend_table *backend;
  bool fresh_gate = false, fresh_y = false;
  LM__TRY(lm__begin(op, 3, grad_out, gate, y));
  LM__OP(backend, gated_add_backward, y->device);
  LM__TRY(check_gate(op, gate, y, scale));
  LM__TRY(lm__need_activation(op, "grad_out", grad_out));
  LM__TRY(lm__need_shape(op, "grad_out", grad_out, y->ndim, y->shape));
  LM__TRY(lm__prepare_activation(op, grad_gate, &fresh_gate, gate));
  int status = lm__prepare_activation(op, grad_y, &fresh_y, y);
  if (status == LM_OK) status = lm__need_apart(op, *grad_y, "grad_out", grad_out, true);
  if (status == LM_OK) status = lm__need_apart(op, *grad_y, "y", y, true);
  if (status == LM_OK) status = lm__need_apart(op, *grad_y, "gate", gate, false);
  if (status == LM_OK) status = lm__need_apart(op, *grad_y, "grad_gate", *grad_gate, false);
  if (status == LM_OK) status = lm__need_apart(op, *grad_gate, "grad_out", grad_out, false);
  if (status == LM_OK) status = lm__need_apart(op, *grad_gate, "gate", gate, true);
  if (status == LM_OK) status = lm__need_apart(op, *grad_gate, "y", y, false);
  if (status == LM_OK)
    status = backend->gated_add_backward(*grad_gate, *grad_y, grad_out, gate, y, (float)scale);
  return lm__finish(grad_gate, fresh_gate, lm__finish(grad_y, fresh_y, status));
}
