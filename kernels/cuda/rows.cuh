/* Kernels over the rows of the last dim: so many threads a row, each with so many spans of
 * LM__SPAN elements in registers; where a row is longer than that, it is read in chunks. */
#ifndef LM_KERNELS_CUDA_ROWS_CUH
#define LM_KERNELS_CUDA_ROWS_CUH

#include "cuda/reduce.cuh"
#include "cuda/walk.cuh"

typedef struct lm__matrix {
  char *data;
  int64_t columns;
  int dtype;
  bool packed; /* whole spans, aligned: 16 bytes at once */
} lm__matrix;

static inline lm__matrix lm__matrix_of(const lm_tensor *t) {
  const int64_t columns = t->shape[t->ndim - 1];
  char *data = static_cast<char *>(lm__data(t));
  return {data, columns, t->dtype, columns % LM__SPAN == 0 && lm__is_aligned(data)};
}

/* x = elements from column `at` of a row, `nothing` past its end. */
LM_DEVICE void lm__load_columns(float (&x)[LM__SPAN], const lm__matrix &m, int64_t row, int64_t at,
                                float nothing) {
  if (m.packed && at < m.columns) {
    lm__load_span(x, m.data, m.dtype, row * m.columns + at);
    return;
  }
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++)
    x[j] = at + j < m.columns ? lm__load(m.data, m.dtype, row * m.columns + at + j) : nothing;
}
LM_DEVICE void lm__store_columns(const lm__matrix &m, int64_t row, int64_t at,
                                 const float (&x)[LM__SPAN]) {
  if (m.packed && at < m.columns) {
    lm__store_span(m.data, m.dtype, row * m.columns + at, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++)
    if (at + j < m.columns) lm__store(m.data, m.dtype, row * m.columns + at + j, x[j]);
}

/* Over the `group` threads of a row: a part of a warp, or the whole block of LM_THREADS. */
template <class Op, int group> LM_DEVICE float lm__row_reduce(float x, float nothing) {
  if constexpr (group == LM_THREADS) {
    return lm__block_reduce<Op, group>(x, nothing);
  } else {
    static_assert(group <= LM_WARP, "a part of a warp");
#pragma unroll
    for (int distance = group / 2; distance > 0; distance /= 2)
      x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
  }
}

template <int n> struct lm__number { static constexpr int value = n; };
/* Call f(group, spans) with what suits rows of so many columns, on the host: registers hold any row
 * up to 8192 columns. */
template <class F> static inline int lm__by_columns(int64_t columns, F f) {
  if (columns <= 8 * LM__SPAN) return f(lm__number<8>(), lm__number<1>());
  if (columns <= 16 * LM__SPAN) return f(lm__number<16>(), lm__number<1>());
  if (columns <= 32 * LM__SPAN) return f(lm__number<32>(), lm__number<1>());
  if (columns <= 128 * LM__SPAN) return f(lm__number<32>(), lm__number<4>());
  if (columns <= 256 * LM__SPAN) return f(lm__number<LM_THREADS>(), lm__number<1>());
  return f(lm__number<LM_THREADS>(), lm__number<4>());
}

/* The row of this thread, and where in each chunk its spans begin. */
template <int group> LM_DEVICE int64_t lm__my_row() {
  return (int64_t)blockIdx.x * (LM_THREADS / group) + threadIdx.x / group;
}
template <int group> LM_DEVICE int64_t lm__my_column(int span) {
  return ((int64_t)span * group + threadIdx.x % group) * LM__SPAN;
}

#endif
