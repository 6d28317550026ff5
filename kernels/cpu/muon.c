/* Muon with NorMuon variance reduction and cautious decay, for a bank of matrices:
 *
 *   M += (1 - momentum) (G - M);  U = G + momentum (M - G)
 *   [U_i *= (|U|_F / sqrt(rows)) / max(|U_i|, 1e-6)  per row i]
 *   X  = Polar Express of U
 *   [X *= sqrt(min(rows, cols)) / max(|X|_F, 1e-6)]
 *   v  = mean of X X over the longer side;  V += (1 - beta2) (v - V);  r = 1 / sqrt(max(V, 1e-10))
 *   X *= r sqrt(sum(v) d) / max(sqrt(sum(v d r r)), 1e-10)     d: size of the mean's dim
 *   p -= lr' X + lr' wd p [X p >= 0],  lr' = lr sqrt(max(1, rows / cols))
 *
 * Passes over a matrix: the row norms of U, from G and M; X = scaled U, from G and M again; the
 * products; sums of X X; and last, for the whole bank, M, p and V. Only the last one writes, so
 * a step that is interrupted or short of memory has changed nothing. The scales before and after
 * the products become one factor a row or column each. Norms and sums are added in f64.
 */
#include "math/muon.h"

#include <math.h>

#include "cpu/polar.h"

typedef struct muon {
  lm__bank bank;
  float *param, *momentum, *second;
  const float *grad;
  const lm_muon_args *args;
  float one_minus_momentum, lookahead, lr, lr_decay;
  int64_t side; /* entries of V a matrix: rows if rows >= cols, else cols */
  bool by_row;
  float *next_second, *scale; /* (count, side): V's next value, the factor of X */
} muon;

typedef struct one {
  muon *m;
  int64_t k;
  const lm__slot *slot;
  double *sums;    /* a row of U, later an entry of V */
  double *factors; /* a row of U */
} one;

static const float *matrix(const muon *m, const float *bank, int64_t k) {
  return bank + k * m->bank.rows * m->bank.cols;
}

/* ---- before the products ---- */

/* n elements of U at g and old (momentum). */
static void look_ahead(const muon *m, float *u, const float *g, const float *old, int64_t n) {
  const float rate = m->one_minus_momentum, lookahead = m->lookahead;
  LM_SIMD
  for (int64_t i = 0; i < n; i++)
    u[i] = lm_muon_lookahead(lm_muon_momentum(old[i], g[i], rate), g[i], lookahead);
}

/* sums[i] = |U_i|^2 */
static void range_norms(int64_t begin, int64_t end, void *arg) {
  const one *w = arg;
  const int64_t cols = w->m->bank.cols;
  float u[LM__CHUNK];
  for (int64_t i = begin; i < end; i++) {
    const float *g = matrix(w->m, w->m->grad, w->k) + i * cols;
    const float *old = matrix(w->m, w->m->momentum, w->k) + i * cols;
    w->sums[i] = 0;
    for (int64_t j = 0; j < cols; j += LM__CHUNK) {
      const int64_t n = cols - j < LM__CHUNK ? cols - j : LM__CHUNK;
      look_ahead(w->m, u, g + j, old + j, n);
      w->sums[i] += lm__sum_squares(u, n);
    }
  }
}

/* X_i = factors[i] U_i */
static void range_fill(int64_t begin, int64_t end, void *arg) {
  const one *w = arg;
  const lm__bank *bank = &w->m->bank;
  const float *g = matrix(w->m, w->m->grad, w->k), *old = matrix(w->m, w->m->momentum, w->k);
  const int64_t cols = bank->cols;
  float block[LM__BLOCK][LM__WIDTH];
  for (int64_t i = begin; i < end; i += LM__BLOCK)
    for (int64_t j = 0; j < cols; j += LM__WIDTH) {
      const int64_t n = cols - j < LM__WIDTH ? cols - j : LM__WIDTH;
      if (n < LM__WIDTH || end - i < LM__BLOCK) memset(block, 0, sizeof block);
      for (int64_t r = i; r < end && r < i + LM__BLOCK; r++) {
        float *u = block[r - i];
        const double factor = w->factors[r];
        look_ahead(w->m, u, g + r * cols + j, old + r * cols + j, n);
        LM_SIMD
        for (int64_t e = 0; e < n; e++) u[e] = (float)((double)u[e] * factor);
      }
      LM_KERNEL(bank_put)(bank, w->k, w->slot, i, j, n, block[0]);
    }
}

static void prepare(lm__bank *bank, int64_t k, const lm__slot *slot) {
  muon *m = bank->arg;
  const int64_t rows = bank->rows;
  one w = {.m = m, .k = k, .slot = slot, .sums = slot->sums, .factors = slot->sums + rows};
  lm__parallel_for(rows, lm__bank_grain(bank), range_norms, &w);
  double total = 0, equilibrated = 0;
  for (int64_t i = 0; i < rows; i++) total += w.sums[i];
  for (int64_t i = 0; i < rows; i++) {
    w.factors[i] =
        m->args->row_equilibrate ? lm_muon_equilibrate(w.sums[i], total, (double)rows) : 1.0;
    equilibrated += w.sums[i] * w.factors[i] * w.factors[i];
  }
  const double inverse = lm_muon_inverse_norm(equilibrated, bank->polar->norm_scale);
  for (int64_t i = 0; i < rows; i++) w.factors[i] *= inverse;
  lm__parallel_for(rows, lm__bank_grain(bank), range_fill, &w);
}

/* ---- after the products ---- */

/* sums[i] = sum over cols of X X, for rows begin..end (begin a multiple of 32) */
static void range_row_sums(int64_t begin, int64_t end, void *arg) {
  const one *w = arg;
  const lm__bank *bank = &w->m->bank;
  float x[LM__BLOCK][LM__WIDTH];
  for (int64_t i = begin; i < end; i++) w->sums[i] = 0;
  for (int64_t i = begin; i < end; i += LM__BLOCK)
    for (int64_t j = 0; j < bank->cols; j += LM__WIDTH) {
      const int64_t n = bank->cols - j < LM__WIDTH ? bank->cols - j : LM__WIDTH;
      LM_KERNEL(bank_get)(bank, w->k, i, j, n, x[0]);
      for (int64_t r = i; r < end && r < i + LM__BLOCK; r++)
        w->sums[r] += lm__sum_squares(x[r - i], n);
    }
}

/* sums[j] = sum over rows of X X, for columns begin..end (begin a multiple of 32) */
static void range_column_sums(int64_t begin, int64_t end, void *arg) {
  const one *w = arg;
  const lm__bank *bank = &w->m->bank;
  float x[LM__BLOCK][LM__WIDTH];
  for (int64_t j = begin; j < end; j += LM__WIDTH) {
    const int64_t n = end - j < LM__WIDTH ? end - j : LM__WIDTH;
    double *sums = w->sums + j;
    for (int64_t e = 0; e < n; e++) sums[e] = 0;
    for (int64_t i = 0; i < bank->rows; i += LM__BLOCK) {
      LM_KERNEL(bank_get)(bank, w->k, i, j, n, x[0]);
      for (int64_t r = i; r < bank->rows && r < i + LM__BLOCK; r++) {
        const float *row = x[r - i];
        LM_SIMD
        for (int64_t e = 0; e < n; e++) sums[e] += (double)row[e] * (double)row[e];
      }
    }
  }
}

/* V's next value and the factor of each row or column of X. */
static void reduce_variance(lm__bank *bank, int64_t k, const lm__slot *slot) {
  muon *m = bank->arg;
  const int64_t side = m->side, reduced = m->by_row ? bank->cols : bank->rows;
  const double d = (double)reduced;
  const double least = (double)(bank->rows < bank->cols ? bank->rows : bank->cols);
  const float *old = m->second + k * side;
  float *next = m->next_second + k * side, *scale = m->scale + k * side;
  one w = {.m = m, .k = k, .sums = slot->sums};
  if (m->by_row)
    lm__parallel_for(side, lm__bank_grain(bank), range_row_sums, &w);
  else
    lm__parallel_for(side, lm__padded(1 + LM__GRAIN / bank->rows), range_column_sums, &w);
  double total = 0, before = 0, after = 0;
  for (int64_t i = 0; i < side; i++) total += w.sums[i];
  const double renormalise = m->args->renormalize ? lm_muon_renormalize(total, least) : 1.0;
  for (int64_t i = 0; i < side; i++) {
    const double v = w.sums[i] * renormalise * renormalise / d;
    next[i] = lm_muon_second(old[i], v, 1.0 - m->args->beta2);
    const double r = lm_muon_even_out(next[i]);
    before += v * d;
    after += v * d * r * r;
    w.sums[i] = r;
  }
  const double keep = renormalise * sqrt(before) / fmax(sqrt(after), 1e-10);
  for (int64_t i = 0; i < side; i++) scale[i] = (float)(w.sums[i] * keep);
}

/* ---- the writing ---- */

static void update_run(const muon *m, float *restrict p, float *restrict old,
                       const float *restrict g, const float *restrict x,
                       const float *restrict scale, float row_scale, int64_t n) {
  const float rate = m->one_minus_momentum, lr = m->lr, lr_decay = m->lr_decay;
  if (scale) {
    LM_SIMD
    for (int64_t i = 0; i < n; i++) p[i] = lm_muon_update(p[i], x[i] * scale[i], lr, lr_decay);
  } else {
    LM_SIMD
    for (int64_t i = 0; i < n; i++) p[i] = lm_muon_update(p[i], x[i] * row_scale, lr, lr_decay);
  }
  LM_SIMD
  for (int64_t i = 0; i < n; i++) old[i] = lm_muon_momentum(old[i], g[i], rate);
}

/* Blocks of rows begin..end of the bank, counted through all matrices. */
static void range_update(int64_t begin, int64_t end, void *arg) {
  const muon *m = arg;
  const lm__bank *bank = &m->bank;
  const int64_t rows = bank->rows, cols = bank->cols, blocks = lm__bank_blocks(bank);
  float x[LM__BLOCK][LM__WIDTH];
  for (int64_t block = begin; block < end; block++) {
    const int64_t k = block / blocks, i = block % blocks * LM__BLOCK;
    for (int64_t j = 0; j < cols; j += LM__WIDTH) {
      const int64_t n = cols - j < LM__WIDTH ? cols - j : LM__WIDTH;
      LM_KERNEL(bank_get)(bank, k, i, j, n, x[0]);
      for (int64_t r = i; r < rows && r < i + LM__BLOCK; r++) {
        const int64_t at = (k * rows + r) * cols + j;
        update_run(m, m->param + at, m->momentum + at, m->grad + at, x[r - i],
                   m->by_row ? NULL : m->scale + k * cols + j,
                   m->by_row ? m->scale[k * rows + r] : 1.0f, n);
      }
    }
  }
}

int LM_KERNEL(muon_step)(lm_tensor *param, const lm_tensor *grad, lm_tensor *momentum_buffer,
                         lm_tensor *second_momentum, const lm_muon_args *args) {
  const int64_t count = param->shape[0], rows = param->shape[1], cols = param->shape[2];
  if (lm__numel(param) == 0) return LM_OK;
  const double lr = args->lr * sqrt(fmax(1.0, (double)rows / (double)cols));
  muon m = {.param = lm__data(param),
            .grad = lm__data(grad),
            .momentum = lm__data(momentum_buffer),
            .second = lm__data(second_momentum),
            .args = args,
            .one_minus_momentum = (float)(1.0 - args->momentum),
            .lookahead = args->nesterov ? (float)args->momentum : 1.0f,
            .lr = (float)lr,
            .lr_decay = (float)(lr * args->weight_decay),
            .side = rows >= cols ? rows : cols,
            .by_row = rows >= cols};
  lm__storage *sides = NULL;
  const int path =
      lm__muon_path_for(LM_CPU, count, rows, cols, args->polar.precision, LM_KERNEL(muon_measure));
  int status = LM_KERNEL(bank_new)(&m.bank, count, rows, cols, &args->polar, path);
  if (status != LM_OK) return status;
  const int64_t entries = count * m.side;
  status = lm__storage_new(&sides, 2 * (size_t)entries * sizeof(float), LM_CPU);
  if (status == LM_OK) {
    m.next_second = sides->data;
    m.scale = m.next_second + entries;
    m.bank.prepare = prepare;
    m.bank.finish = reduce_variance;
    m.bank.arg = &m;
    status = LM_KERNEL(bank_run)(&m.bank);
  }
  if (status == LM_OK) {
    lm__parallel_for(count * lm__bank_blocks(&m.bank), lm__bank_grain(&m.bank) / LM__BLOCK,
                     range_update, &m);
    memcpy(m.second, m.next_second, (size_t)entries * sizeof(float));
    const double moved = 36 + lm__bank_written(&m.bank) + 2.0 * lm_dtype_size(m.bank.dtype);
    LM_KERNEL(bank_report)
    (&m.bank, (double)lm__numel(param) * moved, 2 * entries * (int64_t)sizeof(float));
  }
  if (sides) lm__storage_release(sides);
  lm__bank_free(&m.bank);
  return status;
}
