/* A build without CUDA. */
#include "backend/backend.h"
#include "backend/cublaslt.h"
#include "core/error.h"

const lm__backend_table *lm__cuda_backend(void) { return NULL; }
int lm_cuda_count(void) { return 0; }
int lm_cuda_selected(void) { return -1; }
const char *lm_cuda_info(void) { return ""; }
const char *lm__cublaslt_describe(void) { return ""; }
const char *lm_cuda_problem(void) {
  return "built without CUDA (install NVIDIA's toolkit, then build again)";
}
int lm_cuda_prefer(int number) {
  (void)number;
  return LM_OK;
}
int lm_cuda_select(int index) {
  return lm__fail(LM_EDEVICE, "cuda:%d: %s", index, lm_cuda_problem());
}
