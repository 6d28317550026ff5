/* y1 = x1 cos + x2 sin,  y2 = -x1 sin + x2 cos  (inverse: sin changes sign);
 * x1, x2 the halves of a head's channels, cos and sin of the position.
 *
 * Bound by memory: a thread takes 8 pairs, 16 bytes a side in bf16; the tables (half / 2 KB a
 * position in f32, used by all heads and batch entries) come from the L2 cache. */
#include "cuda/walk.cuh"

namespace {

struct rotary_args {
  char *out;
  const char *x;
  const float *cos_table, *sin_table;
  int out_dtype, x_dtype;
  int64_t n; /* pairs, or spans of them */
  int64_t steps, heads, half;
  float sign;
};

template <bool spans> LM_GLOBAL rotary(rotary_args a) {
  constexpr int width = spans ? LM__SPAN : 1;
  LM_GRID_STRIDE(i, a.n) {
    const int64_t pair = i * width, head = pair / a.half, channel = pair - head * a.half;
    const int64_t first = head * 2 * a.half + channel, second = first + a.half;
    const int64_t angle = head / a.heads % a.steps * a.half + channel;
    if constexpr (spans) {
      float u[LM__SPAN], v[LM__SPAN], c[LM__SPAN], s[LM__SPAN];
      lm__load_span(u, a.x, a.x_dtype, first);
      lm__load_span(v, a.x, a.x_dtype, second);
      lm__load_span(c, a.cos_table, LM_F32, angle);
      lm__load_span(s, a.sin_table, LM_F32, angle);
#pragma unroll
      for (int j = 0; j < LM__SPAN; j++) {
        const float sine = a.sign * s[j], y = u[j] * c[j] + v[j] * sine;
        v[j] = v[j] * c[j] - u[j] * sine;
        u[j] = y;
      }
      lm__store_span(a.out, a.out_dtype, first, u);
      lm__store_span(a.out, a.out_dtype, second, v);
    } else {
      const float u = lm__load(a.x, a.x_dtype, first), v = lm__load(a.x, a.x_dtype, second);
      const float c = a.cos_table[angle], sine = a.sign * a.sin_table[angle];
      lm__store(a.out, a.out_dtype, first, u * c + v * sine);
      lm__store(a.out, a.out_dtype, second, v * c - u * sine);
    }
  }
}
} // namespace

extern "C" int lm__rotary_cuda(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                               const lm_tensor *sin_table, int inverse) {
  rotary_args a = {lm__pointer<char>(out),
                   lm__pointer<char>(x),
                   lm__pointer<float>(cos_table),
                   lm__pointer<float>(sin_table),
                   out->dtype,
                   x->dtype,
                   lm__numel(x) / 2,
                   x->shape[1],
                   x->shape[2],
                   x->shape[3] / 2,
                   inverse ? -1.0f : 1.0f};
  if (a.n == 0) return LM_OK;
  const bool spans = a.half % LM__SPAN == 0 && lm__is_aligned(a.out) && lm__is_aligned(a.x) &&
                     lm__is_aligned(a.cos_table) && lm__is_aligned(a.sin_table);
  if (spans) a.n /= LM__SPAN;
  return lm__launch({"rotary", lm__round_blocks(a.n, LM_THREADS), LM_THREADS},
                    spans ? rotary<true> : rotary<false>, a);
}
