/* out = x + scale sigmoid(gate) y, one gate a row of the last dim;
 * with s = sigmoid(gate): grad_y = scale s grad, grad_gate = scale s (1 - s) sum(grad y). */
#include "cuda/reduce.cuh"
#include "cuda/walk.cuh"
#include "math/functions.h"

namespace {

enum { WARPS = LM_THREADS / LM_WARP };

struct gated {
  const void *gate;
  int dtype;
  int64_t columns;
  float scale;
  __device__ float operator()(int64_t i, const float *in) const {
    const int64_t row = i <= 0xffffffffLL && columns <= 0xffffffffLL
                            ? (int64_t)((uint32_t)i / (uint32_t)columns)
                            : i / columns;
    return in[1] + scale * lm_sigmoidf(lm__load(gate, dtype, row)) * in[2];
  }
};

/* A warp a row. */
template <class G, class Y>
LM_GLOBAL backward(void *grad_gate, int grad_gate_dtype, void *grad_y, int grad_y_dtype,
                   const G *grad, const void *gate, int gate_dtype, const Y *y, int64_t rows,
                   int64_t columns, float scale) {
  const int64_t warps = (int64_t)gridDim.x * WARPS;
  for (int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / LM_WARP; row < rows;
       row += warps) {
    const float s = lm_sigmoidf(lm__load(gate, gate_dtype, row)), factor = scale * s;
    float sum = 0;
    for (int64_t c = threadIdx.x % LM_WARP; c < columns; c += LM_WARP) {
      const int64_t i = row * columns + c;
      const float g = lm__to_float(grad[i]);
      sum += g * lm__to_float(y[i]);
      lm__store(grad_y, grad_y_dtype, i, factor * g);
    }
    sum = lm__warp_reduce<lm__sum>(sum);
    if (threadIdx.x % LM_WARP == 0)
      lm__store(grad_gate, grad_gate_dtype, row, factor * (1.0f - s) * sum);
  }
}
} // namespace

extern "C" int lm__gated_add_cuda(lm_tensor *out, const lm_tensor *x, const lm_tensor *gate,
                                  const lm_tensor *y, float scale) {
  const lm_tensor *const tensors[] = {out, x, y};
  return lm__map<3, false>("gated_add", tensors,
                           gated{lm__data(gate), gate->dtype, y->shape[y->ndim - 1], scale});
}

extern "C" int lm__gated_add_backward_cuda(lm_tensor *grad_gate, lm_tensor *grad_y,
                                           const lm_tensor *grad_out, const lm_tensor *gate,
                                           const lm_tensor *y, float scale) {
  const int64_t rows = lm__numel(gate), columns = y->shape[y->ndim - 1];
  return lm__by_float(grad_out->dtype, [&](auto g) {
    return lm__by_float(y->dtype, [&](auto v) {
      using G = decltype(g);
      using Y = decltype(v);
      return lm__launch({"gated_add_backward", lm__round_blocks(rows, WARPS), LM_THREADS},
                        backward<G, Y>, lm__data(grad_gate), grad_gate->dtype, lm__data(grad_y),
                        grad_y->dtype, lm__pointer<G>(grad_out), lm__data(gate), gate->dtype,
                        lm__pointer<Y>(y), rows, columns, scale);
    });
  });
}
