/* Polar Express (Amsel et al. 2025): X = U / (|U|_F s + 1e-6), then ns_steps times
 *
 *   rows <= cols:  A = X X';  X = a X + (b A + c A A) X
 *   rows >  cols:  A = X' X;  X = a X + X (b A + c A A)
 *
 * The smaller Gram matrix either way, and no transposed copy: the product takes its operand as it
 * lies. Products accumulate in f32; in bf16, X, A and b A + c A A are stored as bf16.
 */
#include "cpu/polar.h"

#include <math.h>

#include "backend/onednn.h"

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

typedef struct span {
  char *to;
  const char *from;
} span;

static void range_copy(int64_t begin, int64_t end, void *arg) {
  const span *s = arg;
  memcpy(s->to + begin, s->from + begin, (size_t)(end - begin));
}
static void copy_bytes(void *to, const void *from, int64_t bytes) {
  span s = {to, from};
  lm__parallel_for(bytes, (int64_t)1 << 16, range_copy, &s);
}

static void range_round(int64_t begin, int64_t end, void *arg) {
  float *x = arg;
  for (int64_t i = begin; i < end; i++) x[i] = lm_bf16_to_f32(lm_f32_to_bf16(x[i]));
}

/* A product whose result has the bank's precision. */
static int product(const lm__bank *bank, lm__gemm g) {
  g.in = g.out = bank->dtype;
  LM__TRY(lm__gemm_run(&g));
  if (bank->round) lm__parallel_for(g.m * g.n, LM__GRAIN, range_round, g.c);
  return LM_OK;
}

/* All steps on one matrix; gram, poly: m x m, old: rows x cols. */
static int iterate(const lm__bank *bank, char *x, char *gram, char *poly, char *old) {
  const int64_t rows = bank->rows, cols = bank->cols, size = lm_dtype_size(bank->dtype);
  const bool tall = rows > cols;
  const int64_t m = tall ? cols : rows, n = tall ? rows : cols;
  for (int step = 0; step < bank->polar->ns_steps; step++) {
    const double *abc = bank->polar->coefficients + (ptrdiff_t)3 * step;
    const float a = (float)abc[0], b = (float)abc[1], c = (float)abc[2];
    if (lm_interrupted()) return lm__fail(LM_EINTERRUPT, "polar_express: interrupted");
    LM__TRY(product(bank, (lm__gemm){.m = m,
                                     .n = m,
                                     .k = n,
                                     .transpose_a = tall,
                                     .transpose_b = !tall,
                                     .a = x,
                                     .lda = cols,
                                     .b = x,
                                     .ldb = cols,
                                     .c = gram,
                                     .ldc = m,
                                     .alpha = 1}));
    copy_bytes(poly, gram, m * m * size);
    LM__TRY(product(bank, (lm__gemm){.m = m,
                                     .n = m,
                                     .k = m,
                                     .a = gram,
                                     .lda = m,
                                     .b = gram,
                                     .ldb = m,
                                     .c = poly,
                                     .ldc = m,
                                     .alpha = c,
                                     .beta = b}));
    copy_bytes(old, x, rows * cols * size);
    LM__TRY(product(bank, (lm__gemm){.m = rows,
                                     .n = cols,
                                     .k = m,
                                     .a = tall ? old : poly,
                                     .lda = m,
                                     .b = tall ? poly : old,
                                     .ldb = cols,
                                     .c = x,
                                     .ldc = cols,
                                     .alpha = 1,
                                     .beta = a}));
  }
  return LM_OK;
}

/* Where the pieces of a slot lie, in bytes. */
typedef struct slot {
  int64_t gram, poly, old, sums, bytes;
} slot;

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static slot slot_layout(const lm__bank *bank) {
  const int64_t size = lm_dtype_size(bank->dtype);
  const bool tall = bank->rows > bank->cols;
  const int64_t m = tall ? bank->cols : bank->rows, n = tall ? bank->rows : bank->cols;
  slot s = {0};
  s.poly = s.gram + aligned(m * m * size);
  s.old = s.poly + aligned(m * m * size);
  s.sums = s.old + aligned(m * n * size);
  s.bytes = s.sums + aligned(2 * n * (int64_t)sizeof(double));
  return s;
}

/* Matrices begin..end, one after another in one slot. */
static void range_run(int64_t begin, int64_t end, void *arg) {
  lm__bank *bank = arg;
  const slot s = slot_layout(bank);
  const int64_t mine = __atomic_fetch_add(&bank->slots_taken, 1, __ATOMIC_RELAXED);
  char *scratch = (char *)bank->scratch->data + mine * s.bytes;
  double *sums = (double *)(void *)(scratch + s.sums);
  for (int64_t k = begin; k < end; k++) {
    if (__atomic_load_n(&bank->status, __ATOMIC_RELAXED) != LM_OK) return;
    bank->prepare(bank, k, sums);
    const int status = iterate(bank, lm__bank_row(bank, k, 0), scratch + s.gram, scratch + s.poly,
                               scratch + s.old);
    if (status != LM_OK) __atomic_store_n(&bank->status, status, __ATOMIC_RELAXED);
    if (status == LM_OK && bank->finish) bank->finish(bank, k, sums);
  }
}

int LM_KERNEL(bank_run)(lm__bank *bank) {
  const int64_t threads = lm_threads();
  const double m = (double)(bank->rows < bank->cols ? bank->rows : bank->cols);
  const double n = (double)(bank->rows < bank->cols ? bank->cols : bank->rows);
  const bool small = m * m * n < 4e6, even = bank->count % threads == 0;
  const bool each = bank->count > 1 && (small || even || bank->count >= 4 * threads);
  const int64_t slots = !each ? 1 : bank->count < threads ? bank->count : threads;
  LM__TRY(lm__storage_new(&bank->scratch, (size_t)(slots * slot_layout(bank).bytes), LM_CPU));
  if (each)
    lm__parallel_for(bank->count, 1, range_run, bank);
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
