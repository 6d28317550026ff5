/* The steps of Polar Express on one matrix with packed products (cpu/packed.h), m the smaller side,
 * n the larger; G is the smaller Gram matrix, X X' or X' X. Written for rows <= cols:
 *
 *   G = X X';  R = b G + c G G;  X = a X + R X
 *
 * G and R are symmetric, so that 3 m^2 n + m^3 operations do a step (halves) instead of 4 m^2 n +
 * 2 m^3. Gram form: with P = a I + R, X_2 = P_1 P_0 X_0 and G_1 = P_0 G_0 P_0 do several steps on
 * m x m matrices alone, and X is multiplied once for all of them:
 *
 *   H = a G + G R;  G = a H + R H               the next step's Gram matrix
 *   Q = a Q + q R + R Q,  q = a q               so that P_k ... P_0 = q I + Q
 *   X = q X + Q X
 *
 * The identity's part is kept apart, so that rounding does not touch it, and is added as a product
 * is stored. All of these would be symmetric but for rounding. H is kept in full: G = P G P is what
 * the X that will be computed has, while G P P, with P's own rounding, is not, and is 1.3 to 1.9
 * times as far from exact at the end. What Q and G have below the diagonal is a copy of what is
 * above.
 *
 * What G has lost to rounding grows with each step away from a fresh one: runs of 2, 1 and 2 steps
 * keep the distance to the exact result within twice that of the form as written, and in bf16 well
 * within nanochat's (docs/log.md). They cost 9 m^2 n + 13 m^3 in all: taken from n = 2 m on.
 */
#include "cpu/polar.h"

typedef struct matrix { /* m x m, symmetric */
  char *a, *b;          /* its two forms */
} matrix;

typedef struct work {
  lm__bank *bank;
  const lm__packed_kernel *kernel;
  int64_t rows, cols, m; /* padded */
  bool tall;
  char *x, *b, *t; /* X in A and B form, and transposed (lm__slot) */
  matrix free[4];  /* four are enough: G, R, Q and one that is being made */
  char *temp;      /* temp_bytes a worker */
  int64_t temp_bytes, workers;
} work;

static int64_t temp_bytes(const lm__bank *bank) {
  const int64_t m = lm__padded(bank->rows < bank->cols ? bank->rows : bank->cols);
  return 2 * LM__TILE * (m / bank->packed->unit);
}

int64_t LM_KERNEL(polar_packed_scratch)(const lm__bank *bank) {
  const int64_t m = bank->rows < bank->cols ? bank->rows : bank->cols;
  const int64_t matrices = bank->path == LM_MUON_GRAM ? 4 : 2;
  return 2 * matrices * lm__packed_bytes(bank->packed, m, m) +
         (bank->each ? 1 : lm_threads()) * temp_bytes(bank);
}

/* ---- a product on all threads, or on this one ---- */

typedef struct running {
  const work *w;
  const lm__product *p;
  int64_t next;
} running;

static void range_workers(int64_t begin, int64_t end, void *arg) {
  running *r = arg;
  const int64_t strips = lm__product_strips(r->p);
  (void)end; /* one worker, or all of them in the caller alone */
  for (;;) {
    const int64_t s = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED);
    if (s >= strips) return;
    r->w->kernel->strip(r->p, s, r->w->temp + begin * r->w->temp_bytes);
  }
}

static void product(const work *w, lm__product p) {
  p.round = w->bank->round;
  running r = {.w = w, .p = &p};
  (void)__atomic_fetch_add(&w->bank->operations, (int64_t)lm__product_operations(&p),
                           __ATOMIC_RELAXED);
  lm__parallel_for(w->workers, 1, range_workers, &r);
}

/* ---- the steps ---- */

static void gram_matrix(const work *w, matrix g) {
  product(w, (lm__product){.kind = LM__UPPER,
                           .m = w->m,
                           .n = w->m,
                           .k = w->tall ? w->rows : w->cols,
                           .a = w->tall ? w->t : w->x,
                           .b = w->tall ? w->b : w->t,
                           .out_a = g.a,
                           .out_b = g.b,
                           .alpha = 1});
}

/* out = alpha l r + beta1 d1 + beta2 d2 */
static void square(const work *w, enum lm__product_kind kind, matrix out, float alpha, matrix l,
                   matrix r, float beta1, matrix d1, float beta2, const char *d2) {
  product(w, (lm__product){.kind = kind,
                           .m = w->m,
                           .n = w->m,
                           .k = w->m,
                           .a = l.a,
                           .b = r.b,
                           .d1 = d1.a,
                           .d2 = d2,
                           .out_a = out.a,
                           .out_b = out.b,
                           .alpha = alpha,
                           .beta1 = beta1,
                           .beta2 = beta2});
}

/* X = q X + Q X or q X + X Q; the last time nobody reads the other forms. */
static void apply(const work *w, float q, matrix big_q, bool last) {
  product(w, (lm__product){.kind = w->tall ? LM__BY_ROW : LM__BY_COLUMN,
                           .m = w->rows,
                           .n = w->cols,
                           .k = w->m,
                           .a = w->tall ? w->x : big_q.a,
                           .b = w->tall ? big_q.b : w->b,
                           .d1 = w->x,
                           .out_a = w->x,
                           .out_b = last ? NULL : w->b,
                           .out_ta = w->tall && !last ? w->t : NULL,
                           .out_tb = !w->tall && !last ? w->t : NULL,
                           .alpha = 1,
                           .beta1 = q});
}

/* Steps [from, to), X multiplied once. */
static int run(const work *w, int from, int to) {
  const matrix g = w->free[0], r = w->free[2];
  matrix q = w->free[1], spare = w->free[3];
  float scale = 1;
  gram_matrix(w, g);
  for (int step = from; step < to; step++) {
    const double *abc = w->bank->polar->coefficients + (ptrdiff_t)3 * step;
    const float a = (float)abc[0], b = (float)abc[1], c = (float)abc[2];
    const matrix poly = step == from ? q : r;
    if (lm_interrupted()) return lm__fail(LM_EINTERRUPT, "polar_express: interrupted");
    square(w, LM__UPPER, poly, c, g, g, b, g, 0, NULL);
    if (step + 1 < to) {
      square(w, LM__BY_COLUMN, spare, 1, g, poly, a, g, 0, NULL);
      square(w, LM__UPPER, g, 1, poly, spare, a, spare, 0, NULL);
    }
    if (step > from) {
      square(w, LM__UPPER, spare, 1, r, q, a, q, scale, r.a);
      const matrix old = q;
      q = spare;
      spare = old;
    }
    scale *= a;
  }
  apply(w, scale, q, to == w->bank->polar->ns_steps);
  return LM_OK;
}

/* Steps from a fresh Gram matrix to the next: run i. */
static int run_length(const lm__bank *bank, int i) {
  static const int lengths[] = {2, 1, 2};
  return bank->path == LM_MUON_GRAM && i < 3 ? lengths[i] : 1;
}

int LM_KERNEL(polar_packed)(lm__bank *bank, int64_t k, const lm__slot *slot) {
  const int64_t small = bank->rows < bank->cols ? bank->rows : bank->cols;
  const int64_t bytes = lm__packed_bytes(bank->packed, small, small);
  const int steps = bank->polar->ns_steps;
  work w = {.bank = bank,
            .kernel = bank->packed,
            .rows = lm__padded(bank->rows),
            .cols = lm__padded(bank->cols),
            .m = lm__padded(small),
            .tall = bank->rows > bank->cols,
            .x = lm__bank_matrix(bank, k),
            .b = slot->b,
            .t = slot->t,
            .temp = slot->rest,
            .temp_bytes = temp_bytes(bank),
            .workers = bank->each ? 1 : lm_threads()};
  char *at = w.temp + w.workers * w.temp_bytes;
  for (int i = 0; i < (bank->path == LM_MUON_GRAM ? 4 : 2); i++, at += 2 * bytes)
    w.free[i] = (matrix){at, at + bytes};
  for (int from = 0, i = 0; from < steps; i++) {
    const int to = from + run_length(bank, i);
    LM__TRY(run(&w, from, to < steps ? to : steps));
    from = to;
  }
  return LM_OK;
}
