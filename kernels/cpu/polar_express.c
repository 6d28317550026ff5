/* Polar Express (Amsel et al. 2025) for a bank of matrices:
 *
 *   X = U / (|U|_F s + 1e-6), then ns_steps times X = a X + (b A + c A A) X with A = X X'
 *
 * (polar_iterate.c has the steps). The matrices of a bank are dealt to the threads, or, where they
 * are few and large, each is worked on by all.
 */
#include "cpu/polar.h"

#include <math.h>

int LM_KERNEL(bank_new)(lm__bank *bank, int64_t count, int64_t rows, int64_t cols,
                        const lm_polar_args *polar) {
  const bool bf16 = polar->precision == LM_PRECISION_BF16, fast = bf16 && lm_cpu_fast_bf16();
  *bank = (lm__bank){.count = count,
                     .rows = rows,
                     .cols = cols,
                     .polar = polar,
                     .dtype = fast ? LM_BF16 : LM_F32,
                     .round = bf16 && !fast};
  const int64_t bytes = count * rows * cols * lm_dtype_size(bank->dtype);
  return lm__storage_new(&bank->x, (size_t)bytes, LM_CPU);
}

/* A slot: 2 max(rows, cols) sums, then what the iteration needs. */
static int64_t sums_bytes(const lm__bank *bank) {
  const int64_t n = bank->rows > bank->cols ? bank->rows : bank->cols;
  return lm__aligned(2 * n * (int64_t)sizeof(double));
}
static int64_t slot_bytes(const lm__bank *bank) {
  return sums_bytes(bank) + LM_KERNEL(polar_scratch)(bank);
}

/* Matrices begin..end, one after another in one slot. */
static void range_run(int64_t begin, int64_t end, void *arg) {
  lm__bank *bank = arg;
  const int64_t mine = __atomic_fetch_add(&bank->slots_taken, 1, __ATOMIC_RELAXED);
  char *scratch = (char *)bank->scratch->data + mine * slot_bytes(bank);
  double *sums = (double *)(void *)scratch;
  for (int64_t k = begin; k < end; k++) {
    if (__atomic_load_n(&bank->status, __ATOMIC_RELAXED) != LM_OK) return;
    bank->prepare(bank, k, sums);
    const int status =
        LM_KERNEL(polar_iterate)(bank, lm__bank_row(bank, k, 0), scratch + sums_bytes(bank));
    if (status != LM_OK) __atomic_store_n(&bank->status, status, __ATOMIC_RELAXED);
    if (status == LM_OK && bank->finish) bank->finish(bank, k, sums);
  }
}

int LM_KERNEL(bank_run)(lm__bank *bank) {
  const int64_t threads = lm_threads();
  const double m = (double)(bank->rows < bank->cols ? bank->rows : bank->cols);
  const double n = (double)(bank->rows < bank->cols ? bank->cols : bank->rows);
  const double work = bank->polar->ns_steps * (4 * m * m * n + 2 * m * m * m) + 3e5;
  const bool small = m * m * n < 4e6, even = bank->count % threads == 0;
  const bool each = bank->count > 1 && (small || even || bank->count >= 4 * threads);
  const int64_t slots = !each ? 1 : bank->count < threads ? bank->count : threads;
  LM__TRY(lm__storage_new(&bank->scratch, (size_t)(slots * slot_bytes(bank)), LM_CPU));
  if (each) /* a thread should have 2 Mflop to do, or is not worth waking */
    lm__parallel_for(bank->count, 1 + (int64_t)(2e6 / work), range_run, bank);
  else
    range_run(0, bank->count, bank);
  lm__storage_release(bank->scratch);
  if (bank->status == LM_OK || !each) return bank->status;
  return lm__fail(bank->status, /* the message is on the thread that failed */
                  "polar_express: %s while (%lld, %lld, %lld) was being done",
                  bank->status == LM_EINTERRUPT ? "interrupted" : "a product failed",
                  (long long)bank->count, (long long)bank->rows, (long long)bank->cols);
}

/* ---- the op ---- */

typedef struct norm {
  const float *in;
  const lm__bank *bank;
  double *sums; /* a row */
  double scale;
  int64_t k;
} norm;

static void range_sums(int64_t begin, int64_t end, void *arg) {
  norm *w = arg;
  const int64_t cols = w->bank->cols;
  for (int64_t i = begin; i < end; i++) w->sums[i] = lm__sum_squares(w->in + i * cols, cols);
}

static void range_scale(int64_t begin, int64_t end, void *arg) {
  const norm *w = arg;
  const int64_t cols = w->bank->cols;
  float buffer[LM__CHUNK];
  for (int64_t i = begin; i < end; i++)
    for (int64_t j = 0; j < cols; j += LM__CHUNK) {
      const int64_t n = cols - j < LM__CHUNK ? cols - j : LM__CHUNK;
      const float *in = w->in + i * cols + j;
      LM_SIMD
      for (int64_t e = 0; e < n; e++) buffer[e] = (float)((double)in[e] * w->scale);
      char *row = lm__bank_row(w->bank, w->k, i);
      lm__bank_store(w->bank, row + j * lm_dtype_size(w->bank->dtype), buffer, n);
    }
}

/* x[k] = in[k] / (|in[k]|_F s + 1e-6) */
static void normalise(lm__bank *bank, int64_t k, double *sums) {
  const lm_tensor *in = bank->arg;
  double total = 0;
  norm w = {.in = (const float *)lm__data(in) + k * bank->rows * bank->cols,
            .bank = bank,
            .sums = sums,
            .k = k};
  lm__parallel_for(bank->rows, lm__bank_grain(bank), range_sums, &w);
  for (int64_t i = 0; i < bank->rows; i++) total += w.sums[i];
  w.scale = 1.0 / (sqrt(total) * bank->polar->norm_scale + 1e-6);
  lm__parallel_for(bank->rows, lm__bank_grain(bank), range_scale, &w);
}

int LM_KERNEL(polar_express)(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args) {
  lm__bank bank;
  if (lm__numel(in) == 0) return LM_OK;
  LM__TRY(LM_KERNEL(bank_new)(&bank, in->shape[0], in->shape[1], in->shape[2], args));
  bank.prepare = normalise;
  bank.arg = (void *)(uintptr_t)in;
  const int status = LM_KERNEL(bank_run)(&bank);
  if (status == LM_OK) {
    const lm_tensor x = {.dtype = bank.dtype,
                         .ndim = 1,
                         .shape = {lm__numel(out)},
                         .strides = {1},
                         .storage = bank.x};
    lm_tensor flat = *out;
    flat.ndim = 1;
    flat.shape[0] = lm__numel(out);
    flat.strides[0] = 1;
    (void)LM_KERNEL(copy)(&flat, &x);
  }
  lm__bank_free(&bank);
  return status;
}
