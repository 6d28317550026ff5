/* Tensors and storages, as the engine and its kernels see them. */
#ifndef LM_CORE_TENSOR_H
#define LM_CORE_TENSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "core/storage.h"
#include "lumuon.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lm_tensor {
  int dtype, device, ndim;
  int64_t shape[LM_MAX_DIMS];
  int64_t strides[LM_MAX_DIMS]; /* in elements */
  int64_t offset;               /* in elements, from the storage's start */
  lm__storage *storage;         /* shared, counted */
};

/* First element. */
static inline void *lm__data(const lm_tensor *t) {
  return (char *)t->storage->data + t->offset * lm_dtype_size(t->dtype);
}

int64_t lm__numel(const lm_tensor *t);
bool lm__is_contiguous(const lm_tensor *t);
bool lm__same_shape(const lm_tensor *a, const lm_tensor *b);
bool lm__is_float(int dtype);

/* "(2, 3)" and "f32 (2, 3)" for messages; in one of eight thread-local buffers used in turn. */
const char *lm__shape_string(int ndim, const int64_t *shape);
const char *lm__describe(const lm_tensor *t);

/* What an entry point does first: refuse if interrupted, if one of the n tensors is NULL (freed),
 * or if they lie on different devices. */
int lm__begin(const char *op, int n, ...);

/* *out == NULL: allocate, *fresh = true. Otherwise check shape, device and, with dtype >= 0, dtype;
 * with dtype < 0 (`-1 - dtype` is what an allocated one gets) any dtype is taken. */
int lm__prepare_out(const char *op, lm_tensor **out, bool *fresh, int dtype, int device, int ndim,
                    const int64_t *shape);
#define LM__ANY_BUT(dtype) (-1 - (dtype))

/* Pass status on; on an error free what lm__prepare_out allocated and make *out NULL again. */
int lm__finish(lm_tensor **out, bool fresh, int status);

/* Refuse a tensor that is not contiguous, saying how to make it so. */
int lm__need_contiguous(const char *op, const char *name, const lm_tensor *t);
int lm__need_dtype(const char *op, const char *name, const lm_tensor *t, int dtype);
/* f32 or bf16. */
int lm__need_float(const char *op, const char *name, const lm_tensor *t);
int lm__need_shape(const char *op, const char *name, const lm_tensor *t, int ndim,
                   const int64_t *shape);
/* Refuse what an integer dtype cannot hold exactly; floats take anything. */
int lm__need_in_range(const char *op, int dtype, double value);
/* Refuse a broadcast view as a result: several of its elements are one. */
int lm__need_writable(const char *op, const lm_tensor *t);

/* Do the spans of two tensors' elements share a byte? */
bool lm__overlap(const lm_tensor *a, const lm_tensor *b);

/* Does writing out element by element change elements of `in` that are still to be read? False
 * where they have no byte in common and where they are the same elements in the same order. Where
 * only the spans overlap the answer is true, to be safe. */
bool lm__partly_shared(const lm_tensor *out, const lm_tensor *in);

#ifdef __cplusplus
}
#endif

#endif
