/* The two kernels of symmetric products, as symmetric.cu chooses among them. */
#ifndef LM_KERNELS_CUDA_SYMMETRIC_CUH
#define LM_KERNELS_CUDA_SYMMETRIC_CUH

#include "cuda/kernel.cuh"

/* out = alpha l r' + beta1 d1 + beta2 d2 (lm__symmetric_product), for the matrices of one launch.
 */
typedef struct lm__symmetric_args {
  const lm_bf16 *left, *right, *d1, *d2;
  lm_bf16 *out;
  int64_t m, k;
  float alpha, beta1, beta2;
} lm__symmetric_args;

/* Go to the block's matrix. */
LM_DEVICE void lm__symmetric_advance(lm__symmetric_args &p, int64_t matrix) {
  p.left += matrix * p.m * p.k;
  p.right += matrix * p.m * p.k;
  p.out += matrix * p.m * p.m;
  if (p.d1) p.d1 += matrix * p.m * p.m;
  if (p.d2) p.d2 += matrix * p.m * p.m;
}

/* Elements i and i + 1 of beta1 d1 + beta2 d2, added to a pair of results. */
LM_DEVICE void lm__symmetric_add(const lm__symmetric_args &p, int64_t i, float &low, float &high) {
  if (p.d1) {
    const uint32_t pair = *reinterpret_cast<const uint32_t *>(p.d1 + i);
    low += p.beta1 * lm__low_bf16(pair);
    high += p.beta1 * lm__high_bf16(pair);
  }
  if (p.d2) {
    const uint32_t pair = *reinterpret_cast<const uint32_t *>(p.d2 + i);
    low += p.beta2 * lm__low_bf16(pair);
    high += p.beta2 * lm__high_bf16(pair);
  }
}

/* `count` matrices, at most 65535: by mma.sync (symmetric.cu), by wgmma (symmetric_wgmma.cu). */
int lm__symmetric_mma(const char *op, const lm__symmetric_args &args, bool columns, unsigned count);
int lm__symmetric_wgmma(const char *op, const lm__symmetric_args &args, bool columns,
                        unsigned count);

/* Elements of an (m, m) result that they compute. */
double lm__symmetric_mma_elements(int64_t m);
double lm__symmetric_wgmma_elements(int64_t m);

#endif
