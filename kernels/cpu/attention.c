/* out = softmax(scale Q K' + mask) V,  lse = log sum exp of the scores (Dao et al. 2022).
 *
 * A tile of queries walks over the tiles of keys it sees. Scores are held transposed, (keys,
 * queries): queries are the lanes of the vectors, so that maximum and sum of the softmax run down
 * the rows without horizontal steps, and keys and values are read where they lie. The running
 * maximum starts at a finite floor, for which a tile without a visible key leaves exact zeros. */
#include "cpu/attention.h"

typedef struct forward_args {
  lm__heads h;
  lm_tensor *out, *lse;
  const lm_tensor *q, *k, *v;
  int64_t tiles; /* of queries in a sequence */
} forward_args;

/* Scores to exp(score - maximum); maximum and sum brought up to date; what is summed so far is to
 * be scaled by `decay`. */
LM__APART void softmax_tile(float *restrict scores, int64_t keys, float *restrict most,
                            float *restrict sum, float *restrict decay) {
  float higher[LM__QUERIES], total[LM__QUERIES];
  for (int i = 0; i < LM__QUERIES; i++) higher[i] = most[i];
  for (int64_t j = 0; j < keys; j++) {
    const float *row = scores + j * LM__QUERIES;
    LM_SIMD
    for (int i = 0; i < LM__QUERIES; i++) higher[i] = row[i] > higher[i] ? row[i] : higher[i];
  }
  LM_SIMD
  for (int i = 0; i < LM__QUERIES; i++) {
    decay[i] = lm_expf(most[i] - higher[i]);
    most[i] = higher[i];
    total[i] = sum[i] * decay[i];
  }
  for (int64_t j = 0; j < keys; j++) {
    float *row = scores + j * LM__QUERIES;
    LM_SIMD
    for (int i = 0; i < LM__QUERIES; i++) {
      row[i] = lm_expf(row[i] - higher[i]);
      total[i] += row[i];
    }
  }
  for (int i = 0; i < LM__QUERIES; i++) sum[i] = total[i];
}

static void forward_item(int64_t item, float *scratch, void *arg) {
  const forward_args *a = arg;
  const lm__heads *h = &a->h;
  const int64_t dim = h->dim, padded = h->padded;
  const int64_t tile = a->tiles - 1 - item % a->tiles; /* the longest first */
  const int64_t head = item / a->tiles % h->heads, b = item / a->tiles / h->heads;
  const int64_t kv_head = head / (h->heads / h->kv_heads);
  const int64_t first = tile * LM__QUERIES;
  const int64_t count = h->steps - first < LM__QUERIES ? h->steps - first : LM__QUERIES;
  float *rows = scratch, *queries = rows + LM__QUERIES * padded; /* (padded, queries) */
  float *out = queries + LM__QUERIES * padded;                   /* (padded, queries) */
  float *scores = out + LM__QUERIES * padded, *kv = scores + LM__KEYS * LM__QUERIES;
  float most[LM__QUERIES], sum[LM__QUERIES], decay[LM__QUERIES];
  int64_t begin, end, ld;

  lm__load_rows(rows, h, a->q, b, head, first, count, h->scale);
  lm__tile_transpose(queries, LM__QUERIES, rows, padded, LM__QUERIES, padded);
  memset(out, 0, (size_t)(LM__QUERIES * padded) * sizeof *out);
  for (int i = 0; i < LM__QUERIES; i++) {
    most[i] = -3.0e38f;
    sum[i] = 0;
  }
  lm__key_range(h, first, count, &begin, &end);
  for (int64_t key = begin; key < end; key += LM__KEYS) {
    const int64_t keys = end - key < LM__KEYS ? end - key : LM__KEYS;
    const float *k = lm__kv_rows(kv, &ld, h, a->k, b, kv_head, key, keys);
    lm__tile_set(keys, LM__QUERIES, dim,
                 &(lm__tile){k, ld, queries, LM__QUERIES, scores, LM__QUERIES});
    lm__mask_scores(h, scores, keys, key, first);
    softmax_tile(scores, keys, most, sum, decay);
    if (key > begin)
      for (int64_t d = 0; d < dim; d++) {
        float *row = out + d * LM__QUERIES;
        LM_SIMD
        for (int i = 0; i < LM__QUERIES; i++) row[i] *= decay[i];
      }
    const float *v = lm__kv_rows(kv, &ld, h, a->v, b, kv_head, key, keys);
    lm__tile_add_columns(dim, LM__QUERIES, keys,
                         &(lm__tile){v, ld, scores, LM__QUERIES, out, LM__QUERIES});
  }
  float *lse = (float *)lm__data(a->lse) + (b * h->heads + head) * h->steps + first;
  for (int64_t i = 0; i < count; i++) lse[i] = most[i] + logf(sum[i]);
  for (int i = 0; i < LM__QUERIES; i++) decay[i] = 1.0f / sum[i];
  for (int64_t d = 0; d < dim; d++) {
    float *row = out + d * LM__QUERIES;
    LM_SIMD
    for (int i = 0; i < LM__QUERIES; i++) row[i] *= decay[i];
  }
  lm__tile_transpose(rows, padded, out, LM__QUERIES, padded, LM__QUERIES);
  lm__store_rows(a->out, h, b, head, first, count, rows, 1.0f);
}

int LM_KERNEL(attention)(lm_tensor *out, lm_tensor *lse, const lm_tensor *q, const lm_tensor *k,
                         const lm_tensor *v, const lm__attention_args *args) {
  forward_args a = {lm__heads_of(q, k, args), out, lse, q, k, v, 0};
  a.tiles = (a.h.steps + LM__QUERIES - 1) / LM__QUERIES;
  const int64_t floats = 3 * LM__QUERIES * a.h.padded + LM__KEYS * (LM__QUERIES + a.h.dim);
  return lm__run_items("attention", a.h.batch * a.h.heads * a.tiles, floats, forward_item, &a);
}
