/* What a device implements: one function an op.
 *
 * Entry points in engine/ops have checked shapes, dtypes and devices and allocated the results
 * before they call in here; a backend function does arithmetic and may only fail for what cannot be
 * seen from outside (an index in a tensor's data, memory for scratch). A NULL entry is an op that
 * the device does not have: lm__need_op makes the message.
 */
#ifndef LM_BACKEND_BACKEND_H
#define LM_BACKEND_BACKEND_H

#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lm__attention_args {
  float scale;
  int64_t window; /* tokens before itself that a token sees; >= T - 1: all */
} lm__attention_args;

/* A device's copies beside its ops, for the communication thread (comm/staged.c): mark is called by
 * the thread that issues ops, the rest, but forget, by the one that copies. */
typedef struct lm__side_copies {
  int (*mark)(void **mark); /* what has been issued so far */
  void (*forget)(void *mark);
  int (*after)(void *mark); /* the copies that follow wait for it */
  /* Begun, not done: bytes may be 0, the host's memory is pinned. */
  int (*to_host)(void *host, const void *device, size_t bytes);
  int (*to_device)(void *device, const void *host, size_t bytes);
  int (*done)(bool *yes); /* are all copies? */
  int (*pin)(void **host, size_t bytes);
  void (*unpin)(void *host);
  const struct lm__gpu_links *links; /* comm/comm.h */
} lm__side_copies;

typedef struct lm__backend_table {
  const char *variant;
  /* Memory of a device of its own; NULL on the CPU. read and write copy between it and the host:
   * read waits for the device, and for write the host's memory may change at once. */
  int (*allocate)(void **data, size_t bytes);
  void (*release)(void *data, size_t bytes);
  int (*read)(const char *op, void *host, const void *device, size_t bytes);
  int (*write)(const char *op, void *device, const void *host, size_t bytes);
  int (*synchronize)(void);
  double (*memory)(int what); /* enum lm_memory_what */
  const lm__side_copies *side;
  int (*guard)(int n, const lm_tensor *const *grads, const char *const *names, lm_tensor *tally,
               int policy);
  int (*fill)(lm_tensor *t, double value);
  int (*arange)(lm_tensor *t, double start, double step);
  int (*random_uniform)(lm_tensor *t, double low, double high, uint64_t seed, uint64_t stream,
                        uint64_t position);
  int (*random_normal)(lm_tensor *t, double mean, double std, uint64_t seed, uint64_t stream,
                       uint64_t position);
  int (*copy)(lm_tensor *dst,
              const lm_tensor *src); /* src has dst's shape, strides 0 where broadcast */
  int (*unary)(lm_tensor *out, int op, const lm_tensor *a);
  int (*binary)(lm_tensor *out, int op, const lm_tensor *a,
                const lm_tensor *b); /* broadcast done */
  int (*binary_scalar)(lm_tensor *out, int op, const lm_tensor *a, float value, int reversed);
  int (*axpy)(lm_tensor *y, float alpha, const lm_tensor *x);
  int (*reduce)(lm_tensor *out, int op, const lm_tensor *a, uint32_t dims); /* out: keepdim form */
  int (*arg_reduce)(lm_tensor *out, int op, const lm_tensor *a, int dim);
  int (*count_nonfinite)(double *out, const lm_tensor *a);
  int (*matmul)(lm_tensor *out, const lm_tensor *a, const lm_tensor *b, float alpha, float beta);
  int (*singular_values)(lm_tensor *out, const lm_tensor *a);
  int (*embedding)(lm_tensor *out, const lm_tensor *table, const lm_tensor *idx);
  int (*embedding_backward)(lm_tensor *grad_table, const lm_tensor *grad_out, const lm_tensor *idx);
  int (*rms_norm)(lm_tensor *out, const lm_tensor *x, float eps, float scale);
  int (*rms_norm_backward)(lm_tensor *grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                           float eps, float scale);
  int (*rotary)(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                const lm_tensor *sin_table, int inverse);
  int (*rotary_norm)(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                     const lm_tensor *sin_table, float eps, float scale);
  int (*rotary_norm_backward)(lm_tensor *grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                              const lm_tensor *cos_table, const lm_tensor *sin_table, float eps,
                              float scale);
  int (*attention)(lm_tensor *out, lm_tensor *lse, const lm_tensor *q, const lm_tensor *k,
                   const lm_tensor *v, const lm__attention_args *args);
  int (*attention_backward)(lm_tensor *grad_q, lm_tensor *grad_k, lm_tensor *grad_v,
                            const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                            const lm_tensor *v, const lm_tensor *out, const lm_tensor *lse,
                            const lm__attention_args *args);
  int (*cross_entropy)(lm_tensor *loss, lm_tensor *lse, const lm_tensor *logits,
                       const lm_tensor *targets, int vocab_size, float softcap);
  int (*cross_entropy_backward)(lm_tensor *grad_logits, const lm_tensor *grad_loss,
                                const lm_tensor *logits, const lm_tensor *targets,
                                const lm_tensor *lse, int vocab_size, float softcap);
  int (*linear_cross_entropy)(lm_tensor *loss, lm_tensor *grad_x, lm_tensor *grad_w,
                              const lm_tensor *x, const lm_tensor *w, const lm_tensor *targets,
                              int vocab_size, float softcap); /* grads may be NULL */
  int (*softmax)(lm_tensor *out, const lm_tensor *a);
  int (*scaled_add)(lm_tensor *out, const lm_tensor *a, const lm_tensor *x, const lm_tensor *b,
                    const lm_tensor *y);
  int (*scaled_add_backward)(lm_tensor *grad_a, lm_tensor *grad_x, lm_tensor *grad_b,
                             lm_tensor *grad_y, const lm_tensor *grad_out, const lm_tensor *a,
                             const lm_tensor *x, const lm_tensor *b, const lm_tensor *y);
  int (*gated_add)(lm_tensor *out, const lm_tensor *x, const lm_tensor *gate, const lm_tensor *y,
                   float scale);
  int (*gated_add_backward)(lm_tensor *grad_gate, lm_tensor *grad_y, const lm_tensor *grad_out,
                            const lm_tensor *gate, const lm_tensor *y, float scale);
  int (*adamw_step)(int n, lm_tensor *const *param, const lm_tensor *const *grad,
                    lm_tensor *const *exp_avg, lm_tensor *const *exp_avg_sq,
                    const lm_adamw_args *args);
  int (*polar_express)(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args);
  /* out[i] = op over sources[0..n)[i], added in that order in f64 (i32: in i64) and rounded once;
   * out may be one of the sources. LM_DIST_MEAN divides by n. */
  void (*rank_reduce)(int dtype, int op, int n, const void *const *sources, void *out,
                      int64_t count);
  int (*muon_step)(lm_tensor *param, const lm_tensor *grad, lm_tensor *momentum_buffer,
                   lm_tensor *second_momentum, const lm_muon_args *args);
  /* See lm__measure_fn in backend/tuning.h. */
  double (*muon_measure)(int64_t count, int64_t rows, int64_t cols, int precision, int path,
                         int steps);
  /* Bytes that muon_step takes beside its tensors; nothing is measured for it. */
  double (*muon_scratch)(int64_t count, int64_t rows, int64_t cols, int precision);
} lm__backend_table;

/* The table of a device, or NULL where this build or machine has none. */
const lm__backend_table *lm__backend(int device);
const lm__backend_table *lm__cuda_backend(void);

/* `const lm__backend_table *b; LM__OP(b, matmul, device)`: return an error if the op is missing. */
int lm__missing_op(const char *op, int device);
#define LM__OP(table, op, device)                                                                  \
  do {                                                                                             \
    (table) = lm__backend(device);                                                                 \
    if (!(table) || !(table)->op) return lm__missing_op(#op, device);                              \
  } while (0)

#ifdef __cplusplus
}
#endif

#endif
