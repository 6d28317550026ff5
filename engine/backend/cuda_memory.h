/* Device memory and copies: cuda_memory.c, for cuda.c. */
#ifndef LM_BACKEND_CUDA_MEMORY_H
#define LM_BACKEND_CUDA_MEMORY_H

#include "backend/cuda.h"

cudaError_t lm__cuda_memory_start(int device, const char *name, cudaStream_t stream);
int lm__cuda_allocate(void **data, size_t bytes);
void lm__cuda_release(void *data, size_t bytes);
double lm__cuda_memory(int what);

/* Memory that stays: no op's scratch. */
int lm__cuda_keep(const char *op, void **p, size_t bytes);
void lm__cuda_give_back(void *p);

/* cuda_graph.c: where the thread's work goes while it is captured, else NULL; scratch memory of a
 * step that is rehearsed or captured; LM_OK, or an error where a capture allows no such thing. */
cudaStream_t lm__cuda_graph_stream(void);
int lm__cuda_graph_scratch(const char *op, void **p, size_t bytes, bool *served);
bool lm__cuda_graph_scratch_free(void);
int lm__cuda_graph_refuse(const char *op);

#endif
