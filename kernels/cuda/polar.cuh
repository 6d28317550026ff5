/* Polar Express on a bank of matrices, as lm_polar_express and lm_muon_step share it (polar.cu). */
#ifndef LM_KERNELS_CUDA_POLAR_CUH
#define LM_KERNELS_CUDA_POLAR_CUH

#include "backend/tuning.h"
#include "cuda/kernel.cuh"

/* count matrices (rows, cols) f32 or bf16 side by side, and what their steps need: one block of
 * scratch memory. */
typedef struct lm__bank {
  const char *op;
  const lm_polar_args *polar;
  int64_t count, rows, cols, m, n; /* m <= n: the sides */
  bool tall;                       /* rows > cols */
  int path, dtype;                 /* path: enum lm_muon_path */
  bool halves;                     /* symmetric products by symmetric.cu */
  void *x, *y;                     /* the matrices, and where their next values go */
  float *wide;                     /* in Gram form: a product that has two addends */
  void *gram[4];                   /* (count, m, m) each; four in Gram form, else two */
  double *sums;                    /* (count, rows): sums of squares */
  double *factors;                 /* (count, rows) */
  void *extra;                     /* extra_bytes for the caller */
  void *memory;
  size_t scratch;                   /* bytes of it */
  mutable double operations, moved; /* of the products so far; bytes moved between them */
} lm__bank;

/* The path of a bank, of what was asked for, measured, or the rule. */
int lm__bank_path(const lm_tensor *shaped, const lm_polar_args *polar);
/* Everything that can be refused (memory, a product) is refused here: nothing has been launched. */
int lm__bank_new(lm__bank *bank, const char *op, const lm_tensor *shaped,
                 const lm_polar_args *polar, int path, size_t extra_bytes);
void lm__bank_free(lm__bank *bank);
/* What lm__bank_new will take. */
size_t lm__bank_scratch(int64_t count, int64_t rows, int64_t cols, const lm_polar_args *polar,
                        int path, size_t extra_bytes);
/* For lm_muon_last: bytes read and written outside the bank's run. */
void lm__bank_report(const lm__bank *bank, double bytes);

/* A step's numbers, as they are given to a kernel or, where it is part of a graph, lie on the
 * device. */
typedef struct lm__muon_settings {
  float one_minus_momentum, lookahead;
  float lr, lr_decay; /* with the shape's factor */
  double rate;        /* 1 - beta2 */
} lm__muon_settings;
typedef struct lm__muon_numbers {
  lm__muon_settings given;
  const lm__muon_settings *there; /* or NULL */
} lm__muon_numbers;
LM_DEVICE lm__muon_settings lm__read_numbers(const lm__muon_numbers &n) {
  return n.there ? *n.there : n.given;
}

/* x = U / (|U|_F s + 1e-6), U = g, or with m its look-ahead; rows equilibrated if asked for. Given
 * m, its next value is written. skip: a word on the device that makes this write nothing to m. */
typedef struct lm__bank_source {
  const float *grad;
  float *momentum;
  lm__muon_numbers numbers;
  int equilibrate;
  const int *skip;
} lm__bank_source;
int lm__bank_fill(const lm__bank *bank, const lm__bank_source *source);

/* All steps; the result is in bank->x. */
int lm__bank_run(lm__bank *bank);

/* Products with a symmetric result, in bf16 (symmetric.cu): out = alpha l r' + beta1 d1 + beta2 d2
 * with l and r (count, m, k), or, columns, alpha l' r with l and r (count, k, m); out, d1 and d2
 * (count, m, m), d1 and d2 symmetric or NULL. out overlaps nothing. */
typedef struct lm__symmetric_product {
  int64_t count, m, k;
  bool columns;
  const void *left, *right, *d1, *d2;
  void *out;
  float alpha, beta1, beta2;
} lm__symmetric_product;
/* m and k are multiples of 8; operands are aligned to 16 bytes. */
bool lm__symmetric_serves(int64_t m, int64_t k);
double lm__symmetric_operations(const lm__symmetric_product *product); /* that are executed */
int lm__symmetric_multiply(const char *op, const lm__symmetric_product *product);

/* A warp takes a row. */
enum { LM__ROWS_A_BLOCK = LM_THREADS / LM_WARP };

#endif
