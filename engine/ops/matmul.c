/* Entry point of matmul: shapes and dtypes. */
#include <math.h>

#include "backend/backend.h"
#include "core/error.h"

int lm_matmul(lm_tensor **out, const lm_tensor *a, const lm_tensor *b, double alpha, double beta) {
  const lm__backend_table *backend;
  int64_t shape[LM_MAX_DIMS] = {0};
  bool fresh = false;
  LM__TRY(lm__begin("matmul", 2, a, b));
  LM__OP(backend, matmul, a->device);
  LM__TRY(lm__need_float("matmul", "the first operand", a));
  LM__TRY(lm__need_float("matmul", "the second operand", b));
  if (a->ndim < 2 || b->ndim < 2)
    return lm__fail(LM_ESHAPE, "matmul: needs at least 2 dims, got shapes %s and %s",
                    lm__shape_string(a->ndim, a->shape), lm__shape_string(b->ndim, b->shape));
  bool fits = b->ndim == 2 || b->ndim == a->ndim;
  for (int d = 0; d < b->ndim - 2 && fits; d++) fits = a->shape[d] == b->shape[d];
  if (!fits)
    return lm__fail(LM_ESHAPE,
                    "matmul: shapes %s and %s: leading dims must be equal, or the second a matrix",
                    lm__shape_string(a->ndim, a->shape), lm__shape_string(b->ndim, b->shape));
  if (a->shape[a->ndim - 1] != b->shape[b->ndim - 2])
    return lm__fail(LM_ESHAPE,
                    "matmul: shapes %s and %s do not fit: the first has %lld columns, the second "
                    "%lld rows",
                    lm__shape_string(a->ndim, a->shape), lm__shape_string(b->ndim, b->shape),
                    (long long)a->shape[a->ndim - 1], (long long)b->shape[b->ndim - 2]);
  if (!isfinite(alpha) || !isfinite(beta))
    return lm__fail(LM_EINVAL, "matmul: alpha %g and beta %g must be finite", alpha, beta);
  if (beta != 0 && !*out)
    return lm__fail(LM_EINVAL, "matmul: beta %g needs a result to add to", beta);
  for (int d = 0; d < a->ndim - 1; d++) shape[d] = a->shape[d];
  shape[a->ndim - 1] = b->shape[b->ndim - 1];
  const int dtype = a->dtype == LM_F32 || b->dtype == LM_F32 ? LM_F32 : LM_BF16;
  LM__TRY(lm__prepare_out("matmul", out, &fresh, LM__ANY_BUT(dtype), a->device, a->ndim, shape));
  int status = lm__need_float("matmul", "the result", *out);
  if (status == LM_OK) status = backend->matmul(*out, a, b, (float)alpha, (float)beta);
  return lm__finish(out, fresh, status);
}
