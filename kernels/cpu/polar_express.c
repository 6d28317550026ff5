/* Polar Express (Amsel et al. 2025) for a bank of matrices:
 *
 *   X = U / (|U|_F s + 1e-6), then ns_steps times X = a X + (b A + c A A) X with A = X X'
 *
 * (polar_iterate.c and polar_packed.c have the steps). The matrices of a bank are dealt to the
 * threads, or, where they are few and large, each is worked on by all.
 */
#include "cpu/polar.h"
#include "math/muon.h"

#include <math.h>

/* ---- the bank ---- */

/* Everything but the memory. */
static void describe(lm__bank *bank, int64_t count, int64_t rows, int64_t cols,
                     const lm_polar_args *polar, int path) {
  const bool bf16 = polar->precision == LM_PRECISION_BF16, fast = bf16 && lm_cpu_fast_bf16();
  *bank = (lm__bank){.count = count,
                     .rows = rows,
                     .cols = cols,
                     .polar = polar,
                     .path = path,
                     .dtype = fast ? LM_BF16 : LM_F32,
                     .round = bf16 && !fast};
  if (bank->path != LM_MUON_WRITTEN) bank->packed = lm__packed_kernel_for(bank->dtype);
  bank->matrix_bytes = bank->packed ? lm__packed_bytes(bank->packed, rows, cols)
                                    : rows * cols * lm_dtype_size(bank->dtype);
}

int LM_KERNEL(bank_new)(lm__bank *bank, int64_t count, int64_t rows, int64_t cols,
                        const lm_polar_args *polar, int path) {
  describe(bank, count, rows, cols, polar, path);
  return lm__storage_new(&bank->x, (size_t)(count * bank->matrix_bytes), LM_CPU);
}

static void put_row(const lm__bank *bank, void *row, const float *values, int64_t n) {
  lm__store(row, values, bank->dtype, 1, n);
  if (bank->round)
    for (int64_t i = 0; i < n; i++) {
      float *x = (float *)row + i;
      *x = lm_bf16_to_f32(lm_f32_to_bf16(*x));
    }
}

void LM_KERNEL(bank_put)(const lm__bank *bank, int64_t k, const lm__slot *slot, int64_t i,
                         int64_t j, int64_t n, const float *values) {
  const lm__packed_kernel *packed = bank->packed;
  char *x = lm__bank_matrix(bank, k);
  if (!packed) {
    const int64_t size = lm_dtype_size(bank->dtype);
    for (int64_t r = i; r < i + LM__BLOCK && r < bank->rows; r++)
      put_row(bank, x + (r * bank->cols + j) * size, values + (r - i) * LM__WIDTH, n);
    return;
  }
  const bool tall = bank->rows > bank->cols;
  const int64_t unit = packed->unit;
  const int64_t across = lm__padded(bank->cols) / unit * LM__TILE;
  const int64_t down = lm__padded(bank->rows) / unit * LM__TILE;
  for (int64_t c = j; c < j + n; c += LM__BLOCK) {
    const int64_t row = i / 16 * across + c / unit * LM__TILE;
    const int64_t column = c / 16 * down + i / unit * LM__TILE;
    const lm__target target = {.a = x + row,
                               .b = slot->b + column,
                               .ta = tall ? slot->t + column : NULL,
                               .tb = tall ? NULL : slot->t + row,
                               .across = across,
                               .down = down};
    packed->emit(values + (c - j), LM__WIDTH, &target, bank->round);
  }
}

/* ---- running it ---- */

/* A slot: sums, B form and transpose of X where packed, then what the iteration needs. */
static int64_t sums_bytes(const lm__bank *bank) {
  const int64_t n = bank->rows > bank->cols ? bank->rows : bank->cols;
  return lm__aligned(2 * n * (int64_t)sizeof(double));
}
static int64_t slot_bytes(const lm__bank *bank) {
  return sums_bytes(bank) + (bank->packed
                                 ? 2 * bank->matrix_bytes + LM_KERNEL(polar_packed_scratch)(bank)
                                 : LM_KERNEL(polar_scratch)(bank));
}
static lm__slot slot_at(const lm__bank *bank, int64_t i) {
  char *at = (char *)bank->scratch->data + i * slot_bytes(bank);
  lm__slot slot = {.sums = (double *)(void *)at};
  at += sums_bytes(bank);
  if (bank->packed) {
    slot.b = at;
    slot.t = at + bank->matrix_bytes;
    at += 2 * bank->matrix_bytes;
  }
  slot.rest = at;
  return slot;
}

/* Matrices begin..end, one after another in one slot. */
static void range_run(int64_t begin, int64_t end, void *arg) {
  lm__bank *bank = arg;
  const lm__slot slot = slot_at(bank, __atomic_fetch_add(&bank->slots_taken, 1, __ATOMIC_RELAXED));
  for (int64_t k = begin; k < end; k++) {
    if (__atomic_load_n(&bank->status, __ATOMIC_RELAXED) != LM_OK) return;
    bank->prepare(bank, k, &slot);
    const int status = bank->packed ? LM_KERNEL(polar_packed)(bank, k, &slot)
                                    : LM_KERNEL(polar_iterate)(bank, k, &slot);
    if (status != LM_OK) __atomic_store_n(&bank->status, status, __ATOMIC_RELAXED);
    if (status == LM_OK && bank->finish) bank->finish(bank, k, &slot);
  }
}

/* A slot a thread, as long as the slots take half as much as the bank, or little. */
enum { LITTLE = 1 << 24 };

static void deal(lm__bank *bank) {
  const int64_t threads = lm_threads();
  const double m = (double)(bank->rows < bank->cols ? bank->rows : bank->cols);
  const double n = (double)(bank->rows < bank->cols ? bank->cols : bank->rows);
  const bool small = m * m * n < 4e6, even = bank->count % threads == 0;
  const int64_t all = bank->count < threads ? bank->count : threads;
  bank->each = true; /* polar_packed_scratch asks */
  const int64_t bytes = all * slot_bytes(bank);
  const bool fits = bytes <= LITTLE || bytes <= bank->count * bank->matrix_bytes / 2;
  bank->each = bank->count > 1 && (small || (fits && (even || bank->count >= 4 * threads)));
  bank->scratch_bytes = (bank->each ? all : 1) * slot_bytes(bank);
}

int LM_KERNEL(bank_run)(lm__bank *bank) {
  const double m = (double)(bank->rows < bank->cols ? bank->rows : bank->cols);
  const double n = (double)(bank->rows < bank->cols ? bank->cols : bank->rows);
  const double work = bank->polar->ns_steps * (4 * m * m * n + 2 * m * m * m) + 3e5;
  deal(bank);
  LM__TRY(lm__storage_new(&bank->scratch, (size_t)bank->scratch_bytes, LM_CPU));
  if (bank->each) /* a thread should have 2 Mflop to do, or is not worth waking */
    lm__parallel_for(bank->count, 1 + (int64_t)(2e6 / work), range_run, bank);
  else
    range_run(0, bank->count, bank);
  lm__storage_release(bank->scratch);
  bank->scratch_bytes += bank->count * bank->matrix_bytes;
  if (bank->status == LM_OK || !bank->each) return bank->status;
  return lm__fail(bank->status, /* the message is on the thread that failed */
                  "polar_express: %s while (%lld, %lld, %lld) was being done",
                  bank->status == LM_EINTERRUPT ? "interrupted" : "a product failed",
                  (long long)bank->count, (long long)bank->rows, (long long)bank->cols);
}

double LM_KERNEL(muon_scratch)(int64_t count, int64_t rows, int64_t cols, int precision) {
  const lm_polar_args polar = {.precision = precision};
  const int64_t side = rows > cols ? rows : cols;
  lm__bank bank;
  describe(&bank, count, rows, cols, &polar,
           lm__muon_path_for(LM_CPU, count, rows, cols, precision, NULL));
  deal(&bank);
  return (double)bank.scratch_bytes + (double)count * (double)bank.matrix_bytes +
         2 * (double)count * (double)side * sizeof(float);
}

void LM_KERNEL(bank_report)(const lm__bank *bank, double bytes, int64_t more_scratch) {
  const lm_muon_report report = {.path = bank->path,
                                 .matrices = (int)bank->count,
                                 .kernel = bank->packed ? bank->packed->name : "onednn",
                                 .operations = (double)bank->operations,
                                 .bytes = bytes,
                                 .scratch = (double)(bank->scratch_bytes + more_scratch)};
  lm__muon_done(&report);
}

/* ---- the op ---- */

typedef struct norm {
  const float *in;
  float *out;
  const lm__bank *bank;
  const lm__slot *slot;
  double scale;
  int64_t k;
} norm;

static void range_sums(int64_t begin, int64_t end, void *arg) {
  norm *w = arg;
  const int64_t cols = w->bank->cols;
  for (int64_t i = begin; i < end; i++) w->slot->sums[i] = lm__sum_squares(w->in + i * cols, cols);
}

static void range_scale(int64_t begin, int64_t end, void *arg) {
  const norm *w = arg;
  const int64_t cols = w->bank->cols;
  float buffer[LM__BLOCK][LM__WIDTH];
  for (int64_t i = begin; i < end; i += LM__BLOCK)
    for (int64_t j = 0; j < cols; j += LM__WIDTH) {
      const int64_t n = cols - j < LM__WIDTH ? cols - j : LM__WIDTH;
      if (n < LM__WIDTH || end - i < LM__BLOCK) memset(buffer, 0, sizeof buffer);
      for (int64_t r = i; r < end && r < i + LM__BLOCK; r++) {
        const float *in = w->in + r * cols + j;
        float *u = buffer[r - i];
        LM_SIMD
        for (int64_t e = 0; e < n; e++) u[e] = (float)((double)in[e] * w->scale);
      }
      LM_KERNEL(bank_put)(w->bank, w->k, w->slot, i, j, n, buffer[0]);
    }
}

/* x[k] = in[k] / (|in[k]|_F s + 1e-6) */
static void normalise(lm__bank *bank, int64_t k, const lm__slot *slot) {
  const lm_tensor *in = bank->arg;
  double total = 0;
  norm w = {.in = (const float *)lm__data(in) + k * bank->rows * bank->cols,
            .bank = bank,
            .slot = slot,
            .k = k};
  lm__parallel_for(bank->rows, lm__bank_grain(bank), range_sums, &w);
  for (int64_t i = 0; i < bank->rows; i++) total += slot->sums[i];
  w.scale = lm_muon_inverse_norm(total, bank->polar->norm_scale);
  lm__parallel_for(bank->rows, lm__bank_grain(bank), range_scale, &w);
}

/* Rows begin..end of the bank, counted through all matrices, to the result. */
static void range_out(int64_t begin, int64_t end, void *arg) {
  const norm *w = arg;
  const lm__bank *bank = w->bank;
  float buffer[LM__CHUNK];
  for (int64_t row = begin; row < end; row++)
    for (int64_t j = 0; j < bank->cols; j += LM__CHUNK) {
      const int64_t n = bank->cols - j < LM__CHUNK ? bank->cols - j : LM__CHUNK;
      const float *x = lm__bank_get(bank, row / bank->rows, row % bank->rows, j, n, buffer);
      memcpy(w->out + row * bank->cols + j, x, (size_t)n * sizeof(float));
    }
}

int LM_KERNEL(polar_express)(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args) {
  if (lm__numel(in) == 0) return LM_OK;
  const int path = lm__muon_path_for(LM_CPU, in->shape[0], in->shape[1], in->shape[2],
                                     args->precision, LM_KERNEL(muon_measure));
  return LM_KERNEL(polar_on_path)(out, in, args, path);
}

int LM_KERNEL(polar_on_path)(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args,
                             int path) {
  lm__bank bank;
  LM__TRY(LM_KERNEL(bank_new)(&bank, in->shape[0], in->shape[1], in->shape[2], args, path));
  bank.prepare = normalise;
  bank.arg = (void *)(uintptr_t)in;
  const int status = LM_KERNEL(bank_run)(&bank);
  if (status == LM_OK) {
    norm w = {.out = lm__data(out), .bank = &bank};
    const int64_t size = lm_dtype_size(bank.dtype), forms = bank.packed ? 3 : 1;
    lm__parallel_for(bank.count * bank.rows, lm__bank_grain(&bank), range_out, &w);
    LM_KERNEL(bank_report)(&bank, (double)lm__numel(out) * (double)(12 + (forms + 1) * size), 0);
  }
  lm__bank_free(&bank);
  return status;
}
