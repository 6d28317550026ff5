/* Products of packed matrices: what Polar Express runs on where oneDNN leaves room.
 *
 * A tile is 1 KiB, 16 rows of 64 bytes; `unit` elements make a row (32 of bf16, 16 of f32). A
 * matrix M (rows, cols), padded with zeros to multiples of 32, is held in one or both of two forms:
 *
 *   A form, for the left operand:  panels of 16 rows, each a run of tiles along the columns;
 *                                  a tile's row r is M[16 p + r][unit t ...]
 *   B form, for the right operand: panels of 16 columns, each a run of tiles along the rows; bf16:
 *                                  a tile's row r is, for each column, the pair M[32 t + 2 r], [+
 * 1] (what AMX and AVX-512 BF16 multiply at once); f32: a row of M
 *
 * As matrices of 32-bit words, a tile of M' in one form is the transpose of a tile of M in the
 * other: one 16 x 16 transposition mirrors a block, whatever the element.
 *
 * A product goes strip by strip of 32 rows or columns, each strip block by block of 32 x 32 with
 * all of k at once; a block is finished in f32 (alpha, addends), rounded, and stored in every form
 * that anybody will read. Each element's sum has one fixed order: the bits do not depend on
 * threads.
 */
#ifndef LM_KERNELS_CPU_PACKED_H
#define LM_KERNELS_CPU_PACKED_H

#include <stdbool.h>
#include <stdint.h>

enum { LM__TILE = 1024, LM__BLOCK = 32 };

enum lm__product_kind {
  LM__UPPER,     /* the result is symmetric: blocks on and above the diagonal, mirrored on store */
  LM__BY_COLUMN, /* strips of columns; out_b may be b */
  LM__BY_ROW     /* strips of rows; out_a may be a */
};

/* out = alpha a b + beta1 d1 + beta2 d2. m, n, k: padded. */
typedef struct lm__product {
  enum lm__product_kind kind;
  int64_t m, n, k;
  const char *a, *b;     /* A form of (m, k), B form of (k, n) */
  const char *d1, *d2;   /* A form of (m, n), or NULL; d1 may be out_a */
  char *out_a, *out_b;   /* the result in A and B form, NULL where not wanted */
  char *out_ta, *out_tb; /* its transpose in A and B form (not with LM__UPPER), or NULL */
  float alpha, beta1, beta2;
  bool round; /* f32 elements: to bf16 values */
} lm__product;

/* Where a block goes: its first tile in each form, and bytes from panel to panel. */
typedef struct lm__target {
  char *a, *b, *ta, *tb; /* of M, and of M' */
  int64_t across;        /* panels of a and tb: a run of tiles along the columns of M */
  int64_t down;          /* panels of b and ta: along its rows */
} lm__target;

/* One implementation; packed/ has them, engine/backend/packed.c the list and the choice. */
typedef struct lm__packed_kernel {
  const char *name;
  int dtype, unit;
  /* Strip s of p; temp: lm__packed_temp(k, p) bytes, for a result that replaces an operand. */
  void (*strip)(const lm__product *p, int64_t s, char *temp);
  /* A 32 x 32 block of f32 (rows ld apart) into its forms. */
  void (*emit)(const float *block, int64_t ld, const lm__target *target, bool round);
} lm__packed_kernel;

static inline int64_t lm__padded(int64_t n) { return (n + LM__BLOCK - 1) / LM__BLOCK * LM__BLOCK; }

/* Bytes of one form of a (rows, cols) matrix. */
static inline int64_t lm__packed_bytes(const lm__packed_kernel *k, int64_t rows, int64_t cols) {
  return lm__padded(rows) / 16 * (lm__padded(cols) / k->unit) * LM__TILE;
}

static inline int64_t lm__product_strips(const lm__product *p) {
  return (p->kind == LM__BY_COLUMN ? p->n : p->m) / LM__BLOCK;
}

static inline int64_t lm__packed_temp(const lm__packed_kernel *k, const lm__product *p) {
  return p->kind == LM__UPPER ? 0
                              : 2 * LM__TILE * ((p->kind == LM__BY_ROW ? p->n : p->m) / k->unit);
}

/* Floating point operations that the blocks of p execute. */
static inline double lm__product_operations(const lm__product *p) {
  const double rows = (double)(p->m / LM__BLOCK), cols = (double)(p->n / LM__BLOCK);
  const double blocks = p->kind == LM__UPPER ? rows * (rows + 1) / 2 : rows * cols;
  return blocks * 2 * LM__BLOCK * LM__BLOCK * (double)p->k;
}

/* The kernel for a dtype that this CPU and lm_set_muon_kernel leave: the fastest. */
const lm__packed_kernel *lm__packed_kernel_for(int dtype);

#endif
