/* y = s r x,  r = 1 / sqrt(mean(x^2) + eps), over rows of the last dim;
 * dx = s r (dy - x r^2 mean(dy x)).
 *
 * Bound by memory: a row is read once, into registers, and written once. In bf16 the forward moves
 * 4 bytes an element, the backward 6. */
#include "cuda/rows.cuh"

namespace {

struct norm_args {
  lm__matrix out, x, grad;
  int64_t rows;
  float eps, scale, inverse; /* 1 / columns */
};

template <int group, int spans, bool backward> LM_GLOBAL rms_norm(norm_args a) {
  constexpr int64_t chunk = group * spans * LM__SPAN;
  const int64_t row = lm__my_row<group>(), columns = row < a.rows ? a.x.columns : 0;
  float x[spans][LM__SPAN], g[backward ? spans : 1][LM__SPAN], squares = 0, products = 0;
  const auto load = [&](int64_t base) {
#pragma unroll
    for (int s = 0; s < spans; s++) {
      const int64_t at = base + lm__my_column<group>(s);
      if (at >= columns) continue;
      lm__load_columns(x[s], a.x, row, at, 0.0f);
      if constexpr (backward) lm__load_columns(g[s], a.grad, row, at, 0.0f);
    }
  };
  for (int64_t base = 0; base < columns; base += chunk) {
    load(base);
#pragma unroll
    for (int s = 0; s < spans; s++) {
      if (base + lm__my_column<group>(s) >= columns) continue;
#pragma unroll
      for (int j = 0; j < LM__SPAN; j++) {
        squares += x[s][j] * x[s][j];
        if constexpr (backward) products += x[s][j] * g[s][j];
      }
    }
  }
  squares = lm__row_reduce<lm__sum, group>(squares, 0.0f);
  if constexpr (backward) products = lm__row_reduce<lm__sum, group>(products, 0.0f);
  const float r = 1.0f / sqrtf(squares * a.inverse + a.eps), scale = a.scale * r;
  const float t = scale * r * r * products * a.inverse;
  for (int64_t base = 0; base < columns; base += chunk) {
    if (columns > chunk) load(base);
#pragma unroll
    for (int s = 0; s < spans; s++) {
      const int64_t at = base + lm__my_column<group>(s);
      if (at >= columns) continue;
#pragma unroll
      for (int j = 0; j < LM__SPAN; j++) {
        if constexpr (backward)
          x[s][j] = scale * g[s][j] - t * x[s][j];
        else
          x[s][j] *= scale;
      }
      lm__store_columns(a.out, row, at, x[s]);
    }
  }
}

template <bool backward> static int launch(const char *op, const norm_args &a) {
  return lm__by_columns(a.x.columns, [&](auto group, auto spans) {
    constexpr int threads = decltype(group)::value;
    return lm__launch({op, lm__blocks(a.rows, LM_THREADS / threads), LM_THREADS},
                      rms_norm<threads, decltype(spans)::value, backward>, a);
  });
}
} // namespace

extern "C" int lm__rms_norm_cuda(lm_tensor *out, const lm_tensor *x, float eps, float scale) {
  const int64_t columns = x->shape[x->ndim - 1];
  if (columns == 0) return LM_OK;
  return launch<false>("rms_norm", {lm__matrix_of(out), lm__matrix_of(x), lm__matrix_of(x),
                                    lm__numel(x) / columns, eps, scale, 1.0f / (float)columns});
}

extern "C" int lm__rms_norm_backward_cuda(lm_tensor *grad_x, const lm_tensor *grad_out,
                                          const lm_tensor *x, float eps, float scale) {
  const int64_t columns = x->shape[x->ndim - 1];
  if (columns == 0) return LM_OK;
  return launch<true>("rms_norm_backward",
                      {lm__matrix_of(grad_x), lm__matrix_of(x), lm__matrix_of(grad_out),
                       lm__numel(x) / columns, eps, scale, 1.0f / (float)columns});
}
