#include <stdio.h>

#include <dnnl.h>
#include <jansson.h>
#include <string.h>

#include "backend/cublaslt.h"
#include "lumuon.h"

int lm_abi_version(void) { return LM_ABI_VERSION; }
const char *lm_version(void) { return LM_VERSION; }

static const char *isa_name(dnnl_cpu_isa_t isa) {
  if ((isa & dnnl_cpu_isa_avx512_core_amx) == dnnl_cpu_isa_avx512_core_amx) return "amx";
  if ((isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16) return "avx512_bf16";
  if ((isa & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core) return "avx512";
  if ((isa & dnnl_cpu_isa_avx2) == dnnl_cpu_isa_avx2) return "avx2";
  return "sse4.1";
}

int lm_cpu_fast_bf16(void) {
  const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
  return (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
}

const char *lm_libraries(void) {
  static char text[768];
  const dnnl_version_t *v = dnnl_version();
  const char *products =
      lm_cuda_problem()[0] ? "" : lm__cublaslt_describe(); /* of a GPU there is */
  (void)snprintf(text, sizeof text, "oneDNN %d.%d.%d (%s)\nJansson %s\nOpenMP %d%s%s", v->major,
                 v->minor, v->patch, isa_name(dnnl_get_effective_cpu_isa()), JANSSON_VERSION,
#ifdef _OPENMP
                 _OPENMP
#else
                 0
#endif
                 ,
                 products[0] ? "\n" : "", products);
  return text;
}
