/* Which kernel makes the symmetric products: mma_bf16 (symmetric.cu), on every GPU, or wgmma_bf16
 * (symmetric_wgmma.cu), on those of compute capability 9.0. Before its first use in a process the
 * latter is compared with the former: results that differ must not reach anybody's weights. The
 * faster of the two on one product is taken from then on; in deterministic mode, mma_bf16. */
#include <stdio.h>

#include "backend/tuning.h"
#include "cuda/polar.cuh"
#include "cuda/symmetric.cuh"

namespace {
typedef int (*kernel_fn)(const char *, const lm__symmetric_args &, bool, unsigned);
const char MMA[] = "mma_bf16", WGMMA[] = "wgmma_bf16";

struct {
  bool asked_mma, asked_wgmma; /* by name */
  int agrees, faster;          /* -1: no, 0: not known, 1: yes */
  char note[128];
} state;

/* ---- the same results? ---- */

enum {
  M = 264,
  K = 136,
  COUNT = 2
}; /* tiles on, beside and beyond the diagonal, and their edges */

/* The largest difference of the two kernels, relative to 1 + |result|; negative: it failed. */
double difference(bool columns) {
  constexpr size_t operand = (size_t)COUNT * M * K, square = (size_t)COUNT * M * M;
  constexpr size_t inputs = 2 * operand + 2 * square, all = inputs + 2 * square;
  lm_bf16 *const host = static_cast<lm_bf16 *>(malloc(all * sizeof(lm_bf16)));
  void *device = nullptr;
  uint32_t random = 1;
  double worst = -1;
  if (!host) return worst;
  for (size_t i = 0; i < all; i++) { /* of the results: NaN, for what is not written */
    random = random * 1664525u + 1013904223u;
    host[i].bits =
        i < inputs ? lm_f32_to_bf16((float)(random >> 16) / 65536.0f - 0.5f) : (uint16_t)0xffff;
  }
  int status = lm__cuda_scratch("symmetric", &device, all * sizeof(lm_bf16));
  if (status == LM_OK) status = lm__cuda_write("symmetric", device, host, all * sizeof(lm_bf16));
  if (status == LM_OK) {
    lm_bf16 *const x = static_cast<lm_bf16 *>(device), *const d = x + 2 * operand;
    lm__symmetric_args a = {x, x + operand, d, d + square, x + inputs, M, K, 0.75f, 0.5f, -1.5f};
    status = lm__symmetric_mma("symmetric", a, columns, COUNT);
    a.out += square;
    if (status == LM_OK) status = lm__symmetric_wgmma("symmetric", a, columns, COUNT);
    if (status == LM_OK)
      status = lm__cuda_read("symmetric", host, x + inputs, 2 * square * sizeof(lm_bf16));
  }
  lm__cuda_scratch_free(device);
  if (status == LM_OK) worst = 0;
  for (size_t i = 0; i < square && status == LM_OK; i++) {
    const double want = lm_bf16_to_f32(host[i].bits), got = lm_bf16_to_f32(host[square + i].bits);
    const double off = fabs(got - want) / (1 + fabs(want));
    if (!(off <= worst)) worst = off; /* a NaN stays */
    if (worst != worst) break;
  }
  free(host);
  return worst;
}

bool usable() {
  if (lm__cuda_capability() != 90) return false;
  if (state.agrees == 0) {
    if (lm__cuda_graph_active()) return false; /* nothing can be waited for now */
    lm__cuda_graph_pause(true);
    double worst = 0;
    for (int columns = 0; columns < 2 && worst >= 0 && worst < 0.02; columns++)
      worst = difference(columns == 1);
    lm__cuda_graph_pause(false);
    state.agrees = worst >= 0 && worst < 0.02 ? 1 : -1;
    if (state.agrees < 0 && worst < 0)
      (void)snprintf(state.note, sizeof state.note, "%s could not be tried: not used", WGMMA);
    else if (state.agrees < 0)
      (void)snprintf(state.note, sizeof state.note, "%s differs from %s by %g here: not used",
                     WGMMA, MMA, worst);
  }
  return state.agrees > 0;
}

/* ---- the faster? ---- */

#ifdef LM_CUDA_EMULATED
enum { SIDE = 128, MATRICES = 1 }; /* quick; the emulated clock says that both take as long */
#else
enum { SIDE = 1024, MATRICES = 8 };
#endif

constexpr float CLEARLY = 0.87f; /* where times differ by less, noise would choose */

float milliseconds(kernel_fn kernel, const lm__symmetric_args &a, unsigned count, cudaEvent_t begin,
                   cudaEvent_t end) {
  float best = -1, ms;
  for (int round = 0; round < 4; round++) { /* the first warms up */
    if (cudaEventRecord(begin, lm__cuda_stream()) != cudaSuccess ||
        kernel("symmetric", a, false, count) != LM_OK ||
        cudaEventRecord(end, lm__cuda_stream()) != cudaSuccess ||
        cudaEventSynchronize(end) != cudaSuccess ||
        cudaEventElapsedTime(&ms, begin, end) != cudaSuccess)
      return -1;
    if (round > 0 && (best < 0 || ms < best)) best = ms;
  }
  return best;
}

bool faster() {
  if (state.faster == 0) {
    if (lm__cuda_graph_active()) return false;
    const int64_t shape[3] = {MATRICES, SIDE, SIDE};
    lm_tensor *x = nullptr, *out = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr;
    float mma = -1, wgmma = -1;
    if (lm_tensor_new(&x, LM_BF16, LM_CUDA, 3, shape) == LM_OK &&
        lm_tensor_new(&out, LM_BF16, LM_CUDA, 3, shape) == LM_OK &&
        lm__random_normal_cuda(x, 0, 1, 1, 1, 0) == LM_OK &&
        cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess) {
      const lm_bf16 *const data = lm__pointer<lm_bf16>(static_cast<const lm_tensor *>(x));
      const lm__symmetric_args a = {data, data, data,  nullptr, lm__pointer<lm_bf16>(out),
                                    SIDE, SIDE, 0.01f, 0.5f,    0};
      mma = milliseconds(lm__symmetric_mma, a, MATRICES, begin, end);
      wgmma = milliseconds(lm__symmetric_wgmma, a, MATRICES, begin, end);
    }
    if (begin) (void)cudaEventDestroy(begin);
    if (end) (void)cudaEventDestroy(end);
    lm_tensor_free(x);
    lm_tensor_free(out);
    state.faster = mma > 0 && wgmma > 0 && wgmma < CLEARLY * mma ? 1 : -1;
    if (state.faster < 0)
      (void)snprintf(state.note, sizeof state.note,
                     "%s is not clearly faster: %.3f against %.3f ms", WGMMA, (double)wgmma,
                     (double)mma);
  }
  return state.faster > 0;
}

bool takes_wgmma() {
  if (state.asked_mma) return false;
  if (state.asked_wgmma) return usable();
  return !lm_deterministic() && usable() && faster();
}
} // namespace

extern "C" const char *lm_gpu_muon_kernel(void) {
  return lm_cuda_selected() < 0 ? "" : takes_wgmma() ? WGMMA : MMA;
}
extern "C" const char *lm_gpu_muon_kernel_note(void) { return state.note; }

extern "C" int lm_set_gpu_muon_kernel(const char *name) {
  const char *const op = "set_gpu_muon_kernel";
  if (!name) return lm__fail(LM_EINVAL, "%s: the name is NULL (auto: the faster)", op);
  const bool mma = strcmp(name, MMA) == 0, wgmma = strcmp(name, WGMMA) == 0;
  if (!mma && !wgmma && strcmp(name, "auto") != 0)
    return lm__fail(LM_EINVAL, "%s: no kernel '%s' (auto, %s, %s)", op, name, MMA, WGMMA);
  if (lm_cuda_selected() < 0) return lm__fail(LM_EDEVICE, "%s: %s", op, lm_cuda_problem());
  if (wgmma && !usable())
    return lm__fail(LM_ENOTSUP, "%s: %s", op,
                    state.note[0] ? state.note : "wgmma_bf16 needs compute capability 9.0");
  state.asked_mma = mma;
  state.asked_wgmma = wgmma;
  lm__muon_forget(); /* what was measured was measured with another */
  return LM_OK;
}

double lm__symmetric_operations(const lm__symmetric_product *p) {
  const double elements =
      takes_wgmma() ? lm__symmetric_wgmma_elements(p->m) : lm__symmetric_mma_elements(p->m);
  return 2 * (double)(p->count * p->k) * elements;
}

int lm__symmetric_multiply(const char *op, const lm__symmetric_product *p) {
  const kernel_fn kernel = takes_wgmma() ? lm__symmetric_wgmma : lm__symmetric_mma;
  lm__symmetric_args a = {};
  a.left = static_cast<const lm_bf16 *>(p->left);
  a.right = static_cast<const lm_bf16 *>(p->right);
  a.d1 = static_cast<const lm_bf16 *>(p->d1);
  a.d2 = static_cast<const lm_bf16 *>(p->d2);
  a.out = static_cast<lm_bf16 *>(p->out);
  a.m = p->m, a.k = p->k;
  a.alpha = p->alpha, a.beta1 = p->beta1, a.beta2 = p->beta2;
  for (int64_t first = 0; first < p->count; first += 65535) { /* of a grid's second dim */
    const int64_t n = p->count - first < 65535 ? p->count - first : 65535;
    LM__TRY(kernel(op, a, p->columns, (unsigned)n));
    a.left += n * p->m * p->k;
    a.right += n * p->m * p->k;
    a.out += n * p->m * p->m;
    if (a.d1) a.d1 += n * p->m * p->m;
    if (a.d2) a.d2 += n * p->m * p->m;
  }
  return LM_OK;
}
