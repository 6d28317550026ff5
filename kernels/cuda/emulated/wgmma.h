/* cuda/wgmma.cuh by the CPU (emulated/wgmma.c); documented there. */
#ifndef LM_EMULATED_WGMMA_H
#define LM_EMULATED_WGMMA_H

#include "cuda/kernel.cuh"

LM_DEVICE uint32_t lm__shared_address(const void *shared) {
  return lm_emulated_shared_address(shared);
}
LM_DEVICE void lm__fence_async() { lm_emulated_fence_async(); }
LM_DEVICE void lm__wgmma_fence() { lm_emulated_wgmma_fence(); }
template <bool transposed> LM_DEVICE void lm__wgmma(float (&d)[128], uint64_t a, uint64_t b) {
  lm_emulated_wgmma(d, 128, a, b, transposed);
}
LM_DEVICE void lm__wgmma_commit() { lm_emulated_wgmma_commit(); }
template <int but> LM_DEVICE void lm__wgmma_wait() { lm_emulated_wgmma_wait(but); }
template <int but> LM_DEVICE void lm__wgmma_wait(float (&)[128]) { lm_emulated_wgmma_wait(but); }

#endif
