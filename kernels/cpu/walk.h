/* Walk one to three strided operands of one shape in step.
 *
 * Dims of size 1 are dropped and neighbouring dims that every operand crosses with one stride are
 * joined, so contiguous operands become a single dim; then each thread takes a range of the linear
 * index and calls the body on runs within the innermost dim, at most LM__CHUNK elements long.
 */
#ifndef LM_KERNELS_CPU_WALK_H
#define LM_KERNELS_CPU_WALK_H

#include "cpu/kernel.h"

enum { LM__OPERANDS = 3 };

typedef struct lm__run {
  int64_t at;                   /* linear (row-major) index of the run's first element */
  char *p[LM__OPERANDS];        /* first element of the run in each operand */
  int64_t stride[LM__OPERANDS]; /* in elements */
  int dtype[LM__OPERANDS];
} lm__run;

typedef void (*lm__run_fn)(const lm__run *run, int64_t n, void *arg);

typedef struct lm__walk {
  int operands, ndim;
  int64_t n, shape[LM_MAX_DIMS], strides[LM__OPERANDS][LM_MAX_DIMS];
  char *data[LM__OPERANDS];
  int dtype[LM__OPERANDS];
  lm__run_fn body;
  void *arg;
} lm__walk;

static inline void lm__walk_range(int64_t begin, int64_t end, void *arg) {
  const lm__walk *w = arg;
  int64_t index[LM_MAX_DIMS] = {0}, rest = begin;
  for (int d = w->ndim - 1; d >= 0; d--) {
    index[d] = rest % w->shape[d];
    rest /= w->shape[d];
  }
  const int inner = w->ndim - 1;
  for (int64_t at = begin; at < end;) {
    lm__run run = {.at = at};
    int64_t n = w->shape[inner] - index[inner];
    if (n > end - at) n = end - at;
    if (n > LM__CHUNK) n = LM__CHUNK;
    for (int o = 0; o < w->operands; o++) {
      int64_t offset = 0;
      for (int d = 0; d < w->ndim; d++) offset += index[d] * w->strides[o][d];
      run.p[o] = w->data[o] + offset * lm_dtype_size(w->dtype[o]);
      run.stride[o] = w->strides[o][inner];
      run.dtype[o] = w->dtype[o];
    }
    w->body(&run, n, w->arg);
    at += n;
    index[inner] += n;
    for (int d = inner; d > 0 && index[d] == w->shape[d]; d--) {
      index[d] = 0;
      index[d - 1]++;
    }
  }
}

/* Every tensor has tensors[0]'s shape, or broadcasts to it (size 1 or missing dims: stride 0). */
static inline void lm__walk_all(int operands, const lm_tensor *const *tensors, lm__run_fn body,
                                void *arg) {
  lm__walk w = {.operands = operands, .n = lm__numel(tensors[0]), .body = body, .arg = arg};
  if (w.n == 0) return;
  for (int o = 0; o < operands; o++) {
    w.data[o] = lm__data(tensors[o]);
    w.dtype[o] = tensors[o]->dtype;
  }
  for (int d = 0; d < tensors[0]->ndim; d++) {
    int64_t stride[LM__OPERANDS];
    bool joins = w.ndim > 0;
    const int64_t size = tensors[0]->shape[d];
    if (size == 1) continue;
    for (int o = 0; o < operands; o++) {
      const int own = d - (tensors[0]->ndim - tensors[o]->ndim);
      stride[o] = own < 0 || tensors[o]->shape[own] == 1 ? 0 : tensors[o]->strides[own];
      joins = joins && w.strides[o][w.ndim - 1] == stride[o] * size;
    }
    if (!joins) w.ndim++;
    w.shape[w.ndim - 1] = joins ? w.shape[w.ndim - 1] * size : size;
    for (int o = 0; o < operands; o++) w.strides[o][w.ndim - 1] = stride[o];
  }
  if (w.ndim == 0) {
    w.ndim = 1;
    w.shape[0] = 1;
  }
  lm__parallel_for(w.n, LM__GRAIN, lm__walk_range, &w);
}

/* Where a run's results go: the operand itself if it is contiguous f32, else a buffer that
 * lm__put stores afterwards. */
static inline float *lm__result(const lm__run *run, float *buffer) {
  return run->dtype[0] == LM_F32 && run->stride[0] == 1 ? (float *)(void *)run->p[0] : buffer;
}
static inline void lm__put(const lm__run *run, const float *result, const float *buffer,
                           int64_t n) {
  if (result == buffer) lm__store(run->p[0], buffer, run->dtype[0], run->stride[0], n);
}

#endif
