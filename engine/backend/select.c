/* Which devices and CPU kernels this machine has. */
#include <stdio.h>
#include <string.h>

#include "backend/backend.h"
#include "core/error.h"

extern const lm__backend_table lm__table_base, lm__table_avx2, lm__table_avx512;
static const lm__backend_table *chosen;

#if defined(__x86_64__)
static int has_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int has_avx512(void) {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd");
}
#endif

static const lm__backend_table *cpu(void) {
  if (!chosen) {
    chosen = &lm__table_base;
#if defined(__x86_64__)
    if (has_avx2()) chosen = &lm__table_avx2;
    if (has_avx512()) chosen = &lm__table_avx512;
#endif
  }
  return chosen;
}

const char *lm_cpu_variant(void) { return cpu()->variant; }

int lm_set_cpu_variant(const char *name) {
  const lm__backend_table *wanted = NULL;
  if (!name) return lm__fail(LM_EINVAL, "set_cpu_variant: the name is NULL (base, avx2, avx512)");
  if (strcmp(name, "base") == 0) wanted = &lm__table_base;
#if defined(__x86_64__)
  if (strcmp(name, "avx2") == 0 && has_avx2()) wanted = &lm__table_avx2;
  if (strcmp(name, "avx512") == 0 && has_avx512()) wanted = &lm__table_avx512;
#endif
  if (!wanted)
    return lm__fail(LM_ENOTSUP, "set_cpu_variant: no kernels '%s' on this CPU (base, avx2, avx512)",
                    name);
  chosen = wanted;
  return LM_OK;
}

const lm__backend_table *lm__backend(int device) {
  return device == LM_CPU ? cpu() : device == LM_CUDA ? lm__cuda_backend() : NULL;
}

int lm_device_available(int device) { return lm__backend(device) != NULL; }

int lm_synchronize(int device) {
  const lm__backend_table *backend = lm__backend(device);
  return backend && backend->synchronize ? backend->synchronize() : LM_OK;
}

double lm_device_memory(int device, int what) {
  const lm__backend_table *backend = lm__backend(device);
  if (backend && backend->memory) return backend->memory(what);
  switch (device == LM_CPU ? what : -1) {
    case LM_MEMORY_LIVE:
      return lm_memory_live();
    case LM_MEMORY_PEAK:
      return lm_memory_peak();
    case LM_MEMORY_RESERVED:
      return lm_memory_live() + lm_memory_cached();
    case LM_MEMORY_FREE:
      return lm_memory_limit() - lm_memory_live();
    case LM_MEMORY_TOTAL:
      return lm_memory_limit();
    case LM_MEMORY_RESET_PEAK:
      lm_memory_reset_peak();
      return lm_memory_peak();
    case LM_MEMORY_TRIM:
      lm_memory_trim();
      return lm_memory_live() + lm_memory_cached();
    default:
      return 0;
  }
}

int lm__missing_op(const char *op, int device) {
  const char *name = lm_device_name(device);
  if (device == LM_CUDA && !lm__backend(device))
    return lm__fail(LM_ENOTSUP, "%s: no device cuda: %s", op, lm_cuda_problem());
  return lm__fail(LM_ENOTSUP, "%s: not available on device %s", op, name ? name : "?");
}

const char *lm_cpu_features(void) {
  static char list[256];
  if (list[0]) return list;
#if defined(__x86_64__)
  static const struct {
    const char *name;
    unsigned leaf, sub, reg, bit;
  } features[] = {
      {"avx2", 7, 0, 1, 5},         {"fma", 1, 0, 2, 12},        {"f16c", 1, 0, 2, 29},
      {"avx512f", 7, 0, 1, 16},     {"avx512vnni", 7, 0, 2, 11}, {"avx512_bf16", 7, 1, 0, 5},
      {"avx512_fp16", 7, 0, 3, 23}, {"amx_tile", 7, 0, 3, 24},   {"amx_bf16", 7, 0, 3, 22},
  };
  for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
    unsigned r[4] = {0, 0, 0, 0};
    __asm__ volatile("cpuid"
                     : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
                     : "a"(features[i].leaf), "c"(features[i].sub));
    if (r[features[i].reg] >> features[i].bit & 1) {
      const size_t used = strlen(list);
      (void)snprintf(list + used, sizeof list - used, used ? ",%s" : "%s", features[i].name);
    }
  }
#endif
  if (!list[0]) (void)snprintf(list, sizeof list, "none");
  return list;
}
