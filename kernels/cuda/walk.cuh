/* Elementwise kernels over strided operands: index and broadcast arithmetic on the device. */
#ifndef LM_KERNELS_CUDA_WALK_CUH
#define LM_KERNELS_CUDA_WALK_CUH

#include "core/layout.h"
#include "cuda/kernel.cuh"

/* Offsets, in elements, of element i (row-major) in each operand. */
template <int operands>
LM_DEVICE void lm__offsets(const lm__layout &w, int64_t i, int64_t (&offset)[operands]) {
#pragma unroll
  for (int o = 0; o < operands; o++) offset[o] = 0;
  if (w.n <= 0xffffffffLL) { /* 32-bit division: several times faster */
    uint32_t rest = (uint32_t)i;
    for (int d = w.ndim - 1; d >= 0; d--) {
      const uint32_t size = (uint32_t)w.shape[d], at = d > 0 ? rest % size : rest;
      if (d > 0) rest /= size;
#pragma unroll
      for (int o = 0; o < operands; o++) offset[o] += (int64_t)at * w.strides[o][d];
    }
    return;
  }
  for (int d = w.ndim - 1; d >= 0; d--) {
    const int64_t at = d > 0 ? i % w.shape[d] : i;
    if (d > 0) i /= w.shape[d];
#pragma unroll
    for (int o = 0; o < operands; o++) offset[o] += at * w.strides[o][d];
  }
}

/* Elements that a thread takes at once where they lie side by side. */
enum { LM__SPAN = 8 };

/* LM__SPAN contiguous elements from element i, p aligned to 16 bytes (i a multiple of LM__SPAN). */
LM_DEVICE void lm__load_span(float (&x)[LM__SPAN], const void *p, int dtype, int64_t i) {
  if (dtype == LM_F32) {
    const lm__pack<float> a = lm__load_pack(static_cast<const float *>(p) + i);
    const lm__pack<float> b = lm__load_pack(static_cast<const float *>(p) + i + 4);
#pragma unroll
    for (int j = 0; j < 4; j++) x[j] = a.at[j], x[4 + j] = b.at[j];
  } else if (dtype == LM_BF16) {
    const lm__pack<lm_bf16> a = lm__load_pack(static_cast<const lm_bf16 *>(p) + i);
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) x[j] = lm__to_float(a.at[j]);
  } else {
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) x[j] = lm__load(p, dtype, i + j);
  }
}
LM_DEVICE void lm__store_span(void *p, int dtype, int64_t i, const float (&x)[LM__SPAN]) {
  if (dtype == LM_F32) {
    lm__pack<float> a, b;
#pragma unroll
    for (int j = 0; j < 4; j++) a.at[j] = x[j], b.at[j] = x[4 + j];
    lm__store_pack(static_cast<float *>(p) + i, a);
    lm__store_pack(static_cast<float *>(p) + i + 4, b);
  } else if (dtype == LM_BF16) {
    lm__pack<lm_bf16> a;
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) a.at[j] = lm__from_float<lm_bf16>(x[j]);
    lm__store_pack(static_cast<lm_bf16 *>(p) + i, a);
  } else {
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) lm__store(p, dtype, i + j, x[j]);
  }
}

/* Operand 0 = f(i, inputs): f is a struct of plain data with
 *   __device__ float operator()(int64_t i, const float *in) const
 * of which in[1] ... in[operands - 1] are the other operands' elements, and in[0], with reads_out,
 * what operand 0 holds. In the span form all operands are contiguous or one repeated element. */
template <int operands, bool reads_out, class F> LM_GLOBAL lm__map_strided(lm__layout w, F f) {
  LM_GRID_STRIDE(i, w.n) {
    int64_t offset[operands];
    float in[operands] = {};
    lm__offsets<operands>(w, i, offset);
#pragma unroll
    for (int o = reads_out ? 0 : 1; o < operands; o++)
      in[o] = lm__load(w.data[o], w.dtype[o], offset[o]);
    lm__store(w.data[0], w.dtype[0], offset[0], f(i, in));
  }
}
template <int operands, bool reads_out, class F> LM_GLOBAL lm__map_spans(lm__layout w, F f) {
  const int64_t spans = w.n / LM__SPAN;
  LM_GRID_STRIDE(s, spans) {
    float in[operands][LM__SPAN] = {}, out[LM__SPAN];
#pragma unroll
    for (int o = reads_out ? 0 : 1; o < operands; o++) {
      if (w.strides[o][0] == 0) { /* one element for all */
        const float x = lm__load(w.data[o], w.dtype[o], 0);
#pragma unroll
        for (int j = 0; j < LM__SPAN; j++) in[o][j] = x;
      } else {
        lm__load_span(in[o], w.data[o], w.dtype[o], s * LM__SPAN);
      }
    }
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      float one[operands];
#pragma unroll
      for (int o = 0; o < operands; o++) one[o] = in[o][j];
      out[j] = f(s * LM__SPAN + j, one);
    }
    lm__store_span(w.data[0], w.dtype[0], s * LM__SPAN, out);
  }
  const int64_t rest = spans * LM__SPAN + (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (rest < w.n) {
    float in[operands] = {};
#pragma unroll
    for (int o = reads_out ? 0 : 1; o < operands; o++)
      in[o] = lm__load(w.data[o], w.dtype[o], rest * w.strides[o][0]);
    lm__store(w.data[0], w.dtype[0], rest, f(rest, in));
  }
}

template <int operands, bool reads_out, class F>
static inline int lm__map(const char *op, const lm_tensor *const *tensors, F f) {
  const lm__layout w = lm__layout_of(operands, tensors);
  if (w.n == 0) return LM_OK;
  bool spans = w.ndim == 1 && w.strides[0][0] == 1;
  for (int o = 0; o < operands; o++)
    spans = spans && (w.strides[o][0] == 0 || (w.strides[o][0] == 1 && lm__is_aligned(w.data[o])));
  if (spans && w.n >= LM__SPAN)
    return lm__launch({op, lm__round_blocks(w.n / LM__SPAN, LM_THREADS), LM_THREADS},
                      lm__map_spans<operands, reads_out, F>, w, f);
  return lm__launch({op, lm__round_blocks(w.n, LM_THREADS), LM_THREADS},
                    lm__map_strided<operands, reads_out, F>, w, f);
}

#endif
