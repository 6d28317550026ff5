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

/* n elements of one tensor. The flags are constants at each call, so that each combination of
 * dtypes is a loop of its own, which loads, computes and stores a vector at a time. */
static inline __attribute__((always_inline)) void
run_typed(bool p16, bool g16, bool m16, bool v16, void *restrict p, const void *restrict g,
          void *restrict m, void *restrict v, int64_t n, const lm_adamw_factors *factors) {
  const lm_adamw_factors f = *factors;
#define LM__GET(x, half) (half ? lm_bf16_to_f32(((const uint16_t *)x)[i]) : ((const float *)x)[i])
#define LM__PUT(x, half, value)                                                                    \
  if (half)                                                                                        \
    ((uint16_t *)x)[i] = lm_f32_to_bf16(value);                                                    \
  else                                                                                             \
    ((float *)x)[i] = value
  LM_SIMD
  for (int64_t i = 0; i < n; i++) {
    float param = LM__GET(p, p16), first = LM__GET(m, m16), second = LM__GET(v, v16);
    lm_adamw_element(&param, LM__GET(g, g16), &first, &second, &f);
    LM__PUT(p, p16, param);
    LM__PUT(m, m16, first);
    LM__PUT(v, v16, second);
  }
#undef LM__GET
#undef LM__PUT
}

static void *element(const lm_tensor *t, int64_t i) {
  return (char *)lm__data(t) + i * lm_dtype_size(t->dtype);
}

/* Elements first..last of tensor i. */
static void run(const adamw *a, int i, int64_t first, int64_t last) {
  const lm_tensor *tp = a->param[i], *tg = a->grad[i], *tm = a->exp_avg[i], *tv = a->exp_avg_sq[i];
  const int halves = (tp->dtype == LM_BF16) | (tg->dtype == LM_BF16) << 1 |
                     (tm->dtype == LM_BF16) << 2 | (tv->dtype == LM_BF16) << 3;
  switch (halves) {
#define LM__CASE(h)                                                                                \
  case h:                                                                                          \
    run_typed(h & 1, h & 2, h & 4, h & 8, element(tp, first), element(tg, first),                  \
              element(tm, first), element(tv, first), last - first, &a->factors);                  \
    break;
    LM__CASE(0)
    LM__CASE(1)
    LM__CASE(2)
    LM__CASE(3)
    LM__CASE(4)
    LM__CASE(5)
    LM__CASE(6)
    LM__CASE(7)
    LM__CASE(8)
    LM__CASE(9)
    LM__CASE(10)
    LM__CASE(11)
    LM__CASE(12)
    LM__CASE(13)
    LM__CASE(14)
    LM__CASE(15)
#undef LM__CASE
    default:
      break;
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
