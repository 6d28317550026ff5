/* With R the rotation of rotary.cu and s r the factor of rms_norm.cu, r = 1 / sqrt(mean(x^2) +
 * eps): y = s r R x,  dx = s r (R' dy - x r^2 mean(x R' dy)). A rotation keeps the norm, so r comes
 * from x itself and neither R x nor its gradient is stored.
 *
 * Bound by memory: a head is read once, into registers, and written once; in bf16 the forward moves
 * 4 bytes an element, the backward 6. A thread has 8 channels of either half of a head, 16 bytes of
 * bf16; the tables (used by all heads and batch entries) come from the caches. Heads of more than
 * 4096 channels are read twice. */
#include "cuda/rows.cuh"

namespace {

struct turned_args {
  char *out;
  const char *x, *grad;
  const float *cos_table, *sin_table;
  int out_dtype, x_dtype, grad_dtype;
  bool packed; /* whole spans, aligned */
  int64_t rows, steps, heads, half;
  float eps, scale, inverse; /* 1 / channels */
};

/* Elements i.. of p, those from channel `at` of a half on; 0 past its end. */
LM_DEVICE void load(float (&x)[LM__SPAN], const turned_args &a, const void *p, int dtype, int64_t i,
                    int64_t at) {
  if (a.packed) {
    lm__load_span(x, p, dtype, i);
    return;
  }
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++) x[j] = at + j < a.half ? lm__load(p, dtype, i + j) : 0.0f;
}
LM_DEVICE void store(const turned_args &a, int64_t i, int64_t at, const float (&x)[LM__SPAN]) {
  if (a.packed) {
    lm__store_span(a.out, a.out_dtype, i, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++)
    if (at + j < a.half) lm__store(a.out, a.out_dtype, i + j, x[j]);
}

/* `group` threads a head. u, v: the halves of x; g, h: of R x, or of R' dy. */
template <int group, bool backward>
LM_GLOBAL __launch_bounds__(LM_THREADS, 2) rotary_norm(turned_args a) {
  constexpr int64_t chunk = group * LM__SPAN;
  const int64_t row = lm__my_row<group>(), half = row < a.rows ? a.half : 0;
  const int64_t first = row * 2 * a.half, angle = row / a.heads % a.steps * a.half;
  float u[LM__SPAN], v[LM__SPAN], g[LM__SPAN], h[LM__SPAN], squares = 0, products = 0;
  const auto read = [&](int64_t at) {
    float c[LM__SPAN], s[LM__SPAN];
    load(u, a, a.x, a.x_dtype, first + at, at);
    load(v, a, a.x, a.x_dtype, first + a.half + at, at);
    load(c, a, a.cos_table, LM_F32, angle + at, at);
    load(s, a, a.sin_table, LM_F32, angle + at, at);
    if constexpr (backward) {
      load(g, a, a.grad, a.grad_dtype, first + at, at);
      load(h, a, a.grad, a.grad_dtype, first + a.half + at, at);
    }
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      const float p = backward ? g[j] : u[j], q = backward ? h[j] : v[j];
      const float sine = backward ? -s[j] : s[j];
      g[j] = p * c[j] + q * sine;
      h[j] = q * c[j] - p * sine;
    }
  };
  for (int64_t at = lm__my_column<group>(0); at < half; at += chunk) {
    read(at);
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      squares += u[j] * u[j] + v[j] * v[j];
      if constexpr (backward) products += g[j] * u[j] + h[j] * v[j];
    }
  }
  squares = lm__row_reduce<lm__sum, group>(squares, 0.0f);
  if constexpr (backward) products = lm__row_reduce<lm__sum, group>(products, 0.0f);
  const float r = 1.0f / sqrtf(squares * a.inverse + a.eps), scale = a.scale * r;
  const float t = scale * r * r * products * a.inverse;
  for (int64_t at = lm__my_column<group>(0); at < half; at += chunk) {
    if (half > chunk) read(at);
#pragma unroll
    for (int j = 0; j < LM__SPAN; j++) {
      g[j] = scale * g[j] - (backward ? t * u[j] : 0.0f);
      h[j] = scale * h[j] - (backward ? t * v[j] : 0.0f);
    }
    store(a, first + at, at, g);
    store(a, first + a.half + at, at, h);
  }
}

template <bool backward> int launch(const char *op, const turned_args &a) {
  const auto with = [&](auto group) {
    constexpr int threads = decltype(group)::value;
    return lm__launch({op, lm__blocks(a.rows, LM_THREADS / threads), LM_THREADS},
                      rotary_norm<threads, backward>, a);
  };
  if (a.rows == 0) return LM_OK;
  if (a.half <= 4 * LM__SPAN) return with(lm__number<4>());
  if (a.half <= 8 * LM__SPAN) return with(lm__number<8>());
  if (a.half <= 16 * LM__SPAN) return with(lm__number<16>());
  if (a.half <= 32 * LM__SPAN) return with(lm__number<32>());
  return with(lm__number<LM_THREADS>());
}

turned_args pack(const lm_tensor *out, const lm_tensor *grad, const lm_tensor *x,
                 const lm_tensor *cos_table, const lm_tensor *sin_table, float eps, float scale) {
  turned_args a = {};
  a.out = static_cast<char *>(lm__data(out));
  a.x = lm__pointer<char>(x);
  a.grad = lm__pointer<char>(grad);
  a.cos_table = lm__pointer<float>(cos_table);
  a.sin_table = lm__pointer<float>(sin_table);
  a.out_dtype = out->dtype, a.x_dtype = x->dtype, a.grad_dtype = grad->dtype;
  a.steps = x->shape[1], a.heads = x->shape[2], a.half = x->shape[3] / 2;
  a.rows = a.half > 0 ? lm__numel(x) / (2 * a.half) : 0;
  a.eps = eps, a.scale = scale;
  a.inverse = 1.0f / (float)(2 * a.half);
  a.packed = a.half % LM__SPAN == 0 && lm__is_aligned(a.out) && lm__is_aligned(a.x) &&
             lm__is_aligned(a.grad) && lm__is_aligned(a.cos_table) && lm__is_aligned(a.sin_table);
  return a;
}
} // namespace

extern "C" int lm__rotary_norm_cuda(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                                    const lm_tensor *sin_table, float eps, float scale) {
  return launch<false>("rotary_norm", pack(out, x, x, cos_table, sin_table, eps, scale));
}

extern "C" int lm__rotary_norm_backward_cuda(lm_tensor *grad_x, const lm_tensor *grad_out,
                                             const lm_tensor *x, const lm_tensor *cos_table,
                                             const lm_tensor *sin_table, float eps, float scale) {
  return launch<true>("rotary_norm_backward",
                      pack(grad_x, grad_out, x, cos_table, sin_table, eps, scale));
}
