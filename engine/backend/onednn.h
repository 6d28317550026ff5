/* Products on the CPU: everything the engine asks of oneDNN, behind one call. */
#ifndef LM_BACKEND_ONEDNN_H
#define LM_BACKEND_ONEDNN_H

#include <stdbool.h>
#include <stdint.h>

/* c = alpha a' b' + beta c, row-major; a' (m, k) is a, or a transposed where transpose_a (then a is
 * (k, m)); b' (k, n) likewise; c (m, n) unlike a and b. ld: elements from row to row as stored, at
 * least a row's length. m, n, k >= 1. beta = 0: c is not read. */
typedef struct lm__gemm {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  int64_t lda, ldb, ldc;
  int in, out; /* LM_F32 with LM_F32; LM_BF16 with either, only where lm_cpu_fast_bf16() */
  const void *a, *b;
  void *c;
  float alpha, beta;
} lm__gemm;

/* On all threads, or on the calling one alone inside a parallel loop. Accumulates in f32. The same
 * bits each time for the same sizes and number of threads. */
int lm__gemm_run(const lm__gemm *g);

#endif
