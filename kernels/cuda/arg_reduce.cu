/* out = index of the first largest or smallest element along a dim; a NaN counts as either. */
#include "cuda/kernel.cuh"

namespace {

enum { WARPS = LM_THREADS / LM_WARP };

typedef struct candidate {
  double value; /* holds every i32 exactly */
  int64_t at;   /* < 0: none */
} candidate;

LM_DEVICE candidate better(const candidate &a, const candidate &b, bool largest) {
  if (a.at < 0 || b.at < 0) return a.at < 0 ? b : a;
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan ? a : b;
  if (!a_nan && a.value != b.value) return (a.value > b.value) == largest ? a : b;
  return a.at < b.at ? a : b;
}

typedef struct job {
  const void *a;
  int32_t *out;
  int dtype, ndim;
  bool largest;
  int64_t n, outputs, stride, shape[LM_MAX_DIMS], strides[LM_MAX_DIMS], out_strides[LM_MAX_DIMS];
} job;

LM_DEVICE double load(const job &j, int64_t offset) {
  if (j.dtype == LM_I32) return (double)static_cast<const int32_t *>(j.a)[offset];
  return (double)lm__load(j.a, j.dtype, offset);
}

/* A warp a result. */
LM_GLOBAL find(job j) {
  const int64_t warps = (int64_t)gridDim.x * WARPS;
  for (int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / LM_WARP; i < j.outputs; i += warps) {
    int64_t from = 0, to = 0, rest = i;
    for (int d = j.ndim - 1; d >= 0; d--) {
      from += rest % j.shape[d] * j.strides[d];
      to += rest % j.shape[d] * j.out_strides[d];
      rest /= j.shape[d];
    }
    candidate best = {0, -1};
    for (int64_t k = threadIdx.x % LM_WARP; k < j.n; k += LM_WARP)
      best = better(best, candidate{load(j, from + k * j.stride), k}, j.largest);
    for (int distance = LM_WARP / 2; distance > 0; distance /= 2) {
      const double value = __shfl_xor_sync(0xffffffffu, best.value, distance);
      const long long at = __shfl_xor_sync(0xffffffffu, (long long)best.at, distance);
      best = better(best, candidate{value, at}, j.largest);
    }
    if (threadIdx.x % LM_WARP == 0) j.out[to] = (int32_t)best.at;
  }
}
} // namespace

extern "C" int lm__arg_reduce_cuda(lm_tensor *out, int op, const lm_tensor *a, int dim) {
  job j = {};
  j.a = lm__data(a);
  j.out = lm__pointer<int32_t>(out);
  j.dtype = a->dtype;
  j.ndim = out->ndim;
  j.largest = op == LM_MAX;
  j.n = a->shape[dim];
  j.outputs = lm__numel(out);
  j.stride = a->strides[dim];
  for (int d = 0; d < out->ndim; d++) {
    j.shape[d] = out->shape[d];
    j.strides[d] = a->strides[d];
    j.out_strides[d] = out->strides[d];
  }
  return lm__launch({"arg_reduce", lm__round_blocks(j.outputs, WARPS), LM_THREADS}, find, j);
}
