/* The kernels of packed products that this CPU has. */

#include <stdio.h>
#include <string.h>

#include "backend/tuning.h"
#include "core/error.h"
#include "cpu/packed.h"
#include "lumuon.h"
#include "math/float.h"

extern const lm__packed_kernel lm__packed_f32_base, lm__packed_portable_bf16;
#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
extern const lm__packed_kernel lm__packed_f32_avx2, lm__packed_f32_avx512;
#if defined(LM_HAVE_AVX512_BF16)
extern const lm__packed_kernel lm__packed_avx512_bf16;
#endif
#if defined(LM_HAVE_AMX)
extern const lm__packed_kernel lm__packed_amx_bf16;
#endif
#endif

/* ---- kernels ---- */

static bool has(const char *feature) { return strstr(lm_cpu_features(), feature) != NULL; }

#if defined(__x86_64__) && defined(LM_HAVE_AMX)
/* One block of random numbers through both: an instruction that does not do here what it should
 * (an emulator, a hypervisor) must not reach anybody's weights. */
static bool agrees(const lm__packed_kernel *k, const lm__packed_kernel *reference) {
  enum { TILES = 3, BYTES = 2 * TILES * LM__TILE, OUT = 2 * LM__TILE };
  static _Alignas(64) char left[BYTES], right[BYTES], out[2][OUT];
  uint32_t state = 1;
  for (int i = 0; i < BYTES; i += 2) {
    state = state * 1664525u + 1013904223u;
    const uint16_t x = lm_f32_to_bf16((float)(state >> 16) / 65536.0f - 0.5f);
    memcpy(left + i, &x, 2);
    memcpy(right + BYTES - 2 - i, &x, 2);
  }
  for (int i = 0; i < 2; i++) {
    const lm__product p = {.kind = LM__SYMMETRIC,
                           .m = 32,
                           .n = 32,
                           .k = 32 * (int64_t)TILES,
                           .left = {.rows = left},
                           .right = {.words = right},
                           .out = {.words = out[i]},
                           .alpha = 1};
    (i ? k : reference)->strip(&p, 0, NULL);
  }
  for (int i = 0; i < OUT; i += 2) {
    uint16_t x, y;
    memcpy(&x, out[0] + i, 2);
    memcpy(&y, out[1] + i, 2);
    const float difference = lm_bf16_to_f32(x) - lm_bf16_to_f32(y);
    if (!(difference < 0.03f && difference > -0.03f)) return false;
  }
  return true;
}

static bool has_amx(void) {
  static int known = -1;
  if (known < 0) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    known = has("amx_bf16") && has("amx_tile") && has("avx512_bf16") &&
            syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 &&
            agrees(&lm__packed_amx_bf16, &lm__packed_portable_bf16);
  }
  return known == 1;
}
#endif

/* The i'th kernel for bf16, the fastest first, if this CPU has it. */
enum { BF16_KERNELS = 3 };
static const lm__packed_kernel *bf16_kernel(int i) {
#if defined(__x86_64__) && defined(LM_HAVE_AMX)
  if (i == 0 && has_amx()) return &lm__packed_amx_bf16;
#endif
#if defined(__x86_64__) && defined(LM_HAVE_AVX512_BF16)
  if (i == 1 && has("avx512_bf16") && has("avx512f")) return &lm__packed_avx512_bf16;
#endif
  return i == 2 ? &lm__packed_portable_bf16 : NULL;
}

static const lm__packed_kernel *asked; /* by lm_set_muon_kernel */

const lm__packed_kernel *lm__packed_kernel_for(int dtype) {
  if (dtype == LM_F32) {
#if defined(__x86_64__)
    if (strcmp(lm_cpu_variant(), "avx512") == 0) return &lm__packed_f32_avx512;
    if (strcmp(lm_cpu_variant(), "avx2") == 0) return &lm__packed_f32_avx2;
#endif
    return &lm__packed_f32_base;
  }
  if (asked) return asked;
  for (int i = 0;; i++)
    if (bf16_kernel(i)) return bf16_kernel(i);
}

int lm_set_muon_kernel(const char *name) {
  char list[128] = "auto";
  if (!name) return lm__fail(LM_EINVAL, "set_muon_kernel: the name is NULL (auto: the fastest)");
  lm__muon_forget(); /* what was measured was measured with another */
  if (strcmp(name, "auto") == 0) {
    asked = NULL;
    return LM_OK;
  }
  for (int i = 0; i < BF16_KERNELS; i++) {
    const lm__packed_kernel *k = bf16_kernel(i);
    if (!k) continue;
    if (strcmp(k->name, name) == 0) {
      asked = k;
      return LM_OK;
    }
    const size_t used = strlen(list);
    (void)snprintf(list + used, sizeof list - used, ", %s", k->name);
  }
  return lm__fail(LM_ENOTSUP, "set_muon_kernel: no kernel '%s' on this CPU (%s)", name, list);
}
