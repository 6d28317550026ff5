/* The products of symmetric.cu for compute capability 9.0, by wgmma:
 *
 *   out = alpha l r' + beta1 d1 + beta2 d2      l, r (m, k)
 *   out = alpha l' r + ...                      l, r (k, m)
 *
 * A block has 128 rows and 256 columns of the result that reach above the diagonal; each of its two
 * warpgroups 64 of the rows, in 128 registers a thread. Slabs of 64 inner elements (48 KB of both
 * operands) are copied by cp.async, into the places wgmma reads without bank conflicts, two slabs
 * ahead; four stages, because the products of the slab before are still under way when the next
 * copy begins. So the tensor cores meet no barrier with nothing to do. Why 256 columns: a slab's
 * bytes are read once per 2 x 85 operations a byte, twice the rate of symmetric.cu's tiles, which
 * L2 could not feed to wgmma (predicted: 15 TB/s at the full rate, where 128 x 256 needs 12 and
 * half as many rows of tiles).
 *
 * Of the result what lies on or above the diagonal counts: it is written, and its mirror image
 * below. */
#include "cuda/symmetric.cuh"
#include "cuda/wgmma.cuh"

namespace {
constexpr int THREADS = 256, ROWS = 128, COLS = 256, SLAB = 64, STAGES = 4;
constexpr int ROW_BYTES = SLAB * 2, STAGE = (ROWS + COLS) * ROW_BYTES, ALIGNMENT = 1024;
constexpr size_t SHARED = (size_t)STAGES * STAGE + ALIGNMENT;

#if LM__HAS_WGMMA
constexpr int PIECE = 8, BLOCK = 64 * ROW_BYTES; /* BLOCK: 64 rows (or 64 columns) of a slab */
constexpr int PITCH = COLS + PIECE, MIRROR_PITCH = ROWS + PIECE; /* of the finished tile */
constexpr int MIRROR = ROWS * PITCH; /* elements before its mirror image */
static_assert((size_t)(MIRROR + COLS * MIRROR_PITCH) * 2 <= (size_t)STAGES * STAGE,
              "the finished tile and its mirror image lie there too");

/* Begin to copy elements first .. first + count (of m) and slab.. (of k) of an operand; zeros
 * beyond its edges. By columns a block of 64 columns follows the other. */
template <bool columns, int count>
LM_DEVICE void fetch(char *tile, const lm_bf16 *x, int64_t first, int64_t slab, int64_t m,
                     int64_t k) {
#pragma unroll
  for (int i = (int)threadIdx.x; i < count * 8; i += THREADS) {
    const int row = i / 8, piece = i % 8; /* a row of 128 bytes, whichever way they lie */
    const int64_t at_m = first + (columns ? row / 64 * 64 + piece * PIECE : row);
    const int64_t at_k = slab + (columns ? row % 64 : piece * PIECE);
    const bool there = at_m < m && at_k < k;
    lm__copy_async(tile + row * ROW_BYTES + (piece ^ (row & 7)) * 16,
                   there ? x + (columns ? at_k * m + at_m : at_m * k + at_k) : x, there);
  }
}

/* d += the warpgroup's 64 x 256 elements over one slab. */
template <bool columns> LM_DEVICE void multiply(float (&d)[128], uint32_t left, uint32_t right) {
#pragma unroll
  for (int inner = 0; inner < SLAB; inner += 16) {
    const uint32_t at = columns ? (uint32_t)(inner * ROW_BYTES) : (uint32_t)(inner * 2);
    lm__wgmma<columns>(d, lm__wgmma_operand(left + at, BLOCK, 8 * ROW_BYTES),
                       lm__wgmma_operand(right + at, BLOCK, 8 * ROW_BYTES));
  }
}

/* Eight elements of a row from column `col` on, of which those from column `from` on, below column
 * `to`, count. */
LM_DEVICE void write_piece(lm_bf16 *row, const lm_bf16 *piece, int64_t col, int64_t from,
                           int64_t to) {
  if (from <= col && col + PIECE <= to) {
    lm__store_pack(row + col, lm__load_pack(piece));
    return;
  }
  for (int e = 0; e < PIECE; e++)
    if (col + e >= from && col + e < to) row[col + e] = piece[e];
}

template <bool columns> LM_DEVICE void compute(lm__symmetric_args p, char *memory) {
  /* 256 columns a tile, and as many tiles of each row of them as reach above the diagonal */
  const int across = (int)((p.m + COLS - 1) / COLS);
  int tile_row = 0, rest = (int)blockIdx.x;
  while (rest >= across - tile_row / 2) rest -= across - tile_row++ / 2;
  const int64_t row0 = (int64_t)tile_row * ROWS, col0 = (int64_t)(tile_row / 2 + rest) * COLS;
  const int64_t slabs = (p.k + SLAB - 1) / SLAB;
  const int lane = (int)threadIdx.x % LM_WARP, group = (int)threadIdx.x / 128;
  const uint32_t base = lm__shared_address(memory);
  float d[128];
#pragma unroll
  for (int i = 0; i < 128; i++) d[i] = 0;
  lm__symmetric_advance(p, blockIdx.y);

  const auto begin = [&](int64_t s) {
    if (s < slabs) {
      char *stage = memory + s % STAGES * STAGE;
      fetch<columns, ROWS>(stage, p.left, row0, s * SLAB, p.m, p.k);
      fetch<columns, COLS>(stage + ROWS * ROW_BYTES, p.right, col0, s * SLAB, p.m, p.k);
    }
    lm__commit_copies();
  };
  begin(0);
  begin(1);
  for (int64_t s = 0; s < slabs; s++) {
    const uint32_t stage = base + (uint32_t)(s % STAGES * STAGE);
    lm__wait_copies<1>();
    lm__fence_async();
    __syncthreads(); /* slab s is there for all; all are through with slab s - 2 */
    lm__wgmma_fence();
    multiply<columns>(d, stage + (uint32_t)(group * BLOCK), stage + ROWS * ROW_BYTES);
    lm__wgmma_commit();
    begin(s + 2);
    lm__wgmma_wait<1>();
  }
  lm__wgmma_wait<0>(d);
  lm__wait_copies<0>();
  __syncthreads();

  lm_bf16 *const tile = reinterpret_cast<lm_bf16 *>(memory), *const mirror = tile + MIRROR;
  const int warp_row = (int)threadIdx.x / LM_WARP * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < COLS / 8; j++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = warp_row + 8 * h, col = 8 * j + lane % 4 * 2;
      const int64_t i = (row0 + row) * p.m + col0 + col;
      float low = p.alpha * d[4 * j + 2 * h], high = p.alpha * d[4 * j + 2 * h + 1];
      if (row0 + row < p.m && col0 + col < p.m) /* m is even */
        lm__symmetric_add(p, i, low, high);
      *reinterpret_cast<uint32_t *>(tile + row * PITCH + col) = lm__pack_bf16(low, high);
      mirror[col * MIRROR_PITCH + row] = lm__from_float<lm_bf16>(low);
      mirror[(col + 1) * MIRROR_PITCH + row] = lm__from_float<lm_bf16>(high);
    }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < ROWS * COLS / PIECE; i += THREADS) {
    const int row = i / (COLS / PIECE), col = i % (COLS / PIECE) * PIECE;
    if (row0 + row < p.m && col0 + col < p.m)
      write_piece(p.out + (row0 + row) * p.m, tile + row * PITCH + col, col0 + col, row0 + row,
                  p.m);
  }
  for (int i = (int)threadIdx.x; i < ROWS * COLS / PIECE; i += THREADS) {
    const int row = i / (ROWS / PIECE), col = i % (ROWS / PIECE) * PIECE;
    if (col0 + row < p.m && row0 + col < p.m)
      write_piece(p.out + (col0 + row) * p.m, mirror + row * MIRROR_PITCH + col, row0 + col, 0,
                  col0 + row);
  }
}
#endif

template <bool columns> LM_GLOBAL __launch_bounds__(THREADS, 1) symmetric(lm__symmetric_args p) {
#if LM__HAS_WGMMA
  LM_DYNAMIC_SHARED(char, memory);
  compute<columns>(p, memory + (ALIGNMENT - lm__shared_address(memory) % ALIGNMENT) % ALIGNMENT);
#endif
}
} // namespace

static int64_t tiles_of(int64_t m) {
  const int64_t across = (m + COLS - 1) / COLS, rows = (m + ROWS - 1) / ROWS;
  int64_t tiles = 0;
  for (int64_t i = 0; i < rows; i++) tiles += across - i / 2;
  return tiles;
}

double lm__symmetric_wgmma_elements(int64_t m) { return (double)(tiles_of(m) * ROWS * COLS); }

int lm__symmetric_wgmma(const char *op, const lm__symmetric_args &args, bool columns,
                        unsigned count) {
  return lm__launch({op, dim3(lm__blocks(tiles_of(args.m), 1), count), THREADS, SHARED},
                    columns ? symmetric<true> : symmetric<false>, args);
}
