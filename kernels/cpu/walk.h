/* Walk one to three strided operands of one shape in step: each thread takes a range of the linear
 * index and calls the body on runs within the innermost dim (of core/layout.h's, in which
 * contiguous operands have one), at most LM__CHUNK elements long.
 */
#ifndef LM_KERNELS_CPU_WALK_H
#define LM_KERNELS_CPU_WALK_H

#include "core/layout.h"
#include "cpu/kernel.h"

typedef struct lm__run {
  int64_t at;                   /* linear (row-major) index of the run's first element */
  char *p[LM__OPERANDS];        /* first element of the run in each operand */
  int64_t stride[LM__OPERANDS]; /* in elements */
  int dtype[LM__OPERANDS];
} lm__run;

typedef void (*lm__run_fn)(const lm__run *run, int64_t n, void *arg);

typedef struct lm__walk {
  lm__layout layout;
  lm__run_fn body;
  void *arg;
} lm__walk;

static inline void lm__walk_range(int64_t begin, int64_t end, void *arg) {
  const lm__walk *walk = arg;
  const lm__layout *w = &walk->layout;
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
    walk->body(&run, n, walk->arg);
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
  lm__walk walk = {lm__layout_of(operands, tensors), body, arg};
  if (walk.layout.n == 0) return;
  lm__parallel_for(walk.layout.n, LM__GRAIN, lm__walk_range, &walk);
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
