/* The steps of Polar Express on one matrix with packed products (cpu/packed.h), X (m, n) with m <=
 * n: what is tall is held as X', whose steps are the same, transposed.
 *
 *   G = X X';  R = b G + c G G;  X = a X + R X
 *
 * G and R are symmetric, so that 3 m^2 n + m^3 operations do a step (halves) instead of 4 m^2 n +
 * 2 m^3. Gram form: with P = a I + R, X_2 = P_1 P_0 X_0 and G_1 = P_0 G_0 P_0 do two steps on m x m
 * matrices alone, and X is multiplied once for both:
 *
 *   H = a G + G R;  G_1 = a H + R H;  R_1 = b G_1 + c G_1 G_1
 *   Q = a_1 R + a R_1 + R_1 R                   so that P_1 P_0 = a a_1 I + Q
 *   X = a a_1 X + Q X
 *
 * The identity's part is kept apart, so that rounding does not touch it, and is added as a product
 * is stored. All of these would be symmetric but for rounding. H is kept in full, as H': G_1 = P G
 * P is what the X that will be computed has, while G P P, with P's own rounding, is not, and is 1.3
 * to 1.9 times as far from exact at the end. What Q and G_1 have below the diagonal is a copy of
 * what is above.
 *
 * What G has lost to rounding grows with each step away from a fresh one: runs of 2, 1 and 2 steps
 * keep the distance to the exact result within twice that of the form as written, and in bf16 well
 * within nanochat's (docs/log.md). They cost 9 m^2 n + 13 m^3 in all: taken from n = 2 m on.
 *
 * Memory: X is replaced a strip of columns at a time and lies in the bank alone (and once more by
 * rows, where the kernel wants that); three small matrices are enough, because H is read for the
 * last time before R_1 is written, and G_1 before Q is. The strips of the last product are turned
 * where a small matrix lies that is not needed any more.
 */
#include "cpu/polar.h"

typedef struct work {
  lm__bank *bank;
  const lm__packed_kernel *kernel;
  int64_t m, n; /* padded */
  lm__packed x, small[3];
  char *extra; /* temp_bytes a worker, or NULL: a small matrix is room enough for that */
  int64_t temp_bytes, workers;
} work;

/* Padded. */
static int64_t least(const lm__bank *bank) {
  return lm__padded(bank->rows < bank->cols ? bank->rows : bank->cols);
}
/* Threads on a matrix: no more than the product with most strips has. */
static int64_t workers(const lm__bank *bank) {
  const int64_t n = lm__padded(bank->rows < bank->cols ? bank->cols : bank->rows);
  const int64_t most = n / LM__BLOCK, threads = lm_threads();
  return bank->alone ? 1 : threads < most ? threads : most;
}
static int small_matrices(const lm__bank *bank) { return bank->path == LM_MUON_GRAM ? 3 : 2; }

static int64_t extra_bytes(const lm__bank *bank) {
  const int64_t m = least(bank), temps = workers(bank) * lm__packed_temp(bank->packed, m);
  return temps > lm__packed_bytes(bank->packed, m, m) ? temps : 0;
}

int64_t LM_KERNEL(polar_packed_scratch)(const lm__bank *bank) {
  const int64_t m = least(bank), forms = bank->packed->left_by_rows ? 2 : 1;
  return small_matrices(bank) * forms * lm__packed_bytes(bank->packed, m, m) + extra_bytes(bank);
}

/* ---- a product on all threads, or on this one ---- */

typedef struct running {
  const work *w;
  const lm__product *p;
  char *temp;
  int64_t next;
} running;

static void range_workers(int64_t begin, int64_t end, void *arg) {
  running *r = arg;
  const int64_t strips = lm__product_strips(r->p);
  (void)end; /* one worker, or all of them in the caller alone */
  for (;;) {
    const int64_t s = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED);
    if (s >= strips) return;
    r->w->kernel->strip(r->p, s, r->temp + begin * r->w->temp_bytes);
  }
}

static void product(const work *w, lm__product p, char *temp) {
  p.round = w->bank->round;
  running r = {.w = w, .p = &p, .temp = temp};
  (void)__atomic_fetch_add(&w->bank->operations, (int64_t)lm__product_operations(&p),
                           __ATOMIC_RELAXED);
  lm__parallel_for(w->workers, 1, range_workers, &r);
}

/* ---- the steps ---- */

/* out = X X' */
static void gram_matrix(const work *w, lm__packed out) {
  const lm__product p = {.kind = LM__SYMMETRIC,
                         .m = w->m,
                         .n = w->m,
                         .k = w->n,
                         .left = w->x,
                         .right = w->x,
                         .out = out,
                         .alpha = 1};
  product(w, p, NULL);
}

/* out = alpha l r' + beta1 (d1 or d1') + beta2 d2 */
static void square(const work *w, enum lm__product_kind kind, lm__packed out, float alpha,
                   lm__packed l, lm__packed r, float beta1, lm__packed d1, bool d1_turned,
                   float beta2, const char *d2) {
  const lm__product p = {.kind = kind,
                         .m = w->m,
                         .n = w->m,
                         .k = w->m,
                         .left = l,
                         .right = r,
                         .d1 = d1.words,
                         .d1_turned = d1_turned,
                         .d2 = d2,
                         .out = out,
                         .alpha = alpha,
                         .beta1 = beta1,
                         .beta2 = beta2};
  product(w, p, NULL);
}

/* X = q X + Q X; unused: a matrix that may be lost. After the last step nobody reads X by rows. */
static void apply(const work *w, float q, lm__packed big_q, lm__packed unused, bool last) {
  const lm__product p = {.kind = LM__IN_PLACE,
                         .m = w->m,
                         .n = w->n,
                         .k = w->m,
                         .left = big_q,
                         .d1 = w->x.words,
                         .out = {w->x.words, last ? NULL : w->x.rows},
                         .alpha = 1,
                         .beta1 = q};
  product(w, p, w->extra ? w->extra : unused.words);
}

static int interrupted(void) {
  return lm_interrupted() ? lm__fail(LM_EINTERRUPT, "polar_express: interrupted") : LM_OK;
}

/* One or two steps, X multiplied once. */
static int run(const work *w, int step, int steps) {
  const lm_polar_args *polar = w->bank->polar;
  const double *abc = polar->coefficients + (ptrdiff_t)3 * step;
  const float a = (float)abc[0], b = (float)abc[1], c = (float)abc[2];
  const lm__packed g = w->small[0], r = w->small[1], h = w->small[2];
  LM__TRY(interrupted());
  gram_matrix(w, g);
  square(w, LM__SYMMETRIC, r, c, g, g, b, g, false, 0, NULL);
  if (steps == 1) {
    apply(w, a, r, g, step + 1 == polar->ns_steps);
    return LM_OK;
  }
  const float a1 = (float)abc[3], b1 = (float)abc[4], c1 = (float)abc[5];
  const lm__packed r1 = h, q = g;
  LM__TRY(interrupted());
  square(w, LM__FULL, h, 1, r, g, a, g, false, 0, NULL);     /* H' = a G + R G */
  square(w, LM__SYMMETRIC, g, 1, r, h, a, h, true, 0, NULL); /* G_1 */
  square(w, LM__SYMMETRIC, r1, c1, g, g, b1, g, false, 0, NULL);
  square(w, LM__SYMMETRIC, q, 1, r1, r, a1, r, false, a, r1.words);
  apply(w, a * a1, q, r, step + 2 == polar->ns_steps);
  return LM_OK;
}

/* Steps from a fresh Gram matrix to the next: of run i. */
static int run_length(const lm__bank *bank, int i, int left) {
  return bank->path == LM_MUON_GRAM && (i == 0 || i == 2) && left > 1 ? 2 : 1;
}

int LM_KERNEL(polar_packed)(lm__bank *bank, int64_t k, const lm__slot *slot) {
  const int64_t small = least(bank), bytes = lm__packed_bytes(bank->packed, small, small);
  const bool by_rows = bank->packed->left_by_rows;
  const int steps = bank->polar->ns_steps;
  work w = {.bank = bank,
            .kernel = bank->packed,
            .m = small,
            .n = lm__padded(bank->rows < bank->cols ? bank->cols : bank->rows),
            .x = {lm__bank_matrix(bank, k), slot->rows},
            .temp_bytes = lm__packed_temp(bank->packed, small),
            .workers = workers(bank)};
  char *at = slot->rest;
  for (int i = 0; i < small_matrices(bank); i++) {
    w.small[i] = (lm__packed){at, by_rows ? at + bytes : NULL};
    at += by_rows ? 2 * bytes : bytes;
  }
  w.extra = extra_bytes(bank) > 0 ? at : NULL;
  for (int step = 0, i = 0; step < steps; i++) {
    const int length = run_length(bank, i, steps - step);
    LM__TRY(run(&w, step, length));
    step += length;
  }
  return LM_OK;
}
