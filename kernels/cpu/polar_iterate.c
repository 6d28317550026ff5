/* The steps of Polar Express on one matrix, as written and by oneDNN: the plain reference, and for
 * matrices too small to be packed.
 *
 *   rows <= cols:  A = X X';  X = a X + (b A + c A A) X
 *   rows >  cols:  A = X' X;  X = a X + X (b A + c A A)
 *
 * The smaller Gram matrix either way, and no transposed copy: a product takes its operand as it
 * lies. With m the smaller side and n the larger, a step costs 4 m^2 n + 2 m^3 operations.
 *
 * Products accumulate in f32; in bf16, X, A and b A + c A A are stored as bf16.
 */
#include "backend/onednn.h"
#include "cpu/polar.h"

/* ---- pieces ---- */

typedef struct span {
  char *to;
  const char *from;
} span;

static void range_copy(int64_t begin, int64_t end, void *arg) {
  const span *s = arg;
  memcpy(s->to + begin, s->from + begin, (size_t)(end - begin));
}
static void copy_bytes(void *to, const void *from, int64_t bytes) {
  span s = {to, from};
  lm__parallel_for(bytes, (int64_t)1 << 16, range_copy, &s);
}

static void range_round(int64_t begin, int64_t end, void *arg) {
  float *x = arg;
  for (int64_t i = begin; i < end; i++) x[i] = lm_bf16_to_f32(lm_f32_to_bf16(x[i]));
}

typedef struct shape {
  int64_t rows, cols, m, n;
  bool tall;
} shape;

static shape shape_of(const lm__bank *bank) {
  const bool tall = bank->rows > bank->cols;
  return (shape){bank->rows, bank->cols, tall ? bank->cols : bank->rows,
                 tall ? bank->rows : bank->cols, tall};
}

/* A product whose result has the bank's precision. */
static int product(const lm__bank *bank, lm__gemm g) {
  g.in = g.out = bank->dtype;
  LM__TRY(lm__gemm_run(&g));
  if (bank->round) lm__parallel_for(g.m * g.n, LM__GRAIN, range_round, g.c);
  return LM_OK;
}

/* gram = X X' or X' X, m x m. */
static int gram_matrix(const lm__bank *bank, char *gram, const char *x) {
  const shape s = shape_of(bank);
  return product(bank, (lm__gemm){.m = s.m,
                                  .n = s.m,
                                  .k = s.n,
                                  .transpose_a = s.tall,
                                  .transpose_b = !s.tall,
                                  .a = x,
                                  .lda = s.cols,
                                  .b = x,
                                  .ldb = s.cols,
                                  .c = gram,
                                  .ldc = s.m,
                                  .alpha = 1});
}

/* out = alpha a b + beta out, all m x m. */
static int square(const lm__bank *bank, char *out, const char *a, const char *b, float alpha,
                  float beta) {
  const int64_t m = shape_of(bank).m;
  return product(bank, (lm__gemm){.m = m,
                                  .n = m,
                                  .k = m,
                                  .a = a,
                                  .lda = m,
                                  .b = b,
                                  .ldb = m,
                                  .c = out,
                                  .ldc = m,
                                  .alpha = alpha,
                                  .beta = beta});
}

/* x = p x + a x (or x p + a x), p m x m; old: room for a copy of x. */
static int apply(const lm__bank *bank, char *x, char *p, char *old, float a) {
  const shape s = shape_of(bank);
  copy_bytes(old, x, s.rows * s.cols * lm_dtype_size(bank->dtype));
  return product(bank, (lm__gemm){.m = s.rows,
                                  .n = s.cols,
                                  .k = s.m,
                                  .a = s.tall ? old : p,
                                  .lda = s.m,
                                  .b = s.tall ? p : old,
                                  .ldb = s.cols,
                                  .c = x,
                                  .ldc = s.cols,
                                  .alpha = 1,
                                  .beta = a});
}

static int interrupted(void) {
  return lm_interrupted() ? lm__fail(LM_EINTERRUPT, "polar_express: interrupted") : LM_OK;
}

typedef struct coefficients {
  float a, b, c;
} coefficients;

static coefficients of_step(const lm__bank *bank, int step) {
  const double *abc = bank->polar->coefficients + (ptrdiff_t)3 * step;
  return (coefficients){(float)abc[0], (float)abc[1], (float)abc[2]};
}

/* Two m x m matrices, and room for a copy of x. */
int64_t LM_KERNEL(polar_scratch)(const lm__bank *bank) {
  const shape s = shape_of(bank);
  const int64_t size = lm_dtype_size(bank->dtype);
  return 2 * lm__aligned(s.m * s.m * size) + lm__aligned(s.m * s.n * size);
}

int LM_KERNEL(polar_iterate)(lm__bank *bank, int64_t k, const lm__slot *slot) {
  const shape s = shape_of(bank);
  const int64_t bytes = s.m * s.m * lm_dtype_size(bank->dtype), room = lm__aligned(bytes);
  char *const x = lm__bank_matrix(bank, k), *const gram = slot->rest;
  char *const poly = gram + room, *const old = poly + room;
  for (int step = 0; step < bank->polar->ns_steps; step++) {
    const coefficients abc = of_step(bank, step);
    LM__TRY(interrupted());
    LM__TRY(gram_matrix(bank, gram, x));
    copy_bytes(poly, gram, bytes);
    LM__TRY(square(bank, poly, gram, gram, abc.c, abc.b));
    LM__TRY(apply(bank, x, poly, old, abc.a));
    (void)__atomic_fetch_add(&bank->operations, 4 * s.m * s.m * s.n + 2 * s.m * s.m * s.m,
                             __ATOMIC_RELAXED);
  }
  return LM_OK;
}
