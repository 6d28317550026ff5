/* Entry points of linear algebra other than products. */
#include "backend/backend.h"
#include "core/error.h"

int lm_singular_values(lm_tensor **out, const lm_tensor *a) {
  const lm__backend_table *backend;
  bool fresh = false;
  int64_t shape[LM_MAX_DIMS];
  double nonfinite = 0;
  LM__TRY(lm__begin("singular_values", 1, a));
  LM__OP(backend, singular_values, a->device);
  LM__TRY(lm__need_float("singular_values", "the matrix", a));
  if (a->ndim < 2)
    return lm__fail(LM_ESHAPE, "singular_values: needs at least 2 dims, got %s", lm__describe(a));
  LM__TRY(lm_count_nonfinite(&nonfinite, a));
  if (nonfinite > 0)
    return lm__fail(LM_ENONFINITE, "singular_values: %.0f elements of %s are NaN or Inf", nonfinite,
                    lm__describe(a));
  const int ndim = a->ndim - 1;
  const int64_t rows = a->shape[ndim - 1], cols = a->shape[ndim];
  for (int d = 0; d < ndim - 1; d++) shape[d] = a->shape[d];
  shape[ndim - 1] = rows < cols ? rows : cols;
  LM__TRY(lm__prepare_out("singular_values", out, &fresh, LM_F32, a->device, ndim, shape));
  return lm__finish(out, fresh, backend->singular_values(*out, a));
}
