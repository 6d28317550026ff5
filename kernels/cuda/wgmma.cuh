/* Products of a warpgroup: four warps, the first of them a multiple of four, that all call each
 * function together. On GPUs of compute capability 9.0 alone: files that use this are in CUDA_SM90A
 * (cmake/cuda.cmake), and hold code for it where LM__HAS_WGMMA is 1.
 *
 * Operands lie in shared memory, in pieces of 8 rows of 128 bytes that begin at multiples of 1024;
 * of row r of a piece the 16 bytes that belong at place p lie at place p ^ r. A row is 64 elements
 * of the inner dim (rows x inner, as weights lie), the pieces below it `stride` bytes apart; or,
 * transposed, of the rows' dim (inner x rows), with `stride` bytes from 8 of the inner dim to the
 * next 8 and `leading` bytes from 64 rows to the next 64. A product takes 16 of the inner dim: the
 * next 16 begin 32 bytes, or, transposed, 16 rows of 128 bytes further on.
 *
 * d (64 x 256, f32): lane 4 g + t of warp w has d[4 j + 2 h + e] = (16 w + g + 8 h, 8 j + 2 t + e).
 */
#ifndef LM_KERNELS_CUDA_WGMMA_CUH
#define LM_KERNELS_CUDA_WGMMA_CUH

#include "cuda/mma.cuh"

#ifdef LM_CUDA_EMULATED
#define LM__HAS_WGMMA 1
#include "cuda/emulated/wgmma.h"
#else

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LM__HAS_WGMMA 1
#else
#define LM__HAS_WGMMA 0
#endif

/* What this thread has written to shared memory, by stores and finished copies, is there for
 * products issued after the next barrier. */
LM_DEVICE void lm__fence_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

/* Before the first product, and the first after accumulators were read or written. */
LM_DEVICE void lm__wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

/* Begin d += a b': a has 64 rows, b 256. Neither d nor the operands are to be touched before it is
 * waited for; other products may add to d. */
template <bool transposed> LM_DEVICE void lm__wgmma(float (&d)[128], uint64_t a, uint64_t b) {
  // clang-format off
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, add, 1, 1, %131, %131;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
        "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
        "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
        "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
        "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
        "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]),
        "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
        "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
        "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]),
        "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
        "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]),
        "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
        "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
        "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
        "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]),
        "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
        "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]),
        "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
        "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]),
        "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
        "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]),
        "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
        "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]),
        "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(a), "l"(b), "n"(1), "n"(transposed ? 1 : 0));
  // clang-format on
}
/* The products that this warpgroup began since the last commit are one group. */
LM_DEVICE void lm__wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/* Wait until all but the newest `but` groups are done; with d, so that its elements are read after
 * that. */
template <int but> LM_DEVICE void lm__wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(but) : "memory");
}
template <int but> LM_DEVICE void lm__wgmma_wait(float (&d)[128]) {
  lm__wgmma_wait<but>();
#pragma unroll
  for (int i = 0; i < 128; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#endif

/* Of an operand that begins at an address in shared memory. */
LM_DEVICE uint64_t lm__wgmma_operand(uint32_t address, uint32_t leading, uint32_t stride) {
  return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 |
         (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}

#endif
