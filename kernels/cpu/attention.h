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
static inline void lm__mask_scores(const lm__heads *h, float *scores, int64_t keys, int64_t key,
                                   int64_t query) {
  const bool all_past = key + keys - 1 <= query;
  const bool all_near = query + LM__QUERIES - 1 - key <= h->window;
  if (all_past && all_near) return;
  for (int64_t j = 0; j < keys; j++) {
    const int64_t low = key + j - query, high = key + j + h->window - query;
    float *row = scores + j * LM__QUERIES;
    for (int64_t i = 0; i < low && i < LM__QUERIES; i++) row[i] = -INFINITY;
    for (int64_t i = high < 0 ? 0 : high + 1; i < LM__QUERIES; i++) row[i] = -INFINITY;
  }
}

/* Rows [first, first + count) of head `head` of t (B, T, heads, dim), times factor, zero-padded to
 * (LM__QUERIES, padded). */
static inline void lm__load_rows(float *restrict rows, const lm__heads *h, const lm_tensor *t,
                                 int64_t b, int64_t head, int64_t first, int64_t count,
                                 float factor) {
  const int64_t heads = t->shape[2], size = lm_dtype_size(t->dtype);
  memset(rows, 0, (size_t)(LM__QUERIES * h->padded) * sizeof *rows);
  for (int64_t i = 0; i < count; i++) {
    float *row = rows + i * h->padded;
    const int64_t at = ((b * h->steps + first + i) * heads + head) * h->dim;
    lm__load(row, (const char *)lm__data(t) + at * size, t->dtype, 1, h->dim);
    LM_SIMD
    for (int64_t d = 0; d < h->dim; d++) row[d] *= factor;
  }
}

/* The other way, count rows of h->padded floats. */
static inline void lm__store_rows(lm_tensor *t, const lm__heads *h, int64_t b, int64_t head,
                                  int64_t first, int64_t count, const float *rows) {
  const int64_t heads = t->shape[2], size = lm_dtype_size(t->dtype);
  for (int64_t i = 0; i < count; i++) {
    const int64_t at = ((b * h->steps + first + i) * heads + head) * h->dim;
    lm__store((char *)lm__data(t) + at * size, rows + i * h->padded, t->dtype, 1, h->dim);
  }
}

/* Rows of k or v as f32: where they lie if they are f32, else converted into buffer. */
static inline const float *lm__kv_rows(float *buffer, int64_t *stride, const lm__heads *h,
                                       const lm_tensor *t, int64_t b, int64_t head, int64_t first,
                                       int64_t count) {
  const int64_t at = ((b * h->steps + first) * h->kv_heads + head) * h->dim;
  const int64_t step = h->kv_heads * h->dim;
  if (t->dtype == LM_F32) {
    *stride = step;
    return (const float *)lm__data(t) + at;
  }
  *stride = h->dim;
  for (int64_t i = 0; i < count; i++)
    lm__load(buffer + i * h->dim, (const char *)lm__data(t) + (at + i * step) * 2, t->dtype, 1,
             h->dim);
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
