/* Tensor cores and copies that run beside the arithmetic: all of the machine's own instructions.
 *
 * Every lane of a warp calls each function together. With lane = 4 g + t, g in 0..7, t in 0..3, and
 * registers that hold two bf16, the element with the lower index in the low half:
 *   a (16 x 16, rows x inner):  a[0] (g, 2t..)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8,
 * 2t+8..) b (16 x 8, inner x cols):   b[0] (2t.., g)  b[1] (2t+8.., g) d (16 x 8, f32): d[0], d[1]
 * (g, 2t..)  d[2], d[3] (g+8, 2t..) so what is d of one product is, rounded and packed, a of the
 * next (attention's probabilities).
 */
#ifndef LM_KERNELS_CUDA_MMA_CUH
#define LM_KERNELS_CUDA_MMA_CUH

#include "cuda/kernel.cuh"

#ifdef LM_CUDA_EMULATED
#include "cuda/emulated/mma.h"
#else

/* d += a b. */
LM_DEVICE void lm__mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

LM_DEVICE uint32_t lm__shared_address(const void *shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/* n = 1, 2 or 4 matrices of 8 x 8 bf16 from shared memory. Lane 8 m + i gives the address of row i
 * of matrix m (16 bytes, aligned to 16). r[m] is (g, 2t..) of matrix m, or of its transpose. With
 * rows of a row-major A: matrices (top left, bottom left, top right, bottom right) are a[0..3].
 * With rows of B' (cols x inner, as weights and keys lie): (left, right) are b[0..1]; with rows of
 * B itself (inner x cols, as values lie): (top, bottom), transposed. */
template <bool transposed> LM_DEVICE void lm__load_matrices(uint32_t (&r)[4], const void *row) {
  const uint32_t at = lm__shared_address(row);
  if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
template <bool transposed> LM_DEVICE void lm__load_matrices(uint32_t (&r)[2], const void *row) {
  const uint32_t at = lm__shared_address(row);
  if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}

/* Begin to copy 16 bytes from global to shared memory, both aligned to 16; or, not `there`, zeros
 * (global is then not read). Not to be looked at before lm__wait_copies, and by other threads
 * before a barrier after that. */
LM_DEVICE void lm__copy_async(void *shared, const void *global, bool there = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(lm__shared_address(shared)),
               "l"(global), "r"(there ? 16 : 0)
               : "memory");
}
/* The copies that this thread began since the last commit are one group. */
LM_DEVICE void lm__commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/* Wait until all but this thread's newest `but` groups are there. */
template <int but> LM_DEVICE void lm__wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(but) : "memory");
}

#endif
#endif
