/* The steps of Polar Express on one matrix, in two forms. As written:
 *
 *   rows <= cols:  A = X X';  X = a X + (b A + c A A) X
 *   rows >  cols:  A = X' X;  X = a X + X (b A + c A A)
 *
 * The smaller Gram matrix either way, and no transposed copy: a product takes its operand as it
 * lies. With m the smaller side and n the larger, a step costs 4 m^2 n + 2 m^3 operations.
 *
 * Gram form: P = a I + b G + c G G is a polynomial of G = X X', so X_2 = P_1 P_0 X_0 and
 * G_1 = P_0 G_0 P_0: several steps work on m x m matrices alone, and X is multiplied once for all
 * of them. Rounding errors of G grow with each step away from a fresh one, so G is made anew after
 * step 2 and then every 3: distances to the exact result are then within 2.1 times those of the
 * form as written (measured for singular values down to 1e-6). Five steps cost 28 m^3 + 8 m^2 n
 * instead of 10 m^3 + 20 m^2 n: taken from n = 2 m on, and only in f32, where the small matrices
 * are as precise as X. At n = 4 m it takes 0.63 of the time (two Zen 5 cores, 1024 x 256).
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

/* Scratch: three m x m matrices, and room for a copy of x. */
typedef struct scratch {
  char *gram, *poly, *all, *old;
} scratch;

int64_t LM_KERNEL(polar_scratch)(const lm__bank *bank) {
  const shape s = shape_of(bank);
  const int64_t size = lm_dtype_size(bank->dtype);
  return 3 * lm__aligned(s.m * s.m * size) + lm__aligned(s.m * s.n * size);
}

/* ---- as written ---- */

static int iterate_plain(const lm__bank *bank, char *x, scratch w) {
  const int64_t m = shape_of(bank).m, bytes = m * m * lm_dtype_size(bank->dtype);
  for (int step = 0; step < bank->polar->ns_steps; step++) {
    const coefficients k = of_step(bank, step);
    LM__TRY(interrupted());
    LM__TRY(gram_matrix(bank, w.gram, x));
    copy_bytes(w.poly, w.gram, bytes);
    LM__TRY(square(bank, w.poly, w.gram, w.gram, k.c, k.b));
    LM__TRY(apply(bank, x, w.poly, w.old, k.a));
  }
  return LM_OK;
}

/* ---- Gram form, f32 ---- */

enum {
  GRAM_FROM = 64, /* rows: for smaller ones there is no time to win */
  FIRST_RUN = 2,  /* steps until a fresh Gram matrix, */
  LATER_RUNS = 3  /* and after it */
};

/* steps [from, to) on m x m matrices, then on x. */
static int gram_run(const lm__bank *bank, char *x, scratch w, int from, int to) {
  const bool tall = shape_of(bank).tall;
  const int64_t m = shape_of(bank).m, bytes = m * m * (int64_t)sizeof(float);
  char *const spare = w.old; /* free until x is multiplied */
  LM__TRY(gram_matrix(bank, w.gram, x));
  for (int step = from; step < to; step++) {
    const coefficients k = of_step(bank, step);
    float *poly = (float *)(void *)w.poly;
    LM__TRY(interrupted());
    copy_bytes(poly, w.gram, bytes);
    LM__TRY(square(bank, w.poly, w.gram, w.gram, k.c, k.b));
    for (int64_t i = 0; i < m; i++) poly[i * m + i] += k.a;
    if (step > from) /* in the order in which x would meet them: they commute but for rounding */
      LM__TRY(square(bank, spare, tall ? w.all : w.poly, tall ? w.poly : w.all, 1, 0));
    copy_bytes(w.all, step > from ? spare : w.poly, bytes);
    if (step + 1 == to) break;
    LM__TRY(square(bank, spare, w.poly, w.gram, 1, 0));
    LM__TRY(square(bank, w.gram, spare, w.poly, 1, 0));
  }
  return apply(bank, x, w.all, w.old, 0);
}

static int iterate_gram(const lm__bank *bank, char *x, scratch w) {
  const int steps = bank->polar->ns_steps;
  for (int from = 0; from < steps;) {
    const int length = from == 0 ? FIRST_RUN : LATER_RUNS;
    const int to = from + length < steps ? from + length : steps;
    LM__TRY(gram_run(bank, x, w, from, to));
    from = to;
  }
  return LM_OK;
}

int LM_KERNEL(polar_iterate)(const lm__bank *bank, char *x, char *memory) {
  const shape s = shape_of(bank);
  const int64_t square_bytes = lm__aligned(s.m * s.m * lm_dtype_size(bank->dtype));
  const scratch w = {memory, memory + square_bytes, memory + 2 * square_bytes,
                     memory + 3 * square_bytes};
  const bool gram = s.m >= GRAM_FROM && s.n >= 2 * s.m && bank->dtype == LM_F32 && !bank->round;
  return gram ? iterate_gram(bank, x, w) : iterate_plain(bank, x, w);
}
