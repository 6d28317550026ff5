/* Entry points of rms_norm and softmax: ops on the rows of the last dim. */
#include <math.h>

#include "ops/check.h"

static int check_rms_norm(const char *op, const lm_tensor *x, double *eps, double scale) {
  LM__TRY(lm__need_activation(op, "x", x));
  if (x->ndim == 0) return lm__fail(LM_ESHAPE, "%s: x needs at least 1 dim", op);
  if (isnan(*eps) || isinf(*eps))
    return lm__fail(LM_EINVAL, "%s: eps must be finite, got %g", op, *eps);
  if (isnan(scale) || isinf(scale))
    return lm__fail(LM_EINVAL, "%s: scale must be finite, got %g", op, scale);
  if (*eps < 0) *eps = lm__machine_epsilon(x->dtype);
  return LM_OK;
}

int lm_rms_norm(lm_tensor **out, const lm_tensor *x, double eps, double scale) {
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin("rms_norm", 1, x));
  LM__OP(backend, rms_norm, x->device);
  LM__TRY(check_rms_norm("rms_norm", x, &eps, scale));
  LM__TRY(lm__prepare_activation("rms_norm", out, &fresh, x));
  LM__TRY(lm__need_apart("rms_norm", *out, "x", x, true));
  return lm__finish(out, fresh, backend->rms_norm(*out, x, (float)eps, (float)scale));
}

int lm_rms_norm_backward(lm_tensor **grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                         double eps, double scale) {
  const char *op = "rms_norm_backward";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 2, grad_out, x));
  LM__OP(backend, rms_norm_backward, x->device);
  LM__TRY(check_rms_norm(op, x, &eps, scale));
  LM__TRY(lm__need_activation(op, "grad_out", grad_out));
  LM__TRY(lm__need_shape(op, "grad_out", grad_out, x->ndim, x->shape));
  LM__TRY(lm__prepare_activation(op, grad_x, &fresh, x));
  LM__TRY(lm__need_apart(op, *grad_x, "grad_out", grad_out, true));
  LM__TRY(lm__need_apart(op, *grad_x, "x", x, true));
  return lm__finish(grad_x, fresh,
                    backend->rms_norm_backward(*grad_x, grad_out, x, (float)eps, (float)scale));
}

int lm_softmax(lm_tensor **out, const lm_tensor *a) {
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin("softmax", 1, a));
  LM__OP(backend, softmax, a->device);
  LM__TRY(lm__need_activation("softmax", "the input", a));
  if (a->ndim == 0) return lm__fail(LM_ESHAPE, "softmax: needs at least 1 dim");
  LM__TRY(lm__prepare_activation("softmax", out, &fresh, a));
  LM__TRY(lm__need_apart("softmax", *out, "the input", a, true));
  return lm__finish(out, fresh, backend->softmax(*out, a));
}
