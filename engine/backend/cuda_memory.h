/* Device memory and copies: cuda_memory.c, for cuda.c. */
#ifndef LM_BACKEND_CUDA_MEMORY_H
#define LM_BACKEND_CUDA_MEMORY_H

#include "backend/cuda.h"

cudaError_t lm__cuda_memory_start(int device, const char *name, cudaStream_t stream);
int lm__cuda_allocate(void **data, size_t bytes);
void lm__cuda_release(void *data, size_t bytes);
double lm__cuda_memory(int what);

#endif
