/* Entry points of the cross-entropy. Targets are checked where they lie, by the backend. */
#include <math.h>

#include "ops/check.h"

static int check_logits(const char *op, const lm_tensor *logits, const lm_tensor *targets,
                        int vocab_size, double *softcap) {
  LM__TRY(lm__need_activation(op, "logits", logits));
  if (logits->ndim == 0) return lm__fail(LM_ESHAPE, "%s: logits need at least 1 dim", op);
  LM__TRY(lm__need_dtype(op, "targets", targets, LM_I32));
  LM__TRY(lm__need_contiguous(op, "targets", targets));
  LM__TRY(lm__need_shape(op, "targets", targets, logits->ndim - 1, logits->shape));
  const long long columns = logits->shape[logits->ndim - 1];
  if (vocab_size < 1 || vocab_size > columns)
    return lm__fail(LM_EINVAL, "%s: vocab_size %d is not in 1..%lld, the columns of logits %s", op,
                    vocab_size, columns, lm__describe(logits));
  if (isnan(*softcap) || isinf(*softcap))
    return lm__fail(LM_EINVAL, "%s: softcap must be finite (0: none), got %g", op, *softcap);
  if (*softcap < 0) *softcap = 0;
  return LM_OK;
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
