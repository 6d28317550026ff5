/* Products of packed matrices: what Polar Express runs on where oneDNN leaves room.
 *
 * A matrix M (rows, cols), padded with zeros to multiples of 32, lies in panels of 16 rows, each a
 * run of tiles along the columns. A tile is 1 KiB: of each of its 16 rows, 16 words of 32 bits, or
 * `unit` elements (32 of bf16, 16 of f32). There are two orders of a tile's words:
 *
 *   by words   word 0 of all rows, then word 1 of all, ...: a right operand, and where a kernel
 *              broadcasts one word of a row after the other, a left one too
 *   by rows    all words of row 0, then row 1, ...: a left operand as AMX wants it
 *
 * Every matrix is held by words; where the kernel wants left operands by rows, those by rows too.
 * A right operand is given as its transpose: products are dot products of rows, left right', and
 * the k that one instruction sums lie in one word. X X' takes X twice and what is symmetric is its
 * own transpose, so that one form serves every reader.
 *
 * A product goes strip by strip of 32 rows or columns, each strip block by block of 32 x 32 with
 * all of k at once; a block is finished in f32 (alpha, addends), rounded, and stored in the forms
 * that will be read. Each element's sum has one fixed order: the bits do not depend on threads.
 */
#ifndef LM_KERNELS_CPU_PACKED_H
#define LM_KERNELS_CPU_PACKED_H

#include <stdbool.h>
#include <stdint.h>

enum { LM__TILE = 1024, LM__BLOCK = 32 };

typedef struct lm__packed {
  char *words, *rows; /* NULL: not wanted, not there */
} lm__packed;

enum lm__product_kind {
  LM__SYMMETRIC, /* blocks on and above the diagonal, mirrored on store */
  LM__FULL,
  LM__IN_PLACE /* out = alpha left out + beta1 d1, d1 = out; k = m */
};

/* out = alpha left right' + beta1 d1 + beta2 d2. m, n, k: padded. d1 and d2: (m, n) by words, or
 * NULL. Only LM__IN_PLACE reads out. */
typedef struct lm__product {
  enum lm__product_kind kind;
  int64_t m, n, k;
  lm__packed left, right; /* (m, k), (n, k) */
  const char *d1, *d2;
  bool d1_turned; /* d1' is given, m = n */
  lm__packed out; /* (m, n) */
  float alpha, beta1, beta2;
  bool round; /* f32 elements: to bf16 values */
} lm__product;

/* Where a block goes, and where its transpose: the first tile in each form, or NULL; panel: bytes
 * from one panel to the next. */
typedef struct lm__target {
  lm__packed block, mirror;
  int64_t panel;
} lm__target;

/* One implementation; packed/ has them, engine/backend/packed.c the list and the choice. */
typedef struct lm__packed_kernel {
  const char *name;
  int dtype, unit;
  bool left_by_rows;
  /* Strip s of p; temp: lm__packed_temp(k, p->m) bytes. */
  void (*strip)(const lm__product *p, int64_t s, char *temp);
  /* A 32 x 32 block of f32 (rows ld apart) into its forms. */
  void (*emit)(const float *block, int64_t ld, const lm__target *target, bool round);
  /* A block by words to f32, or its transpose. */
  void (*read)(float *block, int64_t ld, const char *words, int64_t panel, bool mirror);
} lm__packed_kernel;

static inline int64_t lm__padded(int64_t n) { return (n + LM__BLOCK - 1) / LM__BLOCK * LM__BLOCK; }

/* Bytes of one panel with so many columns. */
static inline int64_t lm__packed_panel(const lm__packed_kernel *k, int64_t cols) {
  return lm__padded(cols) / k->unit * LM__TILE;
}

/* Bytes of one form of a (rows, cols) matrix. */
static inline int64_t lm__packed_bytes(const lm__packed_kernel *k, int64_t rows, int64_t cols) {
  return lm__padded(rows) / 16 * lm__packed_panel(k, cols);
}

static inline int64_t lm__product_strips(const lm__product *p) {
  return (p->kind == LM__IN_PLACE ? p->n : p->m) / LM__BLOCK;
}

/* A strip of columns as a right operand: two panels, m long. */
static inline int64_t lm__packed_temp(const lm__packed_kernel *k, int64_t m) {
  return 2 * lm__packed_panel(k, m);
}

/* Floating point operations that the blocks of p execute. */
static inline double lm__product_operations(const lm__product *p) {
  const double rows = (double)(p->m / LM__BLOCK), cols = (double)(p->n / LM__BLOCK);
  const double blocks = p->kind == LM__SYMMETRIC ? rows * (rows + 1) / 2 : rows * cols;
  return blocks * 2 * LM__BLOCK * LM__BLOCK * (double)p->k;
}

/* The kernel for a dtype that this CPU and lm_set_muon_kernel leave: the fastest. */
const lm__packed_kernel *lm__packed_kernel_for(int dtype);

#endif
