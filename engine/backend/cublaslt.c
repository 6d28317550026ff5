/* cuBLASLt, loaded when the first product is asked for: a binary built with CUDA starts where the
 * library is not.
 *
 * A row-major matrix is its transpose in cuBLASLt's column-major terms, so that out' = op(b)'
 * op(a)' needs no copies: our b is its A, our a its B. What a shape needs (descriptors, layouts,
 * the algorithm the library's heuristics choose) is made once and kept. Alpha and beta are the
 * host's and read at the call. */
#include "backend/cublaslt.h"

#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda_memory.h"
#include "backend/library.h"
#include "core/error.h"

enum { WORKSPACE = 32 << 20, PLANS = 1024, PROBES = 8, ALIGNMENT = 256 };

/* ---- the library ---- */

#define FUNCTIONS(F)                                                                               \
  F(cublasLtGetVersion)                                                                            \
  F(cublasLtGetStatusString)                                                                       \
  F(cublasLtCreate)                                                                                \
  F(cublasLtMatmulDescCreate)                                                                      \
  F(cublasLtMatmulDescDestroy)                                                                     \
  F(cublasLtMatmulDescSetAttribute)                                                                \
  F(cublasLtMatrixLayoutCreate)                                                                    \
  F(cublasLtMatrixLayoutDestroy)                                                                   \
  F(cublasLtMatrixLayoutSetAttribute)                                                              \
  F(cublasLtMatmulPreferenceCreate)                                                                \
  F(cublasLtMatmulPreferenceDestroy)                                                               \
  F(cublasLtMatmulPreferenceSetAttribute)                                                          \
  F(cublasLtMatmulAlgoGetHeuristic)                                                                \
  F(cublasLtMatmul)

static struct {
  bool tried;
  char problem[384], text[448];
  cublasLtHandle_t handle;
  void *workspace;
#define FIELD(name) __typeof__(name) *name;
  FUNCTIONS(FIELD)
#undef FIELD
} lt;

#ifdef LM_CUDA_EMULATED

static bool load(void) {
  const char *missing = getenv("LUMUON_EMULATED_CUBLASLT");
  if (missing && strcmp(missing, "none") == 0) return false;
#define TAKE(name) lt.name = name;
  FUNCTIONS(TAKE)
#undef TAKE
  return true;
}

#else

static bool take(void *library) {
  bool all = true;
#define TAKE(name) all = lm__library_function(library, #name, (void *)&lt.name) && all;
  FUNCTIONS(TAKE)
#undef TAKE
  return all;
}

static bool load(void) {
  static const char *const packages[] = {"cu*", "cublas", NULL};
  char file[32];
  const lm__library library = {file, "LUMUON_CUBLASLT", packages};
  (void)snprintf(file, sizeof file, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
  return lm__library_load(&library, take);
}

#endif

static bool start(void) {
  if (lt.tried) return !lt.problem[0];
  lt.tried = true;
  if (!load()) {
    (void)snprintf(lt.problem, sizeof lt.problem,
                   "libcublasLt.so.%d is not found (by the loader, in CUDA_HOME, /usr/local/cuda "
                   "and Python's nvidia packages); install CUDA's libcublas, or set "
                   "LUMUON_CUBLASLT to the file",
                   CUBLAS_VER_MAJOR);
    return false;
  }
  const cublasStatus_t status = lt.cublasLtCreate(&lt.handle);
  const size_t version = lt.cublasLtGetVersion();
  if (status != CUBLAS_STATUS_SUCCESS)
    (void)snprintf(lt.problem, sizeof lt.problem, "cuBLASLt does not start: %s",
                   lt.cublasLtGetStatusString(status));
  (void)snprintf(lt.text, sizeof lt.text, "cuBLASLt %zu.%zu.%zu", version / 10000,
                 version / 100 % 100, version % 100);
  return !lt.problem[0];
}

const char *lm__cublaslt_describe(void) {
  if (!start()) (void)snprintf(lt.text, sizeof lt.text, "cuBLASLt missing: %s", lt.problem);
  return lt.text;
}

/* ---- plans ---- */

/* All that a plan depends on, compared byte by byte: no padding. */
typedef struct key {
  int64_t m, n, k, batch, ld[4], stride[4];
  int32_t transpose_a, transpose_b, in, out, alignment[4];
} key;

typedef struct plan {
  bool made, plain; /* plain: the library has no algorithm, plain_product.cu does it */
  key key;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t layout[4]; /* of cuBLASLt's A, B, C, D */
  cublasLtMatmulAlgo_t algo;
  size_t workspace;
} plan;

static plan plans[PLANS];

static int32_t alignment(const void *p) {
  const uintptr_t address = (uintptr_t)p;
  const uintptr_t lowest = address & (~address + 1);
  return address == 0 || lowest > ALIGNMENT ? ALIGNMENT : (int32_t)lowest;
}

static key key_of(const lm__cuda_product *p, const void *c) {
  key k;
  memset(&k, 0, sizeof k);
  k.m = p->n, k.n = p->m, k.k = p->k, k.batch = p->batch;
  k.ld[0] = p->ldb, k.ld[1] = p->lda, k.ld[2] = c == p->out ? p->ldo : p->ldc, k.ld[3] = p->ldo;
  if (p->batch > 1) {
    k.stride[0] = p->stride_b, k.stride[1] = p->stride_a;
    k.stride[2] = c == p->out ? p->stride_out : p->stride_c, k.stride[3] = p->stride_out;
  }
  k.transpose_a = p->transpose_b, k.transpose_b = p->transpose_a;
  k.in = p->in, k.out = p->out_dtype;
  k.alignment[0] = alignment(p->b), k.alignment[1] = alignment(p->a);
  k.alignment[2] = alignment(c), k.alignment[3] = alignment(p->out);
  return k;
}

static uint64_t hash(const key *k) {
  const unsigned char *bytes = (const unsigned char *)k;
  uint64_t h = 1469598103934665603u; /* FNV-1a */
  for (size_t i = 0; i < sizeof *k; i++) h = (h ^ bytes[i]) * 1099511628211u;
  return h ^ h >> 32;
}

static void forget(plan *p) {
  for (int i = 0; i < 4; i++)
    if (p->layout[i]) (void)lt.cublasLtMatrixLayoutDestroy(p->layout[i]);
  if (p->desc) (void)lt.cublasLtMatmulDescDestroy(p->desc);
  memset(p, 0, sizeof *p);
}

static cudaDataType data_type(int dtype) { return dtype == LM_F32 ? CUDA_R_32F : CUDA_R_16BF; }

#define TRY(call)                                                                                  \
  do {                                                                                             \
    const cublasStatus_t status_ = (call);                                                         \
    if (status_ != CUBLAS_STATUS_SUCCESS) return status_;                                          \
  } while (0)

static cublasStatus_t make_layout(cublasLtMatrixLayout_t *layout, const key *k, int which,
                                  int64_t rows, int64_t cols) {
  const int32_t batch = (int32_t)k->batch;
  TRY(lt.cublasLtMatrixLayoutCreate(layout, data_type(which < 2 ? k->in : k->out), (uint64_t)rows,
                                    (uint64_t)cols, k->ld[which]));
  if (batch == 1) return CUBLAS_STATUS_SUCCESS;
  TRY(lt.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                          sizeof batch));
  return lt.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                             &k->stride[which], sizeof k->stride[which]);
}

static cublasStatus_t choose(plan *p, cublasLtMatmulPreference_t preference) {
  const uint64_t most = WORKSPACE;
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  TRY(lt.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &most, sizeof most));
  for (int i = 0; i < 4; i++) {
    const uint32_t bytes = (uint32_t)p->key.alignment[i];
    TRY(lt.cublasLtMatmulPreferenceSetAttribute(
        preference,
        (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i),
        &bytes, sizeof bytes));
  }
  TRY(lt.cublasLtMatmulAlgoGetHeuristic(lt.handle, p->desc, p->layout[0], p->layout[1],
                                        p->layout[2], p->layout[3], preference, 1, &result,
                                        &found));
  if (found < 1) return CUBLAS_STATUS_NOT_SUPPORTED;
  p->algo = result.algo;
  p->workspace = result.workspaceSize;
  return result.state;
}

static cublasStatus_t make(plan *p) {
  const key *k = &p->key;
  const int32_t ops[2] = {k->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                          k->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N};
  cublasLtMatmulPreference_t preference = NULL;
  TRY(lt.cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  TRY(lt.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &ops[0],
                                        sizeof ops[0]));
  TRY(lt.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &ops[1],
                                        sizeof ops[1]));
  TRY(make_layout(&p->layout[0], k, 0, k->transpose_a ? k->k : k->m, k->transpose_a ? k->m : k->k));
  TRY(make_layout(&p->layout[1], k, 1, k->transpose_b ? k->n : k->k, k->transpose_b ? k->k : k->n));
  TRY(make_layout(&p->layout[2], k, 2, k->m, k->n));
  TRY(make_layout(&p->layout[3], k, 3, k->m, k->n));
  TRY(lt.cublasLtMatmulPreferenceCreate(&preference));
  const cublasStatus_t status = choose(p, preference);
  (void)lt.cublasLtMatmulPreferenceDestroy(preference);
  return status;
}

static int refused(const char *op, const lm__cuda_product *p, cublasStatus_t status) {
  return lm__fail(LM_EDEVICE,
                  "%s: cuBLASLt refuses a product of %lld x %lld and %lld x %lld (%lld of them, %s "
                  "to %s): %s",
                  op, (long long)p->m, (long long)p->k, (long long)p->k, (long long)p->n,
                  (long long)p->batch, p->in == LM_F32 ? "f32" : "bf16",
                  p->out_dtype == LM_F32 ? "f32" : "bf16", lt.cublasLtGetStatusString(status));
}

/* The plan of a product, made if it is the first of its kind. */
static int find(const char *op, const lm__cuda_product *product, const void *c, plan **out) {
  const key k = key_of(product, c);
  const uint64_t h = hash(&k);
  plan *taken = &plans[h % PLANS];
  if (!start()) return lm__fail(LM_EDEVICE, "%s: no products on the GPU: %s", op, lt.problem);
  if (!lt.workspace) LM__TRY(lm__cuda_keep(op, &lt.workspace, WORKSPACE));
  for (unsigned i = 0; i < PROBES; i++) {
    plan *p = &plans[(h + i) % PLANS];
    if (!p->made) {
      taken = p;
      break;
    }
    if (memcmp(&p->key, &k, sizeof k) == 0) {
      *out = p;
      return LM_OK;
    }
  }
  forget(taken);
  taken->key = k;
  const cublasStatus_t status = make(taken);
  if (status != CUBLAS_STATUS_SUCCESS) forget(taken);
  if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED)
    return refused(op, product, status);
  taken->key = k;
  taken->plain = status != CUBLAS_STATUS_SUCCESS;
  taken->made = true;
  *out = taken;
  return LM_OK;
}

static const void *addend(const lm__cuda_product *p) { return p->c ? p->c : p->out; }

int lm__cuda_multiply_prepare(const char *op, const lm__cuda_product *p) {
  plan *ignored = NULL;
  return find(op, p, addend(p), &ignored);
}

int lm__cuda_multiply(const char *op, const lm__cuda_product *p) {
  const void *c = addend(p);
  plan *way = NULL;
  LM__TRY(find(op, p, c, &way));
  if (way->plain) return lm__plain_product_cuda(op, p);
  const cublasStatus_t status =
      lt.cublasLtMatmul(lt.handle, way->desc, &p->alpha, p->b, way->layout[0], p->a, way->layout[1],
                        &p->beta, c, way->layout[2], p->out, way->layout[3], &way->algo,
                        lt.workspace, WORKSPACE, lm__cuda_stream());
  if (status == CUBLAS_STATUS_SUCCESS) return lm__cuda_launched(op, cudaSuccess);
  const cudaError_t error = cudaPeekAtLastError(); /* an earlier kernel's fault, perhaps */
  return error == cudaSuccess ? refused(op, p, status) : lm__cuda_check(op, error);
}
