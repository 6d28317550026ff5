/* z = softcap(logits),  lse = log sum exp(z),  loss = mean(lse - z[target]);
 * dlogits = dloss / count * (exp(z - lse) - [column == target]) * softcap'(logits).
 * Targets of -1 are left out; columns from vocab_size on are padding. */
#include <math.h>

#include "cpu/index.h"
#include "cpu/row_max.h"
#include "math/cross_entropy.h"

typedef struct loss_args {
  char *grad;
  const char *logits;
  float *lse;
  const int32_t *targets;
  int grad_dtype, logits_dtype;
  int64_t columns, vocabulary;
  float cap, factor;
} loss_args;

/* z = softcap of n logits from column `at` of a row. */
static inline void load_capped(float *restrict z, const loss_args *a, int64_t row, int64_t at,
                               int64_t n) {
  const float cap = a->cap;
  lm__load(z, a->logits + (row * a->columns + at) * lm_dtype_size(a->logits_dtype), a->logits_dtype,
           1, n);
  if (!(cap > 0)) return;
  LM_SIMD
  for (int64_t i = 0; i < n; i++) z[i] = lm_softcapf(z[i], cap);
}

/* One pass: sum exp(z - most) over chunks, scaled anew whenever the maximum rises. */
static void range_lse(int64_t begin, int64_t end, void *arg) {
  const loss_args *a = arg;
  float z[LM__CHUNK];
  for (int64_t row = begin; row < end; row++) {
    float most = -INFINITY;
    double sum = 0;
    for (int64_t at = 0; at < a->vocabulary; at += LM__CHUNK) {
      const int64_t n = a->vocabulary - at < LM__CHUNK ? a->vocabulary - at : LM__CHUNK;
      float part = 0;
      load_capped(z, a, row, at, n);
      const float higher = lm__row_max(most, z, n);
      const float base = higher > -INFINITY ? higher : 0.0f; /* a chunk of -Inf adds nothing */
      _Pragma("omp simd reduction(+:part)") for (int64_t i = 0; i < n; i++) part +=
          lm_expf(z[i] - base);
      if (higher > most && sum > 0) sum *= exp((double)most - (double)higher);
      sum += part;
      most = higher;
    }
    a->lse[row] = (float)((most > -INFINITY ? (double)most : 0.0) + log(sum));
  }
}

int LM_KERNEL(cross_entropy)(lm_tensor *loss, lm_tensor *lse, const lm_tensor *logits,
                             const lm_tensor *targets, int vocab_size, float softcap) {
  const int64_t rows = lm__numel(targets);
  LM__TRY(lm__check_index("cross_entropy", "target", targets, -1, vocab_size, ", or -1 to ignore"));
  loss_args a = {.logits = lm__data(logits),
                 .lse = lm__data(lse),
                 .targets = lm__data(targets),
                 .logits_dtype = logits->dtype,
                 .columns = logits->shape[logits->ndim - 1],
                 .vocabulary = vocab_size,
                 .cap = softcap};
  lm__parallel_for(rows, LM__GRAIN / ((int64_t)vocab_size * 16) + 1, range_lse, &a);
  double sum = 0;
  int64_t count = 0;
  for (int64_t row = 0; row < rows; row++) {
    float z = 0;
    if (a.targets[row] < 0) continue;
    load_capped(&z, &a, row, a.targets[row], 1);
    sum += (double)a.lse[row] - (double)z;
    count++;
  }
  *(float *)lm__data(loss) = (float)(sum / (double)count);
  return LM_OK;
}

static void range_grad(int64_t begin, int64_t end, void *arg) {
  const loss_args *a = arg;
  const int64_t size = lm_dtype_size(a->grad_dtype);
  const float cap = a->cap;
  float z[LM__CHUNK], grad[LM__CHUNK];
  for (int64_t row = begin; row < end; row++) {
    char *out = a->grad + row * a->columns * size;
    const int64_t target = a->targets[row], used = target < 0 ? 0 : a->vocabulary;
    const float lse = a->lse[row], factor = a->factor;
    for (int64_t at = 0; at < used; at += LM__CHUNK) {
      const int64_t n = used - at < LM__CHUNK ? used - at : LM__CHUNK;
      load_capped(z, a, row, at, n);
      LM_SIMD
      for (int64_t i = 0; i < n; i++)
        grad[i] = factor * lm_expf(z[i] - lse) * lm_softcap_gradf(z[i], cap);
      if (target >= at && target < at + n) {
        const float y = z[target - at];
        grad[target - at] = factor * (lm_expf(y - lse) - 1.0f) * lm_softcap_gradf(y, cap);
      }
      lm__store(out + at * size, grad, a->grad_dtype, 1, n);
    }
    memset(out + used * size, 0, (size_t)((a->columns - used) * size));
  }
}

int LM_KERNEL(cross_entropy_backward)(lm_tensor *grad_logits, const lm_tensor *grad_loss,
                                      const lm_tensor *logits, const lm_tensor *targets,
                                      const lm_tensor *lse, int vocab_size, float softcap) {
  const int64_t rows = lm__numel(targets);
  LM__TRY(lm__check_index("cross_entropy_backward", "target", targets, -1, vocab_size,
                          ", or -1 to ignore"));
  loss_args a = {.grad = lm__data(grad_logits),
                 .logits = lm__data(logits),
                 .lse = lm__data(lse),
                 .targets = lm__data(targets),
                 .grad_dtype = grad_logits->dtype,
                 .logits_dtype = logits->dtype,
                 .columns = logits->shape[logits->ndim - 1],
                 .vocabulary = vocab_size,
                 .cap = softcap};
  int64_t count = 0;
  for (int64_t row = 0; row < rows; row++) count += a.targets[row] >= 0;
  a.factor = *(const float *)lm__data(grad_loss) / (float)(count > 0 ? count : 1);
  lm__parallel_for(rows, LM__GRAIN / ((int64_t)vocab_size * 16) + 1, range_grad, &a);
  return LM_OK;
}
