/* Entry points of a linear layer: y = x w', and both of its gradients, as products of lm_matmul's
 * kernel over x with its leading dims joined. */
#include "core/matrix.h"
#include "ops/check.h"

/* t with its leading dims joined: (rows, columns). t is contiguous. */
static lm_tensor rows_of(const lm_tensor *t) {
  lm_tensor flat = *t;
  const int64_t columns = t->shape[t->ndim - 1];
  flat.ndim = 2;
  flat.shape[0] = 1;
  for (int d = 0; d < t->ndim - 1; d++) flat.shape[0] *= t->shape[d];
  flat.shape[1] = columns;
  flat.strides[0] = columns;
  flat.strides[1] = 1;
  return flat;
}

static int check_layer(const char *op, const lm_tensor *x, const lm_tensor *w) {
  LM__TRY(lm__need_activation(op, "x", x));
  LM__TRY(lm__need_float(op, "the weight", w));
  if (x->ndim < 2)
    return lm__fail(LM_ESHAPE, "%s: x needs at least 2 dims, got %s", op, lm__describe(x));
  if (w->ndim != 2 || w->shape[1] != x->shape[x->ndim - 1])
    return lm__fail(LM_ESHAPE, "%s: the weight must be (out, %lld) for x %s, got %s", op,
                    (long long)x->shape[x->ndim - 1], lm__describe(x), lm__describe(w));
  return LM_OK;
}

int lm_linear(lm_tensor **out, const lm_tensor *x, const lm_tensor *w, const lm_tensor *residual) {
  const lm__backend_table *backend;
  int64_t shape[LM_MAX_DIMS] = {0};
  bool fresh = false;
  if (residual) LM__TRY(lm__begin("linear", 3, x, w, residual));
  LM__TRY(lm__begin("linear", 2, x, w));
  LM__OP(backend, matmul, x->device);
  LM__TRY(check_layer("linear", x, w));
  for (int d = 0; d < x->ndim - 1; d++) shape[d] = x->shape[d];
  shape[x->ndim - 1] = w->shape[0];
  if (residual) {
    LM__TRY(lm__need_float("linear", "the residual", residual));
    LM__TRY(lm__need_shape("linear", "the residual", residual, x->ndim, shape));
  }
  const int dtype = x->dtype == LM_F32 || w->dtype == LM_F32 ? LM_F32 : LM_BF16;
  LM__TRY(lm__prepare_out("linear", out, &fresh, LM__ANY_BUT(dtype), x->device, x->ndim, shape));
  int status = fresh ? LM_OK : lm__need_activation("linear", "the result", *out);
  if (status == LM_OK) status = lm__need_apart("linear", *out, "x", x, false);
  if (status == LM_OK) status = lm__need_apart("linear", *out, "the weight", w, false);
  if (status == LM_OK && residual) status = backend->copy(*out, residual);
  if (status == LM_OK) {
    lm_tensor y = rows_of(*out);
    const lm_tensor rows = rows_of(x), turned = lm__transposed(w);
    status = backend->matmul(&y, &rows, &turned, 1.0f, residual ? 1.0f : 0.0f);
  }
  return lm__finish(out, fresh, status);
}

int lm_linear_grad_x(lm_tensor **grad_x, const lm_tensor *grad_out, const lm_tensor *w,
                     double beta) {
  const char *op = "linear_grad_x";
  const lm__backend_table *backend;
  int64_t shape[LM_MAX_DIMS] = {0};
  bool fresh = false;
  LM__TRY(lm__begin(op, 2, grad_out, w));
  LM__OP(backend, matmul, w->device);
  LM__TRY(lm__need_activation(op, "grad_out", grad_out));
  LM__TRY(lm__need_float(op, "the weight", w));
  if (grad_out->ndim < 2 || w->ndim != 2 || w->shape[0] != grad_out->shape[grad_out->ndim - 1])
    return lm__fail(LM_ESHAPE, "%s: grad_out %s does not fit the weight %s", op,
                    lm__describe(grad_out), lm__describe(w));
  if (beta != 0 && !*grad_x)
    return lm__fail(LM_EINVAL, "%s: beta %g needs a gradient to add to", op, beta);
  for (int d = 0; d < grad_out->ndim - 1; d++) shape[d] = grad_out->shape[d];
  shape[grad_out->ndim - 1] = w->shape[1];
  LM__TRY(lm__prepare_out(op, grad_x, &fresh, LM__ANY_BUT(grad_out->dtype), w->device,
                          grad_out->ndim, shape));
  int status = fresh ? LM_OK : lm__need_activation(op, "the result", *grad_x);
  if (status == LM_OK) status = lm__need_apart(op, *grad_x, "grad_out", grad_out, false);
  if (status == LM_OK) {
    lm_tensor dx = rows_of(*grad_x);
    const lm_tensor dy = rows_of(grad_out);
    status = backend->matmul(&dx, &dy, w, 1.0f, (float)beta);
  }
  return lm__finish(grad_x, fresh, status);
}

int lm_linear_grad_w(lm_tensor **grad_w, const lm_tensor *grad_out, const lm_tensor *x,
                     double beta) {
  const char *op = "linear_grad_w";
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin(op, 2, grad_out, x));
  LM__OP(backend, matmul, x->device);
  LM__TRY(lm__need_activation(op, "grad_out", grad_out));
  LM__TRY(lm__need_activation(op, "x", x));
  bool fits = x->ndim >= 2 && grad_out->ndim == x->ndim;
  for (int d = 0; d < x->ndim - 1 && fits; d++) fits = x->shape[d] == grad_out->shape[d];
  if (!fits)
    return lm__fail(LM_ESHAPE, "%s: grad_out %s does not fit x %s", op, lm__describe(grad_out),
                    lm__describe(x));
  if (beta != 0 && !*grad_w)
    return lm__fail(LM_EINVAL, "%s: beta %g needs a gradient to add to", op, beta);
  const int64_t shape[2] = {grad_out->shape[x->ndim - 1], x->shape[x->ndim - 1]};
  LM__TRY(lm__prepare_out(op, grad_w, &fresh, LM__ANY_BUT(LM_F32), x->device, 2, shape));
  int status = fresh ? LM_OK : lm__need_activation(op, "the result", *grad_w);
  if (status == LM_OK) status = lm__need_apart(op, *grad_w, "x", x, false);
  if (status == LM_OK) {
    const lm_tensor rows = rows_of(x), dy = rows_of(grad_out), turned = lm__transposed(&dy);
    status = backend->matmul(*grad_w, &turned, &rows, 1.0f, (float)beta);
  }
  return lm__finish(grad_w, fresh, status);
}
