/* What the emulated CUDA promises of wgmma (docs/cuda.md): checks like those of checks.cu. */
#include "check.h"
#include "cuda/wgmma.cuh"

namespace {
enum { M = 64, N = 256, SLAB = 64, BYTES = (M + N) * 128 };

/* What is done wrong. */
enum mistake {
  NOTHING,
  NOT_WAITED,     /* for the copies */
  NO_PROXY_FENCE, /* after them */
  NO_FENCE,       /* before the accumulators are used */
  READ_EARLY,     /* the accumulators */
  WRITTEN_EARLY,
  OVERWRITTEN, /* an operand */
  ELSEWHERE,   /* a descriptor points beyond shared memory */
  SWIZZLE,     /* another mode */
  PARTED,      /* warps have different descriptors */
  UNFINISHED
};

/* Not told to the emulation, which looks for races as well. */
__attribute__((no_sanitize("thread"), noinline)) void flip(char *at) { *at ^= 1; }

/* out (M, N) = a b', a (M, SLAB), b (N, SLAB); or, transposed, a' b, a (SLAB, M), b (SLAB, N). */
template <bool transposed>
LM_GLOBAL product(float *out, const lm_bf16 *a, const lm_bf16 *b, int mistake) {
  LM_DYNAMIC_SHARED(char, memory);
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  for (int i = (int)threadIdx.x; i < (M + N) * 8; i += 128) {
    const int row = i / 8, piece = i % 8, of = row < M ? row : row - M, width = row < M ? M : N;
    const lm_bf16 *from = row < M ? a : b;
    lm__copy_async(
        memory + row * 128 + (piece ^ (row & 7)) * 16,
        from + (transposed ? of % 64 * width + of / 64 * 64 + piece * 8 : of * SLAB + piece * 8));
  }
  lm__commit_copies();
  if (mistake != NOT_WAITED) lm__wait_copies<0>();
  if (mistake != NO_PROXY_FENCE) lm__fence_async();
  __syncthreads();
  float d[128];
  for (int i = 0; i < 128; i++) d[i] = 0;
  const uint32_t base = lm__shared_address(memory);
  if (mistake != NO_FENCE) lm__wgmma_fence();
  for (int k = 0; k < SLAB; k += 16) {
    const uint32_t at = base + (uint32_t)(transposed ? k * 128 : k * 2);
    uint64_t left = lm__wgmma_operand(at, 8192, 1024);
    if (mistake == ELSEWHERE) left = lm__wgmma_operand(0, 8192, 1024);
    if (mistake == SWIZZLE) left ^= (uint64_t)3 << 62;
    if (mistake == PARTED && warp == 2) left = lm__wgmma_operand(at + 32, 8192, 1024);
    lm__wgmma<transposed>(d, left, lm__wgmma_operand(at + M * 128, 8192, 1024));
  }
  lm__wgmma_commit();
  if (mistake == OVERWRITTEN && threadIdx.x == 5) flip(memory + 77);
  if (mistake == WRITTEN_EARLY) d[3] = 0;
  if (mistake == NOT_WAITED) {
    lm__wait_copies<0>();
    lm__fence_async();
  }
  if (mistake == READ_EARLY) out[threadIdx.x] = d[threadIdx.x];
  if (mistake == UNFINISHED) return;
  lm__wgmma_wait<0>(d);
  if (mistake == READ_EARLY) return;
  for (int i = 0; i < 128; i++)
    out[(16 * warp + lane / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
}

float *out;
lm_bf16 *a, *b;
template <bool transposed> cudaError_t run(mistake what) {
  return lm_emulated_start<float *, const lm_bf16 *, const lm_bf16 *, int>(
      product<transposed>, 1, 128, BYTES, nullptr, out, a, b, what);
}

float value(int i) { return (float)(i * 7 % 13 - 6); }

void fill() {
  static lm_bf16 host[(M + N) * SLAB];
  for (int i = 0; i < (M + N) * SLAB; i++) host[i].bits = lm_f32_to_bf16(value(i));
  CHECK(cudaMemcpy(a, host, M * SLAB * 2, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaMemcpy(b, host + M * SLAB, N * SLAB * 2, cudaMemcpyHostToDevice) == cudaSuccess);
}

template <bool transposed> void multiplies() {
  static float got[M * N];
  CHECK(run<transposed>(NOTHING) == cudaSuccess);
  CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost) == cudaSuccess);
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) {
      float sum = 0;
      for (int k = 0; k < SLAB; k++)
        sum += transposed ? value(k * M + m) * value(M * SLAB + k * N + n)
                          : value(m * SLAB + k) * value(M * SLAB + n * SLAB + k);
      CHECK(got[m * N + n] == sum);
    }
}

void faults(mistake what, const char *text) {
  CHECK(run<false>(what) == cudaErrorLaunchFailure);
  printf("%s\n", cudaGetErrorString(cudaErrorLaunchFailure));
  CHECK(strstr(cudaGetErrorString(cudaErrorLaunchFailure), text) != nullptr);
}

void early_read() {
  float got[128];
  CHECK(run<false>(READ_EARLY) == cudaSuccess);
  CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost) == cudaSuccess);
  for (int i = 0; i < 128; i++) CHECK(got[i] != got[i]);
}

const named_check checks[] = {
    {"rows", multiplies<false>},
    {"columns", multiplies<true>},
    {"read_early", early_read},
    {"not_waited", [] { faults(NOT_WAITED, "a race: byte"); }},
    {"no_proxy_fence", [] { faults(NO_PROXY_FENCE, "fence.proxy.async"); }},
    {"no_fence", [] { faults(NO_FENCE, "wgmma.fence"); }},
    {"written_early", [] { faults(WRITTEN_EARLY, "accumulator 3 was written"); }},
    {"overwritten", [] { faults(OVERWRITTEN, "have changed before it was done"); }},
    {"elsewhere", [] { faults(ELSEWHERE, "is not in the block's 40960 bytes"); }},
    {"swizzle", [] { faults(SWIZZLE, "mode 2"); }},
    {"parted", [] { faults(PARTED, "warps of a group have different descriptors"); }},
    {"unfinished", [] { faults(UNFINISHED, "ended before it was done"); }},
};
} // namespace

int main(int argc, char **argv) {
  void *p[3];
  CHECK(cudaMalloc(&p[0], M * N * sizeof(float)) == cudaSuccess);
  CHECK(cudaMalloc(&p[1], M * SLAB * 2) == cudaSuccess);
  CHECK(cudaMalloc(&p[2], N * SLAB * 2) == cudaSuccess);
  out = static_cast<float *>(p[0]);
  a = static_cast<lm_bf16 *>(p[1]);
  b = static_cast<lm_bf16 *>(p[2]);
  fill();
  return run_named(checks, argc, argv);
}
