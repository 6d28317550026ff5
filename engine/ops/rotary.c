/* Entry point of the rotary embedding. */
#include "ops/check.h"

static int check_rotary_table(const char *name, const lm_tensor *table, const lm_tensor *x) {
  const long long steps = x->shape[1], half = x->shape[3] / 2;
  LM__TRY(lm__need_dtype("rotary", name, table, LM_F32));
  LM__TRY(lm__need_contiguous("rotary", name, table));
  if (table->ndim != 2 || table->shape[1] != half)
    return lm__fail(LM_ESHAPE, "rotary: %s must be (positions, %lld) for x %s, got %s", name, half,
                    lm__describe(x), lm__describe(table));
  if (table->shape[0] < steps)
    return lm__fail(LM_ESHAPE,
                    "rotary: x has %lld positions, %s only %lld; make the tables longer or the "
                    "sequence shorter",
                    steps, name, (long long)table->shape[0]);
  return LM_OK;
}

int lm_rotary(lm_tensor **out, const lm_tensor *x, const lm_tensor *cos_table,
              const lm_tensor *sin_table, int inverse) {
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin("rotary", 3, x, cos_table, sin_table));
  LM__OP(backend, rotary, x->device);
  LM__TRY(lm__need_activation("rotary", "x", x));
  if (x->ndim != 4)
    return lm__fail(LM_ESHAPE, "rotary: x must be (batch, time, heads, head_dim), got %s",
                    lm__describe(x));
  if (x->shape[3] % 2)
    return lm__fail(LM_ESHAPE, "rotary: head_dim must be even, got %lld in x %s",
                    (long long)x->shape[3], lm__describe(x));
  LM__TRY(check_rotary_table("the cos table", cos_table, x));
  LM__TRY(check_rotary_table("the sin table", sin_table, x));
  LM__TRY(lm__prepare_activation("rotary", out, &fresh, x));
  LM__TRY(lm__need_apart("rotary", *out, "x", x, true));
  LM__TRY(lm__need_apart("rotary", *out, "the cos table", cos_table, false));
  LM__TRY(lm__need_apart("rotary", *out, "the sin table", sin_table, false));
  return lm__finish(out, fresh, backend->rotary(*out, x, cos_table, sin_table, inverse));
}
