/* The emulated cuBLASLt: D = alpha op(A) op(B) + beta C, as the descriptors say. */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/emulated/internal.h"
#include "math/float.h"

enum { WORKSPACE = 512 }; /* that every product here asks for and writes to */

struct lm_emulated_lt {
  int nothing;
};
struct lm_emulated_lt_desc {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t transpose_a, transpose_b;
};
struct lm_emulated_lt_layout {
  cudaDataType type;
  int64_t rows, cols, ld, batch_stride;
  int32_t order, batch;
};
struct lm_emulated_lt_preference {
  uint64_t workspace;
  uint32_t alignment[4];
};

size_t cublasLtGetVersion(void) { return (size_t)CUBLAS_VER_MAJOR * 10000; }

const char *cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS         ? "success"
         : status == CUBLAS_STATUS_INVALID_VALUE ? "an unsupported value or parameter was passed"
         : status == CUBLAS_STATUS_NOT_SUPPORTED ? "the functionality requested is not supported"
                                                 : "the GPU program failed to execute";
}

/* ---- descriptors ---- */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
  *handle = calloc(1, sizeof **handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = calloc(1, sizeof **desc);
  (*desc)->compute = compute;
  (*desc)->scale = scale;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  free(desc);
  return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t put(void *field, size_t size, const void *value, size_t bytes) {
  if (!value || bytes != size) return CUBLAS_STATUS_INVALID_VALUE;
  memcpy(field, value, size);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t bytes) {
  switch (which) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return put(&desc->transpose_a, sizeof desc->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return put(&desc->transpose_b, sizeof desc->transpose_b, value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  *layout = calloc(1, sizeof **layout);
  **layout = (struct lm_emulated_lt_layout){
      .type = type, .rows = (int64_t)rows, .cols = (int64_t)cols, .ld = ld, .batch = 1};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  free(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t which,
                                                const void *value, size_t bytes) {
  switch (which) {
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return put(&layout->order, sizeof layout->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return put(&layout->batch, sizeof layout->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return put(&layout->batch_stride, sizeof layout->batch_stride, value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
  *preference = calloc(1, sizeof **preference);
  for (int i = 0; i < 4; i++) (*preference)->alignment[i] = 256;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  free(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t which,
                                                    const void *value, size_t bytes) {
  const int operand = (int)which - (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  if (which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
    return put(&preference->workspace, sizeof preference->workspace, value, bytes);
  if (operand < 0 || operand > 3) return CUBLAS_STATUS_INVALID_VALUE;
  return put(&preference->alignment[operand], sizeof preference->alignment[0], value, bytes);
}

/* ---- a product ---- */

typedef struct product {
  struct lm_emulated_lt_desc desc;
  struct lm_emulated_lt_layout layout[4]; /* A, B, C, D */
  const void *data[4];
  float alpha, beta;
  void *workspace;
} product;

static int64_t outer(const struct lm_emulated_lt_layout *l) {
  return l->order == CUBLASLT_ORDER_ROW ? l->rows : l->cols;
}
static int64_t inner(const struct lm_emulated_lt_layout *l) {
  return l->order == CUBLASLT_ORDER_ROW ? l->cols : l->rows;
}
static size_t size_of(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }
static float element(const product *p, int which, int64_t matrix, int64_t i, int64_t j) {
  const struct lm_emulated_lt_layout *l = &p->layout[which];
  const int64_t at =
      matrix * l->batch_stride + (l->order == CUBLASLT_ORDER_ROW ? i * l->ld + j : j * l->ld + i);
  return l->type == CUDA_R_32F ? ((const float *)p->data[which])[at]
                               : lm_bf16_to_f32(((const uint16_t *)p->data[which])[at]);
}

/* What the library refuses, and what the dims say. */
static cublasStatus_t check(const product *p, int64_t *m, int64_t *n, int64_t *k) {
  const struct lm_emulated_lt_layout *a = &p->layout[0], *b = &p->layout[1], *c = &p->layout[2],
                                     *d = &p->layout[3];
  *m = p->desc.transpose_a ? a->cols : a->rows;
  *k = p->desc.transpose_a ? a->rows : a->cols;
  *n = p->desc.transpose_b ? b->rows : b->cols;
  if (p->desc.scale != CUDA_R_32F || p->desc.compute != CUBLAS_COMPUTE_32F)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (a->type != b->type || c->type != d->type ||
      (a->type == CUDA_R_32F && d->type != CUDA_R_32F) ||
      (a->type != CUDA_R_32F && a->type != CUDA_R_16BF) ||
      (d->type != CUDA_R_32F && d->type != CUDA_R_16BF))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (*k != (p->desc.transpose_b ? b->cols : b->rows) || d->rows != *m || d->cols != *n ||
      c->rows != *m || c->cols != *n || *m < 1 || *n < 1 || *k < 1)
    return CUBLAS_STATUS_INVALID_VALUE;
  for (int i = 0; i < 4; i++) {
    const struct lm_emulated_lt_layout *l = &p->layout[i];
    if (l->ld < inner(l) || l->batch != d->batch || l->batch < 1 || l->order < 0 || l->order > 1)
      return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (d->batch > 1 && d->batch_stride < (outer(d) - 1) * d->ld + inner(d))
    return CUBLAS_STATUS_INVALID_VALUE;
  return CUBLAS_STATUS_SUCCESS;
}

static void one(const product *p, int64_t matrix, int64_t m, int64_t n, int64_t k, float *left,
                float *right, float *sum) {
  for (int64_t l = 0; l < k; l++)
    for (int64_t j = 0; j < n; j++)
      right[l * n + j] =
          p->desc.transpose_b ? element(p, 1, matrix, j, l) : element(p, 1, matrix, l, j);
  for (int64_t i = 0; i < m; i++) {
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t l = 0; l < k; l++)
      left[l] = p->desc.transpose_a ? element(p, 0, matrix, l, i) : element(p, 0, matrix, i, l);
    for (int64_t l = 0; l < k; l++) {
      const float x = left[l], *row = right + l * n;
      for (int64_t j = 0; j < n; j++) sum[j] += x * row[j];
    }
    for (int64_t j = 0; j < n; j++) {
      const struct lm_emulated_lt_layout *d = &p->layout[3];
      float y = p->alpha * sum[j];
      if (p->beta != 0.0f) y += p->beta * element(p, 2, matrix, i, j);
      const int64_t at = matrix * d->batch_stride +
                         (d->order == CUBLASLT_ORDER_ROW ? i * d->ld + j : j * d->ld + i);
      if (d->type == CUDA_R_32F)
        ((float *)(uintptr_t)p->data[3])[at] = y;
      else
        ((uint16_t *)(uintptr_t)p->data[3])[at] = lm_f32_to_bf16(y);
    }
  }
}

static cudaError_t run(const void *call) {
  const product *p = call;
  int64_t m = 0, n = 0, k = 0;
  (void)check(p, &m, &n, &k);
  lm_emulated_tick(0, 2.0 * (double)m * (double)n * (double)k * p->layout[3].batch);
  float *memory = malloc((size_t)(k * n + k + n) * sizeof *memory);
  lm_emulated_open();
  memset(p->workspace, 0xFF, WORKSPACE);
  for (int64_t matrix = 0; matrix < p->layout[3].batch; matrix++)
    one(p, matrix, m, n, k, memory + k * n, memory, memory + k * n + k);
  lm_emulated_close();
  free(memory);
  return cudaSuccess;
}

static product gather(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                      cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
  product p;
  memset(&p, 0, sizeof p); /* captured calls are compared byte by byte */
  p.desc = *desc;
  p.layout[0] = *a;
  p.layout[1] = *b;
  p.layout[2] = *c;
  p.layout[3] = *d;
  return p;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int asked,
                                              cublasLtMatmulHeuristicResult_t *results,
                                              int *found) {
  const product p = gather(desc, a, b, c, d);
  int64_t m = 0, n = 0, k = 0;
  const cublasStatus_t status = check(&p, &m, &n, &k);
  (void)handle;
  *found = 0;
  if (asked < 1) return CUBLAS_STATUS_INVALID_VALUE;
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const char *has = getenv("LUMUON_EMULATED_CUBLASLT");
  if (preference->workspace < WORKSPACE || (has && strcmp(has, "nothing") == 0))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  memset(results, 0, sizeof *results);
  results->workspaceSize = WORKSPACE;
  for (int i = 0; i < 4; i++) results->algo.data[i] = preference->alignment[i];
  results->algo.data[4] = (uint64_t)m;
  results->algo.data[5] = (uint64_t)n;
  results->algo.data[6] = (uint64_t)k;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

/* All elements of an operand's matrices in one block of device memory, first to last. */
static bool reachable(const void *data, const struct lm_emulated_lt_layout *l) {
  const int64_t last = (l->batch - 1) * l->batch_stride + (outer(l) - 1) * l->ld + inner(l);
  return lm_emulated_is_device(data) &&
         lm_emulated_may_touch(data, (size_t)last * size_of(l->type));
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream) {
  product p = gather(desc, a_layout, b_layout, c_layout, d_layout);
  int64_t m = 0, n = 0, k = 0;
  const cublasStatus_t status = check(&p, &m, &n, &k);
  const void *const data[4] = {a, b, c, d};
  if (lm_emulated_broken() || !handle) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  memcpy(&p.alpha, alpha, sizeof p.alpha);
  memcpy(&p.beta, beta, sizeof p.beta);
  memcpy(p.data, data, sizeof data);
  p.workspace = workspace;
  if (algo->data[4] != (uint64_t)m || algo->data[5] != (uint64_t)n || algo->data[6] != (uint64_t)k)
    return CUBLAS_STATUS_INVALID_VALUE; /* chosen for another product */
  if (workspace_bytes < WORKSPACE || !lm_emulated_may_touch(workspace, workspace_bytes))
    return CUBLAS_STATUS_INVALID_VALUE;
  for (int i = 0; i < 4; i++) {
    if (i == 2 && p.beta == 0.0f) continue;
    if ((uintptr_t)data[i] % algo->data[i] != 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (!reachable(data[i], &p.layout[i])) {
      char text[256];
      lm_emulated_describe(data[i], text, sizeof text);
      (void)lm_emulated_break(cudaErrorIllegalAddress, "a product's operand %c goes beyond %s",
                              "ABCD"[i], text);
      return CUBLAS_STATUS_EXECUTION_FAILED;
    }
  }
  if (d == a || d == b) return CUBLAS_STATUS_INVALID_VALUE;
  if (d == c && memcmp(&p.layout[2], &p.layout[3], sizeof p.layout[3]) != 0)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (lm_emulated_capture(stream, run, &p, sizeof p)) return CUBLAS_STATUS_SUCCESS;
  return run(&p) == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
