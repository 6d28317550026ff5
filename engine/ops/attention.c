/* Entry points of attention. */
#include <math.h>

#include "ops/check.h"

static int check_qkv(const char *op, const lm_tensor *q, const lm_tensor *k, const lm_tensor *v,
                     double scale) {
  LM__TRY(lm__need_activation(op, "q", q));
  LM__TRY(lm__need_activation(op, "k", k));
  LM__TRY(lm__need_activation(op, "v", v));
  if (q->ndim != 4)
    return lm__fail(LM_ESHAPE, "%s: q must be (batch, time, heads, head_dim), got %s", op,
                    lm__describe(q));
  if (k->ndim != 4 || k->shape[0] != q->shape[0] || k->shape[1] != q->shape[1] ||
      k->shape[3] != q->shape[3])
    return lm__fail(LM_ESHAPE, "%s: k must have q's batch, time and head_dim: q is %s, k is %s", op,
                    lm__describe(q), lm__describe(k));
  LM__TRY(lm__need_shape(op, "v", v, 4, k->shape));
  const long long heads = q->shape[2], kv_heads = k->shape[2];
  if (kv_heads == 0 ? heads != 0 : heads % kv_heads != 0)
    return lm__fail(LM_ESHAPE,
                    "%s: the heads of q must be a multiple of those of k and v, got %lld and %lld",
                    op, heads, kv_heads);
  if (isnan(scale) || isinf(scale))
    return lm__fail(LM_EINVAL, "%s: scale must be finite, got %g", op, scale);
  return LM_OK;
}

static lm__attention_args pack_args(const lm_tensor *q, double scale, int window) {
  const int64_t all = q->shape[1];
  return (lm__attention_args){(float)scale, window < 0 || window > all ? all : window};
}

int lm_attention(lm_tensor **out, lm_tensor **lse, const lm_tensor *q, const lm_tensor *k,
                 const lm_tensor *v, double scale, int window) {
  const char *op = "attention";
  const lm__backend_table *backend;
  const lm_tensor *in[] = {q, k, v};
  static const char *const names[] = {"q", "k", "v"};
  bool fresh_out = false, fresh_lse = false;
  LM__TRY(lm__begin(op, 3, q, k, v));
  LM__OP(backend, attention, q->device);
  LM__TRY(check_qkv(op, q, k, v, scale));
  const int64_t lse_shape[3] = {q->shape[0], q->shape[2], q->shape[1]};
  const lm__attention_args args = pack_args(q, scale, window);
  LM__TRY(lm__prepare_activation(op, out, &fresh_out, q));
  int status = lm__prepare_out(op, lse, &fresh_lse, LM_F32, q->device, 3, lse_shape);
  if (status == LM_OK) status = lm__need_contiguous(op, "lse", *lse);
  if (status == LM_OK) status = lm__need_apart(op, *lse, "the other result", *out, false);
  for (int i = 0; i < 3 && status == LM_OK; i++) {
    status = lm__need_apart(op, *out, names[i], in[i], false);
    if (status == LM_OK) status = lm__need_apart(op, *lse, names[i], in[i], false);
  }
  if (status == LM_OK) status = backend->attention(*out, *lse, q, k, v, &args);
  return lm__finish(out, fresh_out, lm__finish(lse, fresh_lse, status));
}

int lm_attention_backward(lm_tensor **grad_q, lm_tensor **grad_k, lm_tensor **grad_v,
                          const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                          const lm_tensor *v, const lm_tensor *out, const lm_tensor *lse,
                          double scale, int window) {
  const char *op = "attention_backward";
  const lm__backend_table *backend;
  lm_tensor **grads[] = {grad_q, grad_k, grad_v};
  const lm_tensor *in[] = {q, k, v, grad_out, out, lse};
  static const char *const names[] = {"q", "k", "v", "grad_out", "out", "lse"};
  bool fresh[3] = {false, false, false};
  LM__TRY(lm__begin(op, 6, q, k, v, grad_out, out, lse));
  LM__OP(backend, attention_backward, q->device);
  LM__TRY(check_qkv(op, q, k, v, scale));
  const int64_t lse_shape[3] = {q->shape[0], q->shape[2], q->shape[1]};
  LM__TRY(lm__need_activation(op, "grad_out", grad_out));
  LM__TRY(lm__need_shape(op, "grad_out", grad_out, 4, q->shape));
  LM__TRY(lm__need_activation(op, "out", out));
  LM__TRY(lm__need_shape(op, "out", out, 4, q->shape));
  LM__TRY(lm__need_dtype(op, "lse", lse, LM_F32));
  LM__TRY(lm__need_contiguous(op, "lse", lse));
  LM__TRY(lm__need_shape(op, "lse", lse, 3, lse_shape));
  const lm__attention_args args = pack_args(q, scale, window);
  int status = LM_OK;
  for (int i = 0; i < 3 && status == LM_OK; i++) {
    status = lm__prepare_activation(op, grads[i], &fresh[i], in[i]);
    for (int j = 0; j < 6 && status == LM_OK && !fresh[i]; j++)
      status = lm__need_apart(op, *grads[i], names[j], in[j], false);
    for (int j = 0; j < i && status == LM_OK; j++)
      status = lm__need_apart(op, *grads[i], "another result", *grads[j], false);
  }
  if (status == LM_OK)
    status =
        backend->attention_backward(*grad_q, *grad_k, *grad_v, grad_out, q, k, v, out, lse, &args);
  for (int i = 0; i < 3; i++) (void)lm__finish(grads[i], fresh[i], status);
  return status;
}
