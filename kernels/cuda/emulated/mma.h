/* cuda/mma.cuh by exchange between the lanes of a warp; documented there. */
#ifndef LM_EMULATED_MMA_H
#define LM_EMULATED_MMA_H

#include "cuda/kernel.cuh"

inline float lm_emulated_half(const void *slots, int lane, int reg, int half) {
  uint32_t pair;
  memcpy(&pair, (const char *)slots + (size_t)lane * LM_EMULATED_SLOT + (size_t)reg * 4, 4);
  return half ? lm_bits_f32(pair & 0xffff0000u) : lm_bits_f32(pair << 16);
}

LM_DEVICE void lm__mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const void *slots = lm_emulated_exchange("mma.sync", 0xffffffffu, mine, sizeof mine);
  const int lane = lm_emulated_lane_index();
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), col = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; k++)
      sum += lm_emulated_half(slots, row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2) *
             lm_emulated_half(slots, col * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    d[i] += sum;
  }
  lm_emulated_leave(slots);
}

template <bool transposed, int n>
LM_DEVICE void lm__load_matrices(uint32_t (&r)[n], const void *row) {
  static_assert(n == 2 || n == 4, "as mma.cuh has them");
  const int lane = lm_emulated_lane_index(), g = lane / 4, t = lane % 4;
  if (lane < 8 * n && (uintptr_t)row % 16 != 0)
    lm_emulated_fail("ldmatrix: row address %p is not aligned to 16 bytes", row);
  const void *slots = lm_emulated_exchange("ldmatrix", 0xffffffffu, &row, sizeof row);
  for (int m = 0; m < n; m++) {
    const char *rows[8];
    for (int i = 0; i < 8; i++)
      memcpy(&rows[i], (const char *)slots + (size_t)(8 * m + i) * LM_EMULATED_SLOT,
             sizeof rows[i]);
    if (transposed) {
      uint16_t low, high;
      memcpy(&low, rows[2 * t] + 2 * g, 2);
      memcpy(&high, rows[2 * t + 1] + 2 * g, 2);
      r[m] = (uint32_t)low | (uint32_t)high << 16;
    } else {
      memcpy(&r[m], rows[g] + 4 * t, 4);
    }
  }
  lm_emulated_leave(slots);
}

LM_DEVICE void lm__copy_async(void *shared, const void *global, bool there = true) {
  lm_emulated_copy_later(shared, global, 16, there ? 16 : 0);
}
LM_DEVICE void lm__commit_copies() { lm_emulated_commit_copies(); }
template <int but> LM_DEVICE void lm__wait_copies() { lm_emulated_wait_copies(but); }

#endif
