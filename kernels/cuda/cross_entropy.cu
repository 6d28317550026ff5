/* z = softcap(logits),  lse = log sum exp(z),  loss = mean(lse - z[target]);
 * dlogits = dloss / count * (exp(z - lse) - [column == target]) * softcap'(logits).
 * Targets of -1 are left out; columns from vocab_size on are padding.
 *
 * One block a row, which it reads once; the mean is summed by one block afterwards, in f64 and in
 * order. Predicted, not measured: a logit costs about 28 instructions with a softcap, so that an
 * H100 (132 x 128 lanes at 1.7 GHz, 3.3 TB/s) needs as long for them as for reading 3 bytes:
 * f32 logits are bound by memory, bf16 ones by arithmetic, at two thirds of the bandwidth. */
#include "cuda/cross_entropy.cuh"

namespace {

/* Columns that a block takes at once. */
constexpr int64_t ROUND = int64_t(LM_THREADS) * LM__SPAN;

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

} // namespace

extern "C" int lm__cross_entropy_cuda(lm_tensor *loss, lm_tensor *lse, const lm_tensor *logits,
                                      const lm_tensor *targets, int vocab_size, float softcap) {
  const char *op = "cross_entropy";
  loss_args a = pack(op, targets, vocab_size, softcap);
  void *scratch;
  a.logits = lm__matrix_of(logits);
  a.lse = lm__pointer<float>(lse);
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
  loss_args a = pack(op, targets, vocab_size, softcap);
  void *scratch;
  a.logits = lm__matrix_of(logits);
  a.lse = const_cast<float *>(lm__pointer<float>(lse));
  a.grad = lm__matrix_of(grad_logits);
  LM__TRY(lm__cuda_scratch(op, &scratch, sizeof(float)));
  a.factor = static_cast<float *>(scratch);
  int status = lm__launch({op, 1, WIDE}, loss_factor, static_cast<float *>(scratch),
                          lm__pointer<float>(grad_loss), a.targets, a.rows);
  if (status == LM_OK) status = lm__launch({op, lm__blocks(a.rows, 1), LM_THREADS}, gradients, a);
  lm__cuda_scratch_free(scratch);
  return status;
}
