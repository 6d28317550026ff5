/* What every CUDA kernel file starts from. docs/cuda.md shows how one is written.
 *
 * A file OP.cu holds kernels and `extern "C" int lm__OP_cuda(...)`, declared in prototypes.h with
 * the signature of its entry in lm__backend_table. It is compiled by nvcc, or, in a build with
 * -DLUMUON_CUDA=emulated, by the C++ compiler against cuda/emulated/: so no <<<>>> (lm__launch), no
 * __shared__ (LM_SHARED), no inline assembly outside cuda/mma.cuh and this file.
 *
 * Same inputs, same bits: no atomic addition of floats, every sum in an order of its own.
 */
#ifndef LM_KERNELS_CUDA_KERNEL_CUH
#define LM_KERNELS_CUDA_KERNEL_CUH

#include "backend/cuda.h"
#include "core/error.h"
#include "core/tensor.h"
#include "cuda/prototypes.h"
#include "math/float.h"

#define LM_DEVICE static __device__ __forceinline__
#define LM_GLOBAL static __global__ void

/* `LM_SHARED(float, tile, [16][17]);` declares tile in a block's shared memory, and
 * `LM_DYNAMIC_SHARED(float, rows);` a pointer to the bytes that the launch asked for (aligned to
 * 128). Neither is zero at first. */
#ifndef LM_CUDA_EMULATED
#define LM_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define LM_DYNAMIC_SHARED(type, name)                                                              \
  extern __shared__ __align__(128) unsigned char lm__dynamic_shared[];                             \
  type *name = reinterpret_cast<type *>(lm__dynamic_shared)
#endif

enum { LM_WARP = 32, LM_THREADS = 256 }; /* threads of a block, where nothing speaks for others */

/* ---- launching ---- */

typedef struct lm__launch_shape {
  const char *op; /* as messages name it */
  dim3 grid, block;
  size_t shared = 0; /* bytes of dynamic shared memory */
} lm__launch_shape;

/* Run kernel(arguments...) on the stream; an error names the op. Arguments are converted to the
 * kernel's parameters, which are plain data: structs of at most 4 KB are fine. A grid without
 * blocks is nothing to do. */
template <class T> struct lm__same_type { typedef T type; };
template <class... P>
static inline int lm__launch(const lm__launch_shape &shape, void (*kernel)(P...),
                             typename lm__same_type<P>::type... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return LM_OK;
#ifdef LM_CUDA_EMULATED
  return lm__cuda_launched(shape.op,
                           lm_emulated_start<P...>(kernel, shape.grid, shape.block, shape.shared,
                                                   lm__cuda_stream(), arguments...));
#else
  if (shape.shared > 48 << 10) { /* more than any device gives unasked */
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared));
    if (error != cudaSuccess) return lm__cuda_launched(shape.op, error);
  }
  kernel<<<shape.grid, shape.block, shape.shared, lm__cuda_stream()>>>(arguments...);
  return lm__cuda_launched(shape.op, cudaPeekAtLastError());
#endif
}

/* Blocks for n items, so many a block. */
static inline unsigned lm__blocks(int64_t n, int64_t per_block) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff);
}
/* For kernels whose threads go round (LM_GRID_STRIDE): at most a few blocks a multiprocessor. */
static inline unsigned lm__round_blocks(int64_t n, int64_t per_block) {
  const unsigned blocks = lm__blocks(n, per_block), most = 16u * (unsigned)lm__cuda_processors();
  return blocks < most ? blocks : most;
}
#define LM_GRID_STRIDE(i, n)                                                                       \
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x,                                 \
               lm__stride_ = (int64_t)gridDim.x * blockDim.x;                                      \
       i < (n); i += lm__stride_)

/* ---- dtypes ---- */

typedef struct lm_bf16 {
  uint16_t bits;
} lm_bf16;
typedef struct lm_f16 {
  uint16_t bits;
} lm_f16;

LM_DEVICE float lm__to_float(float x) { return x; }
LM_DEVICE float lm__to_float(lm_bf16 x) { return lm_bf16_to_f32(x.bits); }
LM_DEVICE float lm__to_float(lm_f16 x) { return lm_f16_to_f32(x.bits); }
LM_DEVICE float lm__to_float(int32_t x) { return (float)x; }
LM_DEVICE float lm__to_float(uint16_t x) { return (float)x; }
LM_DEVICE float lm__to_float(uint8_t x) { return (float)x; }

/* lm__from_float<lm_bf16>(x): to nearest even; to integers towards zero. */
template <class T> LM_DEVICE T lm__from_float(float x);
template <> __device__ __forceinline__ float lm__from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ lm_bf16 lm__from_float<lm_bf16>(float x) {
#if defined(__CUDA_ARCH__)
  lm_bf16 y; /* one instruction */
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const lm_bf16 y = {lm_f32_to_bf16(x)};
  return y;
#endif
}
template <> __device__ __forceinline__ lm_f16 lm__from_float<lm_f16>(float x) {
  const lm_f16 y = {lm_f32_to_f16(x)};
  return y;
}
template <> __device__ __forceinline__ int32_t lm__from_float<int32_t>(float x) {
  return lm_f32_to_i32(x);
}
template <> __device__ __forceinline__ uint16_t lm__from_float<uint16_t>(float x) {
  return lm_f32_to_u16(x);
}
template <> __device__ __forceinline__ uint8_t lm__from_float<uint8_t>(float x) {
  return lm_f32_to_u8(x);
}

/* 2^x by the device's own instruction: 2 ulp, tiny results are 0. */
LM_DEVICE float lm__exp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#elif defined(LM_CUDA_EMULATED)
  return lm_emulated_exp2(x);
#else
  return exp2f(x);
#endif
}

/* Two floats as bf16 in one register, the first in its low half. */
LM_DEVICE uint32_t lm__pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#else
  return (uint32_t)lm_f32_to_bf16(low) | (uint32_t)lm_f32_to_bf16(high) << 16;
#endif
}
LM_DEVICE float lm__low_bf16(uint32_t pair) { return lm_bits_f32(pair << 16); }
LM_DEVICE float lm__high_bf16(uint32_t pair) { return lm_bits_f32(pair & 0xffff0000u); }

/* Element i of what lies at p in a dtype known at run time: the same branch in all threads. */
LM_DEVICE float lm__load(const void *p, int dtype, int64_t i) {
  switch (dtype) {
    case LM_F32:
      return static_cast<const float *>(p)[i];
    case LM_BF16:
      return lm__to_float(static_cast<const lm_bf16 *>(p)[i]);
    case LM_F16:
      return lm__to_float(static_cast<const lm_f16 *>(p)[i]);
    case LM_I32:
      return lm__to_float(static_cast<const int32_t *>(p)[i]);
    case LM_U16:
      return lm__to_float(static_cast<const uint16_t *>(p)[i]);
    default:
      return lm__to_float(static_cast<const uint8_t *>(p)[i]);
  }
}
LM_DEVICE void lm__store(void *p, int dtype, int64_t i, float x) {
  switch (dtype) {
    case LM_F32:
      static_cast<float *>(p)[i] = x;
      break;
    case LM_BF16:
      static_cast<lm_bf16 *>(p)[i] = lm__from_float<lm_bf16>(x);
      break;
    case LM_F16:
      static_cast<lm_f16 *>(p)[i] = lm__from_float<lm_f16>(x);
      break;
    case LM_I32:
      static_cast<int32_t *>(p)[i] = lm__from_float<int32_t>(x);
      break;
    case LM_U16:
      static_cast<uint16_t *>(p)[i] = lm__from_float<uint16_t>(x);
      break;
    default:
      static_cast<uint8_t *>(p)[i] = lm__from_float<uint8_t>(x);
      break;
  }
}

/* Call f(T()) with the C++ type of an f32 or bf16 tensor's elements, on the host:
 *   return lm__by_float(x->dtype, [&](auto zero) { using T = decltype(zero); ... }); */
template <class F> static inline int lm__by_float(int dtype, F f) {
  return dtype == LM_F32 ? f(float()) : f(lm_bf16());
}

template <class T> static inline T *lm__pointer(lm_tensor *t) {
  return static_cast<T *>(lm__data(t));
}
template <class T> static inline const T *lm__pointer(const lm_tensor *t) {
  return static_cast<const T *>(lm__data(t));
}

/* ---- 16 bytes at once ---- */

template <class T> struct alignas(16) lm__pack {
  enum { size = 16 / sizeof(T) };
  T at[size];
};
/* p aligned to 16 bytes; stores go to device memory. */
template <class T> LM_DEVICE lm__pack<T> lm__load_pack(const T *p) {
  const uint4 bits = *reinterpret_cast<const uint4 *>(p);
  lm__pack<T> pack;
  memcpy(&pack, &bits, sizeof pack);
  return pack;
}
template <class T> LM_DEVICE void lm__store_pack(T *p, const lm__pack<T> &pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
#if defined(__CUDA_ARCH__) /* as C++ the compiler may take it apart: seen in mixed dtypes */
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(bits.x), "r"(bits.y),
               "r"(bits.z), "r"(bits.w)
               : "memory");
#else
  *reinterpret_cast<uint4 *>(p) = bits;
#endif
}
static inline bool lm__is_aligned(const void *p, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

/* ---- reports: see backend/cuda.h ---- */

LM_DEVICE void lm__report_found(const lm__reporter &r, int kind, const char (&op)[32],
                                long long value, long long limit, long long position) {
  if (atomicCAS(r.taken, 0, 1) != 0) return;
  r.report->value = value;
  r.report->limit = limit;
  r.report->position = position;
  for (int i = 0; i < 32; i++) r.report->op[i] = op[i];
  __threadfence_system();
  *static_cast<volatile int *>(&r.report->kind) = kind;
}

#endif
