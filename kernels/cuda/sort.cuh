/* A stable sort of items by a key below a limit: radix 256, from the lowest digit, three launches a
 * digit (two digits for a vocabulary up to 65536). A warp owns a tile of consecutive items: it
 * counts the tile's digits; the counts are summed over (digit, tile); it goes over the tile again,
 * in order, and puts each item where its digit's next one belongs. Nothing depends on timing. */
#ifndef LM_KERNELS_CUDA_SORT_CUH
#define LM_KERNELS_CUDA_SORT_CUH

#include "cuda/reduce.cuh"

typedef struct lm__sort_item {
  uint32_t key, position;
} lm__sort_item;

typedef struct lm__sorter {
  const char *op;
  lm__sort_item *items, *other; /* items: filled by the caller, sorted after lm__sort */
  int *counts;                  /* (256, tiles) */
  int64_t n, tile, tiles, limit;
} lm__sorter;

namespace {
enum { LM__DIGITS = 256, LM__SCAN_THREADS = 1024 };

LM_DEVICE int lm__digit(uint32_t key, int shift) { return (int)(key >> shift & 255); }

LM_GLOBAL lm__sort_count(const lm__sort_item *items, int *counts, int64_t n, int64_t tile,
                         int64_t tiles, int shift) {
  LM_SHARED(int, count, [LM__DIGITS]);
  for (int d = (int)threadIdx.x; d < LM__DIGITS; d += LM_WARP) count[d] = 0;
  __syncwarp();
  const int64_t first = blockIdx.x * tile, last = first + tile < n ? first + tile : n;
  for (int64_t i = first + threadIdx.x; i < last; i += LM_WARP)
    atomicAdd(&count[lm__digit(items[i].key, shift)], 1);
  __syncwarp();
  for (int d = (int)threadIdx.x; d < LM__DIGITS; d += LM_WARP)
    counts[d * tiles + blockIdx.x] = count[d];
}

/* counts[i] = sum of counts[0 ... i - 1], by one block. */
LM_GLOBAL lm__sort_scan(int *counts, int64_t n) {
  LM_SHARED(int, of_warp, [LM_WARP]);
  const int lane = (int)threadIdx.x % LM_WARP, warp = (int)threadIdx.x / LM_WARP;
  int before = 0; /* the sum of all earlier rounds */
  for (int64_t base = 0; base < n; base += LM__SCAN_THREADS) {
    const int64_t i = base + threadIdx.x;
    const int mine = i < n ? counts[i] : 0;
    int sum = mine; /* of this warp's lanes up to this one */
#pragma unroll
    for (int distance = 1; distance < LM_WARP; distance *= 2) {
      const int lower = __shfl_up_sync(0xffffffffu, sum, (unsigned)distance);
      if (lane >= distance) sum += lower;
    }
    __syncthreads(); /* the last round's readers are through */
    if (lane == LM_WARP - 1) of_warp[warp] = sum;
    __syncthreads();
    int all = of_warp[lane];
#pragma unroll
    for (int distance = 1; distance < LM_WARP; distance *= 2) {
      const int lower = __shfl_up_sync(0xffffffffu, all, (unsigned)distance);
      if (lane >= distance) all += lower;
    }
    const int earlier = __shfl_sync(0xffffffffu, all, warp > 0 ? warp - 1 : 0);
    if (i < n) counts[i] = before + (warp > 0 ? earlier : 0) + sum - mine;
    before += __shfl_sync(0xffffffffu, all, LM_WARP - 1);
  }
}

LM_GLOBAL lm__sort_place(const lm__sort_item *items, lm__sort_item *sorted, const int *counts,
                         int64_t n, int64_t tile, int64_t tiles, int shift) {
  LM_SHARED(int, next, [LM__DIGITS]);
  const int lane = (int)threadIdx.x;
  for (int d = lane; d < LM__DIGITS; d += LM_WARP) next[d] = counts[d * tiles + blockIdx.x];
  __syncwarp();
  const int64_t first = blockIdx.x * tile, last = first + tile < n ? first + tile : n;
  for (int64_t base = first; base < last; base += LM_WARP) {
    const bool there = base + lane < last;
    const lm__sort_item item = there ? items[base + lane] : lm__sort_item{0, 0};
    const int digit = lm__digit(item.key, shift);
    unsigned same = __ballot_sync(0xffffffffu, there); /* the lanes with this digit */
#pragma unroll
    for (int bit = 0; bit < 8; bit++) {
      const unsigned ones = __ballot_sync(0xffffffffu, digit >> bit & 1);
      same &= digit >> bit & 1 ? ones : ~ones;
    }
    const int rank = __popc(same & ((1u << lane) - 1));
    int to = 0;
    if (there) to = next[digit] + rank;
    __syncwarp();
    if (there) {
      sorted[to] = item;
      if (rank == 0) next[digit] += __popc(same);
    }
    __syncwarp();
  }
}

/* Memory for n items with keys in 0 ... limit - 1. */
static int lm__sort_begin(lm__sorter *s, const char *op, int64_t n, int64_t limit) {
  void *p;
  *s = {};
  if (n > 0x7fffffff) return lm__fail(LM_EINVAL, "%s: more than 2^31 - 1 indices", op);
  s->op = op;
  s->n = n;
  s->limit = limit;
  s->tile = 256; /* a warp's; at most 1024 tiles, for the sum over all counts */
  while (s->tile * 1024 < n) s->tile *= 2;
  s->tiles = (n + s->tile - 1) / s->tile;
  const size_t items = (size_t)n * sizeof(lm__sort_item);
  LM__TRY(lm__cuda_scratch(op, &p, 2 * items + (size_t)(LM__DIGITS * s->tiles) * sizeof(int)));
  s->items = static_cast<lm__sort_item *>(p);
  s->other = s->items + n;
  s->counts = reinterpret_cast<int *>(s->other + n);
  return LM_OK;
}

static int lm__sort(lm__sorter *s) {
  for (int shift = 0; shift < 32 && (s->limit - 1) >> shift > 0; shift += 8) {
    LM__TRY(lm__launch({s->op, (unsigned)s->tiles, LM_WARP}, lm__sort_count, s->items, s->counts,
                       s->n, s->tile, s->tiles, shift));
    LM__TRY(
        lm__launch({s->op, 1, LM__SCAN_THREADS}, lm__sort_scan, s->counts, LM__DIGITS * s->tiles));
    LM__TRY(lm__launch({s->op, (unsigned)s->tiles, LM_WARP}, lm__sort_place, s->items, s->other,
                       s->counts, s->n, s->tile, s->tiles, shift));
    lm__sort_item *const sorted = s->other;
    s->other = s->items;
    s->items = sorted;
  }
  return LM_OK;
}

static void lm__sort_end(lm__sorter *s) {
  lm__cuda_scratch_free(s->items < s->other ? s->items : s->other);
}
} // namespace

#endif
