/* AdamW, fused: one pass over parameter, gradient and both moments, in place (math/adamw.h).
 *
 * The elements of all tensors count as one long list, of which each thread takes a share: a model's
 * many small tensors cost one parallel loop, not one each.
 */
#include "math/adamw.h"

#include "cpu/kernel.h"

typedef struct adamw {
  int n;
  lm_tensor *const *param, *const *exp_avg, *const *exp_avg_sq;
  const lm_tensor *const *grad;
  lm_adamw_factors factors;
} adamw;

static void run_f32(float *restrict p, const float *restrict g, float *restrict m,
                    float *restrict v, int64_t n, const lm_adamw_factors *factors) {
  const lm_adamw_factors f = *factors;
  LM_SIMD
  for (int64_t i = 0; i < n; i++) lm_adamw_element(&p[i], g[i], &m[i], &v[i], &f);
}

/* The elements of t from first on, as f32: its own memory, or loaded into buffer. */
static float *begin_run(const lm_tensor *t, int64_t first, int64_t n, float *buffer) {
  char *p = (char *)lm__data(t) + first * lm_dtype_size(t->dtype);
  if (t->dtype == LM_F32) return (float *)(void *)p;
  lm__load(buffer, p, t->dtype, 1, n);
  return buffer;
}
static void end_run(const lm_tensor *t, int64_t first, int64_t n, const float *buffer) {
  if (t->dtype != LM_F32)
    lm__store((char *)lm__data(t) + first * lm_dtype_size(t->dtype), buffer, t->dtype, 1, n);
}

static void run(const adamw *a, int i, int64_t first, int64_t last) {
  const lm_tensor *tp = a->param[i], *tg = a->grad[i], *tm = a->exp_avg[i], *tv = a->exp_avg_sq[i];
  float p_buffer[LM__CHUNK], g_buffer[LM__CHUNK], m_buffer[LM__CHUNK], v_buffer[LM__CHUNK];
  const bool f32 =
      tp->dtype == LM_F32 && tg->dtype == LM_F32 && tm->dtype == LM_F32 && tv->dtype == LM_F32;
  while (first < last) {
    const int64_t n = f32 || last - first < LM__CHUNK ? last - first : LM__CHUNK;
    float *p = begin_run(tp, first, n, p_buffer), *m = begin_run(tm, first, n, m_buffer);
    float *v = begin_run(tv, first, n, v_buffer);
    run_f32(p, begin_run(tg, first, n, g_buffer), m, v, n, &a->factors);
    end_run(tp, first, n, p_buffer);
    end_run(tm, first, n, m_buffer);
    end_run(tv, first, n, v_buffer);
    first += n;
  }
}

static void range_adamw(int64_t begin, int64_t end, void *arg) {
  const adamw *a = arg;
  int64_t start = 0;
  for (int i = 0; i < a->n && start < end; i++) {
    const int64_t size = lm__numel(a->param[i]);
    const int64_t first = begin > start ? begin - start : 0;
    const int64_t last = end - start < size ? end - start : size;
    if (first < last) run(a, i, first, last);
    start += size;
  }
}

int LM_KERNEL(adamw_step)(int n, lm_tensor *const *param, const lm_tensor *const *grad,
                          lm_tensor *const *exp_avg, lm_tensor *const *exp_avg_sq,
                          const lm_adamw_args *args) {
  adamw a = {n, param, exp_avg, exp_avg_sq, grad, lm_adamw_prepare(args)};
  int64_t total = 0;
  for (int i = 0; i < n; i++) total += lm__numel(param[i]);
  lm__parallel_for(total, LM__GRAIN, range_adamw, &a);
  return LM_OK;
}
