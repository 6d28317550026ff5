/* out[n] = table[idx[n]];  grad_table[idx[n]] += grad_out[n] for n in order.
 *
 * Backward: positions are sorted by row (sort.cuh: stable, so in their order), then cut into
 * windows of so many. A block sums the runs of equal rows in its window, in f32 and in order. A run
 * that is a whole row goes into the table at once; what a window has of longer rows is kept, and a
 * second kernel adds those parts in order. So the longest row (a token that is everywhere) does not
 * make all wait, and the sums have an order that depends on the indices alone. */
#include <stdio.h>

#include "cuda/sort.cuh"
#include "cuda/walk.cuh"

namespace {

struct embedding_args {
  char *table;
  char *rows;
  const int32_t *idx;
  int table_dtype, rows_dtype;
  int64_t n, vocabulary, channels;
  bool packed; /* whole spans, aligned */
  lm__reporter reporter;
  char op[32];
};

/* An index outside the table is reported by whom it falls to, and taken as 0. */
LM_DEVICE int64_t checked(const embedding_args &e, int64_t position, bool report) {
  const int64_t row = e.idx[position];
  if (row >= 0 && row < e.vocabulary) return row;
  if (report) lm__report_found(e.reporter, LM_REPORT_INDEX, e.op, row, e.vocabulary, position);
  return 0;
}

LM_GLOBAL gather(embedding_args e) {
  if (e.packed) {
    const int64_t spans = e.channels / LM__SPAN;
    LM_GRID_STRIDE(i, e.n * spans) {
      const int64_t position = i / spans, at = (i - position * spans) * LM__SPAN;
      float x[LM__SPAN];
      lm__load_span(x, e.table, e.table_dtype, checked(e, position, at == 0) * e.channels + at);
      lm__store_span(e.rows, e.rows_dtype, position * e.channels + at, x);
    }
    return;
  }
  LM_GRID_STRIDE(i, e.n * e.channels) {
    const int64_t position = i / e.channels, at = i - position * e.channels;
    const float x =
        lm__load(e.table, e.table_dtype, checked(e, position, at == 0) * e.channels + at);
    lm__store(e.rows, e.rows_dtype, i, x);
  }
}

/* ---- backward ---- */

enum { WINDOW = 64, AHEAD = 4, COLUMN_THREADS = 128 };

LM_GLOBAL make_keys(embedding_args e, lm__sort_item *items) {
  LM_GRID_STRIDE(i, e.n) items[i] = {(uint32_t)checked(e, i, true), (uint32_t)i};
}

LM_DEVICE void load(float (&x)[LM__SPAN], const embedding_args &e, const void *p, int dtype,
                    int64_t row, int64_t at) {
  if (e.packed) {
    lm__load_span(x, p, dtype, row * e.channels + at);
    return;
  }
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++)
    x[j] = at + j < e.channels ? lm__load(p, dtype, row * e.channels + at + j) : 0.0f;
}
LM_DEVICE void store(const float (&x)[LM__SPAN], const embedding_args &e, void *p, int dtype,
                     int64_t row, int64_t at) {
  if (e.packed) {
    lm__store_span(p, dtype, row * e.channels + at, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++)
    if (at + j < e.channels) lm__store(p, dtype, row * e.channels + at + j, x[j]);
}
LM_DEVICE void add_to_table(const float (&sum)[LM__SPAN], const embedding_args &e, int64_t row,
                            int64_t at) {
  float x[LM__SPAN];
  load(x, e, e.table, e.table_dtype, row, at);
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++) x[j] += sum[j];
  store(x, e, e.table, e.table_dtype, row, at);
}

/* parts: (windows, 2, channels padded to spans): what the window has of the row it begins in the
 * middle of, and of the row that goes on after it. A window within one row has it in the first. */
LM_DEVICE float *part_at(float *parts, const embedding_args &e, int64_t window, int which) {
  const int64_t padded = (e.channels + LM__SPAN - 1) / LM__SPAN * LM__SPAN;
  return parts + (window * 2 + which) * padded;
}

LM_GLOBAL sum_windows(embedding_args e, const lm__sort_item *items, float *parts) {
  LM_SHARED(lm__sort_item, mine, [WINDOW]);
  const int64_t window = blockIdx.x, first = window * WINDOW;
  const int n = (int)(e.n - first < (int64_t)WINDOW ? e.n - first : (int64_t)WINDOW);
  const int64_t at = ((int64_t)blockIdx.y * COLUMN_THREADS + threadIdx.x) * LM__SPAN;
  for (int i = (int)threadIdx.x; i < n; i += COLUMN_THREADS) mine[i] = items[first + i];
  __syncthreads();
  if (at >= e.channels) return;
  const bool begun = first > 0 && items[first - 1].key == mine[0].key;
  const bool goes_on = first + n < e.n && items[first + n].key == mine[n - 1].key;
  float sum[LM__SPAN] = {};
  int run = 0; /* where the present run of equal rows begins */
  for (int i = 0; i < n; i += AHEAD) {
    float x[AHEAD][LM__SPAN];
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
      if (i + k < n) load(x[k], e, e.rows, e.rows_dtype, mine[i + k].position, at);
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      if (i + k >= n) continue;
#pragma unroll
      for (int j = 0; j < LM__SPAN; j++) sum[j] += x[k][j];
      const bool ends = i + k + 1 == n || mine[i + k + 1].key != mine[i + k].key;
      if (!ends) continue;
      const bool open_left = run == 0 && begun, open_right = i + k + 1 == n && goes_on;
      if (open_left || open_right) {
        float *part = part_at(parts, e, window, open_left ? 0 : 1) + at;
#pragma unroll
        for (int j = 0; j < LM__SPAN; j++) part[j] = sum[j];
      } else {
        add_to_table(sum, e, mine[i + k].key, at);
      }
#pragma unroll
      for (int j = 0; j < LM__SPAN; j++) sum[j] = 0;
      run = i + k + 1;
    }
  }
}

/* The rows that begin in a window and end in a later one. */
LM_GLOBAL join_windows(embedding_args e, const lm__sort_item *items, float *parts) {
  const int64_t window = blockIdx.x, last = window * WINDOW + WINDOW - 1;
  const int64_t at = ((int64_t)blockIdx.y * COLUMN_THREADS + threadIdx.x) * LM__SPAN;
  if (at >= e.channels || last + 1 >= e.n) return;
  const uint32_t key = items[last].key;
  if (items[last + 1].key != key) return; /* it does not go on */
  if (window > 0 && items[window * WINDOW].key == key && items[window * WINDOW - 1].key == key)
    return; /* nor does it begin here */
  float sum[LM__SPAN];
  const float *part = part_at(parts, e, window, 1) + at;
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++) sum[j] = part[j];
  for (int64_t next = window + 1; next * WINDOW < e.n && items[next * WINDOW].key == key; next++) {
    part = part_at(parts, e, next, 0) + at;
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) sum[j] += part[j];
  }
  add_to_table(sum, e, key, at);
}

static int empty_table(const char *op) {
  return lm__fail(LM_EINDEX, "%s: the table has no rows, so that no index is in it", op);
}

static embedding_args pack(const char *op, const lm_tensor *table, const lm_tensor *rows,
                           const lm_tensor *idx) {
  embedding_args e = {};
  e.table = static_cast<char *>(lm__data(table));
  e.rows = static_cast<char *>(lm__data(rows));
  e.idx = lm__pointer<int32_t>(idx);
  e.table_dtype = table->dtype;
  e.rows_dtype = rows->dtype;
  e.n = lm__numel(idx);
  e.vocabulary = table->shape[0];
  e.channels = table->shape[1];
  e.packed = e.channels % LM__SPAN == 0 && lm__is_aligned(e.table) && lm__is_aligned(e.rows);
  e.reporter = lm__cuda_reporter();
  (void)snprintf(e.op, sizeof e.op, "%s", op);
  return e;
}
} // namespace

extern "C" int lm__embedding_cuda(lm_tensor *out, const lm_tensor *table, const lm_tensor *idx) {
  const embedding_args e = pack("embedding", table, out, idx);
  const int64_t items = e.packed ? e.n * e.channels / LM__SPAN : e.n * e.channels;
  if (items > 0 && e.vocabulary == 0) return empty_table("embedding");
  return lm__launch({"embedding", lm__round_blocks(items, LM_THREADS), LM_THREADS}, gather, e);
}

extern "C" int lm__embedding_backward_cuda(lm_tensor *grad_table, const lm_tensor *grad_out,
                                           const lm_tensor *idx) {
  const char *op = "embedding_backward";
  const embedding_args e = pack(op, grad_table, grad_out, idx);
  if (e.n == 0 || e.channels == 0) return LM_OK;
  if (e.vocabulary == 0) return empty_table(op);
  const int64_t windows = (e.n + WINDOW - 1) / WINDOW;
  const int64_t spans = (e.channels + LM__SPAN - 1) / LM__SPAN;
  const dim3 grid((unsigned)windows, lm__blocks(spans, COLUMN_THREADS));
  lm__sorter sorter;
  void *parts;
  LM__TRY(lm__sort_begin(&sorter, op, e.n, e.vocabulary));
  int status =
      lm__cuda_scratch(op, &parts, (size_t)(windows * 2 * spans * LM__SPAN) * sizeof(float));
  if (status == LM_OK)
    status =
        lm__launch({op, lm__round_blocks(e.n, LM_THREADS), LM_THREADS}, make_keys, e, sorter.items);
  if (status == LM_OK) status = lm__sort(&sorter);
  if (status == LM_OK)
    status = lm__launch({op, grid, COLUMN_THREADS}, sum_windows, e, sorter.items,
                        static_cast<float *>(parts));
  if (status == LM_OK && windows > 1)
    status = lm__launch({op, grid, COLUMN_THREADS}, join_windows, e, sorter.items,
                        static_cast<float *>(parts));
  lm__cuda_scratch_free(parts);
  lm__sort_end(&sorter);
  return status;
}
