/* What every CPU kernel file starts from.
 *
 * Each file here is compiled once a variant (base, avx2, avx512) with LM_VARIANT set, so that one
 * plain source serves every machine: loops are written for the compiler to vectorise, and a
 * kernel's name gets the variant behind it. Threads come from lm__parallel_for only.
 */
#ifndef LM_KERNELS_CPU_KERNEL_H
#define LM_KERNELS_CPU_KERNEL_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/error.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "math/float.h"

#define LM__JOIN2(a, b) a##_##b
#define LM__JOIN(a, b) LM__JOIN2(a, b)
/* LM_KERNEL(matmul) is lm__matmul_avx512 in the AVX-512 variant. */
#define LM_KERNEL(name) LM__JOIN(lm__##name, LM_VARIANT)

/* Vectorise a loop although it reorders a sum, or although the compiler cannot prove that it may.
 */
#define LM_SIMD _Pragma("omp simd")

/* Elements a range of an elementwise loop should have to be worth a thread. */
enum { LM__GRAIN = 1 << 14, LM__CHUNK = 512 };

/* n elements of dtype at src (stride in elements) as f32 at dst. */
static inline void lm__load(float *restrict dst, const void *restrict src, int dtype,
                            int64_t stride, int64_t n) {
  switch (dtype) {
#define LM__CASE(tag, type, to_float)                                                              \
  case tag: {                                                                                      \
    const type *p = src;                                                                           \
    if (stride == 1) {                                                                             \
      for (int64_t i = 0; i < n; i++) dst[i] = to_float(p[i]);                                     \
    } else {                                                                                       \
      for (int64_t i = 0; i < n; i++) dst[i] = to_float(p[i * stride]);                            \
    }                                                                                              \
  } break;
    LM__CASE(LM_F32, float, (float))
    LM__CASE(LM_BF16, uint16_t, lm_bf16_to_f32)
    LM__CASE(LM_F16, uint16_t, lm_f16_to_f32)
    LM__CASE(LM_I32, int32_t, (float))
    LM__CASE(LM_U16, uint16_t, (float))
    LM__CASE(LM_U8, uint8_t, (float))
#undef LM__CASE
    default:
      break;
  }
}

/* The other way; floats round to nearest even, integers truncate towards zero. */
static inline void lm__store(void *restrict dst, const float *restrict src, int dtype,
                             int64_t stride, int64_t n) {
  switch (dtype) {
#define LM__CASE(tag, type, from_float)                                                            \
  case tag: {                                                                                      \
    type *p = dst;                                                                                 \
    if (stride == 1) {                                                                             \
      for (int64_t i = 0; i < n; i++) p[i] = from_float(src[i]);                                   \
    } else {                                                                                       \
      for (int64_t i = 0; i < n; i++) p[i * stride] = from_float(src[i]);                          \
    }                                                                                              \
  } break;
    LM__CASE(LM_F32, float, (float))
    LM__CASE(LM_BF16, uint16_t, lm_f32_to_bf16)
    LM__CASE(LM_F16, uint16_t, lm_f32_to_f16)
    LM__CASE(LM_I32, int32_t, lm_f32_to_i32)
    LM__CASE(LM_U16, uint16_t, lm_f32_to_u16)
    LM__CASE(LM_U8, uint8_t, lm_f32_to_u8)
#undef LM__CASE
    default:
      break;
  }
}

/* The elements at p as f32: p itself if they are contiguous f32, else loaded into buffer. */
static inline const float *lm__as_f32(float *buffer, const void *p, int dtype, int64_t stride,
                                      int64_t n) {
  if (dtype == LM_F32 && stride == 1) return p;
  lm__load(buffer, p, dtype, stride, n);
  return buffer;
}

#include "cpu/prototypes.h"

#endif
