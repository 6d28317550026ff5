/* z = softcap(logits),  lse = log sum exp(z),  loss = mean(lse - z[target]);
 * dlogits = dloss / count * (exp(z - lse) - [column == target]) * softcap'(logits).
 * Targets of -1 are left out; columns from vocab_size on are padding.
 *
 * One block a row, which it reads once; the mean is summed by one block afterwards, in f64 and in
 * order. Predicted, not measured: a logit costs about 28 instructions with a softcap, so that an
 * H100 (132 x 128 lanes at 1.7 GHz, 3.3 TB/s) needs as long for them as for reading 3 bytes:
 * f32 logits are bound by memory, bf16 ones by arithmetic, at two thirds of the bandwidth. */
#include <stdio.h>

#include "cuda/online.cuh"
#include "math/cross_entropy.h"

namespace {

struct loss_args {
  lm__matrix logits, grad;
  float *lse, *row_loss; /* row_loss: lse - z[target], or 0 */
  const int32_t *targets;
  const float *factor; /* dloss / count */
  int64_t rows, vocabulary;
  float cap, inverse_cap;
  lm__reporter reporter;
  char op[32];
};

/* Columns that a block takes at once. */
constexpr int64_t ROUND = int64_t(LM_THREADS) * LM__SPAN;

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
    lm__report_found(a.reporter, LM_REPORT_TARGET, a.op, target, a.vocabulary, row);
  return 0;
}

LM_GLOBAL row_losses(loss_args a) {
  const int64_t row = blockIdx.x, target = target_of(a, row);
  lm__online mine = {-INFINITY, 0};
  float unused, goal = 0;
  if (target >= 0) goal = lm__load(a.logits.data, a.logits.dtype, row * a.logits.columns + target);
#pragma unroll 2
  for (int64_t at = (int64_t)threadIdx.x * LM__SPAN; at < a.vocabulary; at += ROUND) {
    float z[LM__SPAN];
    lm__load_columns(z, a.logits, row, at, -INFINITY);
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      z[j] = capped(a, z[j], unused);
      if (at + j >= a.vocabulary) z[j] = -INFINITY;
    }
    lm__online_add(mine, z);
  }
  const lm__online whole = lm__online_join<LM_THREADS>(mine);
  if (threadIdx.x != 0) return;
  const float lse = lm__online_base(whole.most) + logf(whole.sum);
  a.lse[row] = lse;
  a.row_loss[row] = target < 0 ? 0.0f : lse - capped(a, goal, unused);
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

LM_GLOBAL loss_factor(float *factor, const float *grad_loss, const int32_t *targets, int64_t rows) {
  const double count = count_targets(targets, rows);
  if (threadIdx.x == 0) *factor = *grad_loss / (float)(count > 0 ? count : 1);
}

/* May write the gradient where the logits are: a thread reads what it writes. */
LM_GLOBAL gradients(loss_args a) {
  const int64_t row = blockIdx.x, target = target_of(a, row);
  const float lse = a.lse[row], factor = *a.factor;
#pragma unroll 2
  for (int64_t at = (int64_t)threadIdx.x * LM__SPAN; at < a.grad.columns; at += ROUND) {
    float z[LM__SPAN] = {};
    if (target >= 0 && at < a.vocabulary) {
      lm__load_columns(z, a.logits, row, at, 0.0f);
#pragma unroll
      for (int j = 0; j < LM__SPAN; j++) {
        float t;
        const float y = capped(a, z[j], t), p = lm__exp(y - lse);
        z[j] = factor * (at + j == target ? p - 1.0f : p) * (1.0f - t * t);
        if (at + j >= a.vocabulary) z[j] = 0;
      }
    }
    lm__store_columns(a.grad, row, at, z);
  }
}

static loss_args pack(const char *op, const lm_tensor *logits, const lm_tensor *targets,
                      const lm_tensor *lse, int vocab_size, float softcap) {
  loss_args a = {};
  (void)snprintf(a.op, sizeof a.op, "%s", op);
  a.logits = lm__matrix_of(logits);
  a.lse = static_cast<float *>(lm__data(lse));
  a.targets = lm__pointer<int32_t>(targets);
  a.rows = lm__numel(targets);
  a.vocabulary = vocab_size;
  a.cap = softcap;
  a.inverse_cap = softcap > 0 ? 1.0f / softcap : 0.0f;
  a.reporter = lm__cuda_reporter();
  return a;
}
} // namespace

extern "C" int lm__cross_entropy_cuda(lm_tensor *loss, lm_tensor *lse, const lm_tensor *logits,
                                      const lm_tensor *targets, int vocab_size, float softcap) {
  const char *op = "cross_entropy";
  loss_args a = pack(op, logits, targets, lse, vocab_size, softcap);
  void *scratch;
  LM__TRY(lm__cuda_scratch(op, &scratch, (size_t)a.rows * sizeof(float)));
  a.row_loss = static_cast<float *>(scratch);
  int status = lm__launch({op, lm__blocks(a.rows, 1), LM_THREADS}, row_losses, a);
  if (status == LM_OK)
    status = lm__launch({op, 1, WIDE}, mean_loss, lm__pointer<float>(loss), a.row_loss, a.targets,
                        a.rows);
  lm__cuda_scratch_free(scratch);
  return status;
}

extern "C" int lm__cross_entropy_backward_cuda(lm_tensor *grad_logits, const lm_tensor *grad_loss,
                                               const lm_tensor *logits, const lm_tensor *targets,
                                               const lm_tensor *lse, int vocab_size,
                                               float softcap) {
  const char *op = "cross_entropy_backward";
  loss_args a = pack(op, logits, targets, lse, vocab_size, softcap);
  void *scratch;
  a.grad = lm__matrix_of(grad_logits);
  LM__TRY(lm__cuda_scratch(op, &scratch, sizeof(float)));
  a.factor = static_cast<float *>(scratch);
  int status = lm__launch({op, 1, WIDE}, loss_factor, static_cast<float *>(scratch),
                          lm__pointer<float>(grad_loss), a.targets, a.rows);
  if (status == LM_OK) status = lm__launch({op, lm__blocks(a.rows, 1), LM_THREADS}, gradients, a);
  lm__cuda_scratch_free(scratch);
  return status;
}
