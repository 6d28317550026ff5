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
enum { LM__LANES = 16, LM__TILE_ROWS = 8 };
#elif defined(__AVX2__)
enum { LM__LANES = 8, LM__TILE_ROWS = 4 };
#else
enum { LM__LANES = 4, LM__TILE_ROWS = 4 };
#endif

typedef float lm__vector __attribute__((vector_size(LM__LANES * 4), aligned(4), may_alias));
typedef float lm__four __attribute__((vector_size(16), aligned(4), may_alias));
#define LM__INLINE static inline __attribute__((always_inline))
/* A hot loop kept a function of its own: expanded into its caller it competes for registers there,
 * or is not vectorised at all (gcc 12). */
#define LM__APART __attribute__((noinline, unused)) static

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

/* A block of C, rows (at most LM__TILE_ROWS) by one or two vectors, in registers. All but the last
 * seven parameters are constants where this is expanded; the accumulators are named one by one,
 * because compilers differ in whether they keep an array of vectors out of memory. */
LM__INLINE void lm__tile_block(const int rows, const bool two, const bool by_column, const bool add,
                               int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                               float *c, int64_t ldc) {
#define LM__VECTOR(p) (*(lm__vector *)(p))
#define LM__ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define LM__LOAD(r)                                                                                \
  lm__vector u##r = {0}, v##r = {0};                                                               \
  if (rows > (r) && add) {                                                                         \
    u##r = LM__VECTOR(c + (r)*ldc);                                                                \
    if (two) v##r = LM__VECTOR(c + (r)*ldc + LM__LANES);                                           \
  }
#define LM__STEP(r)                                                                                \
  if (rows > (r)) {                                                                                \
    const float x = by_column ? a[i * lda + (r)] : a[(r)*lda + i];                                 \
    u##r += x * b0;                                                                                \
    if (two) v##r += x * b1;                                                                       \
  }
#define LM__KEEP(r)                                                                                \
  if (rows > (r)) {                                                                                \
    LM__VECTOR(c + (r)*ldc) = u##r;                                                                \
    if (two) LM__VECTOR(c + (r)*ldc + LM__LANES) = v##r;                                           \
  }
  LM__ROWS(LM__LOAD)
  for (int64_t i = 0; i < k; i++) {
    const lm__vector b0 = *(const lm__vector *)(b + i * ldb);
    const lm__vector b1 = two ? *(const lm__vector *)(b + i * ldb + LM__LANES) : b0;
    LM__ROWS(LM__STEP)
  }
  LM__ROWS(LM__KEEP)
#undef LM__KEEP
#undef LM__STEP
#undef LM__LOAD
#undef LM__ROWS
#undef LM__VECTOR
}

LM__INLINE void lm__tile_rows(const int rows, const bool by_column, const bool add, int64_t n,
                              int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                              float *c, int64_t ldc) {
  int64_t at = 0;
  for (; at + 2 * LM__LANES <= n; at += 2 * LM__LANES)
    lm__tile_block(rows, true, by_column, add, k, a, lda, b + at, ldb, c + at, ldc);
  for (; at < n; at += LM__LANES)
    lm__tile_block(rows, false, by_column, add, k, a, lda, b + at, ldb, c + at, ldc);
}

LM__INLINE void lm__tile_product(const bool by_column, const bool add, int64_t m, int64_t n,
                                 int64_t k, const lm__tile *t) {
  const int64_t step = by_column ? 1 : t->lda;
  int64_t r = 0;
  for (; r + LM__TILE_ROWS <= m; r += LM__TILE_ROWS)
    lm__tile_rows(LM__TILE_ROWS, by_column, add, n, k, t->a + r * step, t->lda, t->b, t->ldb,
                  t->c + r * t->ldc, t->ldc);
  for (; r + 4 <= m; r += 4)
    lm__tile_rows(4, by_column, add, n, k, t->a + r * step, t->lda, t->b, t->ldb, t->c + r * t->ldc,
                  t->ldc);
  for (; r < m; r++)
    lm__tile_rows(1, by_column, add, n, k, t->a + r * step, t->lda, t->b, t->ldb, t->c + r * t->ldc,
                  t->ldc);
}

#define LM__TILE_FORM(name, by_column, add)                                                        \
  LM__APART void name(int64_t m, int64_t n, int64_t k, const lm__tile *t) {                        \
    lm__tile_product(by_column, add, m, n, k, t);                                                  \
  }
LM__TILE_FORM(lm__tile_set, false, false)       /* C = A B */
LM__TILE_FORM(lm__tile_add, false, true)        /* C += A B */
LM__TILE_FORM(lm__tile_add_columns, true, true) /* C += A B, A by columns */
#undef LM__TILE_FORM

/* dst (cols, rows) = src (rows, cols) transposed; rows and cols multiples of 4. */
LM__APART void lm__tile_transpose(float *dst, int64_t ldd, const float *src, int64_t lds,
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
