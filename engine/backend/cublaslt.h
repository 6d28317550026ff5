/* Products on a GPU: what the backend asks of cuBLASLt. */
#ifndef LM_BACKEND_CUBLASLT_H
#define LM_BACKEND_CUBLASLT_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out = alpha op(a) op(b) + beta c for `batch` matrices, all row-major, op a transpose where asked
 * for: op(a) m x k, op(b) k x n, c and out m x n. A matrix's rows are ld elements apart, a batch's
 * matrices `stride` (0 in a or b: one for all). in: dtype of a and b; out_dtype: of c and out. f32
 * is multiplied as f32, never as TF32; sums are f32. beta 0: c is not read. c may be out (the same
 * elements in the same layout), NULL means so; out overlaps neither a nor b. */
typedef struct lm__cuda_product {
  int64_t m, n, k, batch;
  bool transpose_a, transpose_b;
  int in, out_dtype; /* LM_F32 or LM_BF16; f32 operands have an f32 result */
  const void *a, *b, *c;
  void *out;
  int64_t lda, ldb, ldc, ldo;
  int64_t stride_a, stride_b, stride_c, stride_out;
  float alpha, beta;
} lm__cuda_product;

/* Launch it on the stream. The way of computing is chosen once a shape and kept. */
int lm__cuda_multiply(const char *op, const lm__cuda_product *product);
/* The same without the library, slowly: for what it has no algorithm for. */
int lm__plain_product_cuda(const char *op, const lm__cuda_product *product);
/* Choose it without launching: whatever can be refused is refused here. */
int lm__cuda_multiply_prepare(const char *op, const lm__cuda_product *product);
/* "cuBLASLt 13.0.0", or "cuBLASLt missing: ..."; "" in a build without CUDA. */
const char *lm__cublaslt_describe(void);

#ifdef __cplusplus
}
#endif

#endif
