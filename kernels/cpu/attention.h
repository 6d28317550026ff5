/* What the forward and backward of attention share: shapes, tiles, workers. */
#ifndef LM_KERNELS_CPU_ATTENTION_H
#define LM_KERNELS_CPU_ATTENTION_H

#include <math.h>

#include "cpu/tile.h"
#include "math/functions.h"

enum {
  LM__QUERIES = 32, /* a tile's queries: its lanes */
  LM__KEYS = 64     /* a tile's keys: its rows */
};

typedef struct lm__heads {
  int64_t batch, steps, heads, kv_heads, dim, padded; /* padded: dim in whole vectors */
  int64_t window;
  float scale;
} lm__heads;

static inline lm__heads lm__heads_of(const lm_tensor *q, const lm_tensor *k,
                                     const lm__attention_args *args) {
  return (lm__heads){.batch = q->shape[0],
                     .steps = q->shape[1],
                     .heads = q->shape[2],
                     .kv_heads = k->shape[2],
                     .dim = q->shape[3],
                     .padded = lm__pad(q->shape[3]),
                     .window = args->window,
                     .scale = args->scale};
}

/* The keys that queries [first, first + count) see: [*begin, *end). */
static inline void lm__key_range(const lm__heads *h, int64_t first, int64_t count, int64_t *begin,
                                 int64_t *end) {
  *begin = first > h->window ? first - h->window : 0;
  *end = first + count;
}

/* scores (keys, queries) of keys from `key` and queries from `query`: -Inf where a query does not
 * see a key. */
LM__APART void lm__mask_scores(const lm__heads *h, float *scores, int64_t keys, int64_t key,
                               int64_t query) {
  const bool all_past = key + keys - 1 <= query;
  const bool all_near = query + LM__QUERIES - 1 - key <= h->window;
  if (all_past && all_near) return;
  for (int64_t j = 0; j < keys; j++) {
    const int64_t first = key + j - query, last = first + h->window; /* lanes that see key j */
    const int low = first > 0 ? (int)first : 0; /* first < LM__QUERIES: keys end with the queries */
    const int high = last < LM__QUERIES ? (int)last : LM__QUERIES;
    float *row = scores + j * LM__QUERIES;
    LM_SIMD
    for (int i = 0; i < LM__QUERIES; i++) row[i] = i >= low && i <= high ? row[i] : -INFINITY;
  }
}

/* First element of head `head` at step `step` of t (B, T, heads, dim). */
static inline char *lm__row_at(const lm__heads *h, const lm_tensor *t, int64_t b, int64_t head,
                               int64_t step) {
  const int64_t at = ((b * h->steps + step) * t->shape[2] + head) * h->dim;
  return (char *)lm__data(t) + at * lm_dtype_size(t->dtype);
}

/* Rows [first, first + count) of a head, times factor, zero-padded to (LM__QUERIES, padded). */
LM__APART void lm__load_rows(float *restrict rows, const lm__heads *h, const lm_tensor *t,
                             int64_t b, int64_t head, int64_t first, int64_t count, float factor) {
  const int64_t dim = h->dim, padded = h->padded, step = t->shape[2] * dim;
  const char *in = lm__row_at(h, t, b, head, first);
  for (int64_t i = 0; i < count; i++) {
    float *row = rows + i * padded;
    const float *from = (const float *)(const void *)in + i * step;
    if (t->dtype != LM_F32) {
      lm__load(row, in + i * step * 2, t->dtype, 1, dim);
      from = row;
    }
    LM_SIMD
    for (int64_t d = 0; d < dim; d++) row[d] = from[d] * factor;
    for (int64_t d = dim; d < padded; d++) row[d] = 0;
  }
  for (int64_t d = count * padded; d < LM__QUERIES * padded; d++) rows[d] = 0;
}

/* The other way: count rows of h->padded floats, times factor. */
LM__APART void lm__store_rows(lm_tensor *t, const lm__heads *h, int64_t b, int64_t head,
                              int64_t first, int64_t count, float *restrict rows, float factor) {
  const int64_t dim = h->dim, step = t->shape[2] * dim;
  char *out = lm__row_at(h, t, b, head, first);
  for (int64_t i = 0; i < count; i++) {
    float *row = rows + i * h->padded;
    float *to = t->dtype == LM_F32 ? (float *)(void *)out + i * step : row;
    LM_SIMD
    for (int64_t d = 0; d < dim; d++) to[d] = row[d] * factor;
    if (to == row) lm__store(out + i * step * 2, row, t->dtype, 1, dim);
  }
}

/* Rows of k or v as f32: where they lie if they are f32, else converted into buffer. */
static inline const float *lm__kv_rows(float *buffer, int64_t *stride, const lm__heads *h,
                                       const lm_tensor *t, int64_t b, int64_t head, int64_t first,
                                       int64_t count) {
  const char *in = lm__row_at(h, t, b, head, first);
  const int64_t step = h->kv_heads * h->dim;
  *stride = t->dtype == LM_F32 ? step : h->dim;
  if (t->dtype == LM_F32) return (const float *)(const void *)in;
  for (int64_t i = 0; i < count; i++)
    lm__load(buffer + i * h->dim, in + i * step * 2, t->dtype, 1, h->dim);
  return buffer;
}

/* Workers: each owns a slice of scratch and takes items in order until none is left. */
typedef struct lm__work {
  void (*item)(int64_t i, float *scratch, void *arg);
  void *arg;
  float *scratch;
  int64_t floats, items, next; /* floats: of a worker's slice */
} lm__work;

static inline void lm__run_worker(int64_t begin, int64_t end, void *arg) {
  lm__work *w = arg;
  for (int64_t worker = begin; worker < end; worker++)
    for (;;) {
      const int64_t i = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
      if (i >= w->items || lm_interrupted()) break;
      w->item(i, w->scratch + worker * w->floats, w->arg);
    }
}

static inline int lm__run_items(const char *op, int64_t items, int64_t floats,
                                void (*item)(int64_t, float *, void *), void *arg) {
  lm__storage *scratch = NULL;
  const int64_t workers = items < lm_threads() ? items : lm_threads();
  if (items == 0) return LM_OK;
  floats = (floats + 15) / 16 * 16; /* keep slices on cache lines of their own */
  LM__TRY(lm__storage_new(&scratch, (size_t)(workers * floats) * sizeof(float), LM_CPU));
  lm__work work = {.item = item, .arg = arg, .scratch = scratch->data, floats, items, 0};
  lm__parallel_items(workers, lm__run_worker, &work);
  lm__storage_release(scratch);
  return lm_interrupted() ? lm__fail(LM_EINTERRUPT, "%s: interrupted", op) : LM_OK;
}

#endif
