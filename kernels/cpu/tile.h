/* Products and transposes of small f32 tiles that lie in cache.
 *
 * C (m, n) (+)= A (m, k) B (k, n): elements of A are broadcast, rows of B and C are vectors, so
 * only B needs a layout: rows of whole vectors. A is read where it lies, by rows or by columns,
 * which is what lets attention use K and V as they are.
 */
#ifndef LM_KERNELS_CPU_TILE_H
#define LM_KERNELS_CPU_TILE_H

#include "cpu/kernel.h"

#if defined(__AVX512F__)
enum { LM__LANES = 16, LM__TILE_ROWS = 8, LM__TILE_VECTORS = 2 };
#elif defined(__AVX2__)
enum { LM__LANES = 8, LM__TILE_ROWS = 4, LM__TILE_VECTORS = 2 };
#else
enum { LM__LANES = 4, LM__TILE_ROWS = 4, LM__TILE_VECTORS = 2 };
#endif

typedef float lm__vector __attribute__((vector_size(LM__LANES * 4), aligned(4), may_alias));
typedef float lm__four __attribute__((vector_size(16), aligned(4), may_alias));
#define LM__INLINE static inline __attribute__((always_inline))

/* Round up to whole vectors. */
static inline int64_t lm__pad(int64_t n) { return (n + LM__LANES - 1) / LM__LANES * LM__LANES; }

typedef struct lm__tile {
  const float *a;
  int64_t lda; /* A[r][k] = a[r * lda + k], or a[k * lda + r] in the column form */
  const float *b;
  int64_t ldb;
  float *c;
  int64_t ldc;
} lm__tile;

/* A block of rows x vectors of C in registers; rows, vectors and by_column are constants where this
 * is expanded. */
LM__INLINE void lm__tile_block(const int rows, const int vectors, const bool by_column,
                               const bool add, int64_t k, const float *a, int64_t lda,
                               const float *b, int64_t ldb, float *c, int64_t ldc) {
  lm__vector sum[LM__TILE_ROWS][LM__TILE_VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
      sum[r][v] = add ? *(const lm__vector *)(c + r * ldc + v * LM__LANES) : (lm__vector){0};
  for (int64_t i = 0; i < k; i++) {
    lm__vector row[LM__TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) row[v] = *(const lm__vector *)(b + i * ldb + v * LM__LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      const float x = by_column ? a[i * lda + r] : a[r * lda + i];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sum[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) *(lm__vector *)(c + r * ldc + v * LM__LANES) = sum[r][v];
}

LM__INLINE void lm__tile_rows(const int rows, const bool by_column, const bool add, int64_t n,
                              int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                              float *c, int64_t ldc) {
  int64_t at = 0;
  for (; at + LM__TILE_VECTORS * LM__LANES <= n; at += LM__TILE_VECTORS * LM__LANES)
    lm__tile_block(rows, LM__TILE_VECTORS, by_column, add, k, a, lda, b + at, ldb, c + at, ldc);
  for (; at < n; at += LM__LANES)
    lm__tile_block(rows, 1, by_column, add, k, a, lda, b + at, ldb, c + at, ldc);
}

LM__INLINE void lm__tile_product(const bool by_column, const bool add, int64_t m, int64_t n,
                                 int64_t k, const lm__tile *t) {
  const int64_t step = by_column ? 1 : t->lda;
  int64_t r = 0;
  for (; r + LM__TILE_ROWS <= m; r += LM__TILE_ROWS)
    lm__tile_rows(LM__TILE_ROWS, by_column, add, n, k, t->a + r * step, t->lda, t->b, t->ldb,
                  t->c + r * t->ldc, t->ldc);
  for (; r < m; r++)
    lm__tile_rows(1, by_column, add, n, k, t->a + r * step, t->lda, t->b, t->ldb, t->c + r * t->ldc,
                  t->ldc);
}

/* dst (cols, rows) = src (rows, cols) transposed; rows and cols multiples of 4. */
static inline void lm__tile_transpose(float *dst, int64_t ldd, const float *src, int64_t lds,
                                      int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; r += 4)
    for (int64_t c = 0; c < cols; c += 4) {
      const float *s = src + r * lds + c;
      float *d = dst + c * ldd + r;
      const lm__four s0 = *(const lm__four *)s, s1 = *(const lm__four *)(s + lds);
      const lm__four s2 = *(const lm__four *)(s + 2 * lds), s3 = *(const lm__four *)(s + 3 * lds);
      const lm__four low01 = __builtin_shufflevector(s0, s1, 0, 4, 1, 5);
      const lm__four low23 = __builtin_shufflevector(s2, s3, 0, 4, 1, 5);
      const lm__four high01 = __builtin_shufflevector(s0, s1, 2, 6, 3, 7);
      const lm__four high23 = __builtin_shufflevector(s2, s3, 2, 6, 3, 7);
      *(lm__four *)d = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
      *(lm__four *)(d + ldd) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
      *(lm__four *)(d + 2 * ldd) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
      *(lm__four *)(d + 3 * ldd) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
    }
}

#endif
