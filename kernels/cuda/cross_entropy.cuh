/* What cross_entropy and linear_cross_entropy share: the softcap, targets, means. */
#ifndef LM_KERNELS_CUDA_CROSS_ENTROPY_CUH
#define LM_KERNELS_CUDA_CROSS_ENTROPY_CUH

#include <stdio.h>

#include "cuda/online.cuh"
#include "math/cross_entropy.h"

namespace {

struct loss_args {
  lm__matrix logits, grad;
  float *lse, *row_loss; /* row_loss: lse - z[target], or 0 */
  const int32_t *targets;
  const float *factor;             /* dloss / count */
  int64_t rows, vocabulary, first; /* first: of the rows among all, for reports */
  float cap, inverse_cap;
  lm__reporter reporter;
  char op[32];
};

/* cap * tanh(x / cap), and what the derivative needs: t = tanh(x / cap), or 0. */
LM_DEVICE float capped(const loss_args &a, float x, float &t) {
  if (!(a.cap > 0)) {
    t = 0;
    return x;
  }
  const float y = x * a.inverse_cap, e = lm__exp(-2.0f * fabsf(y));
  t = lm_tanh_with(y, __fdividef(1.0f - e, 1.0f + e));
  return a.cap * t;
}

/* The row's target; one outside the vocabulary is reported by one thread, and taken as 0. */
LM_DEVICE int64_t target_of(const loss_args &a, int64_t row) {
  const int64_t target = a.targets[row];
  if (target >= -1 && target < a.vocabulary) return target;
  if (threadIdx.x == 0)
    lm__report_found(a.reporter, LM_REPORT_TARGET, a.op, target, a.vocabulary, a.first + row);
  return 0;
}

/* The targets that count, by one block: threads in turn, then a tree. */
enum { WIDE = 1024 };
LM_DEVICE double count_targets(const int32_t *targets, int64_t rows) {
  double count = 0;
  for (int64_t row = threadIdx.x; row < rows; row += WIDE) count += targets[row] == -1 ? 0 : 1;
  return lm__block_reduce<lm__sum, WIDE>(count, 0.0);
}

LM_GLOBAL mean_loss(float *loss, const float *row_loss, const int32_t *targets, int64_t rows) {
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += WIDE) sum += (double)row_loss[row];
  sum = lm__block_reduce<lm__sum, WIDE>(sum, 0.0);
  const double count = count_targets(targets, rows);
  if (threadIdx.x == 0) *loss = (float)(sum / count);
}

/* dloss / count, dloss 1 where grad_loss is NULL. */
LM_GLOBAL loss_factor(float *factor, const float *grad_loss, const int32_t *targets, int64_t rows) {
  const double count = count_targets(targets, rows);
  if (threadIdx.x == 0) *factor = (grad_loss ? *grad_loss : 1.0f) / (float)(count > 0 ? count : 1);
}

static inline loss_args pack(const char *op, const lm_tensor *targets, int vocab_size,
                             float softcap) {
  loss_args a = {};
  (void)snprintf(a.op, sizeof a.op, "%s", op);
  a.targets = lm__pointer<int32_t>(targets);
  a.rows = lm__numel(targets);
  a.vocabulary = vocab_size;
  a.cap = softcap;
  a.inverse_cap = softcap > 0 ? 1.0f / softcap : 0.0f;
  a.reporter = lm__cuda_reporter();
  return a;
}
} // namespace

#endif
