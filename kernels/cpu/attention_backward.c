/* With P = exp(scale Q K' - lse) and delta_i = sum_d dO_id O_id (Dao et al. 2022):
 *   dV = P' dO,  dP = dO V',  dS = P (dP - delta),  dQ = scale dS K,  dK = scale dS' Q.
 *
 * One item is a batch entry's kv head: its dK and dV are summed in private f32 over the query heads
 * it serves and their tiles in order, so the result does not depend on the threads. Scores are held
 * transposed, (keys, queries), as in the forward. */
#include "cpu/attention.h"

typedef struct backward_args {
  lm__heads h;
  lm_tensor *grad_q, *grad_k, *grad_v;
  const lm_tensor *grad_out, *q, *k, *v, *out, *lse;
} backward_args;

/* A tile of queries and all that goes with it. "by rows": (queries, padded); "by columns":
 * (padded, queries). */
typedef struct query_tile {
  int64_t b, head, kv_head, first, count;
  float *q_rows, *q_columns;       /* times scale */
  float *grad_rows, *grad_columns; /* dO */
  float *grad_q;                   /* dQ by columns, summed over key tiles */
  float *scores, *slopes, *kv;     /* P and dS, (keys, queries); converted rows of k or v */
  float lse[LM__QUERIES], delta[LM__QUERIES];
} query_tile;

static void load_tile(query_tile *t, const backward_args *a) {
  const lm__heads *h = &a->h;
  const int64_t padded = h->padded;
  lm__load_rows(t->q_rows, h, a->q, t->b, t->head, t->first, t->count, h->scale);
  lm__tile_transpose(t->q_columns, LM__QUERIES, t->q_rows, padded, LM__QUERIES, padded);
  lm__load_rows(t->grad_rows, h, a->grad_out, t->b, t->head, t->first, t->count, 1.0f);
  lm__tile_transpose(t->grad_columns, LM__QUERIES, t->grad_rows, padded, LM__QUERIES, padded);
  const float *lse =
      (const float *)lm__data(a->lse) + (t->b * h->heads + t->head) * h->steps + t->first;
  const char *out = lm__row_at(h, a->out, t->b, t->head, t->first);
  const int64_t row_bytes = h->heads * h->dim * lm_dtype_size(a->out->dtype);
  for (int64_t i = 0; i < LM__QUERIES; i++) { /* lanes past the end have dO = 0: they add nothing */
    float sum = 0;
    if (i < t->count) {
      const float *g = t->grad_rows + i * padded;
      const float *o = lm__as_f32(t->grad_q, out + i * row_bytes, a->out->dtype, 1, h->dim);
      _Pragma("omp simd reduction(+:sum)") for (int64_t d = 0; d < h->dim; d++) sum += g[d] * o[d];
    }
    t->delta[i] = sum;
    t->lse[i] = i < t->count ? lse[i] : 0.0f;
  }
  memset(t->grad_q, 0, (size_t)(LM__QUERIES * padded) * sizeof(float));
}

/* scores: Q K' to P;  slopes: dP to dS. */
LM__APART void softmax_slopes(float *restrict scores, float *restrict slopes, int64_t keys,
                              const float *restrict lse, const float *restrict delta) {
  for (int64_t j = 0; j < keys; j++) {
    float *p = scores + j * LM__QUERIES, *s = slopes + j * LM__QUERIES;
    LM_SIMD
    for (int i = 0; i < LM__QUERIES; i++) {
      p[i] = lm_expf(p[i] - lse[i]);
      s[i] = p[i] * (s[i] - delta[i]);
    }
  }
}

/* grad_k, grad_v: (T, padded) sums of this kv head. */
static void backward_tile(query_tile *t, const backward_args *a, float *grad_k, float *grad_v) {
  const lm__heads *h = &a->h;
  const int64_t dim = h->dim, padded = h->padded, lanes = LM__QUERIES;
  int64_t begin, end, ld;
  load_tile(t, a);
  lm__key_range(h, t->first, t->count, &begin, &end);
  for (int64_t key = begin; key < end; key += LM__KEYS) {
    const int64_t keys = end - key < LM__KEYS ? end - key : LM__KEYS;
    const float *v = lm__kv_rows(t->kv, &ld, h, a->v, t->b, t->kv_head, key, keys);
    lm__tile_set(keys, lanes, dim, &(lm__tile){v, ld, t->grad_columns, lanes, t->slopes, lanes});
    const float *k = lm__kv_rows(t->kv, &ld, h, a->k, t->b, t->kv_head, key, keys);
    lm__tile_set(keys, lanes, dim, &(lm__tile){k, ld, t->q_columns, lanes, t->scores, lanes});
    lm__mask_scores(h, t->scores, keys, key, t->first);
    softmax_slopes(t->scores, t->slopes, keys, t->lse, t->delta);
    lm__tile_product(
        false, true, keys, padded, lanes,
        &(lm__tile){t->scores, lanes, t->grad_rows, padded, grad_v + key * padded, padded});
    lm__tile_product(
        false, true, keys, padded, lanes,
        &(lm__tile){t->slopes, lanes, t->q_rows, padded, grad_k + key * padded, padded});
    lm__tile_add_columns(dim, lanes, keys, &(lm__tile){k, ld, t->slopes, lanes, t->grad_q, lanes});
  }
  float *rows = t->q_rows;
  lm__tile_transpose(rows, padded, t->grad_q, lanes, padded, lanes);
  lm__store_rows(a->grad_q, h, t->b, t->head, t->first, t->count, rows, h->scale);
}

static void backward_item(int64_t item, float *scratch, void *arg) {
  const backward_args *a = arg;
  const lm__heads *h = &a->h;
  const int64_t group = h->heads / h->kv_heads, size = LM__QUERIES * h->padded;
  float *grad_k = scratch, *grad_v = grad_k + h->steps * h->padded;
  float *rest = grad_v + h->steps * h->padded;
  query_tile t = {.b = item / h->kv_heads,
                  .kv_head = item % h->kv_heads,
                  .q_rows = rest,
                  .q_columns = rest + size,
                  .grad_rows = rest + 2 * size,
                  .grad_columns = rest + 3 * size,
                  .grad_q = rest + 4 * size,
                  .scores = rest + 5 * size,
                  .slopes = rest + 5 * size + LM__KEYS * LM__QUERIES,
                  .kv = rest + 5 * size + 2 * LM__KEYS * LM__QUERIES};
  memset(grad_k, 0, (size_t)(2 * h->steps * h->padded) * sizeof *grad_k);
  for (t.head = t.kv_head * group; t.head < (t.kv_head + 1) * group; t.head++)
    for (t.first = 0; t.first < h->steps; t.first += LM__QUERIES) {
      t.count = h->steps - t.first < LM__QUERIES ? h->steps - t.first : LM__QUERIES;
      backward_tile(&t, a, grad_k, grad_v);
    }
  lm__store_rows(a->grad_k, h, t.b, t.kv_head, 0, h->steps, grad_k, 1.0f);
  lm__store_rows(a->grad_v, h, t.b, t.kv_head, 0, h->steps, grad_v, 1.0f);
}

int LM_KERNEL(attention_backward)(lm_tensor *grad_q, lm_tensor *grad_k, lm_tensor *grad_v,
                                  const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                                  const lm_tensor *v, const lm_tensor *out, const lm_tensor *lse,
                                  const lm__attention_args *args) {
  backward_args a = {lm__heads_of(q, k, args), grad_q, grad_k, grad_v, grad_out, q, k, v, out, lse};
  const lm__heads *h = &a.h;
  const int64_t floats = 2 * h->steps * h->padded + 5 * LM__QUERIES * h->padded +
                         LM__KEYS * (2 * LM__QUERIES + h->dim);
  return lm__run_items("attention_backward", h->batch * h->kv_heads, floats, backward_item, &a);
}
