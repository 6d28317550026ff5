/* Maximum and sum of exp(z - maximum) in one pass, scaled anew whenever the maximum rises
 * (Milakov & Gimelshein 2018). NaNs are passed over by the maximum and end in the sum. */
#ifndef LM_KERNELS_CUDA_ONLINE_CUH
#define LM_KERNELS_CUDA_ONLINE_CUH

#include "cuda/rows.cuh"

struct lm__online {
  float most, sum;
};

/* exp by the device's own instruction: 2 ulp, and |x| / 2^24 of the result. */
LM_DEVICE float lm__exp(float x) { return __expf(x); }

/* What -Inf as a maximum is replaced by in exponents, so that nothing adds 0 instead of NaN. */
LM_DEVICE float lm__online_base(float most) { return most > -INFINITY ? most : 0.0f; }

LM_DEVICE void lm__online_add(lm__online &o, const float (&z)[LM__SPAN]) {
  float most = o.most, sum = 0;
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++) most = z[j] > most ? z[j] : most;
  const float base = lm__online_base(most);
#pragma unroll
  for (int j = 0; j < LM__SPAN; j++) sum += lm__exp(z[j] - base);
  o.sum = most > o.most && o.sum > 0 ? o.sum * lm__exp(o.most - most) + sum : o.sum + sum;
  o.most = most;
}

/* All threads of the row get the same. */
template <int group> LM_DEVICE lm__online lm__online_join(const lm__online &o) {
  const float most = lm__row_reduce<lm__max, group>(o.most, -INFINITY);
  const float sum = o.sum == 0 || o.most == most ? o.sum : o.sum * lm__exp(o.most - most);
  return {most, lm__row_reduce<lm__sum, group>(sum, 0.0f)};
}

#endif
