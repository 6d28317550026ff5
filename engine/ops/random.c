/* Entry points of the random fills. */
#include <math.h>

#include "backend/backend.h"
#include "core/error.h"

int lm_random_uniform(lm_tensor *t, double low, double high, uint64_t seed, uint64_t stream,
                      uint64_t position) {
  const lm__backend_table *backend;
  LM__TRY(lm__begin("uniform", 1, t));
  LM__OP(backend, random_uniform, t->device);
  LM__TRY(lm__need_writable("uniform", t));
  if (!(low <= high) || !isfinite(high - low) || fabs(low) > 3.4e38 || fabs(high) > 3.4e38)
    return lm__fail(LM_EINVAL, "uniform: needs finite low <= high, got low %g, high %g", low, high);
  if (!lm__is_float(t->dtype)) {
    const double least = t->dtype == LM_I32 ? -2147483648.0 : 0;
    const double most = t->dtype == LM_I32 ? 2147483648.0 : t->dtype == LM_U16 ? 65536 : 256;
    if (low != floor(low) || high != floor(high) || low == high || low < least || high > most)
      return lm__fail(LM_EINVAL,
                      "uniform: %s takes whole numbers low < high in %.0f..%.0f, got low %g, "
                      "high %g",
                      lm_dtype_name(t->dtype), least, most, low, high);
  }
  return backend->random_uniform(t, low, high, seed, stream, position);
}

int lm_random_normal(lm_tensor *t, double mean, double std, uint64_t seed, uint64_t stream,
                     uint64_t position) {
  const lm__backend_table *backend;
  LM__TRY(lm__begin("normal", 1, t));
  LM__OP(backend, random_normal, t->device);
  LM__TRY(lm__need_writable("normal", t));
  if (!lm__is_float(t->dtype))
    return lm__fail(LM_EDTYPE, "normal: needs f32, bf16 or f16, got %s", lm__describe(t));
  if (!(fabs(mean) <= 3e38) || !(std >= 0 && std <= 3e37))
    return lm__fail(LM_EINVAL, "normal: needs a finite mean and std >= 0, got mean %g, std %g",
                    mean, std);
  return backend->random_normal(t, mean, std, seed, stream, position);
}
