/* y = exp(x - max x) / sum exp(x - max x), over rows of the last dim. Bound by memory: up to 8192
 * columns a row is read once. */
#include "cuda/online.cuh"

namespace {

template <int group, int spans> LM_GLOBAL softmax(lm__matrix out, lm__matrix x, int64_t rows) {
  constexpr int64_t chunk = group * spans * LM__SPAN;
  const int64_t row = lm__my_row<group>(), columns = row < rows ? x.columns : 0;
  float z[spans][LM__SPAN];
  lm__online mine = {-INFINITY, 0};
  for (int64_t base = 0; base < columns; base += chunk)
#pragma unroll
    for (int s = 0; s < spans; s++) {
      const int64_t at = base + lm__my_column<group>(s);
      if (at >= columns) continue;
      lm__load_columns(z[s], x, row, at, -INFINITY);
      lm__online_add(mine, z[s]);
    }
  const lm__online whole = lm__online_join<group>(mine);
  const float inverse = 1.0f / whole.sum;
  for (int64_t base = 0; base < columns; base += chunk)
#pragma unroll
    for (int s = 0; s < spans; s++) {
      const int64_t at = base + lm__my_column<group>(s);
      if (at >= columns) continue;
      if (columns > chunk) lm__load_columns(z[s], x, row, at, -INFINITY);
#pragma unroll
      for (int j = 0; j < LM__SPAN; j++) z[s][j] = lm__exp(z[s][j] - whole.most) * inverse;
      lm__store_columns(out, row, at, z[s]);
    }
}
} // namespace

extern "C" int lm__softmax_cuda(lm_tensor *out, const lm_tensor *a) {
  const int64_t columns = a->shape[a->ndim - 1];
  if (columns == 0) return LM_OK;
  const int64_t rows = lm__numel(a) / columns;
  return lm__by_columns(columns, [&](auto group, auto spans) {
    constexpr int threads = decltype(group)::value;
    return lm__launch({"softmax", lm__blocks(rows, LM_THREADS / threads), LM_THREADS},
                      softmax<threads, decltype(spans)::value>, lm__matrix_of(out),
                      lm__matrix_of(a), rows);
  });
}
