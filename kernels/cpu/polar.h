/* Polar Express on a bank of matrices, as lm_polar_express and lm_muon_step share it. */
#ifndef LM_KERNELS_CPU_POLAR_H
#define LM_KERNELS_CPU_POLAR_H

#include "cpu/kernel.h"

/* count matrices (rows, cols) that are being orthogonalised, beside the caller's: an interrupted or
 * failed step leaves no trace. */
typedef struct lm__bank {
  int64_t count, rows, cols;
  const lm_polar_args *polar;
  int dtype;      /* of x: bf16 where products in it are fast, else f32 */
  bool round;     /* f32 elements that hold bf16 values: bf16 on a CPU that is slow at it */
  lm__storage *x; /* (count, rows, cols) */
  /* Fill x[k]; look at x[k] afterwards (may be NULL). sums: 2 max(rows, cols) of scratch. */
  void (*prepare)(struct lm__bank *bank, int64_t k, double *sums);
  void (*finish)(struct lm__bank *bank, int64_t k, double *sums);
  void *arg;
  int status;
  lm__storage *scratch; /* of bank_run: a slot for each thread that takes matrices */
  int64_t slots_taken;
} lm__bank;

int LM_KERNEL(bank_new)(lm__bank *bank, int64_t count, int64_t rows, int64_t cols,
                        const lm_polar_args *polar);
/* prepare, iterate and finish each matrix: small ones a thread each, large ones one after another
 * on all threads. */
int LM_KERNEL(bank_run)(lm__bank *bank);
/* All steps on one matrix of the bank, in place; scratch: polar_scratch bytes, 64-aligned. */
int LM_KERNEL(polar_iterate)(const lm__bank *bank, char *x, char *scratch);
int64_t LM_KERNEL(polar_scratch)(const lm__bank *bank);

static inline int64_t lm__aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static inline void lm__bank_free(lm__bank *bank) {
  if (bank->x) lm__storage_release(bank->x);
}

/* Row i of matrix k. */
static inline void *lm__bank_row(const lm__bank *bank, int64_t k, int64_t i) {
  return (char *)bank->x->data + (k * bank->rows + i) * bank->cols * lm_dtype_size(bank->dtype);
}

/* n elements of a row from f32 values. */
static inline void lm__bank_store(const lm__bank *bank, void *row, const float *values, int64_t n) {
  lm__store(row, values, bank->dtype, 1, n);
  if (bank->round)
    for (int64_t i = 0; i < n; i++) {
      float *x = (float *)row + i;
      *x = lm_bf16_to_f32(lm_f32_to_bf16(*x));
    }
}

/* Rows a thread should have at least. */
static inline int64_t lm__bank_grain(const lm__bank *bank) {
  return 1 + LM__GRAIN / (bank->cols > 0 ? bank->cols : 1);
}

/* In f64: a gradient of 1e20 has a finite norm as well. */
static inline double lm__sum_squares(const float *x, int64_t n) {
  double sum = 0;
  _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; i++) sum +=
      (double)x[i] * (double)x[i];
  return sum;
}

#endif
