/* The CUDA runtime as the backend and its kernels see it: one device, one stream, device memory. */
#ifndef LM_BACKEND_CUDA_H
#define LM_BACKEND_CUDA_H

#include <cuda_runtime.h>

#include "backend/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The stream all kernels run on. */
cudaStream_t lm__cuda_stream(void);
/* Multiprocessors of the device: for grids of a size of their own. */
int lm__cuda_processors(void);
/* 10 * major + minor of its compute capability: 80, 90. */
int lm__cuda_capability(void);
/* Bytes of shared memory a block may have, where it asks for them. */
size_t lm__cuda_shared_limit(void);

/* LM_OK, or an error that names op and says what the runtime says. A kernel's fault is for ever:
 * every later call fails with it. */
int lm__cuda_check(const char *op, cudaError_t error);
/* After a launch (lm__launch does it): remembers op as running, and checks. */
int lm__cuda_launched(const char *op, cudaError_t error);
/* Wait for all work; what failed on the device, or was reported by a kernel (below), comes up. */
int lm__cuda_synchronize(const char *op);

/* Memory for one op, in the order of the stream: may be given back as soon as the last kernel that
 * uses it is launched. bytes 0: *p = NULL. */
int lm__cuda_scratch(const char *op, void **p, size_t bytes);
void lm__cuda_scratch_free(void *p);

/* Copies between the host and the device. read waits; write does not (host may be reused at once).
 */
int lm__cuda_read(const char *op, void *host, const void *device, size_t bytes);
int lm__cuda_write(const char *op, void *device, const void *host, size_t bytes);

/* What a kernel found in its data, told without making the host wait: the first report since the
 * last one was read is kept, and becomes the error of the next call that waits for the device
 * (item, a copy to the CPU, lm_synchronize). The kernel goes on with some harmless value. */
enum lm__report_kind {
  LM_REPORT_NONE = 0,
  LM_REPORT_INDEX = 1,     /* value is outside 0..limit-1 at element `position`: LM_EINDEX */
  LM_REPORT_TARGET = 2,    /* the same, where -1 is fine as well: LM_EINDEX */
  LM_REPORT_NONFINITE = 3, /* a gradient (lm_guard_gradients): LM_ENONFINITE */
};
typedef struct lm__report {
  int kind;
  long long value, limit, position;
  char op[32];
} lm__report;
/* Where kernels report: passed to them by value. */
typedef struct lm__reporter {
  int *taken;         /* on the device: 0 until somebody reports */
  lm__report *report; /* in the host's memory, which the device sees */
} lm__reporter;
lm__reporter lm__cuda_reporter(void);

/* A word on the device, set by lm_guard_gradients: kernels of optimizers write nothing where it is
 * not 0. */
int *lm__cuda_skip(void);

/* ---- a step that is captured (cuda_graph.c) ----
 *
 * What launches kernels of an optimizer's step says first what the launches depend on (key:
 * compared byte by byte with the step before, padding included), and hands over the numbers that
 * may differ from step to step. *there: where on the device kernels read them, or NULL: from their
 * arguments. False where nothing is to be launched, because a graph does it; goes_on asks again
 * once more of the key is known. */
void lm__cuda_graph_key(const void *key, size_t bytes);
bool lm__cuda_graph_settings(const void *values, size_t bytes, const void **there);
bool lm__cuda_graph_goes_on(void);
/* Whether a step is captured or updated: nothing can be measured then. */
bool lm__cuda_graph_active(void);
/* Scratch memory until the same call with false is not the step's own. */
void lm__cuda_graph_pause(bool paused);

/* Copies beside the ops (cuda_side.c). */
extern const lm__side_copies lm__cuda_side;
/* Their stream; and after something else was put on it: done() tells when that is done. */
cudaStream_t lm__cuda_side_stream(void);
int lm__cuda_side_finish(void);

#ifdef __cplusplus
}
#endif

#endif
