/* Polar Express on a bank of matrices, as lm_polar_express and lm_muon_step share it. */
#ifndef LM_KERNELS_CPU_POLAR_H
#define LM_KERNELS_CPU_POLAR_H

#include "backend/tuning.h"
#include "cpu/kernel.h"
#include "cpu/packed.h"

/* Columns a row of X is filled by at a time: 32 rows of them stay in cache. */
enum { LM__WIDTH = 128 };

struct lm__slot;

/* count matrices (rows, cols) that are being orthogonalised, beside the caller's: an interrupted or
 * failed step leaves no trace. Row by row, or, for packed products, each in A form. */
typedef struct lm__bank {
  int64_t count, rows, cols;
  const lm_polar_args *polar;
  int path;
  const lm__packed_kernel *packed; /* NULL: row by row, products by oneDNN */
  int dtype;                       /* of x: bf16 where products in it are fast, else f32 */
  bool round;     /* f32 elements that hold bf16 values: bf16 on a CPU that is slow at it */
  lm__storage *x; /* count matrices, matrix_bytes apart */
  int64_t matrix_bytes;
  /* Fill x[k] with lm__bank_put; look at x[k] afterwards (may be NULL). */
  void (*prepare)(struct lm__bank *bank, int64_t k, const struct lm__slot *slot);
  void (*finish)(struct lm__bank *bank, int64_t k, const struct lm__slot *slot);
  void *arg;
  int status;
  bool each;            /* a thread takes a matrix of its own */
  lm__storage *scratch; /* of bank_run: a slot for each thread that takes matrices */
  int64_t slots_taken, scratch_bytes, operations;
} lm__bank;

/* What one matrix needs while it is worked on. */
typedef struct lm__slot {
  double *sums; /* 2 max(rows, cols) */
  char *b, *t;  /* packed: X in B form; X' in B form if rows <= cols, else in A form */
  char *rest;   /* polar_scratch bytes, 64-aligned */
} lm__slot;

int LM_KERNEL(bank_new)(lm__bank *bank, int64_t count, int64_t rows, int64_t cols,
                        const lm_polar_args *polar, int path);
/* prepare, iterate and finish each matrix: small ones a thread each, large ones one after another
 * on all threads. */
int LM_KERNEL(bank_run)(lm__bank *bank);

/* What the bank's run did, for lm_muon_last: bytes read and written outside the products. */
void LM_KERNEL(bank_report)(const lm__bank *bank, double bytes, int64_t more_scratch);

/* lm_polar_express on a given path. */
int LM_KERNEL(polar_on_path)(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args,
                             int path);

/* All steps on matrix k of the bank, in place, as written. */
int LM_KERNEL(polar_iterate)(lm__bank *bank, int64_t k, const lm__slot *slot);
int64_t LM_KERNEL(polar_scratch)(const lm__bank *bank);
/* The same with packed products. */
int LM_KERNEL(polar_packed)(lm__bank *bank, int64_t k, const lm__slot *slot);
int64_t LM_KERNEL(polar_packed_scratch)(const lm__bank *bank);

static inline int64_t lm__aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static inline void lm__bank_free(lm__bank *bank) {
  if (bank->x) lm__storage_release(bank->x);
}

static inline char *lm__bank_matrix(const lm__bank *bank, int64_t k) {
  return (char *)bank->x->data + k * bank->matrix_bytes;
}

/* Rows i..i+31 and columns j..j+n of matrix k from f32 values, rows LM__WIDTH apart and 0 beyond
 * the matrix. i and j are multiples of 32. */
void LM_KERNEL(bank_put)(const lm__bank *bank, int64_t k, const lm__slot *slot, int64_t i,
                         int64_t j, int64_t n, const float *values);

/* n elements of row i of matrix k from column j (a multiple of 32) on, perhaps loaded to buffer. */
static inline const float *lm__bank_get(const lm__bank *bank, int64_t k, int64_t i, int64_t j,
                                        int64_t n, float *buffer) {
  const char *x = lm__bank_matrix(bank, k);
  const int64_t size = lm_dtype_size(bank->dtype);
  if (!bank->packed) return lm__as_f32(buffer, x + (i * bank->cols + j) * size, bank->dtype, 1, n);
  const int64_t unit = bank->packed->unit, tiles = lm__padded(bank->cols) / unit;
  const char *row = x + (i / 16 * tiles + j / unit) * LM__TILE + i % 16 * 64;
  for (int64_t e = 0; e < n; e += unit, row += LM__TILE)
    lm__load(buffer + e, row, bank->dtype, 1, n - e < unit ? n - e : unit);
  return buffer;
}

/* Rows a thread should have at least: whole blocks. */
static inline int64_t lm__bank_grain(const lm__bank *bank) {
  return lm__padded(1 + LM__GRAIN / (bank->cols > 0 ? bank->cols : 1));
}

/* In f64: a gradient of 1e20 has a finite norm as well. */
static inline double lm__sum_squares(const float *x, int64_t n) {
  double sum = 0;
  _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; i++) sum +=
      (double)x[i] * (double)x[i];
  return sum;
}

#endif
