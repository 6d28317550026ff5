/* The driver of packed products (cpu/packed.h), included by each implementation.
 *
 * Before it is included: LM__UNIT (elements of a tile's row), element (uint16_t or float), and
 *   static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c)
 * c (32, 32) = two panels of A times two panels of B, `panel` bytes apart, tiles long.
 */
#include <stddef.h>
#include <string.h>

#include "cpu/packed.h"
#include "lumuon.h"
#include "math/float.h"

#define LM__SIMD _Pragma("omp simd")

enum { RUN = LM__BLOCK / LM__UNIT }; /* tiles a block takes along k */

/* ---- 16 x 16 words transposed ---- */

#if defined(__AVX512F__)
typedef uint32_t words __attribute__((vector_size(64), may_alias));
/* Four times: interleave rows i and i + 8. */
#define LM__LOW(x, y)                                                                              \
  __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define LM__HIGH(x, y)                                                                             \
  __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define LM__EIGHT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
static void transpose_tile(char *to, const char *from) {
  words v[16], w[16];
  const words *in = (const words *)(const void *)from;
  words *out = (words *)(void *)to;
#define LM__ROUND(x, y, i)                                                                         \
  y[2 * i] = LM__LOW(x[i], x[i + 8]);                                                              \
  y[2 * i + 1] = LM__HIGH(x[i], x[i + 8]);
#define LM__FIRST(i) LM__ROUND(in, v, i)
#define LM__SECOND(i) LM__ROUND(v, w, i)
#define LM__THIRD(i) LM__ROUND(w, v, i)
#define LM__FOURTH(i) LM__ROUND(v, out, i)
  LM__EIGHT(LM__FIRST)
  LM__EIGHT(LM__SECOND)
  LM__EIGHT(LM__THIRD)
  LM__EIGHT(LM__FOURTH)
#undef LM__FOURTH
#undef LM__THIRD
#undef LM__SECOND
#undef LM__FIRST
#undef LM__ROUND
}
#else
static void transpose_tile(char *to, const char *from) {
  typedef uint32_t four __attribute__((vector_size(16), may_alias));
  for (int r = 0; r < 16; r += 4)
    for (int c = 0; c < 16; c += 4) {
      const four *s = (const four *)(const void *)(from + r * 64 + c * 4);
      four *d = (four *)(void *)(to + c * 64 + r * 4);
      const four low01 = __builtin_shufflevector(s[0], s[4], 0, 4, 1, 5);
      const four low23 = __builtin_shufflevector(s[8], s[12], 0, 4, 1, 5);
      const four high01 = __builtin_shufflevector(s[0], s[4], 2, 6, 3, 7);
      const four high23 = __builtin_shufflevector(s[8], s[12], 2, 6, 3, 7);
      d[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
      d[4] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
      d[8] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
      d[12] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
    }
}
#endif

/* ---- a block into its forms ---- */

#if LM__UNIT == 32
#if defined(__AVX512BF16__)
#include <immintrin.h>
static void round_row(uint16_t *to, const float *from) {
  const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
  memcpy(to, &x, 64);
}
#else
static void round_row(uint16_t *to, const float *from) {
  LM__SIMD
  for (int i = 0; i < LM__BLOCK; i++) to[i] = lm_f32_to_bf16(from[i]);
}
#endif

/* Tiles of B from 32 rows: words are two rows' elements of one column. */
static void pair_rows(uint32_t pairs[2][16][16], const uint16_t rows[LM__BLOCK][LM__BLOCK]) {
  for (int half = 0; half < 2; half++)
    for (int p = 0; p < 16; p++) {
      const uint16_t *even = rows[2 * p] + 16 * half, *odd = rows[2 * p + 1] + 16 * half;
      LM__SIMD
      for (int c = 0; c < 16; c++) pairs[half][p][c] = (uint32_t)even[c] | (uint32_t)odd[c] << 16;
    }
}

static void emit(const float *block, int64_t ld, const lm__target *t, bool round) {
  _Alignas(64) uint16_t rows[LM__BLOCK][LM__BLOCK];
  _Alignas(64) uint32_t pairs[2][16][16];
  (void)round; /* they are bf16 */
  for (int r = 0; r < LM__BLOCK; r++) round_row(rows[r], block + r * ld);
  const char *const tiles = (const char *)rows;
  if (t->b || t->ta) pair_rows(pairs, rows);
  for (int p = 0; p < 2; p++) {
    const char *const pair = (const char *)pairs[p];
    if (t->a) memcpy(t->a + p * t->across, tiles + (ptrdiff_t)p * LM__TILE, LM__TILE);
    if (t->tb) transpose_tile(t->tb + p * t->across, tiles + (ptrdiff_t)p * LM__TILE);
    if (t->b) memcpy(t->b + p * t->down, pair, LM__TILE);
    if (t->ta) transpose_tile(t->ta + p * t->down, pair);
  }
}

/* c += beta d, d in A form. */
static void add(float *c, float beta, const char *d, int64_t across) {
  for (int r = 0; r < LM__BLOCK; r++) {
    const uint16_t *x = (const uint16_t *)(const void *)(d + r / 16 * across + r % 16 * 64);
    LM__SIMD
    for (int i = 0; i < LM__BLOCK; i++) c[r * LM__BLOCK + i] += beta * lm_bf16_to_f32(x[i]);
  }
}
#else
static void emit(const float *block, int64_t ld, const lm__target *t, bool round) {
  _Alignas(64) float tile[16][16];
  for (int p = 0; p < 2; p++)
    for (int q = 0; q < 2; q++) {
      for (int r = 0; r < 16; r++) {
        const float *x = block + (16 * p + r) * ld + (ptrdiff_t)16 * q;
        if (round) {
          LM__SIMD
          for (int i = 0; i < 16; i++) tile[r][i] = lm_bf16_to_f32(lm_f32_to_bf16(x[i]));
        } else {
          memcpy(tile[r], x, 64);
        }
      }
      const int64_t row = p * t->across + (int64_t)q * LM__TILE;
      const int64_t column = q * t->down + (int64_t)p * LM__TILE;
      const char *const from = (const char *)tile;
      if (t->a) memcpy(t->a + row, from, LM__TILE);
      if (t->tb) transpose_tile(t->tb + row, from);
      if (t->b) memcpy(t->b + column, from, LM__TILE);
      if (t->ta) transpose_tile(t->ta + column, from);
    }
}

static void add(float *c, float beta, const char *d, int64_t across) {
  for (int r = 0; r < LM__BLOCK; r++) {
    const char *row = d + r / 16 * across + r % 16 * 64;
    for (int q = 0; q < 2; q++) {
      const float *x = (const float *)(const void *)(row + (ptrdiff_t)q * LM__TILE);
      LM__SIMD
      for (int i = 0; i < 16; i++) c[r * LM__BLOCK + 16 * q + i] += beta * x[i];
    }
  }
}
#endif

/* ---- strips ---- */

/* Block (i, j) of the result, finished in f32. */
static void compute(const lm__product *p, int64_t i, int64_t j, float *c) {
  const int64_t tiles = p->k / LM__UNIT, panel = tiles * LM__TILE;
  const int64_t across = p->n / LM__UNIT * LM__TILE, at = 2 * i * across + j * RUN * LM__TILE;
  product_block(tiles, p->a + 2 * i * panel, p->b + 2 * j * panel, panel, c);
  if (p->alpha != 1.0f) {
    LM__SIMD
    for (int e = 0; e < LM__BLOCK * LM__BLOCK; e++) c[e] *= p->alpha;
  }
  if (p->d1) add(c, p->beta1, p->d1 + at, across);
  if (p->d2) add(c, p->beta2, p->d2 + at, across);
}

static char *shifted(char *base, int64_t bytes) { return base ? base + bytes : NULL; }

/* Row of blocks s from the diagonal on. */
static void strip_upper(const lm__product *p, int64_t s) {
  _Alignas(64) float c[LM__BLOCK * LM__BLOCK];
  const int64_t panels = p->n / LM__UNIT * LM__TILE; /* n = m: across and down are one */
  lm__target t = {.across = panels, .down = panels};
  for (int64_t j = s; j < p->n / LM__BLOCK; j++) {
    const int64_t upper = 2 * s * panels + j * RUN * LM__TILE;
    const int64_t lower = 2 * j * panels + s * RUN * LM__TILE;
    compute(p, s, j, c);
    if (j == s) /* the factors commute but for rounding: what is below would differ a little */
      for (int r = 1; r < LM__BLOCK; r++)
        for (int e = 0; e < r; e++) c[r * LM__BLOCK + e] = c[e * LM__BLOCK + r];
    t.a = shifted(p->out_a, upper);
    t.b = shifted(p->out_b, lower);
    t.ta = j == s ? NULL : shifted(p->out_a, lower);
    t.tb = j == s ? NULL : shifted(p->out_b, upper);
    emit(c, LM__BLOCK, &t, p->round);
  }
}

/* All blocks of one column (or row) of blocks. What replaces an operand waits in temp. */
static void strip_full(const lm__product *p, int64_t s, char *temp) {
  _Alignas(64) float c[LM__BLOCK * LM__BLOCK];
  const bool by_column = p->kind == LM__BY_COLUMN;
  const bool wait_b = p->out_b && p->out_b == p->b, wait_a = p->out_a && p->out_a == p->a;
  const int64_t across = p->n / LM__UNIT * LM__TILE, down = p->m / LM__UNIT * LM__TILE;
  const int64_t blocks = (by_column ? p->m : p->n) / LM__BLOCK;
  const lm__target whole = {.across = across, .down = down};
  for (int64_t at = 0; at < blocks; at++) {
    const int64_t i = by_column ? at : s, j = by_column ? s : at;
    const int64_t row = 2 * i * across + j * RUN * LM__TILE;
    const int64_t column = 2 * j * down + i * RUN * LM__TILE;
    lm__target t = whole;
    compute(p, i, j, c);
    t.a = shifted(p->out_a, row);
    t.b = shifted(p->out_b, column);
    t.ta = shifted(p->out_ta, column);
    t.tb = shifted(p->out_tb, row);
    if (wait_b) t.b = temp + at * RUN * LM__TILE;
    if (wait_a) t.a = temp + at * RUN * LM__TILE;
    emit(c, LM__BLOCK, &t, p->round);
  }
  if (wait_b) memcpy(p->out_b + 2 * s * down, temp, (size_t)(2 * down));
  if (wait_a) memcpy(p->out_a + 2 * s * across, temp, (size_t)(2 * across));
}

static void strip(const lm__product *p, int64_t s, char *temp) {
  if (p->kind == LM__UPPER)
    strip_upper(p, s);
  else
    strip_full(p, s, temp);
}
