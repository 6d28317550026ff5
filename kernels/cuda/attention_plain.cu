/* Attention and its gradients without tensor cores: f32 and mixed dtypes, any head size, any scale.
 * The formulas of attention.cu and attention_backward.cu, one kernel in three ways.
 *
 * A block of 256 threads has 64 rows (queries, or keys for dK and dV) and walks over tiles of 64
 * columns; a thread has 4 x 4 of a tile's scores, and of 64 channels of the results, which
 * blockIdx.y tells. Scores are made from 32 channels at a time, so that the head may have any size;
 * a head of more than 64 channels makes them anew for each 64 of the result. */
#include "cuda/attention.cuh"
#include "math/functions.h"

namespace {

constexpr int TILE = 64, STEP = 32, SIDE = 16, EACH = TILE / SIDE;
enum way { FORWARD, GRAD_QUERIES, GRAD_KEYS };

typedef struct operand {
  const char *data;
  int64_t heads;
  int dtype;
} operand;

struct plain_args {
  lm__heads h;
  operand q, k, v, grad_out;
  char *result1, *result2; /* out, dQ or dK; dV */
  int dtype1, dtype2;
  float *lse;         /* (batch, heads, steps) */
  const float *delta; /* (batch, heads, padded) */
  int64_t padded;
};

/* Rows of one head. */
typedef struct head_rows {
  const char *data;
  int64_t base, stride;
  int dtype;
} head_rows;
LM_DEVICE head_rows rows_of(const operand &o, const lm__heads &h, int64_t b, int64_t head) {
  return {o.data, (b * h.steps * o.heads + head) * h.dim, o.heads * h.dim, o.dtype};
}
LM_DEVICE float element(const head_rows &r, const lm__heads &h, int64_t step, int64_t d) {
  return step < h.steps && d < h.dim ? lm__load(r.data, r.dtype, r.base + step * r.stride + d)
                                     : 0.0f;
}

struct memory {
  union {
    float sides[2][STEP][TILE + 1]; /* of the scores: channels by rows, channels by columns */
    float values[TILE][TILE];       /* columns by channels of the result */
  };
  float weights[TILE][TILE + 1]; /* rows by columns */
};

/* s[i][j] = rows[row + 4 y + i] . columns[column + x + 16 j]. All threads come. */
LM_DEVICE void make_scores(float (&s)[EACH][EACH], memory &shared, const lm__heads &h,
                           const head_rows &rows, int64_t row, const head_rows &columns,
                           int64_t column) {
  const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
#pragma unroll
  for (int i = 0; i < EACH; i++)
#pragma unroll
    for (int j = 0; j < EACH; j++) s[i][j] = 0;
  for (int64_t d0 = 0; d0 < h.dim; d0 += STEP) {
    __syncthreads(); /* all are through with what lay there */
    for (int i = (int)threadIdx.x; i < TILE * STEP; i += LM_THREADS) {
      shared.sides[0][i % STEP][i / STEP] = element(rows, h, row + i / STEP, d0 + i % STEP);
      shared.sides[1][i % STEP][i / STEP] = element(columns, h, column + i / STEP, d0 + i % STEP);
    }
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < STEP; d++)
#pragma unroll
      for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++)
          s[i][j] += shared.sides[0][d][EACH * y + i] * shared.sides[1][d][x + SIDE * j];
  }
}

/* result[i][j] += sum over columns c of w[4 y + i][c] values[column + c][channel + x + 16 j]. */
LM_DEVICE void add_weighted(float (&result)[EACH][EACH], const float (&w)[EACH][EACH],
                            memory &shared, const lm__heads &h, const head_rows &values,
                            int64_t column, int64_t channel) {
  const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < EACH; i++)
#pragma unroll
    for (int j = 0; j < EACH; j++) shared.weights[EACH * y + i][x + SIDE * j] = w[i][j];
  for (int i = (int)threadIdx.x; i < TILE * TILE; i += LM_THREADS)
    shared.values[i / TILE][i % TILE] = element(values, h, column + i / TILE, channel + i % TILE);
  __syncthreads();
#pragma unroll 8
  for (int c = 0; c < TILE; c++)
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
      for (int j = 0; j < EACH; j++)
        result[i][j] += shared.weights[EACH * y + i][c] * shared.values[c][x + SIDE * j];
}

/* Over the 16 threads that share rows. */
template <class Op> LM_DEVICE float row_reduce(float x) {
#pragma unroll
  for (int distance = SIDE / 2; distance > 0; distance /= 2)
    x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

template <way way> LM_GLOBAL attention_plain(plain_args a) {
  LM_SHARED(memory, shared_memory, [1]);
  memory &shared = shared_memory[0];
  const lm__heads &h = a.h;
  const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
  constexpr bool by_key = way == GRAD_KEYS;
  const int64_t sharing = h.heads / h.kv_heads, row_heads = by_key ? h.kv_heads : h.heads;
  const int64_t tiles = (h.steps + TILE - 1) / TILE, item = blockIdx.x / tiles;
  const int64_t row_head = item % row_heads, b = item / row_heads;
  const int64_t first = blockIdx.x % tiles * TILE, channel = (int64_t)blockIdx.y * TILE;
  const int64_t begin = by_key ? first : first > h.window ? (first - h.window) / TILE * TILE : 0;
  const int64_t reach = first + TILE + (by_key ? h.window : 0);
  const int64_t end = reach < h.steps ? reach : h.steps;
  float result1[EACH][EACH] = {}, result2[EACH][EACH] = {}, most[EACH], sum[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    most[i] = -INFINITY;
    sum[i] = 0;
  }
  for (int64_t shared_by = 0; shared_by < (by_key ? sharing : 1); shared_by++) {
    const int64_t head = by_key ? row_head * sharing + shared_by : row_head;
    const int64_t kv_head = by_key ? row_head : row_head / sharing;
    const head_rows q = rows_of(a.q, h, b, head), k = rows_of(a.k, h, b, kv_head);
    const head_rows v = rows_of(a.v, h, b, kv_head);
    const float *const lse = a.lse + (b * h.heads + head) * h.steps;
    for (int64_t column = begin; column < end; column += TILE) {
      float s[EACH][EACH], p[EACH][EACH];
      make_scores(p, shared, h, by_key ? k : q, first, by_key ? q : k, column);
      bool seen[EACH][EACH];
#pragma unroll
      for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
          const int64_t ahead = first + EACH * y + i - (column + x + SIDE * j);
          const int64_t ago = by_key ? -ahead : ahead; /* query - key */
          seen[i][j] = ago >= 0 && ago <= h.window;
          p[i][j] *= h.scale;
        }
      if constexpr (way == FORWARD) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
          float higher = most[i];
#pragma unroll
          for (int j = 0; j < EACH; j++)
            if (seen[i][j]) higher = fmaxf(higher, p[i][j]);
          higher = row_reduce<lm__max>(higher);
          const float base = higher > -INFINITY ? higher : 0.0f, decay = lm_expf(most[i] - base);
          sum[i] *= decay;
#pragma unroll
          for (int j = 0; j < EACH; j++) {
            p[i][j] = seen[i][j] ? lm_expf(p[i][j] - base) : 0.0f;
            sum[i] += p[i][j];
            result1[i][j] *= decay;
          }
          most[i] = higher;
        }
        add_weighted(result1, p, shared, h, v, column, channel);
      } else {
        const head_rows grad = rows_of(a.grad_out, h, b, head);
        make_scores(s, shared, h, by_key ? v : grad, first, by_key ? grad : v, column);
        const float *const delta = a.delta + (b * h.heads + head) * a.padded;
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
          for (int j = 0; j < EACH; j++) {
            const int64_t query = by_key ? column + x + SIDE * j : first + EACH * y + i;
            const bool there = seen[i][j] && query < h.steps;
            p[i][j] = there ? lm_expf(p[i][j] - lse[query]) : 0.0f;
            s[i][j] = there ? p[i][j] * (s[i][j] - delta[query]) : 0.0f;
          }
        if constexpr (by_key) add_weighted(result2, p, shared, h, grad, column, channel);
        add_weighted(result1, s, shared, h, by_key ? q : k, column, channel);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int64_t row = first + EACH * y + i;
    float factor = h.scale;
    if constexpr (way == FORWARD) {
      const float total = row_reduce<lm__sum>(sum[i]);
      factor = 1.0f / total;
      if (x == 0 && blockIdx.y == 0 && row < h.steps)
        a.lse[(b * h.heads + row_head) * h.steps + row] = most[i] + logf(total);
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int64_t d = channel + x + SIDE * j;
      const int64_t at = ((b * h.steps + row) * row_heads + row_head) * h.dim + d;
      if (row >= h.steps || d >= h.dim) continue;
      lm__store(a.result1, a.dtype1, at, factor * result1[i][j]);
      if constexpr (by_key) lm__store(a.result2, a.dtype2, at, result2[i][j]);
    }
  }
}

template <way way>
static int launch(const char *op, plain_args a, lm_tensor *result1, lm_tensor *result2) {
  const lm__heads &h = a.h;
  const int64_t tiles = (h.steps + TILE - 1) / TILE;
  const int64_t blocks = h.batch * (way == GRAD_KEYS ? h.kv_heads : h.heads) * tiles;
  const int64_t parts = (h.dim + TILE - 1) / TILE;
  if (blocks > 0x7fffffff || parts > 65535)
    return lm__fail(LM_EINVAL, "%s: too large: more than 2^31 - 1 tiles, or 4 million channels",
                    op);
  a.result1 = static_cast<char *>(lm__data(result1));
  a.dtype1 = result1->dtype;
  a.result2 = static_cast<char *>(lm__data(result2));
  a.dtype2 = result2->dtype;
  /* a head without channels has an lse all the same */
  const dim3 grid((unsigned)blocks, parts > 0 ? (unsigned)parts : 1);
  return lm__launch({op, grid, LM_THREADS}, attention_plain<way>, a);
}

static operand operand_of(const lm_tensor *t) {
  return {static_cast<const char *>(lm__data(t)), t->shape[2], t->dtype};
}
} // namespace

int lm__attention_plain(lm_tensor *out, lm_tensor *lse, const lm_tensor *q, const lm_tensor *k,
                        const lm_tensor *v, const lm__heads &h) {
  plain_args a = {};
  a.h = h;
  a.q = operand_of(q);
  a.k = operand_of(k);
  a.v = operand_of(v);
  a.lse = lm__pointer<float>(lse);
  return launch<FORWARD>("attention", a, out, out);
}

int lm__attention_backward_plain(lm_tensor *grad_q, lm_tensor *grad_k, lm_tensor *grad_v,
                                 const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                                 const lm_tensor *v, const lm_tensor *lse, const float *delta,
                                 int64_t padded, const lm__heads &h) {
  plain_args a = {};
  a.h = h;
  a.q = operand_of(q);
  a.k = operand_of(k);
  a.v = operand_of(v);
  a.grad_out = operand_of(grad_out);
  a.lse = static_cast<float *>(lm__data(lse));
  a.delta = delta;
  a.padded = padded;
  LM__TRY(launch<GRAD_QUERIES>("attention_backward", a, grad_q, grad_q));
  return launch<GRAD_KEYS>("attention_backward", a, grad_k, grad_v);
}
