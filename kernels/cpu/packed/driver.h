/* The driver of packed products (cpu/packed.h), included by each implementation.
 *
 * Before it is included: LM__UNIT (elements of a tile's row: 32 of bf16, 16 of f32), LM__LEFT
 * (words or rows: how left operands are read), and static void product_block(int64_t tiles, const
 * char *a, const char *b, int64_t panel, float *c) c (32, 32) = two panels of the left operand
 * times two of the right, `panel` bytes apart, tiles long.
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
typedef uint32_t line __attribute__((vector_size(64), may_alias));
/* Four times: interleave rows i and i + 8. */
#define LM__LOW(x, y)                                                                              \
  __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define LM__HIGH(x, y)                                                                             \
  __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define LM__EIGHT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
static void transpose_tile(char *to, const char *from) {
  line v[16], w[16];
  const line *in = (const line *)(const void *)from;
  line *out = (line *)(void *)to;
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

/* ---- a block into its forms, and back ---- */

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

typedef uint16_t rows16[LM__BLOCK][LM__BLOCK];

/* The transpose of 32 rows by words: a word is two rows' elements of one column. */
static void pair_rows(uint32_t pairs[2][16][16], const rows16 rows) {
  for (int half = 0; half < 2; half++)
    for (int w = 0; w < 16; w++) {
      const uint16_t *even = rows[2 * w] + 16 * half, *odd = rows[2 * w + 1] + 16 * half;
      LM__SIMD
      for (int c = 0; c < 16; c++) pairs[half][w][c] = (uint32_t)even[c] | (uint32_t)odd[c] << 16;
    }
}

static void emit(const float *block, int64_t ld, const lm__target *t, bool round) {
  _Alignas(64) rows16 rows;
  _Alignas(64) uint32_t pairs[2][16][16];
  (void)round; /* they are bf16 */
  for (int r = 0; r < LM__BLOCK; r++) round_row(rows[r], block + r * ld);
  if (t->mirror.words || t->mirror.rows) pair_rows(pairs, (const uint16_t(*)[LM__BLOCK])rows);
  for (int p = 0; p < 2; p++) {
    const char *const row = (const char *)rows[16 * p], *const pair = (const char *)pairs[p];
    const int64_t at = p * t->panel;
    if (t->block.words) transpose_tile(t->block.words + at, row);
    if (t->block.rows) memcpy(t->block.rows + at, row, LM__TILE);
    if (t->mirror.words) memcpy(t->mirror.words + at, pair, LM__TILE);
    if (t->mirror.rows) transpose_tile(t->mirror.rows + at, pair);
  }
}

static void read_rows(rows16 rows, const char *words, int64_t panel) {
  for (int p = 0; p < 2; p++) transpose_tile((char *)rows[16 * p], words + p * panel);
}

static void read(float *block, int64_t ld, const char *words, int64_t panel, bool mirror) {
  if (!mirror) {
    _Alignas(64) rows16 rows;
    read_rows(rows, words, panel);
    for (int r = 0; r < LM__BLOCK; r++) {
      LM__SIMD
      for (int i = 0; i < LM__BLOCK; i++) block[r * ld + i] = lm_bf16_to_f32(rows[r][i]);
    }
    return;
  }
  for (int p = 0; p < 2; p++)
    for (int w = 0; w < 16; w++) {
      const uint32_t *x = (const uint32_t *)(const void *)(words + p * panel + (ptrdiff_t)w * 64);
      float *even = block + 2 * w * ld + (ptrdiff_t)16 * p, *odd = even + ld;
      LM__SIMD
      for (int r = 0; r < 16; r++) {
        even[r] = lm_bf16_to_f32((uint16_t)x[r]);
        odd[r] = lm_bf16_to_f32((uint16_t)(x[r] >> 16));
      }
    }
}

/* The transpose of a block, by words as it is. */
static void turn(char *to, int64_t to_panel, const char *words, int64_t panel) {
  _Alignas(64) rows16 rows;
  _Alignas(64) uint32_t pairs[2][16][16];
  read_rows(rows, words, panel);
  pair_rows(pairs, (const uint16_t(*)[LM__BLOCK])rows);
  for (int p = 0; p < 2; p++) memcpy(to + p * to_panel, pairs[p], LM__TILE);
}
#else
static void emit(const float *block, int64_t ld, const lm__target *t, bool round) {
  _Alignas(64) float tile[16][16];
  const char *const from = (const char *)tile;
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
      if (t->block.words)
        transpose_tile(t->block.words + p * t->panel + (ptrdiff_t)q * LM__TILE, from);
      if (t->mirror.words)
        memcpy(t->mirror.words + q * t->panel + (ptrdiff_t)p * LM__TILE, from, LM__TILE);
    }
}

static void read(float *block, int64_t ld, const char *words, int64_t panel, bool mirror) {
  _Alignas(64) float tile[16][16];
  for (int p = 0; p < 2; p++)
    for (int q = 0; q < 2; q++) {
      const char *from = words + p * panel + (ptrdiff_t)q * LM__TILE;
      float *to = block + (ptrdiff_t)16 * (mirror ? q : p) * ld + (ptrdiff_t)16 * (mirror ? p : q);
      if (!mirror) {
        transpose_tile((char *)tile, from);
        from = (const char *)tile;
      }
      for (int r = 0; r < 16; r++) memcpy(to + r * ld, from + (ptrdiff_t)r * 64, 64);
    }
}

/* The transpose of a block, by words as it is. */
static void turn(char *to, int64_t to_panel, const char *words, int64_t panel) {
  for (int p = 0; p < 2; p++)
    for (int q = 0; q < 2; q++)
      transpose_tile(to + q * to_panel + (ptrdiff_t)p * LM__TILE,
                     words + p * panel + (ptrdiff_t)q * LM__TILE);
}
#endif

/* ---- strips ---- */

static char *shifted(char *base, int64_t bytes) { return base ? base + bytes : NULL; }

static lm__packed tile_at(lm__packed m, int64_t bytes) {
  return (lm__packed){shifted(m.words, bytes), shifted(m.rows, bytes)};
}

/* Where block (i, j) begins. */
static int64_t block_at(int64_t i, int64_t j, int64_t panel) {
  return 2 * i * panel + j * RUN * LM__TILE;
}

static void add(float *c, float beta, const char *words, int64_t panel, bool mirror) {
  _Alignas(64) float x[LM__BLOCK * LM__BLOCK];
  read(x, LM__BLOCK, words, panel, mirror);
  LM__SIMD
  for (int e = 0; e < LM__BLOCK * LM__BLOCK; e++) c[e] += beta * x[e];
}

/* Block (i, j) of the result from two panels of each operand, finished in f32. */
static void compute(const lm__product *p, int64_t i, int64_t j, const char *a, const char *b,
                    float *c) {
  const int64_t tiles = p->k / LM__UNIT, panel = p->n / LM__UNIT * LM__TILE;
  product_block(tiles, a, b, tiles * LM__TILE, c);
  if (p->alpha != 1.0f) {
    LM__SIMD
    for (int e = 0; e < LM__BLOCK * LM__BLOCK; e++) c[e] *= p->alpha;
  }
  if (p->d1) {
    const int64_t at = p->d1_turned ? block_at(j, i, panel) : block_at(i, j, panel);
    add(c, p->beta1, p->d1 + at, panel, p->d1_turned);
  }
  if (p->d2) add(c, p->beta2, p->d2 + block_at(i, j, panel), panel, false);
}

/* Row of blocks s, of a symmetric product from the diagonal on. */
static void strip_of_rows(const lm__product *p, int64_t s) {
  _Alignas(64) float c[LM__BLOCK * LM__BLOCK];
  const bool symmetric = p->kind == LM__SYMMETRIC;
  const int64_t panel = p->n / LM__UNIT * LM__TILE, step = 2 * (p->k / LM__UNIT) * LM__TILE;
  for (int64_t j = symmetric ? s : 0; j < p->n / LM__BLOCK; j++) {
    const int64_t at = block_at(s, j, panel);
    lm__target t = {.block = tile_at(p->out, at), .panel = panel};
    compute(p, s, j, p->left.LM__LEFT + s * step, p->right.words + j * step, c);
    if (symmetric && j == s) /* the factors commute but for rounding: what is below would differ */
      for (int r = 1; r < LM__BLOCK; r++)
        for (int e = 0; e < r; e++) c[r * LM__BLOCK + e] = c[e * LM__BLOCK + r];
    if (symmetric && j > s) t.mirror = tile_at(p->out, block_at(j, s, panel));
    emit(c, LM__BLOCK, &t, p->round);
  }
}

/* Column of blocks s of a matrix that is replaced: what it was is the right operand, turned. */
static void strip_of_columns(const lm__product *p, int64_t s, char *temp) {
  _Alignas(64) float c[LM__BLOCK * LM__BLOCK];
  const int64_t panel = p->n / LM__UNIT * LM__TILE, down = p->m / LM__UNIT * LM__TILE;
  for (int64_t i = 0; i < p->m / LM__BLOCK; i++)
    turn(temp + i * RUN * LM__TILE, down, p->out.words + block_at(i, s, panel), panel);
  for (int64_t i = 0; i < p->m / LM__BLOCK; i++) {
    const int64_t at = block_at(i, s, panel);
    const lm__target t = {.block = tile_at(p->out, at), .panel = panel};
    compute(p, i, s, p->left.LM__LEFT + 2 * i * down, temp, c);
    emit(c, LM__BLOCK, &t, p->round);
  }
}

static void strip(const lm__product *p, int64_t s, char *temp) {
  if (p->kind == LM__IN_PLACE)
    strip_of_columns(p, s, temp);
  else
    strip_of_rows(p, s);
}
