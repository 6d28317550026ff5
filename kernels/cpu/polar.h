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
 * failed step leaves no trace. Row by row, or, for packed products, each by words; X' where rows >
 * cols, so that the products know wide matrices only. */
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
  bool alone;           /* one thread works on a matrix; before bank_run: let it be so */
  lm__storage *scratch; /* of bank_run: the slots */
  int64_t slots, scratch_bytes, operations;
} lm__bank;

/* What one matrix needs while it is worked on. */
typedef struct lm__slot {
  double *sums; /* 2 max(rows, cols); where rest begins */
  char *rows;   /* packed: x by rows, where the kernel wants it so, else NULL */
  char *rest;   /* polar_scratch bytes, 64-aligned */
} lm__slot;

int LM_KERNEL(bank_new)(lm__bank *bank, int64_t count, int64_t rows, int64_t cols,
                        const lm_polar_args *polar, int path);
/* prepare, iterate and finish each matrix: a thread a matrix, or one after another on all threads,
 * whichever is sooner done and holds no more than half of the bank beside it. */
int LM_KERNEL(bank_run)(lm__bank *bank);

/* What the bank's run did, for lm_muon_last: bytes read and written outside the products. */
void LM_KERNEL(bank_report)(const lm__bank *bank, double bytes, int64_t more_scratch);

/* Matrices that bank_run would have in work at once, a thread each; 1: all threads on one. */
int64_t LM_KERNEL(bank_at_once)(int64_t count, int64_t rows, int64_t cols,
                                const lm_polar_args *polar, int path);

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

/* Is X' held? */
static inline bool lm__bank_turned(const lm__bank *bank) { return bank->rows > bank->cols; }

/* Where rows i.. and columns j.. of a packed matrix begin; *panel: bytes of a panel. */
static inline int64_t lm__bank_at(const lm__bank *bank, int64_t i, int64_t j, int64_t *panel) {
  const bool turned = lm__bank_turned(bank);
  const int64_t unit = bank->packed->unit;
  *panel = lm__packed_panel(bank->packed, turned ? bank->rows : bank->cols);
  return turned ? j / 16 * *panel + i / unit * LM__TILE : i / 16 * *panel + j / unit * LM__TILE;
}

/* Rows i..i+31 and columns j..j+n of matrix k from f32 values, rows LM__WIDTH apart and 0 beyond
 * the matrix. i and j are multiples of 32. */
void LM_KERNEL(bank_put)(const lm__bank *bank, int64_t k, const lm__slot *slot, int64_t i,
                         int64_t j, int64_t n, const float *values);
/* The other way; what is beyond the matrix is 0 or left as it was. */
void LM_KERNEL(bank_get)(const lm__bank *bank, int64_t k, int64_t i, int64_t j, int64_t n,
                         float *values);

/* Blocks of 32 rows of a matrix. */
static inline int64_t lm__bank_blocks(const lm__bank *bank) {
  return (bank->rows + LM__BLOCK - 1) / LM__BLOCK;
}

/* Bytes that bank_put writes of an element, in one form or two. */
static inline double lm__bank_written(const lm__bank *bank) {
  const bool two = bank->packed && bank->packed->left_by_rows;
  return (double)(lm_dtype_size(bank->dtype) * (two ? 2 : 1));
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
