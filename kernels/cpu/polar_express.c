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
  for (int64_t c = j; c < j + n; c += LM__BLOCK) {
    lm__target target = {.block = {NULL, NULL}};
    const int64_t at = lm__bank_at(bank, i, c, &target.panel);
    const lm__packed to = {x + at, slot->rows ? slot->rows + at : NULL};
    *(lm__bank_turned(bank) ? &target.mirror : &target.block) = to;
    packed->emit(values + (c - j), LM__WIDTH, &target, bank->round);
  }
}

void LM_KERNEL(bank_get)(const lm__bank *bank, int64_t k, int64_t i, int64_t j, int64_t n,
                         float *values) {
  const char *x = lm__bank_matrix(bank, k);
  if (bank->packed) {
    for (int64_t c = j; c < j + n; c += LM__BLOCK) {
      int64_t panel;
      const int64_t at = lm__bank_at(bank, i, c, &panel);
      bank->packed->read(values + (c - j), LM__WIDTH, x + at, panel, lm__bank_turned(bank));
    }
    return;
  }
  const int64_t size = lm_dtype_size(bank->dtype);
  for (int64_t r = i; r < i + LM__BLOCK && r < bank->rows; r++)
    lm__load(values + (r - i) * LM__WIDTH, x + (r * bank->cols + j) * size, bank->dtype, 1, n);
}

/* ---- running it ---- */

/* What muon.c keeps of a matrix until the end is two of these. */
static int64_t side_bytes(const lm__bank *bank) {
  const int64_t side = bank->rows > bank->cols ? bank->rows : bank->cols;
  return side * (int64_t)sizeof(float);
}

/* A slot: X by rows where the kernel wants it, then what the iteration needs, where before and
 * after it the sums lie. */
static int64_t rows_bytes(const lm__bank *bank) {
  return bank->packed && bank->packed->left_by_rows ? bank->matrix_bytes : 0;
}
static int64_t slot_bytes(const lm__bank *bank) {
  const int64_t sums = lm__aligned(4 * side_bytes(bank));
  const int64_t rest =
      bank->packed ? LM_KERNEL(polar_packed_scratch)(bank) : LM_KERNEL(polar_scratch)(bank);
  return rows_bytes(bank) + (rest > sums ? rest : sums);
}
static lm__slot slot_at(const lm__bank *bank, int64_t i) {
  char *const at = (char *)bank->scratch->data + i * slot_bytes(bank);
  char *const rest = at + rows_bytes(bank);
  return (lm__slot){.sums = (double *)(void *)rest, .rows = rest > at ? at : NULL, .rest = rest};
}

/* Of slots [begin, end), each with its share of the matrices. */
static void range_run(int64_t begin, int64_t end, void *arg) {
  lm__bank *bank = arg;
  const lm__slot slot = slot_at(bank, begin);
  const int64_t last = bank->count * end / bank->slots;
  for (int64_t k = bank->count * begin / bank->slots; k < last; k++) {
    if (__atomic_load_n(&bank->status, __ATOMIC_RELAXED) != LM_OK) return;
    bank->prepare(bank, k, &slot);
    const int status = bank->packed ? LM_KERNEL(polar_packed)(bank, k, &slot)
                                    : LM_KERNEL(polar_iterate)(bank, k, &slot);
    if (status != LM_OK) __atomic_store_n(&bank->status, status, __ATOMIC_RELAXED);
    if (status == LM_OK && bank->finish) bank->finish(bank, k, &slot);
  }
}

/* A thread a matrix, or one matrix after another on all threads.
 *
 * The first needs a slot a thread: no more than together take half as much as the bank. Then rounds
 * of as many matrices as there are slots are compared with what a split can gain: nine tenths of
 * the threads, and of a product of s strips that is symmetric (s + 1) / 2 at most, the first strip
 * being that long. Small matrices are not worth splitting, however much their slots take. */
static void deal(lm__bank *bank) {
  const int64_t threads = lm_threads(), count = bank->count;
  const double m = (double)(bank->rows < bank->cols ? bank->rows : bank->cols);
  const double n = (double)(bank->rows < bank->cols ? bank->cols : bank->rows);
  const double work = 5 * (4 * m * m * n + 2 * m * m * m) + 3e5;
  const int64_t worth = (int64_t)(1 + work / 2e6 * (double)count); /* of waking: 2 Mflop each */
  const bool small = m * m * n < 4e6 || bank->alone;
  bank->alone = true; /* polar_packed_scratch asks */
  const int64_t room = bank->matrix_bytes / 2 - 2 * side_bytes(bank);
  const int64_t fit = small ? count : count * room / slot_bytes(bank);
  int64_t slots = count < threads ? count : threads;
  if (slots > worth) slots = worth;
  if (slots > fit) slots = fit;
  const double gain = fmin(0.9 * (double)threads, (m / LM__BLOCK + 1) / 2);
  bank->alone = count > 1 && slots > 0 &&
                (small || (double)((count + slots - 1) / slots) * fmax(1, gain) <= (double)count);
  bank->slots = bank->alone ? slots : 1;
  bank->scratch_bytes = bank->slots * slot_bytes(bank);
}

int64_t LM_KERNEL(bank_at_once)(int64_t count, int64_t rows, int64_t cols,
                                const lm_polar_args *polar, int path) {
  lm__bank bank;
  describe(&bank, count, rows, cols, polar, path);
  deal(&bank);
  return bank.slots;
}

int LM_KERNEL(bank_run)(lm__bank *bank) {
  deal(bank);
  LM__TRY(lm__storage_new(&bank->scratch, (size_t)bank->scratch_bytes, LM_CPU));
  lm__parallel_for(bank->slots, 1, range_run, bank);
  lm__storage_release(bank->scratch);
  bank->scratch_bytes += bank->count * bank->matrix_bytes;
  if (bank->status == LM_OK || !bank->alone) return bank->status;
  return lm__fail(bank->status, /* the message is on the thread that failed */
                  "polar_express: %s while (%lld, %lld, %lld) was being done",
                  bank->status == LM_EINTERRUPT ? "interrupted" : "a product failed",
                  (long long)bank->count, (long long)bank->rows, (long long)bank->cols);
}

double LM_KERNEL(muon_scratch)(int64_t count, int64_t rows, int64_t cols, int precision) {
  const lm_polar_args polar = {.precision = precision};
  lm__bank bank;
  describe(&bank, count, rows, cols, &polar,
           lm__muon_path_for(LM_CPU, count, rows, cols, precision, NULL));
  deal(&bank);
  return (double)bank.scratch_bytes +
         (double)count * (double)(bank.matrix_bytes + 2 * side_bytes(&bank));
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

/* Blocks of rows begin..end, counted through all matrices, to the result. */
static void range_out(int64_t begin, int64_t end, void *arg) {
  const norm *w = arg;
  const lm__bank *bank = w->bank;
  const int64_t cols = bank->cols, blocks = lm__bank_blocks(bank);
  float x[LM__BLOCK][LM__WIDTH];
  for (int64_t at = begin; at < end; at++) {
    const int64_t k = at / blocks, i = at % blocks * LM__BLOCK;
    float *out = w->out + k * bank->rows * cols;
    for (int64_t j = 0; j < cols; j += LM__WIDTH) {
      const int64_t n = cols - j < LM__WIDTH ? cols - j : LM__WIDTH;
      LM_KERNEL(bank_get)(bank, k, i, j, n, x[0]);
      for (int64_t r = i; r < i + LM__BLOCK && r < bank->rows; r++)
        memcpy(out + r * cols + j, x[r - i], (size_t)n * sizeof(float));
    }
  }
}

int LM_KERNEL(polar_express)(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args) {
  if (lm__numel(in) == 0) return LM_OK;
  const int64_t count = in->shape[0], rows = in->shape[1], cols = in->shape[2];
  const int path =
      lm__muon_path_for(LM_CPU, count, rows, cols, args->precision, LM_KERNEL(muon_measure));
  lm__bank bank;
  LM__TRY(LM_KERNEL(bank_new)(&bank, count, rows, cols, args, path));
  bank.prepare = normalise;
  bank.arg = (void *)(uintptr_t)in;
  const int status = LM_KERNEL(bank_run)(&bank);
  if (status == LM_OK) {
    norm w = {.out = lm__data(out), .bank = &bank};
    lm__parallel_for(bank.count * lm__bank_blocks(&bank), lm__bank_grain(&bank) / LM__BLOCK,
                     range_out, &w);
    LM_KERNEL(bank_report)
    (&bank, (double)lm__numel(out) * (12 + lm__bank_written(&bank) + lm_dtype_size(bank.dtype)), 0);
  }
  lm__bank_free(&bank);
  return status;
}
