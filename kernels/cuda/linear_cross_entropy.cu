/* logits = x w';  loss = mean(lse(z) - z[target]), z = softcap(logits);  dx = dlogits w,
 * dw = dlogits' x, for dloss = 1.
 *
 * Some rows of x at a time: their logits, in x's dtype, become their own gradient in place, and no
 * tensor (rows, vocabulary) is ever stored. dw is summed in f32 by the products themselves, which
 * read and write it once a chunk of rows: beside the 6 operations an element of it and a row, some
 * 7 % of the time with 4096 rows (predicted for an H100, not measured).
 *
 * A block has a row, up to 32768 columns of it in registers: the largest logit first, which fixes
 * the base of the exponentials; then one exponential a logit serves the loss and its gradient:
 * dlogits = (exp(z - base) / sum - [column == target]) softcap' / count. Longer rows are read
 * twice, with the sum scaled whenever the maximum rises. */
#include "core/matrix.h"
#include "cuda/cross_entropy.cuh"

namespace {

enum { MOST_ROWS = 4096, MOST_BYTES = 1 << 28 }; /* of a chunk; bytes of its logits */

/* The row's loss, by one thread. */
LM_DEVICE void write_loss(const loss_args &a, int64_t row, float base, float sum, float goal) {
  float unused;
  if (threadIdx.x == 0) a.row_loss[row] = base + logf(sum) - capped(a, goal, unused);
}

/* A row without a target: no loss, no gradient. */
template <int threads> LM_DEVICE void pass_over(const loss_args &a, int64_t row) {
  const float zeros[LM__SPAN] = {};
  if (threadIdx.x == 0) a.row_loss[row] = 0;
  if (a.grad.data)
    for (int64_t at = (int64_t)threadIdx.x * LM__SPAN; at < a.vocabulary; at += threads * LM__SPAN)
      lm__store_columns(a.grad, row, at, zeros);
}

template <int threads, int spans> LM_GLOBAL __launch_bounds__(threads) whole_rows(loss_args a) {
  const int64_t row = blockIdx.x;
  const int target = (int)target_of(a, row), vocabulary = (int)a.vocabulary;
  const auto column = [&](int s) { return (s * threads + (int)threadIdx.x) * LM__SPAN; };
  if (target < 0) {
    pass_over<threads>(a, row);
    return;
  }
  const float goal = lm__load(a.logits.data, a.logits.dtype, row * a.logits.columns + target);
  float z[spans][LM__SPAN], most = -INFINITY, sum = 0, t;
#pragma unroll
  for (int s = 0; s < spans; s++) {
    if (column(s) >= vocabulary) break;
    lm__load_columns(z[s], a.logits, row, column(s), -INFINITY);
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++)
      if (z[s][j] > most && column(s) + j < vocabulary) most = z[s][j];
  }
  most = lm__block_reduce<lm__max, threads>(most, -INFINITY);
  const float base = lm__online_base(capped(a, most, t));
#pragma unroll
  for (int s = 0; s < spans; s++) {
    if (column(s) >= vocabulary) break;
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      const float e = lm__exp(capped(a, z[s][j], t) - base);
      z[s][j] = e * (1.0f - t * t);
      sum += column(s) + j < vocabulary ? e : 0.0f;
    }
  }
  sum = lm__block_reduce<lm__sum, threads>(sum, 0.0f);
  write_loss(a, row, base, sum, goal);
  if (!a.grad.data) return;
  (void)capped(a, goal, t);
  const float factor = *a.factor, scale = factor / sum, less = factor * (1.0f - t * t);
#pragma unroll
  for (int s = 0; s < spans; s++) {
    if (column(s) >= vocabulary) break;
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      z[s][j] *= scale;
      if (column(s) + j == target) z[s][j] -= less;
    }
    lm__store_columns(a.grad, row, column(s), z[s]);
  }
}

template <int threads> LM_GLOBAL long_rows(loss_args a) {
  const int64_t row = blockIdx.x, target = target_of(a, row);
  lm__online mine = {-INFINITY, 0};
  float z[LM__SPAN], t;
  if (target < 0) {
    pass_over<threads>(a, row);
    return;
  }
  const float goal = lm__load(a.logits.data, a.logits.dtype, row * a.logits.columns + target);
#pragma unroll 2
  for (int64_t at = (int64_t)threadIdx.x * LM__SPAN; at < a.vocabulary; at += threads * LM__SPAN) {
    lm__load_columns(z, a.logits, row, at, -INFINITY);
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      z[j] = capped(a, z[j], t);
      if (at + j >= a.vocabulary) z[j] = -INFINITY;
    }
    lm__online_add(mine, z);
  }
  const lm__online whole = lm__online_join<threads>(mine);
  const float base = lm__online_base(whole.most);
  write_loss(a, row, base, whole.sum, goal);
  if (!a.grad.data) return;
  (void)capped(a, goal, t);
  const float factor = *a.factor, scale = factor / whole.sum, less = factor * (1.0f - t * t);
#pragma unroll 2
  for (int64_t at = (int64_t)threadIdx.x * LM__SPAN; at < a.vocabulary; at += threads * LM__SPAN) {
    lm__load_columns(z, a.logits, row, at, 0.0f);
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      const float e = lm__exp(capped(a, z[j], t) - base);
      z[j] = scale * (e * (1.0f - t * t));
      if (at + j == target) z[j] -= less;
    }
    lm__store_columns(a.grad, row, at, z);
  }
}

int launch_rows(const char *op, const loss_args &a) {
  const auto with = [&](auto kernel, unsigned threads) {
    return lm__launch({op, lm__blocks(a.rows, 1), threads}, kernel, a);
  };
  if (a.vocabulary <= 256 * LM__SPAN) return with(whole_rows<256, 1>, 256);
  if (a.vocabulary <= 1024 * LM__SPAN) return with(whole_rows<256, 4>, 256);
  if (a.vocabulary <= 4096 * LM__SPAN) return with(whole_rows<1024, 4>, 1024);
  return with(long_rows<LM_THREADS>, LM_THREADS);
}

struct layer {
  const char *op;
  lm_tensor *grad_x, *grad_w; /* may be NULL */
  const lm_tensor *x, *w;
  lm_tensor *logits; /* a chunk; then its gradient */
};

int run_chunk(const layer &l, loss_args a, int64_t first, int64_t rows) {
  const int64_t c = l.w->shape[1], n = a.vocabulary;
  const lm_tensor x = lm__rows_of(l.x, first, rows, c), w = lm__rows_of(l.w, 0, n, c);
  const lm_tensor w_turned = lm__transposed(&w);
  lm_tensor logits = lm__rows_of(l.logits, 0, rows, n);
  LM__TRY(lm__matmul_cuda(&logits, &x, &w_turned, 1.0f, 0.0f));
  a.targets += first;
  a.row_loss += first;
  a.first = first;
  a.rows = rows;
  LM__TRY(launch_rows(l.op, a));
  if (l.grad_x) {
    lm_tensor grad_x = lm__rows_of(l.grad_x, first, rows, c);
    LM__TRY(lm__matmul_cuda(&grad_x, &logits, &w, 1.0f, 0.0f));
  }
  if (!l.grad_w) return LM_OK;
  const lm_tensor grad_turned = lm__transposed(&logits);
  lm_tensor grad_w = lm__rows_of(l.grad_w, 0, n, c);
  return lm__matmul_cuda(&grad_w, &grad_turned, &x, 1.0f, first > 0 ? 1.0f : 0.0f);
}

/* Rows of a chunk, chunks as even as can be. */
int64_t chunk_rows(int64_t rows, int64_t row_bytes) {
  int64_t most = MOST_BYTES / row_bytes;
  if (most > MOST_ROWS) most = MOST_ROWS;
  if (most < 1) most = 1;
  if (most > 128) {
    const int64_t chunks = (rows + most - 1) / most;
    const int64_t even = ((rows + chunks - 1) / (chunks > 0 ? chunks : 1) + 127) / 128 * 128;
    if (even < most) most = even;
  }
  return most < rows ? most : rows;
}
} // namespace

extern "C" int lm__linear_cross_entropy_cuda(lm_tensor *loss, lm_tensor *grad_x, lm_tensor *grad_w,
                                             const lm_tensor *x, const lm_tensor *w,
                                             const lm_tensor *targets, int vocab_size,
                                             float softcap) {
  const char *op = "linear_cross_entropy";
  loss_args a = pack(op, targets, vocab_size, softcap);
  layer l = {op, grad_x, grad_w, x, w, NULL};
  /* whole spans of 16 bytes a row: what lies beyond the vocabulary is never looked at */
  const int64_t ld = (a.vocabulary + 63) / 64 * 64;
  const int64_t most = chunk_rows(a.rows, ld * lm_dtype_size(x->dtype)), shape[2] = {most, ld};
  void *scratch = NULL;
  int status = lm_tensor_new(&l.logits, x->dtype, LM_CUDA, 2, shape);
  if (status == LM_OK)
    status = lm__cuda_scratch(op, &scratch, (size_t)(a.rows + 1) * sizeof(float));
  float *const factor = static_cast<float *>(scratch);
  if (status == LM_OK) {
    a.logits = lm__matrix_of(l.logits);
    if (grad_x || grad_w) a.grad = a.logits;
    a.factor = factor;
    a.row_loss = factor + 1;
    status = lm__launch({op, 1, WIDE}, loss_factor, factor, (const float *)NULL, a.targets, a.rows);
  }
  for (int64_t first = 0; first < a.rows && status == LM_OK; first += most)
    status = run_chunk(l, a, first, a.rows - first < most ? a.rows - first : most);
  if (status == LM_OK)
    status = lm__launch({op, 1, WIDE}, mean_loss, lm__pointer<float>(loss), factor + 1, a.targets,
                        a.rows);
  if (status == LM_OK && grad_w) { /* no row has a use for the padding */
    const int64_t from = a.rows > 0 ? a.vocabulary : 0;
    lm_tensor rest = lm__rows_of(grad_w, from, grad_w->shape[0] - from, grad_w->shape[1]);
    if (lm__numel(&rest) > 0) status = lm__fill_cuda(&rest, 0);
  }
  lm__cuda_scratch_free(scratch);
  lm_tensor_free(l.logits);
  return status;
}
