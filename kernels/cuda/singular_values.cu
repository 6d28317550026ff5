/* Singular values, for looking at updates: computed by the CPU, in f64, from a copy. */
#include "cuda/kernel.cuh"

extern "C" int lm__singular_values_cuda(lm_tensor *out, const lm_tensor *a) {
  lm_tensor *here = nullptr, *values = nullptr;
  int status = lm_tensor_new(&here, a->dtype, LM_CPU, a->ndim, a->shape);
  if (status == LM_OK) status = lm_copy(here, a);
  if (status == LM_OK) status = lm_singular_values(&values, here);
  if (status == LM_OK) status = lm_copy(out, values);
  lm_tensor_free(here);
  lm_tensor_free(values);
  return status;
}
