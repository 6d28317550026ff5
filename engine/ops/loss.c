/* Entry points of the cross-entropy. Targets are checked where they lie, by the backend. */
#include <math.h>

#include "ops/check.h"

/* targets for rows, a tensor (..., columns) */
static int check_targets(const char *op, const lm_tensor *targets, const lm_tensor *rows) {
  LM__TRY(lm__need_dtype(op, "targets", targets, LM_I32));
  LM__TRY(lm__need_contiguous(op, "targets", targets));
  return lm__need_shape(op, "targets", targets, rows->ndim - 1, rows->shape);
}

static int check_softcap(const char *op, double *softcap) {
  if (isnan(*softcap) || isinf(*softcap))
    return lm__fail(LM_EINVAL, "%s: softcap must be finite (0: none), got %g", op, *softcap);
  if (*softcap < 0) *softcap = 0;
  return LM_OK;
}

static int check_logits(const char *op, const lm_tensor *logits, const lm_tensor *targets,
                        int vocab_size, double *softcap) {
  LM__TRY(lm__need_activation(op, "logits", logits));
  if (logits->ndim == 0) return lm__fail(LM_ESHAPE, "%s: logits need at least 1 dim", op);
  LM__TRY(check_targets(op, targets, logits));
  const long long columns = logits->shape[logits->ndim - 1];
  if (vocab_size < 1 || vocab_size > columns)
    return lm__fail(LM_EINVAL, "%s: vocab_size %d is not in 1..%lld, the columns of logits %s", op,
                    vocab_size, columns, lm__describe(logits));
  return check_softcap(op, softcap);
}

int lm_cross_entropy(lm_tensor **loss, lm_tensor **lse, const lm_tensor *logits,
                     const lm_tensor *targets, int vocab_size, double softcap) {
  const char *op = "cross_entropy";
  const lm__backend_table *backend;
  bool fresh_loss = false, fresh_lse = false;
  LM__TRY(lm__begin(op, 2, logits, targets));
  LM__OP(backend, cross_entropy, logits->device);
  LM__TRY(check_logits(op, logits, targets, vocab_size, &softcap));
  LM__TRY(lm__prepare_out(op, loss, &fresh_loss, LM_F32, logits->device, 0, NULL));
  int status =
      lm__prepare_out(op, lse, &fresh_lse, LM_F32, logits->device, targets->ndim, targets->shape);
  if (status == LM_OK) status = lm__need_contiguous(op, "lse", *lse);
  if (status == LM_OK) status = lm__need_apart(op, *lse, "logits", logits, false);
  if (status == LM_OK) status = lm__need_apart(op, *lse, "targets", targets, false);
  if (status == LM_OK)
    status = backend->cross_entropy(*loss, *lse, logits, targets, vocab_size, (float)softcap);
  return lm__finish(loss, fresh_loss, lm__finish(lse, fresh_lse, status));
}

int lm_cross_entropy_backward(lm_tensor **grad_logits, const lm_tensor *grad_loss,
                              const lm_tensor *logits, const lm_tensor *targets,
                              const lm_tensor *lse, int vocab_size, double softcap) {
  const char *op = "cross_entropy_backward";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 4, grad_loss, logits, targets, lse));
  LM__OP(backend, cross_entropy_backward, logits->device);
  LM__TRY(check_logits(op, logits, targets, vocab_size, &softcap));
  LM__TRY(lm__need_dtype(op, "grad_loss", grad_loss, LM_F32));
  if (lm__numel(grad_loss) != 1)
    return lm__fail(LM_ESHAPE, "%s: grad_loss must have one element, got %s", op,
                    lm__describe(grad_loss));
  LM__TRY(lm__need_dtype(op, "lse", lse, LM_F32));
  LM__TRY(lm__need_contiguous(op, "lse", lse));
  LM__TRY(lm__need_shape(op, "lse", lse, targets->ndim, targets->shape));
  LM__TRY(lm__prepare_activation(op, grad_logits, &fresh, logits));
  if (!fresh) {
    LM__TRY(lm__need_apart(op, *grad_logits, "logits", logits, true));
    LM__TRY(lm__need_apart(op, *grad_logits, "targets", targets, false));
    LM__TRY(lm__need_apart(op, *grad_logits, "lse", lse, false));
  }
  return lm__finish(grad_logits, fresh,
                    backend->cross_entropy_backward(*grad_logits, grad_loss, logits, targets, lse,
                                                    vocab_size, (float)softcap));
}

int lm_linear_cross_entropy(lm_tensor **loss, lm_tensor **grad_x, lm_tensor **grad_w,
                            const lm_tensor *x, const lm_tensor *w, const lm_tensor *targets,
                            int vocab_size, double softcap) {
  const char *op = "linear_cross_entropy";
  const lm__backend_table *backend;
  lm_tensor **outs[] = {loss, grad_x, grad_w};
  const lm_tensor *in[] = {x, w, targets};
  static const char *const names[] = {"x", "w", "targets"};
  bool fresh[3] = {false, false, false};
  LM__TRY(lm__begin(op, 3, x, w, targets));
  LM__OP(backend, linear_cross_entropy, x->device);
  LM__TRY(lm__need_activation(op, "x", x));
  LM__TRY(lm__need_activation(op, "w", w));
  if (x->ndim < 1) return lm__fail(LM_ESHAPE, "%s: x needs at least 1 dim", op);
  if (w->ndim != 2 || w->shape[1] != x->shape[x->ndim - 1])
    return lm__fail(LM_ESHAPE, "%s: w must be (vocabulary, %lld) for x %s, got %s", op,
                    (long long)x->shape[x->ndim - 1], lm__describe(x), lm__describe(w));
  LM__TRY(lm__need_dtype(op, "w", w, x->dtype));
  LM__TRY(check_targets(op, targets, x));
  if (vocab_size < 1 || vocab_size > w->shape[0])
    return lm__fail(LM_EINVAL, "%s: vocab_size %d is not in 1..%lld, the rows of w %s", op,
                    vocab_size, (long long)w->shape[0], lm__describe(w));
  LM__TRY(check_softcap(op, &softcap));
  int status = lm__prepare_out(op, loss, &fresh[0], LM_F32, x->device, 0, NULL);
  if (status == LM_OK && grad_x) status = lm__prepare_activation(op, grad_x, &fresh[1], x);
  if (status == LM_OK && grad_w) {
    status = lm__prepare_out(op, grad_w, &fresh[2], LM_F32, w->device, 2, w->shape);
    if (status == LM_OK) status = lm__need_contiguous(op, "grad_w", *grad_w);
  }
  for (int i = 0; i < 3 && status == LM_OK; i++)
    for (int j = 0; j < 3 && status == LM_OK && outs[i] && !fresh[i]; j++)
      status = lm__need_apart(op, *outs[i], names[j], in[j], false);
  if (status == LM_OK && grad_x && grad_w)
    status = lm__need_apart(op, *grad_x, "grad_w", *grad_w, false);
  if (status == LM_OK)
    status = backend->linear_cross_entropy(*loss, grad_x ? *grad_x : NULL, grad_w ? *grad_w : NULL,
                                           x, w, targets, vocab_size, (float)softcap);
  for (int i = 0; i < 3; i++)
    if (outs[i]) (void)lm__finish(outs[i], fresh[i], status);
  return status;
}
