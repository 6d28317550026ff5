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
int lm_graph_new(lm_graph **out, int device) {
  if (out) *out = NULL;
  if (device == LM_CUDA) return lm__missing_op("graph", LM_CUDA);
  return lm__fail(LM_ENOTSUP, "graph: steps are captured on a GPU; on the CPU there is no need");
}
static int no_graph(void) { return lm__fail(LM_EINVAL, "graph: the graph is NULL"); }
int lm_graph_begin(lm_graph *graph, int *runs) {
  (void)graph, (void)runs;
  return no_graph();
}
int lm_graph_end(lm_graph *graph, int *again) {
  (void)graph, (void)again;
  return no_graph();
}
int lm_graph_abort(lm_graph *graph) {
  (void)graph;
  return LM_OK;
}
int lm_graph_counts(const lm_graph *graph, double *out) {
  (void)graph, (void)out;
  return no_graph();
}
void lm_graph_free(lm_graph *graph) { (void)graph; }
int lm_cuda_select(int index) {
  return lm__fail(LM_EDEVICE, "cuda:%d: %s", index, lm_cuda_problem());
}
const char *lm_gpu_muon_kernel(void) { return ""; }
const char *lm_gpu_muon_kernel_note(void) { return ""; }
int lm_set_gpu_muon_kernel(const char *name) {
  (void)name;
  return lm__fail(LM_EDEVICE, "set_gpu_muon_kernel: %s", lm_cuda_problem());
}
