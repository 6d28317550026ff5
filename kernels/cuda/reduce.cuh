/* Sums and extremes over a warp or a block, in one order: the same bits at every run.
 *
 * All lanes (threads) call; all get the result. */
#ifndef LM_KERNELS_CUDA_REDUCE_CUH
#define LM_KERNELS_CUDA_REDUCE_CUH

#include "cuda/kernel.cuh"

struct lm__sum {
  template <class T> static __device__ __forceinline__ T join(T a, T b) { return a + b; }
};
struct lm__max { /* a NaN wins */
  static __device__ __forceinline__ float join(float a, float b) { return a > b || a != a ? a : b; }
};
struct lm__min {
  static __device__ __forceinline__ float join(float a, float b) { return a < b || a != a ? a : b; }
};

/* Lane pairs at distance 16, 8, ... 1: every lane ends with the same bits, a + b being b + a. */
template <class Op, class T> LM_DEVICE T lm__warp_reduce(T x) {
#pragma unroll
  for (int distance = LM_WARP / 2; distance > 0; distance /= 2)
    x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

/* block: threads of the block, a multiple of 32, known when compiling; nothing: Op's neutral
 * element. Holds two barriers, so that it may be called again at once. */
template <class Op, int block, class T> LM_DEVICE T lm__block_reduce(T x, T nothing) {
  static_assert(block % LM_WARP == 0 && block <= 1024, "whole warps");
  LM_SHARED(T, partial, [block / LM_WARP]);
  const int lane = (int)threadIdx.x % LM_WARP, warp = (int)threadIdx.x / LM_WARP;
  x = lm__warp_reduce<Op>(x);
  if (block == LM_WARP) return x;
  __syncthreads(); /* the last call's readers are through */
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  return lm__warp_reduce<Op>(lane < block / LM_WARP ? partial[lane] : nothing);
}

#endif
