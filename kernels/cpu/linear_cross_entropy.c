/* logits = x w';  loss = mean(lse(z) - z[target]), z = softcap(logits);  dx = dlogits w,
 * dw = dlogits' x, for dloss = 1.
 *
 * Some rows of x at a time, so that their logits and the gradient of these are still in cache when
 * they are read again, and no tensor (rows, vocabulary) is ever stored. One exponential a logit
 * serves the loss and its gradient: dlogits = (exp(z - most) / sum - [column == target]) softcap'.
 * Rows of logits are padded: at a power of two apart they would share few sets of the cache. */
#include <math.h>

#include "core/matrix.h"
#include "cpu/index.h"
#include "cpu/row_max.h"
#include "math/cross_entropy.h"

enum {
  BLOCK_LOGITS = 1 << 25, /* at once; fewer make the sums of dw read and write it more often */
  ROW_PAD = 32
};

typedef struct rows_args {
  float *logits; /* (rows, ld) */
  void *grad;    /* the same memory, or bf16; NULL: not wanted */
  const int32_t *targets;
  double *losses;
  int grad_dtype;
  int64_t ld, vocabulary;
  float cap, factor;
} rows_args;

/* z to exp(softcap(z) - base) softcap'(z), where they are kept; returns the sum of the
 * exponentials.
 */
static inline float exponentials(float *restrict z, int64_t n, float cap, float base,
                                 const bool capped, const bool small, const bool keep) {
  const float inverse = capped ? 1.0f / cap : 0.0f;
  float sum = 0;
  _Pragma("omp simd reduction(+:sum)") for (int64_t i = 0; i < n; i++) {
    const float x = z[i] * inverse;
    const float t = !capped ? 0.0f : small ? lm_tanhf_small(x) : lm_tanhf(x);
    const float e = lm_expf((capped ? cap * t : z[i]) - base);
    sum += e;
    if (keep) z[i] = capped ? e * (1.0f - t * t) : e;
  }
  return sum;
}

static bool all_small(const float *z, int64_t n, float bound) {
  int large = 0;
  _Pragma("omp simd reduction(|:large)") for (int64_t i = 0; i < n; i++) large |=
      !(fabsf(z[i]) < bound);
  return !large;
}

static double row_exponentials(float *z, int64_t n, float cap, float base, bool keep) {
  double sum = 0;
  for (int64_t at = 0; at < n; at += LM__CHUNK) {
    const int64_t m = n - at < LM__CHUNK ? n - at : LM__CHUNK;
    float *p = z + at;
    if (!(cap > 0))
      sum += keep ? exponentials(p, m, cap, base, false, false, true)
                  : exponentials(p, m, cap, base, false, false, false);
    else if (all_small(p, m, 0.999f * LM_TANH_SMALL * cap)) /* whose tanh costs a third */
      sum += keep ? exponentials(p, m, cap, base, true, true, true)
                  : exponentials(p, m, cap, base, true, true, false);
    else
      sum += keep ? exponentials(p, m, cap, base, true, false, true)
                  : exponentials(p, m, cap, base, true, false, false);
  }
  return sum;
}

static void range_rows(int64_t begin, int64_t end, void *arg) {
  const rows_args *a = arg;
  const int64_t n = a->vocabulary, size = lm_dtype_size(a->grad_dtype);
  const float cap = a->cap;
  for (int64_t row = begin; row < end; row++) {
    float *z = a->logits + row * a->ld;
    char *grad = a->grad ? (char *)a->grad + row * a->ld * size : NULL;
    const int32_t target = a->targets[row];
    if (target < 0) {
      a->losses[row] = 0;
      if (grad) memset(grad, 0, (size_t)(n * size));
      continue;
    }
    const float correct = lm_softcapf(z[target], cap);
    const float most = lm_softcapf(lm__row_max(-INFINITY, z, n), cap);
    const float base = most > -INFINITY ? most : 0.0f; /* all of them -Inf: they add nothing */
    const double sum = row_exponentials(z, n, cap, base, grad != NULL);
    a->losses[row] = (double)base + log(sum) - (double)correct;
    if (!grad) continue;
    const float factor = a->factor / (float)sum;
    LM_SIMD
    for (int64_t i = 0; i < n; i++) z[i] *= factor;
    z[target] -= a->factor * lm_softcap_gradf(correct, cap);
    if (grad != (char *)z) lm__store(grad, z, a->grad_dtype, 1, n);
  }
}

typedef struct layer {
  lm_tensor *loss, *grad_x, *grad_w; /* grads may be NULL */
  const lm_tensor *x, *w;            /* of one dtype, which the products take */
  lm_tensor *logits, *grad;          /* a block of each; one tensor in f32 */
  double *losses;                    /* of a block's rows */
  const lm_tensor *targets;
  int64_t vocabulary;
  float cap, factor;
} layer;

/* One block; the sum of its rows' losses. */
static int run_block(const layer *l, int64_t first, int64_t rows, double *sum) {
  const int64_t c = l->w->shape[1], n = l->vocabulary;
  const lm_tensor x = lm__rows_of(l->x, first, rows, c), w = lm__rows_of(l->w, 0, n, c);
  const lm_tensor w_turned = lm__transposed(&w);
  lm_tensor logits = lm__rows_of(l->logits, 0, rows, n);
  LM__TRY(LM_KERNEL(matmul)(&logits, &x, &w_turned, 1.0f, 0.0f));
  rows_args a = {.logits = lm__data(&logits),
                 .grad = l->grad ? lm__data(l->grad) : NULL,
                 .targets = (const int32_t *)lm__data(l->targets) + first,
                 .losses = l->losses,
                 .grad_dtype = l->grad ? l->grad->dtype : LM_F32,
                 .ld = l->logits->shape[1],
                 .vocabulary = n,
                 .cap = l->cap,
                 .factor = l->factor};
  lm__parallel_for(rows, LM__GRAIN / (n * 16) + 1, range_rows, &a);
  for (int64_t row = 0; row < rows; row++) *sum += l->losses[row];
  if (!l->grad) return LM_OK;
  const lm_tensor grad = lm__rows_of(l->grad, 0, rows, n), grad_turned = lm__transposed(&grad);
  if (l->grad_x) {
    lm_tensor grad_x = lm__rows_of(l->grad_x, first, rows, c);
    LM__TRY(LM_KERNEL(matmul)(&grad_x, &grad, &w, 1.0f, 0.0f));
  }
  if (!l->grad_w) return LM_OK;
  lm_tensor grad_w = lm__rows_of(l->grad_w, 0, n, c);
  return LM_KERNEL(matmul)(&grad_w, &grad_turned, &x, 1.0f, first > 0 ? 1.0f : 0.0f);
}

static int run_blocks(layer *l) {
  const int64_t rows = lm__numel(l->targets), n = l->vocabulary, c = l->w->shape[1];
  const int32_t *targets = lm__data(l->targets);
  int64_t count = 0, most = BLOCK_LOGITS / n;
  double sum = 0;
  for (int64_t row = 0; row < rows; row++) count += targets[row] >= 0;
  l->factor = 1.0f / (float)(count > 0 ? count : 1);
  if (most < 1) most = 1;
  if (most > 64) { /* blocks as even as can be */
    const int64_t blocks = (rows + most - 1) / most;
    most = ((rows + blocks - 1) / (blocks > 0 ? blocks : 1) + 63) / 64 * 64;
  }
  if (most > rows) most = rows;
  const int64_t shape[2] = {most, (n + 15) / 16 * 16 + ROW_PAD};
  const bool grads = l->grad_x || l->grad_w;
  lm__storage *losses = NULL;
  int status = lm_tensor_new(&l->logits, LM_F32, LM_CPU, 2, shape);
  if (status == LM_OK) status = lm__storage_new(&losses, (size_t)most * sizeof(double), LM_CPU);
  if (status == LM_OK && grads && l->x->dtype == LM_BF16)
    status = lm_tensor_new(&l->grad, LM_BF16, LM_CPU, 2, shape);
  if (status == LM_OK) {
    l->losses = losses->data;
    if (grads && !l->grad) l->grad = l->logits;
  }
  for (int64_t first = 0; first < rows && status == LM_OK; first += most) {
    status = run_block(l, first, rows - first < most ? rows - first : most, &sum);
    if (status == LM_OK && lm_interrupted())
      status = lm__fail(LM_EINTERRUPT, "linear_cross_entropy: interrupted");
  }
  if (status == LM_OK) {
    *(float *)lm__data(l->loss) = (float)(sum / (double)count);
    if (l->grad_w) { /* no row has a use for the padding */
      lm_tensor rest =
          lm__rows_of(l->grad_w, rows > 0 ? n : 0, l->grad_w->shape[0] - (rows > 0 ? n : 0), c);
      if (rest.shape[0] > 0) status = LM_KERNEL(fill)(&rest, 0);
    }
  }
  if (l->grad != l->logits) lm_tensor_free(l->grad);
  lm_tensor_free(l->logits);
  if (losses) lm__storage_release(losses);
  return status;
}

int LM_KERNEL(linear_cross_entropy)(lm_tensor *loss, lm_tensor *grad_x, lm_tensor *grad_w,
                                    const lm_tensor *x, const lm_tensor *w,
                                    const lm_tensor *targets, int vocab_size, float softcap) {
  layer l = {.loss = loss,
             .grad_x = grad_x,
             .grad_w = grad_w,
             .x = x,
             .w = w,
             .targets = targets,
             .vocabulary = vocab_size,
             .cap = softcap};
  LM__TRY(lm__check_index("linear_cross_entropy", "target", targets, -1, vocab_size,
                          ", or -1 to ignore"));
  const bool bf16 = x->dtype == LM_BF16 && w->dtype == LM_BF16 && lm_cpu_fast_bf16();
  lm_tensor *wide_x = NULL, *wide_w = NULL; /* cast once, not block by block */
  int status = LM_OK;
  if (!bf16 && x->dtype != LM_F32) {
    status = lm_tensor_new(&wide_x, LM_F32, LM_CPU, x->ndim, x->shape);
    if (status == LM_OK) status = LM_KERNEL(copy)(wide_x, x);
    l.x = wide_x;
  }
  if (status == LM_OK && !bf16 && w->dtype != LM_F32) {
    status = lm_tensor_new(&wide_w, LM_F32, LM_CPU, w->ndim, w->shape);
    if (status == LM_OK) status = LM_KERNEL(copy)(wide_w, w);
    l.w = wide_w;
  }
  if (status == LM_OK) status = run_blocks(&l);
  lm_tensor_free(wide_x);
  lm_tensor_free(wide_w);
  return status;
}
