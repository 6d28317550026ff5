/* Entry points of the optimizers: hyperparameters in range, tensors that fit each other. */
#include <math.h>
#include <stdio.h>

#include "backend/backend.h"
#include "core/error.h"

/* ---- hyperparameters: finite and in range, named in the message ---- */

static int in_range(const char *op, const char *name, double value, double low, bool low_in,
                    double high) {
  const bool above = low_in ? value >= low : value > low;
  if (above && value < high) return LM_OK; /* a NaN is not */
  if (isinf(high))
    return lm__fail(LM_EINVAL, "%s: %s = %g must be a finite number %s %g", op, name, value,
                    low_in ? ">=" : ">", low);
  return lm__fail(LM_EINVAL, "%s: %s = %g is not in %c%g, %g)", op, name, value, low_in ? '[' : '(',
                  low, high);
}
static int not_negative(const char *op, const char *name, double value) {
  return in_range(op, name, value, 0, true, (double)INFINITY);
}
static int fraction(const char *op, const char *name, double value) {
  return in_range(op, name, value, 0, true, 1);
}

/* ---- AdamW ---- */

static int check_adamw_args(const lm_adamw_args *a) {
  LM__TRY(not_negative("adamw_step", "lr", a->lr));
  LM__TRY(fraction("adamw_step", "beta1", a->beta1));
  LM__TRY(fraction("adamw_step", "beta2", a->beta2));
  LM__TRY(in_range("adamw_step", "eps", a->eps, 0, false, (double)INFINITY));
  LM__TRY(not_negative("adamw_step", "weight_decay", a->weight_decay));
  if (!(a->step >= 1 && a->step <= 9007199254740992.0 && a->step == floor(a->step)))
    return lm__fail(LM_EINVAL, "adamw_step: step = %g must be an integer >= 1", a->step);
  return LM_OK;
}

/* One of tensor i's four: like the parameter, contiguous, f32 or bf16. */
static int check_adamw_tensor(const char *role, int i, const lm_tensor *t, const lm_tensor *param) {
  char name[48];
  if ((t->dtype == LM_F32 || t->dtype == LM_BF16) && lm__is_contiguous(t) &&
      lm__same_shape(t, param))
    return LM_OK; /* names are made for messages only: there may be thousands of small tensors */
  (void)snprintf(name, sizeof name, "%s %d", role, i + 1);
  LM__TRY(lm__need_float("adamw_step", name, t));
  LM__TRY(lm__need_contiguous("adamw_step", name, t));
  return lm__need_shape("adamw_step", name, t, param->ndim, param->shape);
}

/* Thousands of small tensors have long left the cache: ask for those that are checked next. */
static void prefetch(const lm_tensor *t) {
  const char *p = (const char *)t;
  for (size_t at = 0; at < sizeof *t; at += 64) __builtin_prefetch(p + at);
}

static int check_tally(const char *op, const lm_tensor *tally, int device) {
  if (!tally) return LM_OK;
  if (tally->device != device)
    return lm__fail(LM_EDEVICE, "%s: the tally lies on %s, the tensors on %s", op,
                    lm_device_name(tally->device), lm_device_name(device));
  const int64_t shape[1] = {LM_TALLY_SIZE};
  LM__TRY(lm__need_dtype(op, "the tally", tally, LM_I32));
  LM__TRY(lm__need_shape(op, "the tally", tally, 1, shape));
  return lm__need_contiguous(op, "the tally", tally);
}

int lm_adamw_step(int n, lm_tensor *const *param, const lm_tensor *const *grad,
                  lm_tensor *const *exp_avg, lm_tensor *const *exp_avg_sq,
                  const lm_adamw_args *args) {
  const lm__backend_table *backend;
  LM__TRY(lm__begin("adamw_step", 0));
  LM__TRY(check_adamw_args(args));
  if (n <= 0) return LM_OK;
  for (int i = 0; i < n; i++) {
    const int soon = i + 8 < n ? i + 8 : i;
    prefetch(param[soon]);
    prefetch(grad[soon]);
    prefetch(exp_avg[soon]);
    prefetch(exp_avg_sq[soon]);
    LM__TRY(lm__begin("adamw_step", 5, param[0], param[i], grad[i], exp_avg[i], exp_avg_sq[i]));
    LM__TRY(check_adamw_tensor("param", i, param[i], param[i]));
    LM__TRY(check_adamw_tensor("grad", i, grad[i], param[i]));
    LM__TRY(check_adamw_tensor("exp_avg", i, exp_avg[i], param[i]));
    LM__TRY(check_adamw_tensor("exp_avg_sq", i, exp_avg_sq[i], param[i]));
  }
  if (args->tally && param[0]->device == LM_CPU)
    return lm__fail(LM_ENOTSUP, "adamw_step: a tally is kept on a GPU; on the CPU give the step");
  LM__TRY(check_tally("adamw_step", args->tally, param[0]->device));
  LM__OP(backend, adamw_step, param[0]->device);
  return backend->adamw_step(n, param, grad, exp_avg, exp_avg_sq, args);
}

/* ---- Muon ---- */

static int check_polar_args(const char *op, const lm_polar_args *a) {
  if (a->ns_steps < 0 || a->ns_steps > LM_MAX_NS_STEPS)
    return lm__fail(LM_EINVAL, "%s: ns_steps = %d is not in 0..%d", op, a->ns_steps,
                    LM_MAX_NS_STEPS);
  if (a->precision != LM_PRECISION_F32 && a->precision != LM_PRECISION_BF16)
    return lm__fail(LM_EINVAL, "%s: precision = %d is neither f32 (%d) nor bf16 (%d)", op,
                    a->precision, LM_PRECISION_F32, LM_PRECISION_BF16);
  LM__TRY(in_range(op, "norm_scale", a->norm_scale, 0, false, (double)INFINITY));
  for (int i = 0; i < 3 * a->ns_steps; i++)
    if (!isfinite(a->coefficients[i]))
      return lm__fail(LM_EINVAL, "%s: coefficient %c of step %d is %g", op, "abc"[i % 3], i / 3 + 1,
                      a->coefficients[i]);
  return LM_OK;
}

/* A bank of matrices, (K, rows, cols) f32 contiguous. */
static int check_bank(const char *op, const char *name, const lm_tensor *t) {
  LM__TRY(lm__need_dtype(op, name, t, LM_F32));
  if (t->ndim != 3)
    return lm__fail(LM_ESHAPE, "%s: %s must be a bank of matrices (K, rows, cols), got %s", op,
                    name, lm__describe(t));
  return lm__need_contiguous(op, name, t);
}

int lm_polar_express(lm_tensor **out, const lm_tensor *in, const lm_polar_args *args) {
  const lm__backend_table *backend;
  bool fresh = false;
  LM__TRY(lm__begin("polar_express", 1, in));
  LM__OP(backend, polar_express, in->device);
  LM__TRY(check_polar_args("polar_express", args));
  LM__TRY(check_bank("polar_express", "the input", in));
  LM__TRY(lm__prepare_out("polar_express", out, &fresh, LM_F32, in->device, in->ndim, in->shape));
  int status = lm__need_contiguous("polar_express", "the result", *out);
  if (status == LM_OK) status = backend->polar_express(*out, in, args);
  return lm__finish(out, fresh, status);
}

int lm_muon_step(lm_tensor *param, const lm_tensor *grad, lm_tensor *momentum_buffer,
                 lm_tensor *second_momentum, const lm_muon_args *args) {
  static const char op[] = "muon_step";
  const lm__backend_table *backend;
  LM__TRY(lm__begin(op, 4, param, grad, momentum_buffer, second_momentum));
  LM__OP(backend, muon_step, param->device);
  LM__TRY(not_negative(op, "lr", args->lr));
  LM__TRY(fraction(op, "momentum", args->momentum));
  LM__TRY(fraction(op, "beta2", args->beta2));
  LM__TRY(not_negative(op, "weight_decay", args->weight_decay));
  LM__TRY(check_polar_args(op, &args->polar));
  LM__TRY(check_bank(op, "param", param));
  LM__TRY(check_bank(op, "grad", grad));
  LM__TRY(check_bank(op, "momentum_buffer", momentum_buffer));
  LM__TRY(check_bank(op, "second_momentum", second_momentum));
  LM__TRY(lm__need_shape(op, "grad", grad, 3, param->shape));
  LM__TRY(lm__need_shape(op, "momentum_buffer", momentum_buffer, 3, param->shape));
  const bool by_row = param->shape[1] >= param->shape[2];
  const int64_t second[3] = {param->shape[0], by_row ? param->shape[1] : 1,
                             by_row ? 1 : param->shape[2]};
  LM__TRY(lm__need_shape(op, "second_momentum", second_momentum, 3, second));
  return backend->muon_step(param, grad, momentum_buffer, second_momentum, args);
}

/* ---- whether a step goes ahead ---- */

int lm_guard_gradients(int device, int n, const lm_tensor *const *grads, const char *const *names,
                       lm_tensor *tally, int policy) {
  const lm__backend_table *backend;
  LM__TRY(lm__begin("step", 0));
  LM__OP(backend, guard, device);
  LM__TRY(check_tally("step", tally, device));
  if (policy != LM_NONFINITE_ERROR && policy != LM_NONFINITE_SKIP)
    return lm__fail(LM_EINVAL, "step: policy = %d is neither error (%d) nor skip (%d)", policy,
                    LM_NONFINITE_ERROR, LM_NONFINITE_SKIP);
  for (int i = 0; i < n; i++) {
    const lm_tensor *g = grads[i];
    char name[160];
    if (g && g->device == device && lm__is_float(g->dtype) && g->dtype != LM_F16 &&
        lm__is_contiguous(g))
      continue; /* names are made for messages only */
    (void)snprintf(name, sizeof name, "the gradient of %.120s", names[i]);
    LM__TRY(lm__begin("step", 1, g));
    if (g->device != device)
      return lm__fail(LM_EDEVICE, "step: %s lies on %s, others on %s", name,
                      lm_device_name(g->device), lm_device_name(device));
    LM__TRY(lm__need_float("step", name, g));
    LM__TRY(lm__need_contiguous("step", name, g));
  }
  return backend->guard(n, grads, names, tally, policy);
}
