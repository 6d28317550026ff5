/* out = alpha op(a) op(b) + beta c for what cuBLASLt has no algorithm for (backend/cublaslt.h): a
 * thread an element, tiles of 16 x 16 in shared memory. Sums in f32, in order. */
#include "backend/cublaslt.h"

#include "cuda/kernel.cuh"

namespace {
constexpr int TILE = 16;

LM_GLOBAL multiply(lm__cuda_product p, int64_t across) {
  LM_SHARED(float, left, [TILE][TILE + 1]);
  LM_SHARED(float, right, [TILE][TILE + 1]);
  const int x = (int)threadIdx.x, y = (int)threadIdx.y;
  const int64_t row = blockIdx.x / across * TILE + y, col = blockIdx.x % across * TILE + x;
  for (int64_t matrix = blockIdx.y; matrix < p.batch; matrix += gridDim.y) {
    const int64_t a = matrix * p.stride_a, b = matrix * p.stride_b;
    float sum = 0;
    for (int64_t k = 0; k < p.k; k += TILE) {
      const bool has_a = row < p.m && k + x < p.k, has_b = col < p.n && k + y < p.k;
      const int64_t at_a = p.transpose_a ? (k + x) * p.lda + row : row * p.lda + k + x;
      const int64_t at_b = p.transpose_b ? col * p.ldb + k + y : (k + y) * p.ldb + col;
      left[y][x] = has_a ? lm__load(p.a, p.in, a + at_a) : 0.0f;
      right[y][x] = has_b ? lm__load(p.b, p.in, b + at_b) : 0.0f;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < TILE; i++) sum += left[y][i] * right[i][x];
      __syncthreads();
    }
    if (row >= p.m || col >= p.n) continue;
    float result = p.alpha * sum;
    if (p.beta != 0.0f)
      result += p.beta * lm__load(p.c, p.out_dtype, matrix * p.stride_c + row * p.ldc + col);
    lm__store(p.out, p.out_dtype, matrix * p.stride_out + row * p.ldo + col, result);
  }
}
} // namespace

extern "C" int lm__plain_product_cuda(const char *op, const lm__cuda_product *product) {
  lm__cuda_product p = *product;
  if (!p.c) p.c = p.out, p.ldc = p.ldo, p.stride_c = p.stride_out;
  const int64_t across = (p.n + TILE - 1) / TILE, down = (p.m + TILE - 1) / TILE;
  const dim3 grid(lm__blocks(across * down, 1), (unsigned)(p.batch < 65535 ? p.batch : 65535));
  return lm__launch({op, grid, dim3(TILE, TILE)}, multiply, p, across);
}
