/* out = softmax(scale Q K' + mask) V,  lse = log sum exp of the scores (Dao et al. 2022, Dao 2023).
 *
 * A block of 4 warps has 128 queries of a head (64 where D is 256) and walks over the tiles of 64
 * keys that some of them see; scores live in registers, of one tile at a time. A warp has 32
 * queries, so that what it reads of keys and values is used by two rows of tensor-core products.
 * V's copy runs beside Q K', the next K's beside the softmax and P V.
 *
 * D = 128: 128 f32 of out and 64 of scores a thread, 64 KB of shared memory (Q 32, K 16, V 16): two
 * blocks a multiprocessor on an A100 and on an H100. Predicted, not measured: a product of 16 x 8 x
 * 16 reads 192 bytes of shared memory in Q K' and 128 in P V, 1.25 clocks at 128 bytes a clock, and
 * takes 2 clocks of an A100's tensor cores, 1 of an H100's and about 1.6 by mma.sync, which reaches
 * some 62 % of wgmma's rate: so tensor cores are the limit on both, less the softmax (64 scores a
 * row and tile, an exponential and four more instructions each, partly beside them): 60 to 70 % of
 * an A100's peak, 40 to 45 % of an H100's, in long sequences. */
#include "cuda/attention.cuh"

namespace {

constexpr int WARPS = 4, KEYS = 64;

struct forward_args {
  lm__heads h;
  lm_bf16 *out;
  float *lse;
  const lm_bf16 *q, *k, *v;
  int tiles; /* of queries in a sequence */
};

/* exp(scale (score - maximum)) of the warp's scores; maximum, sum and what is summed so far brought
 * up to date. factor: scale log2(e). A row that has seen nothing yet has maximum -Inf, sum 0. */
template <int D, int tall>
LM_DEVICE void softmax_tile(float (&s)[tall][KEYS / 8][4], float (&out)[tall][D / 8][4],
                            float (&most)[tall][2], float (&sum)[tall][2], float factor) {
#pragma unroll
  for (int m = 0; m < tall; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float higher = most[m][half];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
        higher = fmaxf(higher, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      higher = lm__quad_reduce<lm__max>(higher);
      const float base = higher > -INFINITY ? higher * factor : 0.0f;
      const float decay = lm__exp2(most[m][half] * factor - base);
      float total = sum[m][half] * decay;
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) {
          s[m][n][e] = lm__exp2(s[m][n][e] * factor - base);
          total += s[m][n][e];
        }
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        out[m][n][2 * half] *= decay;
        out[m][n][2 * half + 1] *= decay;
      }
      most[m][half] = higher;
      sum[m][half] = total;
    }
}

template <int D, int tall>
LM_GLOBAL __launch_bounds__(WARPS *LM_WARP, 2) attention(forward_args a) {
  constexpr int rows = WARPS * 16 * tall, threads = WARPS * LM_WARP;
  LM_DYNAMIC_SHARED(lm_bf16, shared);
  lm_bf16 *const q = shared, *const k = q + rows * D, *const v = k + KEYS * D;
  const lm__heads &h = a.h;
  const int lane = (int)threadIdx.x % LM_WARP, group = lane / 4, t = lane % 4;
  const int row0 = (int)threadIdx.x / LM_WARP * 16 * tall;
  /* a head's tiles side by side, so that its keys stay in the L2 cache; the longest first */
  const int first = (a.tiles - 1 - (int)(blockIdx.x % (unsigned)a.tiles)) * rows;
  const int64_t item = blockIdx.x / (unsigned)a.tiles, head = item % h.heads, b = item / h.heads;
  const int64_t kv_head = head / (h.heads / h.kv_heads);
  const int64_t stride = h.heads * h.dim, kv_stride = h.kv_heads * h.dim;
  const lm_bf16 *const keys = lm__head_at(a.k, h, h.kv_heads, b, kv_head);
  const lm_bf16 *const values = lm__head_at(a.v, h, h.kv_heads, b, kv_head);
  const int window = (int)h.window, low = first + row0, high = low + 16 * tall - 1; /* the warp's */
  const int begin = first > window ? (first - window) / KEYS * KEYS : 0;
  const int end = first + rows < h.steps ? first + rows : (int)h.steps;
  const float factor = h.scale * 1.44269504f;
  float out[tall][D / 8][4] = {}, most[tall][2], sum[tall][2];
#pragma unroll
  for (int m = 0; m < tall; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      most[m][half] = -INFINITY;
      sum[m][half] = 0;
    }
  lm__load_tile<D, rows, threads>(q, lm__head_at(a.q, h, h.heads, b, head), stride, first, h);
  lm__load_tile<D, KEYS, threads>(k, keys, kv_stride, begin, h);
  lm__commit_copies();
  for (int key = begin; key < end; key += KEYS) {
    const bool seen = key <= high && low - (key + KEYS - 1) <= window; /* by some of the warp's */
    float s[tall][KEYS / 8][4] = {};
    lm__wait_copies<0>();
    __syncthreads(); /* K is there; all are through with V */
    lm__load_tile<D, KEYS, threads>(v, values, kv_stride, key, h);
    lm__commit_copies();
    if (seen) lm__product<D, tall, KEYS>(s, q, row0, k);
    lm__wait_copies<0>();
    __syncthreads(); /* V is there; all are through with K */
    if (key + KEYS < end) lm__load_tile<D, KEYS, threads>(k, keys, kv_stride, key + KEYS, h);
    lm__commit_copies();
    if (!seen) continue;
    if (key + KEYS - 1 > low || high - key > window) {
#pragma unroll
      for (int m = 0; m < tall; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int ago = low + m * 16 + e / 2 * 8 + group - (key + n * 8 + 2 * t + e % 2);
            if (ago < 0 || ago > window) s[m][n][e] = -INFINITY;
          }
    }
    softmax_tile<D, tall>(s, out, most, sum, factor);
    lm__accumulate<D, D, tall, KEYS>(out, s, v, 0);
  }
  float *const lse = a.lse + (b * h.heads + head) * h.steps;
#pragma unroll
  for (int m = 0; m < tall; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float total = lm__quad_reduce<lm__sum>(sum[m][half]), inverse = 1.0f / total;
      const int row = low + m * 16 + half * 8 + group;
      if (t == 0 && row < h.steps) lse[row] = most[m][half] * h.scale + logf(total);
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        out[m][n][2 * half] *= inverse;
        out[m][n][2 * half + 1] *= inverse;
      }
    }
  lm__store_tile<D, D, tall>(lm__head_at(a.out, h, h.heads, b, head), stride, first, h, out, q,
                             row0, 0);
}

template <int D, int tall> static int launch(forward_args a) {
  constexpr int rows = WARPS * 16 * tall;
  const lm__heads &h = a.h;
  a.tiles = (int)lm__blocks(h.steps, rows);
  const int64_t blocks = h.batch * h.heads * a.tiles;
  if (blocks > 0x7fffffff) return lm__fail(LM_EINVAL, "attention: more than 2^31 - 1 tiles");
  return lm__launch({"attention", (unsigned)blocks, WARPS * (int)LM_WARP,
                     (size_t)(rows + 2 * KEYS) * D * sizeof(lm_bf16)},
                    attention<D, tall>, a);
}
} // namespace

extern "C" int lm__attention_cuda(lm_tensor *out, lm_tensor *lse, const lm_tensor *q,
                                  const lm_tensor *k, const lm_tensor *v,
                                  const lm__attention_args *args) {
  const lm__heads h = lm__heads_of(q, k, args);
  if (h.batch == 0 || h.steps == 0 || h.heads == 0) return LM_OK;
  if (!lm__attention_fits(h, {out, q, k, v})) return lm__attention_plain(out, lse, q, k, v, h);
  const forward_args a = {h,
                          lm__pointer<lm_bf16>(out),
                          lm__pointer<float>(lse),
                          lm__pointer<lm_bf16>(q),
                          lm__pointer<lm_bf16>(k),
                          lm__pointer<lm_bf16>(v),
                          0};
  if (h.dim <= 32) return launch<32, 2>(a);
  if (h.dim <= 64) return launch<64, 2>(a);
  if (h.dim <= 96) return launch<96, 2>(a);
  if (h.dim <= 128) return launch<128, 2>(a);
  return launch<256, 1>(a);
}
