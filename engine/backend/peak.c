/* The most floating point operations a second that this CPU does: multiply-adds on registers alone.
 *
 * What share of it a product reaches says how much a better kernel could gain. The loops are
 * assembler, so that neither memory nor the compiler has a part in them: each of a dozen or more
 * accumulators (latency times pipes, with room) takes one multiply-add a turn. Operands are
 * ordinary numbers, sums stay finite.
 */
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "core/error.h"
#include "core/parallel.h"

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef void (*loop_fn)(int64_t turns);
typedef struct loop {
  const char *name;
  loop_fn run;
  double operations; /* a turn */
} loop;

/* ---- any CPU: as many chains as a compiler keeps in registers of 16 bytes ---- */

typedef float four __attribute__((vector_size(16)));

static void plain_loop(int64_t turns) {
  four a = {1, 1, 1, 1}, b = a * 0.5f, s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a,
       s7 = a;
  __asm__ volatile("" ::: "memory");
  for (int64_t i = 0; i < turns; i++) {
    s0 = s0 * b + a, s1 = s1 * b + a, s2 = s2 * b + a, s3 = s3 * b + a;
    s4 = s4 * b + a, s5 = s5 * b + a, s6 = s6 * b + a, s7 = s7 * b + a;
  }
  volatile four sink = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
  (void)sink;
}

#if defined(__x86_64__)
/* ---- x86-64 ---- */

#define TIMES4(f, a, b, c, d) f(a) f(b) f(c) f(d)
#define TIMES12(f) TIMES4(f, 0, 1, 2, 3) TIMES4(f, 4, 5, 6, 7) TIMES4(f, 8, 9, 10, 11)
#define TIMES24(f)                                                                                 \
  TIMES12(f) TIMES4(f, 12, 13, 14, 15) TIMES4(f, 16, 17, 18, 19) TIMES4(f, 20, 21, 22, 23)

/* Clear the accumulators, then turns times all multiply-adds. */
#define ASSEMBLER_LOOP(load, clear, body)                                                          \
  load clear "test %[n], %[n]\n jle 2f\n .p2align 5\n1:\n" body                                    \
             "dec %[n]\n jnz 1b\n2:\n vzeroupper\n"

#define CLEAR_YMM(i) "vxorps %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n"
#define FMA_YMM(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #i "\n"
__attribute__((target("avx2,fma"))) static void avx2_loop(int64_t turns) {
  const float x = 0.5f;
  __asm__ volatile(ASSEMBLER_LOOP("vbroadcastss %[x], %%ymm14\n vbroadcastss %[x], %%ymm15\n",
                                  TIMES12(CLEAR_YMM), TIMES12(FMA_YMM))
                   : [n] "+r"(turns)
                   : [x] "m"(x)
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                     "xmm9", "xmm10", "xmm11", "xmm14", "xmm15");
}

#define ZMM_CLOBBERS                                                                               \
  "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",   \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",    \
      "xmm21", "xmm22", "xmm23", "xmm30", "xmm31"
#define CLEAR_ZMM(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define FMA_ZMM(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #i "\n"
__attribute__((target("avx512f"))) static void avx512_loop(int64_t turns) {
  const float x = 0.5f;
  __asm__ volatile(ASSEMBLER_LOOP("vbroadcastss %[x], %%zmm30\n vbroadcastss %[x], %%zmm31\n",
                                  TIMES24(CLEAR_ZMM), TIMES24(FMA_ZMM))
                   : [n] "+r"(turns)
                   : [x] "m"(x)
                   : ZMM_CLOBBERS);
}

#define DOT_ZMM(i) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #i "\n"
__attribute__((target("avx512f"))) static void avx512_bf16_loop(int64_t turns) {
  const uint32_t x = 0x3f003f00; /* two halves */
  __asm__ volatile(ASSEMBLER_LOOP("vpbroadcastd %[x], %%zmm30\n vpbroadcastd %[x], %%zmm31\n",
                                  TIMES24(CLEAR_ZMM), TIMES24(DOT_ZMM))
                   : [n] "+r"(turns)
                   : [x] "m"(x)
                   : ZMM_CLOBBERS);
}

/* Four tiles of sums, two of each operand, as a kernel would hold them. */
static void amx_bf16_loop(int64_t turns) {
  _Alignas(64) uint16_t halves[16 * 32];
  struct {
    _Alignas(64) uint8_t palette;
    uint8_t start_row, reserved[14];
    uint16_t bytes_a_row[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 16 * 32; i++) halves[i] = 0x3f00; /* 0.5 */
  for (int i = 0; i < 8; i++) {
    config.bytes_a_row[i] = 64;
    config.rows[i] = 16;
  }
  __asm__ volatile("ldtilecfg %[config]\n"
                   "tileloadd (%[data],%[stride],1), %%tmm4\n"
                   "tileloadd (%[data],%[stride],1), %%tmm5\n"
                   "tileloadd (%[data],%[stride],1), %%tmm6\n"
                   "tileloadd (%[data],%[stride],1), %%tmm7\n"
                   "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
                   "test %[n], %[n]\n jle 2f\n .p2align 5\n1:\n"
                   "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                   "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                   "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                   "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
                   "dec %[n]\n jnz 1b\n2:\n tilerelease\n"
                   : [n] "+r"(turns)
                   : [config] "m"(config), [data] "r"(halves), [stride] "r"((int64_t)64)
                   : "cc", "memory");
}

/* The CPU has tiles, and the kernel lets this process use them. */
static bool amx_allowed(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  const char *features = lm_cpu_features();
  return strstr(features, "amx_tile") && strstr(features, "amx_bf16") &&
         syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static const loop avx2 = {"avx2", avx2_loop, 12 * 8 * 2};
static const loop avx512 = {"avx512", avx512_loop, 24 * 16 * 2};
static const loop avx512_bf16 = {"avx512_bf16", avx512_bf16_loop, 24 * 16 * 4};
static const loop amx_bf16 = {"amx_bf16", amx_bf16_loop, 4 * 16 * 16 * 32 * 2};
#endif

static const loop plain = {"plain", plain_loop, 8 * 4 * 2};

/* ---- which, and how fast ---- */

static const loop *choose(int precision) {
#if defined(__x86_64__)
  if (precision == LM_PRECISION_BF16) {
    if (amx_allowed()) return &amx_bf16;
    if (strstr(lm_cpu_features(), "avx512_bf16")) return &avx512_bf16;
  }
  if (__builtin_cpu_supports("avx512f")) return &avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2;
#else
  (void)precision;
#endif
  return &plain;
}

static double now(void) {
  struct timespec t;
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct work {
  const loop *loop;
  int64_t turns;
} work;

static void range_run(int64_t begin, int64_t end, void *arg) {
  const work *w = arg;
  for (int64_t i = begin; i < end; i++) w->loop->run(w->turns);
}

static double seconds_of(const work *w, int threads) {
  const double begun = now();
  lm__parallel_for(threads, 1, range_run, (void *)(uintptr_t)w);
  return now() - begun;
}

int lm_peak_rate(double *out, const char **kernel, int precision) {
  enum { TRIALS = 8 };
  if (!out || !kernel)
    return lm__fail(LM_EINVAL, "peak_rate: %s is NULL: nowhere to write", out ? "kernel" : "out");
  if (precision != LM_PRECISION_F32 && precision != LM_PRECISION_BF16)
    return lm__fail(LM_EINVAL, "peak_rate: precision = %d is neither f32 (%d) nor bf16 (%d)",
                    precision, LM_PRECISION_F32, LM_PRECISION_BF16);
  const int threads = lm_threads();
  work w = {choose(precision), 1 << 10};
  while (seconds_of(&w, threads) < 1.5e-3) w.turns *= 2;
  double least = 1e30;
  for (int i = 0; i < TRIALS; i++) {
    const double seconds = seconds_of(&w, threads);
    if (seconds < least) least = seconds;
  }
  *out = w.loop->operations * (double)w.turns * threads / least;
  *kernel = w.loop->name;
  return LM_OK;
}
