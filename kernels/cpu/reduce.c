/* out = sum, mean, max, min, product or sqrt(sum of squares) over some dims.
 *
 * Every accumulator is f64 (a product of two f32 is exact in it), which costs nothing at memory
 * speed. The dims are sorted by stride and joined where they can be (core/sides.h); then either
 *   rows     the innermost dim is reduced: 32 lanes run along it and are folded pairwise;
 *   columns  the innermost dim is kept, or there are many short rows: an accumulator a result,
 *            whose elements are added one after another.
 * A long reduction is cut into blocks whose partial results are combined in order. Cuts and lanes
 * depend on the shape only: the result is bitwise the same whatever the threads and the variant.
 */
#include <math.h>

#include "core/sides.h"
#include "cpu/kernel.h"

enum { LANES = 32, TILE = 1024, ROW_BLOCK = 1 << 15, COLUMN_TASKS = 64, NARROW = 8, SHORT = 16 };

/* How an element x joins an accumulator a. NaN wins in max and min. */
#define LM__REDUCTIONS                                                                             \
  OP(LM_SUM, a + x)                                                                                \
  OP(LM_PROD, a *x)                                                                                \
  OP(LM_MAX, x > a || x != x ? x : a)                                                              \
  OP(LM_MIN, x < a || x != x ? x : a)                                                              \
  OP(LM_NORM, a + x * x)

typedef struct reduction {
  int op;       /* LM_SUM for LM_MEAN too */
  int final_op; /* as asked */
  lm_tensor *out;
  const lm_tensor *a;
  lm__side kept, reduced;
  int64_t blocks, block; /* the reduced range in blocks of `block` elements */
  int64_t width, tiles;  /* columns: size of the innermost kept dim, tiles along it */
  double *partial;       /* (blocks, kept.n), or NULL for one block */
} reduction;

static double identity(int op) {
  return op == LM_PROD ? 1.0 : op == LM_MAX ? -INFINITY : op == LM_MIN ? INFINITY : 0.0;
}

/* acc[i] takes more[i], which has accumulated elements of its own. */
static void combine(int op, double *restrict acc, const double *restrict more, int64_t n) {
  switch (op == LM_NORM ? LM_SUM : op) {
#define OP(tag, expression)                                                                        \
  case tag:                                                                                        \
    LM_SIMD                                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
      const double a = acc[i], x = more[i];                                                        \
      acc[i] = (expression);                                                                       \
    }                                                                                              \
    break;
    LM__REDUCTIONS
#undef OP
    default:
      break;
  }
}

/* acc[l] takes x[l], x[l + LANES], ... */
static void add_lanes(int op, double *restrict acc, const float *restrict v, int64_t n) {
  int64_t i = 0;
  switch (op) {
#define OP(tag, expression)                                                                        \
  case tag:                                                                                        \
    for (; i + LANES <= n; i += LANES) LM_SIMD                                                     \
    for (int l = 0; l < LANES; l++) {                                                              \
      const double a = acc[l], x = (double)v[i + l];                                               \
      acc[l] = (expression);                                                                       \
    }                                                                                              \
    for (int l = 0; l < (int)(n - i); l++) {                                                       \
      const double a = acc[l], x = (double)v[i + l];                                               \
      acc[l] = (expression);                                                                       \
    }                                                                                              \
    break;
    LM__REDUCTIONS
#undef OP
    default:
      break;
  }
}

/* acc[i] takes v[i]. */
static void add_columns(int op, double *restrict acc, const float *restrict v, int64_t n) {
  switch (op) {
#define OP(tag, expression)                                                                        \
  case tag:                                                                                        \
    LM_SIMD                                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
      const double a = acc[i], x = (double)v[i];                                                   \
      acc[i] = (expression);                                                                       \
    }                                                                                              \
    break;
    LM__REDUCTIONS
#undef OP
    default:
      break;
  }
}

/* Offsets of linear index i of a side, in the input and in the result. */
static void locate(const lm__side *s, int64_t i, int64_t index[LM_MAX_DIMS], int64_t *from,
                   int64_t *to) {
  *from = *to = 0;
  for (int d = s->ndim - 1; d >= 0; d--) {
    index[d] = i % s->shape[d];
    i /= s->shape[d];
    *from += index[d] * s->strides[d];
    *to += index[d] * s->out_strides[d];
  }
}

/* Store n accumulators at out + to, to + out_stride, ..., as the op's result. */
static void finish(const reduction *r, const double *acc, int64_t to, int64_t out_stride,
                   int64_t n) {
  float result[TILE];
  for (int64_t i = 0; i < n; i++)
    result[i] = (float)(r->final_op == LM_MEAN   ? acc[i] / (double)r->reduced.n
                        : r->final_op == LM_NORM ? sqrt(acc[i])
                                                 : acc[i]);
  lm__store((char *)lm__data(r->out) + to * lm_dtype_size(r->out->dtype), result, r->out->dtype,
            out_stride, n);
}

static const char *element(const reduction *r, int64_t offset) {
  return (const char *)lm__data(r->a) + offset * lm_dtype_size(r->a->dtype);
}

/* Tasks (block, kept element): the block's elements, run by run along the innermost reduced dim. */
static void range_rows(int64_t begin, int64_t end, void *arg) {
  const reduction *r = arg;
  const lm__side *s = &r->reduced;
  const int inner = s->ndim - 1;
  for (int64_t task = begin; task < end; task++) {
    const int64_t kept = task % r->kept.n, block = task / r->kept.n;
    int64_t index[LM_MAX_DIMS], base = 0, to = 0, offset = 0, unused = 0;
    double acc[LANES];
    for (int l = 0; l < LANES; l++) acc[l] = identity(r->op);
    locate(&r->kept, kept, index, &base, &to);
    int64_t at = block * r->block;
    const int64_t stop = at + r->block < s->n ? at + r->block : s->n;
    while (at < stop) {
      float buffer[LM__CHUNK];
      locate(s, at, index, &offset, &unused);
      int64_t run = s->shape[inner] - index[inner];
      if (run > stop - at) run = stop - at;
      const bool direct = r->a->dtype == LM_F32 && s->strides[inner] == 1;
      if (!direct && run > LM__CHUNK) run = LM__CHUNK;
      add_lanes(r->op, acc,
                lm__as_f32(buffer, element(r, base + offset), r->a->dtype, s->strides[inner], run),
                run);
      at += run;
    }
    for (int w = LANES / 2; w > 0; w /= 2) combine(r->op, acc, acc + w, w);
    if (r->partial)
      r->partial[task] = acc[0];
    else
      finish(r, acc, to, 1, 1);
  }
}

/* Ask for n elements from offset on: what comes next does not follow what was just read, so the
 * processor does not foresee it. */
static void prefetch(const reduction *r, int64_t offset, int64_t n) {
  const char *p = element(r, offset);
  const int64_t bytes = n * lm_dtype_size(r->a->dtype);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

/* Tasks (block, outer kept index, tile of columns): the block's rows one after another. */
static void range_columns(int64_t begin, int64_t end, void *arg) {
  const reduction *r = arg;
  const lm__side *k = &r->kept, *s = &r->reduced;
  const int64_t stride = k->strides[k->ndim - 1], outer = k->n / r->width;
  const int64_t ahead = s->strides[s->ndim - 1]; /* from a row to the next, mostly */
  for (int64_t task = begin; task < end; task++) {
    const int64_t tile = task % r->tiles, rest = task / r->tiles;
    const int64_t block = rest / outer, column = tile * TILE;
    const int64_t n = r->width - column < TILE ? r->width - column : TILE;
    const int64_t kept = rest % outer * r->width + column;
    int64_t index[LM_MAX_DIMS], base = 0, to = 0, offset = 0, unused = 0;
    double acc[TILE];
    for (int64_t i = 0; i < n; i++) acc[i] = identity(r->op);
    locate(k, kept, index, &base, &to);
    const int64_t at = block * r->block;
    const int64_t stop = at + r->block < s->n ? at + r->block : s->n;
    for (int64_t row = at; row < stop; row++) {
      float buffer[TILE];
      locate(s, row, index, &offset, &unused);
      if (n < r->width && stride == 1 && row + 1 < stop) prefetch(r, base + offset + ahead, n);
      add_columns(r->op, acc, lm__as_f32(buffer, element(r, base + offset), r->a->dtype, stride, n),
                  n);
    }
    if (r->partial)
      memcpy(r->partial + block * k->n + kept, acc, (size_t)n * sizeof *acc);
    else
      finish(r, acc, to, k->out_strides[k->ndim - 1], n);
  }
}

static void range_combine(int64_t begin, int64_t end, void *arg) {
  const reduction *r = arg;
  const int64_t n = r->kept.n;
  for (int64_t b = 1; b < r->blocks; b++)
    combine(r->op, r->partial + begin, r->partial + b * n + begin, end - begin);
  for (int64_t i = begin; i < end; i++) {
    int64_t index[LM_MAX_DIMS], from = 0, to = 0;
    locate(&r->kept, i, index, &from, &to);
    finish(r, r->partial + i, to, 1, 1);
  }
}

int LM_KERNEL(reduce)(lm_tensor *out, int op, const lm_tensor *a, uint32_t dims) {
  reduction r = {.op = op == LM_MEAN ? LM_SUM : op, .final_op = op, .out = out, .a = a};
  lm__storage *scratch = NULL;
  const bool inner_kept = lm__split_dims(&r.kept, &r.reduced, a, out, dims);
  if (r.kept.n == 0) return LM_OK;
  r.width = r.kept.shape[r.kept.ndim - 1];
  r.tiles = (r.width + TILE - 1) / TILE;
  const bool columns =
      inner_kept ? r.width >= NARROW : r.reduced.n <= SHORT && r.width >= LM__CHUNK;
  const int64_t outer = r.kept.n / r.width;
  if (columns) { /* enough tasks for many threads, of 64 rows or more */
    r.blocks = COLUMN_TASKS / (outer * r.tiles);
    if (r.blocks > r.reduced.n / 64) r.blocks = r.reduced.n / 64;
  } else {
    r.blocks = (r.reduced.n + ROW_BLOCK - 1) / ROW_BLOCK;
  }
  if (r.blocks < 1) r.blocks = 1;
  r.block = (r.reduced.n + r.blocks - 1) / r.blocks;
  if (!columns && r.blocks > 1) r.block = ROW_BLOCK;
  if (r.blocks > 1) {
    LM__TRY(lm__storage_new(&scratch, (size_t)(r.blocks * r.kept.n) * sizeof(double), LM_CPU));
    r.partial = scratch->data;
  }
  const int64_t cost = r.block * (columns ? (r.width < TILE ? r.width : TILE) : 1);
  const int64_t grain = LM__GRAIN / (cost + 1) + 1;
  if (columns)
    lm__parallel_for(r.blocks * outer * r.tiles, grain, range_columns, &r);
  else
    lm__parallel_for(r.blocks * r.kept.n, grain, range_rows, &r);
  if (scratch) {
    lm__parallel_for(r.kept.n, LM__GRAIN / r.blocks + 1, range_combine, &r);
    lm__storage_release(scratch);
  }
  return LM_OK;
}
