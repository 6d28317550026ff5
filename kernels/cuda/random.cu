/* t = numbers of a Philox stream: math/random.h says which. A thread a block of four. */
#include "cuda/walk.cuh"
#include "math/random.h"

namespace {

typedef struct numbers {
  bool normal;
  double low, high; /* or mean, std */
  float most;       /* see lm_random_most */
  uint64_t seed, stream, position;
} numbers;

LM_GLOBAL draw(lm__layout w, numbers r) {
  const uint64_t first = r.position / 4, skipped = r.position % 4;
  const int64_t blocks = (int64_t)((skipped + (uint64_t)w.n + 3) / 4);
  const double step = (r.high - r.low) * 0x1p-24;
  const bool whole = w.dtype[0] >= LM_I32;
  LM_GRID_STRIDE(b, blocks) {
    uint32_t words[4];
    float values[4];
    lm_philox(words, first + (uint64_t)b, r.stream, r.seed);
    if (r.normal) {
      for (int l = 0; l < 4; l += 2)
        lm_random_normal_pair(&values[l], &values[l + 1], words[l], words[l + 1], (float)r.low,
                              (float)r.high);
    } else {
      for (int l = 0; l < 4; l++) values[l] = lm_random_uniform_f32(words[l], r.low, step, r.most);
    }
    for (int l = 0; l < 4; l++) {
      const int64_t i = 4 * b + l - (int64_t)skipped;
      int64_t offset[1];
      if (i < 0 || i >= w.n) continue;
      lm__offsets<1>(w, i, offset);
      if (!whole) {
        lm__store(w.data[0], w.dtype[0], offset[0], values[l]);
        continue;
      }
      const int64_t value =
          lm_random_whole(words[l], (int64_t)r.low, (uint64_t)((int64_t)r.high - (int64_t)r.low));
      if (w.dtype[0] == LM_I32) /* exact, which f32 would not be */
        reinterpret_cast<int32_t *>(w.data[0])[offset[0]] = (int32_t)value;
      else if (w.dtype[0] == LM_U16)
        reinterpret_cast<uint16_t *>(w.data[0])[offset[0]] = (uint16_t)value;
      else
        reinterpret_cast<uint8_t *>(w.data[0])[offset[0]] = (uint8_t)value;
    }
  }
}

int fill(lm_tensor *t, const numbers &r) {
  const lm_tensor *const tensors[] = {t};
  const lm__layout w = lm__layout_of(1, tensors);
  if (w.n == 0) return LM_OK;
  return lm__launch({"random", lm__round_blocks(w.n / 4 + 2, LM_THREADS), LM_THREADS}, draw, w, r);
}
} // namespace

extern "C" int lm__random_uniform_cuda(lm_tensor *t, double low, double high, uint64_t seed,
                                       uint64_t stream, uint64_t position) {
  const float most = lm__is_float(t->dtype) ? lm_random_most(t->dtype, low, high) : (float)high;
  return fill(t, numbers{false, low, high, most, seed, stream, position});
}

extern "C" int lm__random_normal_cuda(lm_tensor *t, double mean, double std, uint64_t seed,
                                      uint64_t stream, uint64_t position) {
  return fill(t, numbers{true, mean, std, 0, seed, stream, position});
}
