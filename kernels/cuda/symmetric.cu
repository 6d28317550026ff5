/* Products of bf16 matrices whose result is symmetric, half of it computed and the rest mirrored:
 *
 *   out = alpha l r' + beta1 d1 + beta2 d2      l, r (m, k): X X', G G, R Q
 *   out = alpha l' r + ...                      l, r (k, m): X' X
 *
 * for a batch, sums in f32, rounded once. A block has 128 x 128 elements of the upper triangle; its
 * eight warps 64 x 32 each, by mma.sync from tiles in shared memory that cp.async fills three slabs
 * of 32 inner elements ahead. 16-byte pieces of a tile's rows are stored at places exchanged by the
 * row's number, so that ldmatrix meets no bank twice. A finished tile goes out row by row through
 * shared memory, and, off the diagonal, once more transposed. */
#include "cuda/mma.cuh"
#include "cuda/polar.cuh"
#include "cuda/symmetric.cuh"

namespace {
constexpr int THREADS = 256, TILE = 128, SLAB = 32, STAGES = 4, PIECE = 8;
constexpr int TILE_ELEMENTS = TILE * SLAB;
constexpr int PITCH = TILE + PIECE; /* of the finished tile */
constexpr size_t SHARED = (size_t)STAGES * 2 * TILE_ELEMENTS * sizeof(lm_bf16);
static_assert(SHARED >= (size_t)TILE * PITCH * sizeof(lm_bf16), "the finished tile lies there too");

/* Where piece `piece` of row `row` of a tile lies: rows of SLAB elements, or, by columns, of TILE.
 */
template <bool columns> LM_DEVICE lm_bf16 *at(lm_bf16 *tile, int row, int piece) {
  return columns ? tile + row * TILE + (piece ^ (row & 7)) * PIECE
                 : tile + row * SLAB + (piece ^ (row >> 1 & 3)) * PIECE;
}

/* Begin to copy elements first.. (of m) and slab.. (of k) of an operand; zeros beyond its edges. */
template <bool columns>
LM_DEVICE void fetch(lm_bf16 *tile, const lm_bf16 *x, int64_t first, int64_t slab, int64_t m,
                     int64_t k) {
#pragma unroll
  for (int i = (int)threadIdx.x; i < TILE_ELEMENTS / PIECE; i += THREADS) {
    const int across = (columns ? TILE : SLAB) / PIECE, row = i / across, piece = i % across;
    const int64_t at_m = first + (columns ? piece * PIECE : row);
    const int64_t at_k = slab + (columns ? row : piece * PIECE);
    const bool there = at_m < m && at_k < k;
    lm__copy_async(at<columns>(tile, row, piece),
                   there ? x + (columns ? at_k * m + at_m : at_m * k + at_k) : x, there);
  }
}

/* d += the warp's 64 x 32 elements over one slab. */
template <bool columns>
LM_DEVICE void multiply(float (&d)[4][4][4], lm_bf16 *left, lm_bf16 *right, int row0, int col0) {
  const int lane = (int)threadIdx.x % LM_WARP, matrix = lane / 8, i = lane % 8;
#pragma unroll
  for (int inner = 0; inner < SLAB; inner += 16) {
    uint32_t a[4][4], b[2][4]; /* b: two of the four column tiles at once */
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int row = row0 + 16 * r;
      if (columns)
        lm__load_matrices<true>(
            a[r], at<true>(left, inner + matrix / 2 * 8 + i, row / PIECE + matrix % 2));
      else
        lm__load_matrices<false>(
            a[r], at<false>(left, row + matrix % 2 * 8 + i, inner / PIECE + matrix / 2));
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int col = col0 + 16 * c;
      if (columns)
        lm__load_matrices<true>(
            b[c], at<true>(right, inner + matrix % 2 * 8 + i, col / PIECE + matrix / 2));
      else
        lm__load_matrices<false>(
            b[c], at<false>(right, col + matrix / 2 * 8 + i, inner / PIECE + matrix % 2));
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const uint32_t pair[2] = {b[c / 2][c % 2 * 2], b[c / 2][c % 2 * 2 + 1]};
        lm__mma(d[r][c], a[r], pair);
      }
  }
}

/* The finished tile to out, rows from row0 and columns from col0 on. */
LM_DEVICE void write_out(const lm__symmetric_args &p, const lm_bf16 *tile, int64_t row0,
                         int64_t col0, bool diagonal) {
  for (int i = (int)threadIdx.x; i < TILE * TILE / PIECE; i += THREADS) {
    const int row = i / (TILE / PIECE), col = i % (TILE / PIECE) * PIECE;
    if (row0 + row >= p.m || col0 + col >= p.m) continue;
    lm__pack<lm_bf16> pack;
#pragma unroll
    for (int e = 0; e < PIECE;
         e++) /* on the diagonal what is below it is a copy of what is above */
      pack.at[e] =
          diagonal && col + e < row ? tile[(col + e) * PITCH + row] : tile[row * PITCH + col + e];
    lm__store_pack(p.out + (row0 + row) * p.m + col0 + col, pack);
  }
}

template <bool columns> LM_GLOBAL __launch_bounds__(THREADS, 2) symmetric(lm__symmetric_args p) {
  LM_DYNAMIC_SHARED(lm_bf16, memory);
  const int tiles = (int)((p.m + TILE - 1) / TILE); /* across */
  int tile_row = 0, rest = (int)blockIdx.x;
  while (rest >= tiles - tile_row) rest -= tiles - tile_row++;
  const int64_t row0 = (int64_t)tile_row * TILE, col0 = (int64_t)(tile_row + rest) * TILE;
  const int warp = (int)threadIdx.x / LM_WARP, lane = (int)threadIdx.x % LM_WARP;
  const int warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
  const int64_t slabs = (p.k + SLAB - 1) / SLAB;
  float d[4][4][4] = {};
  lm__symmetric_advance(p, blockIdx.y);

  for (int64_t s = 0; s < STAGES - 1; s++) {
    lm_bf16 *stage = memory + s * 2 * TILE_ELEMENTS;
    if (s < slabs) {
      fetch<columns>(stage, p.left, row0, s * SLAB, p.m, p.k);
      fetch<columns>(stage + TILE_ELEMENTS, p.right, col0, s * SLAB, p.m, p.k);
    }
    lm__commit_copies();
  }
  for (int64_t s = 0; s < slabs; s++) {
    lm_bf16 *stage = memory + s % STAGES * 2 * TILE_ELEMENTS;
    lm__wait_copies<STAGES - 2>();
    __syncthreads(); /* slab s is there for all, and all are through with the one before */
    if (s + STAGES - 1 < slabs) {
      lm_bf16 *next = memory + (s + STAGES - 1) % STAGES * 2 * TILE_ELEMENTS;
      fetch<columns>(next, p.left, row0, (s + STAGES - 1) * SLAB, p.m, p.k);
      fetch<columns>(next + TILE_ELEMENTS, p.right, col0, (s + STAGES - 1) * SLAB, p.m, p.k);
    }
    lm__commit_copies();
    multiply<columns>(d, stage, stage + TILE_ELEMENTS, warp_row, warp_col);
  }
  lm__wait_copies<0>();
  __syncthreads();

  /* Lane 4 g + t has columns 2 t and 2 t + 1 of rows g and g + 8. */
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = warp_row + 16 * r + lane / 4 + 8 * h;
        const int col = warp_col + 8 * c + lane % 4 * 2;
        const int64_t i = (row0 + row) * p.m + col0 + col;
        float low = p.alpha * d[r][c][2 * h], high = p.alpha * d[r][c][2 * h + 1];
        if (row0 + row < p.m && col0 + col < p.m) /* m is even */
          lm__symmetric_add(p, i, low, high);
        d[r][c][2 * h] = low;
        d[r][c][2 * h + 1] = high;
        *reinterpret_cast<uint32_t *>(memory + row * PITCH + col) = lm__pack_bf16(low, high);
      }
  __syncthreads();
  write_out(p, memory, row0, col0, row0 == col0);
  if (row0 == col0) return;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        memory[(warp_col + 8 * c + lane % 4 * 2 + e % 2) * PITCH + warp_row + 16 * r + lane / 4 +
               e / 2 * 8] = lm__from_float<lm_bf16>(d[r][c][e]);
  __syncthreads();
  write_out(p, memory, col0, row0, false);
}
} // namespace

bool lm__symmetric_serves(int64_t m, int64_t k) { return m % PIECE == 0 && k % PIECE == 0; }

double lm__symmetric_mma_elements(int64_t m) {
  const double tiles = (double)((m + TILE - 1) / TILE);
  return tiles * (tiles + 1) / 2 * TILE * TILE;
}

int lm__symmetric_mma(const char *op, const lm__symmetric_args &args, bool columns,
                      unsigned count) {
  const int64_t tiles = (args.m + TILE - 1) / TILE;
  return lm__launch({op, dim3(lm__blocks(tiles * (tiles + 1) / 2, 1), count), THREADS, SHARED},
                    columns ? symmetric<true> : symmetric<false>, args);
}
