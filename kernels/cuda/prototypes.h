/* The CUDA kernels: entries of lm__backend_table, documented there. An entry is listed in
 * backend/cuda.c once its file is here. */
#ifndef LM_KERNELS_CUDA_PROTOTYPES_H
#define LM_KERNELS_CUDA_PROTOTYPES_H

#include "backend/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

int lm__fill_cuda(lm_tensor *t, double value);
int lm__arange_cuda(lm_tensor *t, double start, double step);
int lm__random_uniform_cuda(lm_tensor *t, double low, double high, uint64_t seed, uint64_t stream,
                            uint64_t position);
int lm__random_normal_cuda(lm_tensor *t, double mean, double std, uint64_t seed, uint64_t stream,
                           uint64_t position);
int lm__copy_cuda(lm_tensor *dst, const lm_tensor *src);
int lm__unary_cuda(lm_tensor *out, int op, const lm_tensor *a);
int lm__binary_cuda(lm_tensor *out, int op, const lm_tensor *a, const lm_tensor *b);
int lm__binary_scalar_cuda(lm_tensor *out, int op, const lm_tensor *a, float value, int reversed);
int lm__axpy_cuda(lm_tensor *y, float alpha, const lm_tensor *x);
int lm__reduce_cuda(lm_tensor *out, int op, const lm_tensor *a, uint32_t dims);
int lm__arg_reduce_cuda(lm_tensor *out, int op, const lm_tensor *a, int dim);
int lm__count_nonfinite_cuda(double *out, const lm_tensor *a);
int lm__matmul_cuda(lm_tensor *out, const lm_tensor *a, const lm_tensor *b, float alpha,
                    float beta);
int lm__singular_values_cuda(lm_tensor *out, const lm_tensor *a);
int lm__embedding_cuda(lm_tensor *out, const lm_tensor *table, const lm_tensor *idx);
int lm__embedding_backward_cuda(lm_tensor *grad_table, const lm_tensor *grad_out,
                                const lm_tensor *idx);
int lm__rms_norm_cuda(lm_tensor *out, const lm_tensor *x, float eps, float scale);
int lm__rms_norm_backward_cuda(lm_tensor *grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                               float eps, float scale);
int lm__rotary_cuda(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                    const lm_tensor *sin_table, int inverse);
int lm__rotary_norm_cuda(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                         const lm_tensor *sin_table, float eps, float scale);
int lm__rotary_norm_backward_cuda(lm_tensor *grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                                  const lm_tensor *cos_table, const lm_tensor *sin_table, float eps,
                                  float scale);
int lm__attention_cuda(lm_tensor *out, lm_tensor *lse, const lm_tensor *q, const lm_tensor *k,
                       const lm_tensor *v, const lm__attention_args *args);
int lm__attention_backward_cuda(lm_tensor *grad_q, lm_tensor *grad_k, lm_tensor *grad_v,
                                const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                                const lm_tensor *v, const lm_tensor *out, const lm_tensor *lse,
                                const lm__attention_args *args);
int lm__cross_entropy_cuda(lm_tensor *loss, lm_tensor *lse, const lm_tensor *logits,
                           const lm_tensor *targets, int vocab_size, float softcap);
int lm__cross_entropy_backward_cuda(lm_tensor *grad_logits, const lm_tensor *grad_loss,
                                    const lm_tensor *logits, const lm_tensor *targets,
                                    const lm_tensor *lse, int vocab_size, float softcap);
int lm__linear_cross_entropy_cuda(lm_tensor *loss, lm_tensor *grad_x, lm_tensor *grad_w,
                                  const lm_tensor *x, const lm_tensor *w, const lm_tensor *targets,
                                  int vocab_size, float softcap);
int lm__softmax_cuda(lm_tensor *out, const lm_tensor *a);
int lm__scaled_add_cuda(lm_tensor *out, const lm_tensor *a, const lm_tensor *x, const lm_tensor *b,
                        const lm_tensor *y);
int lm__scaled_add_backward_cuda(lm_tensor *grad_a, lm_tensor *grad_x, lm_tensor *grad_b,
                                 lm_tensor *grad_y, const lm_tensor *grad_out, const lm_tensor *a,
                                 const lm_tensor *x, const lm_tensor *b, const lm_tensor *y);
int lm__gated_add_cuda(lm_tensor *out, const lm_tensor *x, const lm_tensor *gate,
                       const lm_tensor *y, float scale);
int lm__gated_add_backward_cuda(lm_tensor *grad_gate, lm_tensor *grad_y, const lm_tensor *grad_out,
                                const lm_tensor *gate, const lm_tensor *y, float scale);
int lm__adamw_step_cuda(int n, lm_tensor *const *param, const lm_tensor *const *grad,
                        lm_tensor *const *exp_avg, lm_tensor *const *exp_avg_sq,
                        const lm_adamw_args *args);
int lm__polar_express_cuda(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args);
int lm__muon_step_cuda(lm_tensor *param, const lm_tensor *grad, lm_tensor *momentum_buffer,
                       lm_tensor *second_momentum, const lm_muon_args *args);
double lm__muon_measure_cuda(int64_t count, int64_t rows, int64_t cols, int precision, int path,
                             int steps);
double lm__muon_scratch_cuda(int64_t count, int64_t rows, int64_t cols, int precision);

/* names: lm__cuda_names_of's number of the gradients' names. */
int lm__guard_cuda(int n, const lm_tensor *const *grads, int64_t names, lm_tensor *tally,
                   int policy);

#ifdef __cplusplus
}
#endif

#endif
