/* out[n] = table[idx[n]];  grad_table[idx[n]] += grad_out[n] for n in order. */
#include "cpu/index.h"

typedef struct embedding_args {
  const char *table;
  char *out;
  const int32_t *idx;
  int table_dtype, out_dtype;
  int64_t channels;
} embedding_args;

static void range_embedding(int64_t begin, int64_t end, void *arg) {
  const embedding_args *e = arg;
  const int64_t c = e->channels, size = lm_dtype_size(e->table_dtype);
  const int64_t out_size = lm_dtype_size(e->out_dtype);
  float buffer[LM__CHUNK];
  for (int64_t n = begin; n < end; n++) {
    const char *row = e->table + e->idx[n] * c * size;
    char *out = e->out + n * c * out_size;
    if (e->table_dtype == e->out_dtype) {
      memcpy(out, row, (size_t)(c * size));
      continue;
    }
    for (int64_t at = 0; at < c; at += LM__CHUNK) {
      const int64_t m = c - at < LM__CHUNK ? c - at : LM__CHUNK;
      lm__load(buffer, row + at * size, e->table_dtype, 1, m);
      lm__store(out + at * out_size, buffer, e->out_dtype, 1, m);
    }
  }
}

int LM_KERNEL(embedding)(lm_tensor *out, const lm_tensor *table, const lm_tensor *idx) {
  LM__TRY(lm__check_index("embedding", "index", idx, 0, table->shape[0], ""));
  const int64_t c = table->shape[1];
  embedding_args e = {lm__data(table), lm__data(out), lm__data(idx), table->dtype, out->dtype, c};
  if (c > 0) lm__parallel_for(lm__numel(idx), LM__GRAIN / c + 1, range_embedding, &e);
  return LM_OK;
}

/* Backward: positions are sorted by row (stable, so in index order), then each item is one block of
 * columns of one row: summed in f32, rounded once, whatever the threads. */
typedef struct scatter_args {
  char *table;
  const char *grad;
  int table_dtype, grad_dtype;
  int64_t channels, blocks;
  const int64_t *first;   /* (rows used + 1): where a row's positions begin */
  const int64_t *row;     /* (rows used): its index in the table */
  const int64_t *ordered; /* positions, row by row */
} scatter_args;

static void range_scatter(int64_t begin, int64_t end, void *arg) {
  const scatter_args *s = arg;
  const int64_t size = lm_dtype_size(s->table_dtype), grad_size = lm_dtype_size(s->grad_dtype);
  float sum[LM__CHUNK], buffer[LM__CHUNK];
  for (int64_t item = begin; item < end; item++) {
    const int64_t r = item / s->blocks, at = item % s->blocks * LM__CHUNK;
    const int64_t n = s->channels - at < LM__CHUNK ? s->channels - at : LM__CHUNK;
    char *out = s->table + (s->row[r] * s->channels + at) * size;
    lm__load(sum, out, s->table_dtype, 1, n);
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const char *in = s->grad + (s->ordered[i] * s->channels + at) * grad_size;
      const float *g = lm__as_f32(buffer, in, s->grad_dtype, 1, n);
      LM_SIMD
      for (int64_t j = 0; j < n; j++) sum[j] += g[j];
    }
    lm__store(out, sum, s->table_dtype, 1, n);
  }
}

int LM_KERNEL(embedding_backward)(lm_tensor *grad_table, const lm_tensor *grad_out,
                                  const lm_tensor *idx) {
  const int64_t rows = grad_table->shape[0], c = grad_table->shape[1], n = lm__numel(idx);
  const int32_t *p = lm__data(idx);
  lm__storage *scratch = NULL;
  LM__TRY(lm__check_index("embedding_backward", "index", idx, 0, rows, ""));
  if (n == 0 || c == 0) return LM_OK;
  LM__TRY(lm__storage_new(&scratch, (size_t)(2 * rows + 2 + n) * sizeof(int64_t), LM_CPU));
  int64_t *first = scratch->data, *row = first + rows + 2, *ordered = row + rows;
  memset(first, 0, (size_t)(rows + 2) * sizeof *first);
  for (int64_t i = 0; i < n; i++) first[p[i] + 2]++;
  for (int64_t r = 0; r < rows; r++) first[r + 2] += first[r + 1];
  for (int64_t i = 0; i < n; i++) ordered[first[p[i] + 1]++] = i;
  int64_t used = 0; /* now first[r] begins row r; keep the rows that occur */
  for (int64_t r = 0; r < rows; r++)
    if (first[r] < first[r + 1]) {
      row[used] = r;
      first[used++] = first[r];
    }
  first[used] = n;
  scatter_args s = {.table = lm__data(grad_table),
                    .grad = lm__data(grad_out),
                    .table_dtype = grad_table->dtype,
                    .grad_dtype = grad_out->dtype,
                    .channels = c,
                    .blocks = (c + LM__CHUNK - 1) / LM__CHUNK,
                    .first = first,
                    .row = row,
                    .ordered = ordered};
  if (n * c <= LM__GRAIN)
    range_scatter(0, used * s.blocks, &s);
  else
    lm__parallel_items(used * s.blocks, range_scatter, &s);
  lm__storage_release(scratch);
  return LM_OK;
}
