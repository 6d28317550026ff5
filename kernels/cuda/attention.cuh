/* What attention's kernels share: heads, tiles in shared memory, and products of tiles.
 *
 * A tile is rows of D bf16 (queries or keys of one head), zeros past the sequence's end and past
 * the head's size, so that a head size of any multiple of 8 runs in the next larger D. Its chunks
 * of 16 bytes are permuted within a row by the row's number: eight rows' chunks of one column,
 * which a tensor core's load takes at once, lie in all 32 banks. */
#ifndef LM_KERNELS_CUDA_ATTENTION_CUH
#define LM_KERNELS_CUDA_ATTENTION_CUH

#include <initializer_list>

#include "cuda/mma.cuh"
#include "cuda/reduce.cuh"

typedef struct lm__heads {
  int64_t batch, steps, heads, kv_heads, dim;
  int64_t window; /* < steps */
  float scale;
} lm__heads;

static inline lm__heads lm__heads_of(const lm_tensor *q, const lm_tensor *k,
                                     const lm__attention_args *args) {
  const int64_t steps = q->shape[1];
  return {q->shape[0], steps,       q->shape[2],
          k->shape[2], q->shape[3], args->window < steps ? args->window : steps - 1,
          args->scale};
}

/* Whether tensor cores do it: all bf16, whole chunks, aligned, a head that fits, positions that fit
 * 31 bits; else the plain kernels. */
static inline bool lm__attention_fits(const lm__heads &h,
                                      std::initializer_list<const lm_tensor *> all) {
  bool fits = h.dim % 8 == 0 && h.dim <= 256 && h.scale > 0 && h.steps < 1 << 30;
  for (const lm_tensor *t : all) fits = fits && t->dtype == LM_BF16 && lm__is_aligned(lm__data(t));
  return fits;
}

/* The same on any dtype, head size and scale: attention_plain.cu. delta as in
 * attention_backward.cu, (batch, heads, padded). */
int lm__attention_plain(lm_tensor *out, lm_tensor *lse, const lm_tensor *q, const lm_tensor *k,
                        const lm_tensor *v, const lm__heads &h);
int lm__attention_backward_plain(lm_tensor *grad_q, lm_tensor *grad_k, lm_tensor *grad_v,
                                 const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                                 const lm_tensor *v, const lm_tensor *lse, const float *delta,
                                 int64_t padded, const lm__heads &h);

namespace {

/* First element of head `head` in batch entry b of t (batch, steps, heads, dim). */
template <class T>
LM_DEVICE T *lm__head_at(T *t, const lm__heads &h, int64_t heads, int64_t b, int64_t head) {
  return t + (b * h.steps * heads + head) * h.dim;
}

/* Of rows of D, the chunk of 8 elements `chunk` of `row`. */
template <int D> LM_DEVICE int lm__chunk_at(int row, int chunk) {
  static_assert(D % 32 == 0, "whole banks");
  return row * D + (chunk ^ (D % 64 == 0 ? row & 7 : row >> 1 & 3)) * 8;
}

/* From a place of that kind to `chunks` more, even and known when compiling: one exclusive or. */
template <int D> LM_DEVICE int lm__chunks_on(int at, int chunks) {
  constexpr int mixed = D % 64 == 0 ? 7 : 3;
  return (at ^ (chunks & mixed) * 8) + (chunks & ~mixed) * 8;
}

/* Begin to copy rows [first, first + rows) of a head, `stride` elements apart, into a tile. */
template <int D, int rows, int threads>
LM_DEVICE void lm__load_tile(lm_bf16 *tile, const lm_bf16 *head, int64_t stride, int first,
                             const lm__heads &h) {
  constexpr int chunks = D / 8, at_once = threads / chunks; /* rows; a thread keeps its chunk */
  const int chunk = (int)threadIdx.x % chunks, from = (int)threadIdx.x / chunks;
  const lm_bf16 *at = head + (first + from) * stride + chunk * 8;
  if (threads % chunks != 0 && from >= at_once) return;
  const int there = chunk * 8 < h.dim ? (int)h.steps - first : 0; /* rows */
#pragma unroll 4
  for (int row = from; row < rows; row += at_once, at += at_once * stride)
    lm__copy_async(tile + lm__chunk_at<D>(row, chunk), row < there ? at : head, row < there);
}

/* d (tall x 16 rows, columns) += A B': rows of A from row0, all rows of B, over all D. */
template <int D, int tall, int columns>
LM_DEVICE void lm__product(float (&d)[tall][columns / 8][4], const lm_bf16 *a, int row0,
                           const lm_bf16 *b) {
  const int lane = (int)threadIdx.x % LM_WARP, matrix = lane / 8, i = lane % 8;
  const int a_lane = lm__chunk_at<D>(row0 + matrix % 2 * 8 + i, matrix / 2);
  const int b_lane = lm__chunk_at<D>(matrix / 2 * 8 + i, matrix % 2);
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    const lm_bf16 *const a_at = a + lm__chunks_on<D>(a_lane, 2 * k);
    const lm_bf16 *const b_at = b + lm__chunks_on<D>(b_lane, 2 * k);
    uint32_t left[tall][4];
#pragma unroll
    for (int m = 0; m < tall; m++) lm__load_matrices<false>(left[m], a_at + m * 16 * D);
#pragma unroll
    for (int n = 0; n < columns / 16; n++) {
      uint32_t right[4];
      lm__load_matrices<false>(right, b_at + n * 16 * D);
      const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < tall; m++) {
        lm__mma(d[m][2 * n], left[m], first);
        lm__mma(d[m][2 * n + 1], left[m], second);
      }
    }
  }
}

/* d (tall x 16 rows, wide) += W B: W (tall x 16 rows, columns) as a product's result, rounded to
 * bf16; B's rows are the columns, of which `wide` elements from chunk0 * 8 on. */
template <int D, int wide, int tall, int columns>
LM_DEVICE void lm__accumulate(float (&d)[tall][wide / 8][4], const float (&w)[tall][columns / 8][4],
                              const lm_bf16 *b, int chunk0) {
  const int lane = (int)threadIdx.x % LM_WARP, matrix = lane / 8, i = lane % 8;
  const int b_lane = lm__chunk_at<D>(matrix % 2 * 8 + i, matrix / 2);
#pragma unroll
  for (int k = 0; k < columns / 16; k++) {
    uint32_t left[tall][4];
#pragma unroll
    for (int m = 0; m < tall; m++) {
      left[m][0] = lm__pack_bf16(w[m][2 * k][0], w[m][2 * k][1]);
      left[m][1] = lm__pack_bf16(w[m][2 * k][2], w[m][2 * k][3]);
      left[m][2] = lm__pack_bf16(w[m][2 * k + 1][0], w[m][2 * k + 1][1]);
      left[m][3] = lm__pack_bf16(w[m][2 * k + 1][2], w[m][2 * k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < wide / 16; n++) {
      uint32_t right[4];
      lm__load_matrices<true>(right, b + k * 16 * D + lm__chunks_on<D>(b_lane, chunk0 + 2 * n));
      const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < tall; m++) {
        lm__mma(d[m][2 * n], left[m], first);
        lm__mma(d[m][2 * n + 1], left[m], second);
      }
    }
  }
}

/* The warp's rows (from row0 of the tile, which no other warp reads) as bf16, through the tile, to
 * rows from first + row0 of a head: 16 bytes a lane. */
template <int D, int wide, int tall>
LM_DEVICE void lm__store_tile(lm_bf16 *head, int64_t stride, int first, const lm__heads &h,
                              const float (&d)[tall][wide / 8][4], lm_bf16 *tile, int row0,
                              int chunk0) {
  const int lane = (int)threadIdx.x % LM_WARP, group = lane / 4, t = lane % 4;
  constexpr int chunks = wide / 8;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < tall; m++)
#pragma unroll
    for (int n = 0; n < chunks; n++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        lm_bf16 *at = tile + lm__chunk_at<D>(row0 + m * 16 + half * 8 + group, chunk0 + n) + 2 * t;
        *reinterpret_cast<uint32_t *>(at) = lm__pack_bf16(d[m][n][2 * half], d[m][n][2 * half + 1]);
      }
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < tall * 16 * chunks; i += LM_WARP) {
    const int row = row0 + i / chunks, chunk = chunk0 + i % chunks;
    if (first + row < h.steps && chunk * 8 < h.dim)
      lm__store_pack(head + (first + row) * stride + chunk * 8,
                     lm__load_pack(tile + lm__chunk_at<D>(row, chunk)));
  }
}

/* Over the four lanes that hold one row of a product. */
template <class Op> LM_DEVICE float lm__quad_reduce(float x) {
  x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return Op::join(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

} // namespace

#endif
