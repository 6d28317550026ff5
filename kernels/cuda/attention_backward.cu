/* With P = exp(scale Q K' - lse) and delta_i = sum_d dO_id O_id (Dao et al. 2022):
 *   dV = P' dO,  dP = dO V',  dS = P (dP - delta),  dQ = scale dS K,  dK = scale dS' Q.
 *
 * Two passes of one kernel, each of which makes P and dP anew from what it reads, so that no sum is
 * shared between blocks: seven products in place of five, and the same bits at every run.
 *   dQ:     a block's rows are queries, its columns the keys they see:  dQ += dS K
 *   dK, dV: rows are keys, columns the queries that see them, head after head of those that share
 *           the keys; P and dS come out transposed, as the products want them:
 *           dV += P' dO,  dK += dS' Q
 * P and dS stay in registers. The next tile of columns is copied beside the arithmetic.
 *
 * Tiles at D = 128 (a thread's accumulators, its P and dP; a block's shared memory):
 *   dQ:     128 queries, 32 a warp, by 32 keys:  128 + 32 + 32;  96 KB, two blocks of 4 warps
 *   dK, dV: 128 keys, 16 a warp, by 64 queries:  128 + 32 + 32; 129 KB, one block of 8 warps
 * Predicted, not measured: a product of 16 x 8 x 16 reads 213 bytes of shared memory in the first
 * pass and 288 in the second, 1.7 and 2.3 clocks, where an A100's tensor cores take 2 and an H100's
 * about 1.6 by mma.sync: bound by tensor cores and shared memory alike. 50 % of an A100's peak and
 * 30 % of an H100's over the seven, five sevenths of that by the usual count of five. */
#include "cuda/attention.cuh"
#include "cuda/walk.cuh"

namespace {

struct backward_args {
  lm__heads h;
  const lm_bf16 *q, *k, *v, *grad_out;
  lm_bf16 *grad_q, *grad_k, *grad_v;
  const float *lse, *delta; /* (batch, heads, padded): lse in powers of two, +Inf past the end */
  int64_t padded;
  int tiles; /* of rows in a sequence */
};

/* ---- lse and delta ---- */

/* One warp a (batch entry, step, head), as they lie; padded - steps more steps are made up. */
LM_GLOBAL make_delta(lm__heads h, const void *out, int out_dtype, const void *grad, int grad_dtype,
                     const float *lse, float *delta, float *lse2, int64_t padded, bool spans) {
  const int lane = (int)threadIdx.x % LM_WARP;
  const int64_t item =
      (int64_t)blockIdx.x * (LM_THREADS / LM_WARP) + threadIdx.x / LM_WARP; /* (b, step, head) */
  if (item >= h.batch * padded * h.heads) return;
  const int64_t head = item % h.heads, step = item / h.heads % padded;
  const int64_t b = item / h.heads / padded, to = (b * h.heads + head) * padded + step;
  float sum = 0;
  if (step < h.steps) {
    const int64_t row = ((b * h.steps + step) * h.heads + head) * h.dim;
    if (spans) {
      for (int64_t d = lane * LM__SPAN; d < h.dim; d += (int64_t)LM_WARP * LM__SPAN) {
        float o[LM__SPAN], g[LM__SPAN];
        lm__load_span(o, out, out_dtype, row + d);
        lm__load_span(g, grad, grad_dtype, row + d);
#pragma unroll
        for (int j = 0; j < LM__SPAN; j++) sum += o[j] * g[j];
      }
    } else {
      for (int64_t d = lane; d < h.dim; d += LM_WARP)
        sum += lm__load(out, out_dtype, row + d) * lm__load(grad, grad_dtype, row + d);
    }
  }
  sum = lm__warp_reduce<lm__sum>(sum);
  if (lane != 0) return;
  delta[to] = sum;
  lse2[to] = step < h.steps ? lse[(b * h.heads + head) * h.steps + step] * 1.44269504f : INFINITY;
}

/* ---- the passes ---- */

/* D: of the tiles; wide: of the results, of which blockIdx.y tells the part; tall x 16 rows a warp;
 * columns of a tile; by_key: rows are keys. */
template <int D, int wide, int tall, int warps, int columns, bool by_key>
LM_GLOBAL __launch_bounds__(warps *LM_WARP, warps == 4 && D <= 128 ? 2 : 1)
    attention_backward(backward_args a) {
  constexpr int rows = warps * 16 * tall, threads = warps * LM_WARP, tile = columns * D;
  LM_DYNAMIC_SHARED(lm_bf16, shared);
  const lm__heads &h = a.h;
  const int lane = (int)threadIdx.x % LM_WARP, group = lane / 4, t = lane % 4;
  const int row0 = (int)threadIdx.x / LM_WARP * 16 * tall, chunk0 = (int)blockIdx.y * (wide / 8);
  const int steps = (int)h.steps, window = (int)h.window;
  const int64_t sharing = h.heads / h.kv_heads; /* heads with the same keys */
  const int64_t row_heads = by_key ? h.kv_heads : h.heads;
  const int64_t item = blockIdx.x / (unsigned)a.tiles;
  const int64_t row_head = item % row_heads, b = item / row_heads;
  const int64_t kv_head = by_key ? row_head : row_head / sharing;
  const int64_t first_head = by_key ? row_head * sharing : row_head;
  const int64_t q_stride = h.heads * h.dim, kv_stride = h.kv_heads * h.dim;
  const int64_t row_stride = by_key ? kv_stride : q_stride;
  const int64_t column_stride = by_key ? q_stride : kv_stride;
  /* the longest first: the last queries, the first keys */
  const int place = (int)(blockIdx.x % (unsigned)a.tiles);
  const int first = (by_key ? place : a.tiles - 1 - place) * rows;
  const int low = first + row0, high = low + 16 * tall - 1; /* the warp's rows */
  /* the columns that go with these rows */
  const int begin = by_key ? first : first > window ? (first - window) / columns * columns : 0;
  const int reach = by_key ? first + rows + window : first + rows,
            end = reach < steps ? reach : steps;
  const int per_head = (end - begin + columns - 1) / columns;
  const int count = by_key ? per_head * (int)sharing : per_head;
  const float factor = h.scale * 1.44269504f;

  /* in shared memory: rows of Q and dO, or K and V; two stages of columns of K and V, or Q and dO
   */
  lm_bf16 *const rows1 = shared, *const rows2 = rows1 + rows * D, *const stages = rows2 + rows * D;
  float *const statistics = reinterpret_cast<float *>(stages + 4 * tile); /* by_key: lse, delta */
  const lm_bf16 *const k_head = lm__head_at(a.k, h, h.kv_heads, b, kv_head);
  const lm_bf16 *const v_head = lm__head_at(a.v, h, h.kv_heads, b, kv_head);
  const auto start =
      [&](int it) { /* copying the columns of step `it` */
                    const int64_t head = first_head + it / per_head;
                    const int column = begin + it % per_head * columns;
                    const lm_bf16 *const one =
                        by_key ? lm__head_at(a.q, h, h.heads, b, head) : k_head;
                    const lm_bf16 *const two =
                        by_key ? lm__head_at(a.grad_out, h, h.heads, b, head) : v_head;
                    lm_bf16 *const stage = stages + it % 2 * 2 * tile;
                    lm__load_tile<D, columns, threads>(stage, one, column_stride, column, h);
                    lm__load_tile<D, columns, threads>(stage + tile, two, column_stride, column, h);
                    if (by_key &&
                        threadIdx.x < columns / 2) { /* 4 floats each, of lse, then of delta */
                      const int which = (int)threadIdx.x / (columns / 4),
                                at = (int)threadIdx.x % (columns / 4) * 4;
                      lm__copy_async(statistics + (it % 2 * 2 + which) * columns + at,
                                     (which == 0 ? a.lse : a.delta) +
                                         (b * h.heads + head) * a.padded + column + at);
                    }
                    lm__commit_copies();
      };

  float result1[tall][wide / 8][4] = {};                           /* dQ or dK */
  float result2[by_key ? tall : 1][by_key ? wide / 8 : 1][4] = {}; /* dV */
  float row_lse[tall][2], row_delta[tall][2];
  if constexpr (!by_key) {
#pragma unroll
    for (int m = 0; m < tall; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t at = (b * h.heads + row_head) * a.padded + low + m * 16 + half * 8 + group;
        row_lse[m][half] = a.lse[at];
        row_delta[m][half] = a.delta[at];
      }
  }
  lm__load_tile<D, rows, threads>(
      rows1, by_key ? k_head : lm__head_at(a.q, h, h.heads, b, row_head), row_stride, first, h);
  lm__load_tile<D, rows, threads>(
      rows2, by_key ? v_head : lm__head_at(a.grad_out, h, h.heads, b, row_head), row_stride, first,
      h);
  start(0);
  for (int it = 0; it < count; it++) {
    const int column = begin + it % per_head * columns;
    lm__wait_copies<0>();
    __syncthreads(); /* this step's columns are there; all are through with the last one's */
    if (it + 1 < count) start(it + 1);
    const int nearest = by_key ? column + columns - 1 - low : high - column; /* query - key */
    const int farthest = by_key ? column - high : low - (column + columns - 1);
    if (nearest < 0 || farthest > window) continue; /* nothing that this warp's rows see */
    const bool masked = farthest < 0 || nearest > window;
    const lm_bf16 *const columns1 = stages + it % 2 * 2 * tile, *const columns2 = columns1 + tile;
    const float *const column_lse = statistics + it % 2 * 2 * columns;
    const float *const column_delta = column_lse + columns;
    float p[tall][columns / 8][4] = {}, s[tall][columns / 8][4] = {};
    lm__product<D, tall, columns>(p, rows1, row0, columns1);
    lm__product<D, tall, columns>(s, rows2, row0, columns2);
#pragma unroll
    for (int n = 0; n < columns / 8; n++) {
      float2 lse2 = {}, delta2 = {};
      if constexpr (by_key) {
        lse2 = *reinterpret_cast<const float2 *>(column_lse + n * 8 + 2 * t);
        delta2 = *reinterpret_cast<const float2 *>(column_delta + n * 8 + 2 * t);
      }
#pragma unroll
      for (int m = 0; m < tall; m++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float lse = by_key ? (e % 2 ? lse2.y : lse2.x) : row_lse[m][e / 2];
          const float delta = by_key ? (e % 2 ? delta2.y : delta2.x) : row_delta[m][e / 2];
          float x = lm__exp2(p[m][n][e] * factor - lse);
          if (masked) {
            const int ahead = low + m * 16 + e / 2 * 8 + group -
                              (column + n * 8 + 2 * t + e % 2); /* row - column */
            const int ago = by_key ? -ahead : ahead;
            if (ago < 0 || ago > window) x = 0;
          }
          p[m][n][e] = x;
          s[m][n][e] = x * (s[m][n][e] - delta);
        }
    }
    if constexpr (by_key) lm__accumulate<D, wide, tall, columns>(result2, p, columns2, chunk0);
    lm__accumulate<D, wide, tall, columns>(result1, s, columns1, chunk0);
  }
#pragma unroll
  for (int m = 0; m < tall; m++)
#pragma unroll
    for (int n = 0; n < wide / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) result1[m][n][e] *= h.scale;
  lm_bf16 *const to = lm__head_at(by_key ? a.grad_k : a.grad_q, h, row_heads, b, row_head);
  lm__store_tile<D, wide, tall>(to, row_stride, first, h, result1, rows1, row0, chunk0);
  if constexpr (by_key)
    lm__store_tile<D, wide, tall>(lm__head_at(a.grad_v, h, row_heads, b, row_head), row_stride,
                                  first, h, result2, rows2, row0, chunk0);
}

template <int D, int wide, int tall, int warps, int columns, bool by_key>
static int launch(backward_args a) {
  constexpr int rows = warps * 16 * tall;
  const lm__heads &h = a.h;
  static_assert(rows % columns == 0, "tiles of queries begin where lse and delta are aligned");
  const size_t shared = (size_t)(2 * rows + 4 * columns) * D * sizeof(lm_bf16) +
                        (by_key ? 4 * columns * sizeof(float) : 0);
  a.tiles = (int)lm__blocks(h.steps, rows);
  const int64_t blocks = h.batch * (by_key ? h.kv_heads : h.heads) * a.tiles;
  if (blocks > 0x7fffffff)
    return lm__fail(LM_EINVAL, "attention_backward: more than 2^31 - 1 tiles");
  return lm__launch(
      {"attention_backward", dim3((unsigned)blocks, D / wide), warps * (int)LM_WARP, shared},
      attention_backward<D, wide, tall, warps, columns, by_key>, a);
}

static int both_passes(const backward_args &a) {
  if (a.h.dim <= 32) {
    LM__TRY((launch<32, 32, 2, 4, 64, false>(a)));
    return launch<32, 32, 2, 4, 64, true>(a);
  }
  if (a.h.dim <= 64) {
    LM__TRY((launch<64, 64, 2, 4, 64, false>(a)));
    return launch<64, 64, 2, 4, 32, true>(a);
  }
  if (a.h.dim <= 96) {
    LM__TRY((launch<96, 96, 2, 4, 32, false>(a)));
    return launch<96, 96, 1, 8, 64, true>(a);
  }
  if (a.h.dim <= 128) {
    LM__TRY((launch<128, 128, 2, 4, 32, false>(a)));
    return launch<128, 128, 1, 8, 64, true>(a);
  }
  LM__TRY((launch<256, 256, 1, 4, 32, false>(a)));
  return launch<256, 128, 1, 4, 32, true>(a);
}
} // namespace

extern "C" int lm__attention_backward_cuda(lm_tensor *grad_q, lm_tensor *grad_k, lm_tensor *grad_v,
                                           const lm_tensor *grad_out, const lm_tensor *q,
                                           const lm_tensor *k, const lm_tensor *v,
                                           const lm_tensor *out, const lm_tensor *lse,
                                           const lm__attention_args *args) {
  const char *op = "attention_backward";
  const lm__heads h = lm__heads_of(q, k, args);
  if (h.batch == 0 || h.steps == 0 || h.heads == 0) return LM_OK;
  const int64_t padded = (h.steps + 127) / 128 * 128, n = h.batch * h.heads * padded;
  void *scratch;
  LM__TRY(lm__cuda_scratch(op, &scratch, (size_t)(2 * n) * sizeof(float)));
  float *const delta = static_cast<float *>(scratch), *const lse2 = delta + n;
  const bool spans =
      h.dim % LM__SPAN == 0 && lm__is_aligned(lm__data(out)) && lm__is_aligned(lm__data(grad_out));
  int status = lm__launch({op, lm__blocks(n, LM_THREADS / LM_WARP), LM_THREADS}, make_delta, h,
                          lm__data(out), out->dtype, lm__data(grad_out), grad_out->dtype,
                          lm__pointer<float>(lse), delta, lse2, padded, spans);
  if (status == LM_OK && !lm__attention_fits(h, {grad_q, grad_k, grad_v, grad_out, q, k, v}))
    status = lm__attention_backward_plain(grad_q, grad_k, grad_v, grad_out, q, k, v, lse, delta,
                                          padded, h);
  else if (status == LM_OK)
    status = both_passes({h, lm__pointer<lm_bf16>(q), lm__pointer<lm_bf16>(k),
                          lm__pointer<lm_bf16>(v), lm__pointer<lm_bf16>(grad_out),
                          lm__pointer<lm_bf16>(grad_q), lm__pointer<lm_bf16>(grad_k),
                          lm__pointer<lm_bf16>(grad_v), lse2, delta, padded, 0});
  lm__cuda_scratch_free(scratch);
  return status;
}
