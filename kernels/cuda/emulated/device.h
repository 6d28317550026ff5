/* What a kernel's source uses of CUDA C++, for a C++ compiler: the other half of cuda_runtime.h. */
#ifndef LM_EMULATED_DEVICE_H
#define LM_EMULATED_DEVICE_H

#include <math.h>
#include <string.h>

#include <tuple>
#include <type_traits>

#include "cuda/emulated/threads.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define LM_EMULATED_VECTOR(type, scalar, n, ...)                                                   \
  struct alignas(sizeof(scalar) * n > 16 ? 16 : sizeof(scalar) * n) type {                         \
    scalar __VA_ARGS__;                                                                            \
  };
LM_EMULATED_VECTOR(float2, float, 2, x, y)
LM_EMULATED_VECTOR(float4, float, 4, x, y, z, w)
LM_EMULATED_VECTOR(double2, double, 2, x, y)
LM_EMULATED_VECTOR(int2, int, 2, x, y)
LM_EMULATED_VECTOR(int4, int, 4, x, y, z, w)
LM_EMULATED_VECTOR(uint2, unsigned, 2, x, y)
LM_EMULATED_VECTOR(uint4, unsigned, 4, x, y, z, w)
LM_EMULATED_VECTOR(ushort4, unsigned short, 4, x, y, z, w)
#undef LM_EMULATED_VECTOR
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

/* ---- who a thread is ---- */

#define threadIdx (lm_emulated_self->thread)
#define blockIdx (lm_emulated_grid.index)
#define blockDim (lm_emulated_grid.block)
#define gridDim (lm_emulated_grid.grid)
enum { warpSize = 32 };

/* ---- waiting for others ---- */

inline void __syncthreads() { lm_emulated_block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { lm_emulated_meet("__syncwarp", mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <class T> inline T lm_emulated_shuffle(const char *op, unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= LM_EMULATED_SLOT && std::is_trivially_copyable<T>::value);
  T result = value;
  const void *slots = lm_emulated_exchange(op, mask, &value, sizeof value);
  if (!(mask >> from & 1)) lm_emulated_fail("%s: lane %d is not in the mask %08x", op, from, mask);
  memcpy(&result, (const char *)slots + (size_t)from * LM_EMULATED_SLOT, sizeof result);
  lm_emulated_leave(slots);
  return result;
}
inline int lm_emulated_lane_index() { return (int)(lm_emulated_self->linear % 32); }
template <class T> inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int lane = lm_emulated_lane_index(), base = lane / width * width;
  return lm_emulated_shuffle("__shfl_sync", mask, value, base + (from & (width - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = lm_emulated_lane_index(), from = lane ^ bits;
  return lm_emulated_shuffle("__shfl_xor_sync", mask, value,
                             from / width <= lane / width ? from : lane);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = lm_emulated_lane_index(), from = lane + (int)by;
  return lm_emulated_shuffle("__shfl_down_sync", mask, value,
                             from / width == lane / width ? from : lane);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = lm_emulated_lane_index(), from = lane - (int)by;
  return lm_emulated_shuffle("__shfl_up_sync", mask, value,
                             from >= lane / width * width ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned votes = 0;
  const int mine = predicate != 0;
  const void *slots = lm_emulated_exchange("__ballot_sync", mask, &mine, sizeof mine);
  for (int i = 0; i < 32; i++) {
    int vote = 0;
    if (!(mask >> i & 1)) continue;
    memcpy(&vote, (const char *)slots + (size_t)i * LM_EMULATED_SLOT, sizeof vote);
    votes |= (unsigned)vote << i;
  }
  lm_emulated_leave(slots);
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline unsigned __activemask() { return 0xffffffffu; }
inline int __syncthreads_or(int predicate) { return lm_emulated_block_or(predicate); }

/* ---- atomics: threads run one at a time, and races.c does not look ---- */

#define LM_EMULATED_ATOMIC inline __attribute__((no_sanitize("thread")))
template <class T> LM_EMULATED_ATOMIC T lm_emulated_swap(T *p, T next) {
  const T before = *p;
  *p = next;
  return before;
}
template <class T> LM_EMULATED_ATOMIC T atomicAdd(T *p, T value) {
  return lm_emulated_swap(p, (T)(*p + value));
}
template <class T> LM_EMULATED_ATOMIC T atomicMax(T *p, T value) {
  return lm_emulated_swap(p, *p < value ? value : *p);
}
template <class T> LM_EMULATED_ATOMIC T atomicMin(T *p, T value) {
  return lm_emulated_swap(p, value < *p ? value : *p);
}
template <class T> LM_EMULATED_ATOMIC T atomicOr(T *p, T value) {
  return lm_emulated_swap(p, (T)(*p | value));
}
template <class T> LM_EMULATED_ATOMIC T atomicExch(T *p, T value) {
  return lm_emulated_swap(p, value);
}
template <class T> LM_EMULATED_ATOMIC T atomicCAS(T *p, T expected, T value) {
  return lm_emulated_swap(p, *p == expected ? value : *p);
}

/* ---- instructions ---- */

template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcs(const T *p) { return *p; }
template <class T> inline void __stcs(T *p, T value) { *p = value; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
/* The result of an instruction that is up to two ulp off: here it is, this way or that. Subnormals
 * are zeros. */
inline float lm_emulated_approximate(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  if (x == 1 || (u & 0x7f800000u) == 0x7f800000u) return x;
  u = u & 0x7f800000u ? u + (u * 2654435761u >> 16) % 5 - 2 : u & 0x80000000u;
  memcpy(&x, &u, sizeof x);
  return x;
}
inline float lm_emulated_exp2(float x) { return lm_emulated_approximate(exp2f(x)); }
inline float __fdividef(float a, float b) { return lm_emulated_approximate(a / b); }
inline float __expf(float x) { return lm_emulated_exp2(x * 1.44269504f); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline float __int_as_float(int x) {
  float y;
  memcpy(&y, &x, sizeof y);
  return y;
}
inline float __uint_as_float(unsigned x) {
  float y;
  memcpy(&y, &x, sizeof y);
  return y;
}
inline int __float_as_int(float x) {
  int y;
  memcpy(&y, &x, sizeof y);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  memcpy(&y, &x, sizeof y);
  return y;
}

/* ---- launching ---- */

template <class... P> struct lm_emulated_call {
  void (*kernel)(P...);
  std::tuple<P...> arguments;
  static void run(const void *self) {
    const lm_emulated_call *c = (const lm_emulated_call *)self;
    std::apply(c->kernel, c->arguments);
  }
};

template <class T> inline void lm_emulated_check_argument(const T &value) {
  if constexpr (std::is_pointer<T>::value) lm_emulated_check_pointer((const void *)value);
}

template <class... P>
inline cudaError_t lm_emulated_start(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                     cudaStream_t stream, P... arguments) {
  static_assert((std::is_trivially_copyable<P>::value && ...));
  const lm_emulated_call<P...> call = {kernel, std::tuple<P...>(arguments...)};
  const lm_emulated_size sizes[2] = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}};
  lm_emulated_begin_arguments();
  (lm_emulated_check_argument(arguments), ...);
  return lm_emulated_launch(lm_emulated_call<P...>::run, &call, sizeof call, sizes[0], sizes[1],
                            shared, stream);
}

/* Static shared memory: one array a block, found by the place of its declaration. */
#define LM_SHARED(type, name, ...)                                                                 \
  typedef type name##_shared_type __VA_ARGS__;                                                     \
  static lm_emulated_site name##_site = {0, NULL};                                                 \
  name##_shared_type &name = *(name##_shared_type *)lm_emulated_shared(                            \
      &name##_site, sizeof(name##_shared_type), alignof(name##_shared_type))
#define LM_DYNAMIC_SHARED(type, name) type *name = (type *)lm_emulated_dynamic_shared()

template <class... P> inline cudaError_t lm_emulated_allow_shared(void (*)(P...), size_t) {
  return cudaSuccess;
}

#endif
