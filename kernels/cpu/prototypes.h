/* The CPU kernels of one variant: the entries of lm__backend_table, documented there. */
#ifndef LM_KERNELS_CPU_PROTOTYPES_H
#define LM_KERNELS_CPU_PROTOTYPES_H

#include "backend/backend.h"

int LM_KERNEL(fill)(lm_tensor *t, double value);
int LM_KERNEL(arange)(lm_tensor *t, double start, double step);
int LM_KERNEL(random_uniform)(lm_tensor *t, double low, double high, uint64_t seed, uint64_t stream,
                              uint64_t position);
int LM_KERNEL(random_normal)(lm_tensor *t, double mean, double std, uint64_t seed, uint64_t stream,
                             uint64_t position);
int LM_KERNEL(copy)(lm_tensor *dst, const lm_tensor *src);
int LM_KERNEL(unary)(lm_tensor *out, int op, const lm_tensor *a);
int LM_KERNEL(binary)(lm_tensor *out, int op, const lm_tensor *a, const lm_tensor *b);
int LM_KERNEL(binary_scalar)(lm_tensor *out, int op, const lm_tensor *a, float value, int reversed);
int LM_KERNEL(axpy)(lm_tensor *y, float alpha, const lm_tensor *x);
int LM_KERNEL(reduce)(lm_tensor *out, int op, const lm_tensor *a, uint32_t dims);
int LM_KERNEL(arg_reduce)(lm_tensor *out, int op, const lm_tensor *a, int dim);
int LM_KERNEL(count_nonfinite)(double *out, const lm_tensor *a);
int LM_KERNEL(matmul)(lm_tensor *out, const lm_tensor *a, const lm_tensor *b, float alpha,
                      float beta);
int LM_KERNEL(singular_values)(lm_tensor *out, const lm_tensor *a);
int LM_KERNEL(embedding)(lm_tensor *out, const lm_tensor *table, const lm_tensor *idx);
int LM_KERNEL(embedding_backward)(lm_tensor *grad_table, const lm_tensor *grad_out,
                                  const lm_tensor *idx);
int LM_KERNEL(rms_norm)(lm_tensor *out, const lm_tensor *x, float eps, float scale);
int LM_KERNEL(rms_norm_backward)(lm_tensor *grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                                 float eps, float scale);
int LM_KERNEL(rotary)(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                      const lm_tensor *sin_table, int inverse);
int LM_KERNEL(rotary_norm)(lm_tensor *out, const lm_tensor *x, const lm_tensor *cos_table,
                           const lm_tensor *sin_table, float eps, float scale);
int LM_KERNEL(rotary_norm_backward)(lm_tensor *grad_x, const lm_tensor *grad_out,
                                    const lm_tensor *x, const lm_tensor *cos_table,
                                    const lm_tensor *sin_table, float eps, float scale);
int LM_KERNEL(attention)(lm_tensor *out, lm_tensor *lse, const lm_tensor *q, const lm_tensor *k,
                         const lm_tensor *v, const lm__attention_args *args);
int LM_KERNEL(attention_backward)(lm_tensor *grad_q, lm_tensor *grad_k, lm_tensor *grad_v,
                                  const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                                  const lm_tensor *v, const lm_tensor *out, const lm_tensor *lse,
                                  const lm__attention_args *args);
int LM_KERNEL(cross_entropy)(lm_tensor *loss, lm_tensor *lse, const lm_tensor *logits,
                             const lm_tensor *targets, int vocab_size, float softcap);
int LM_KERNEL(cross_entropy_backward)(lm_tensor *grad_logits, const lm_tensor *grad_loss,
                                      const lm_tensor *logits, const lm_tensor *targets,
                                      const lm_tensor *lse, int vocab_size, float softcap);
int LM_KERNEL(linear_cross_entropy)(lm_tensor *loss, lm_tensor *grad_x, lm_tensor *grad_w,
                                    const lm_tensor *x, const lm_tensor *w,
                                    const lm_tensor *targets, int vocab_size, float softcap);
int LM_KERNEL(softmax)(lm_tensor *out, const lm_tensor *a);
int LM_KERNEL(scaled_add)(lm_tensor *out, const lm_tensor *a, const lm_tensor *x,
                          const lm_tensor *b, const lm_tensor *y);
int LM_KERNEL(scaled_add_backward)(lm_tensor *grad_a, lm_tensor *grad_x, lm_tensor *grad_b,
                                   lm_tensor *grad_y, const lm_tensor *grad_out, const lm_tensor *a,
                                   const lm_tensor *x, const lm_tensor *b, const lm_tensor *y);
int LM_KERNEL(gated_add)(lm_tensor *out, const lm_tensor *x, const lm_tensor *gate,
                         const lm_tensor *y, float scale);
int LM_KERNEL(gated_add_backward)(lm_tensor *grad_gate, lm_tensor *grad_y,
                                  const lm_tensor *grad_out, const lm_tensor *gate,
                                  const lm_tensor *y, float scale);
void LM_KERNEL(rank_reduce)(int dtype, int op, int n, const void *const *sources, void *out,
                            int64_t count);
int LM_KERNEL(adamw_step)(int n, lm_tensor *const *param, const lm_tensor *const *grad,
                          lm_tensor *const *exp_avg, lm_tensor *const *exp_avg_sq,
                          const lm_adamw_args *args);
double LM_KERNEL(muon_measure)(int64_t count, int64_t rows, int64_t cols, int precision, int path,
                               int steps);
double LM_KERNEL(muon_scratch)(int64_t count, int64_t rows, int64_t cols, int precision);
int LM_KERNEL(polar_express)(lm_tensor *out, const lm_tensor *in, const lm_polar_args *args);
int LM_KERNEL(muon_step)(lm_tensor *param, const lm_tensor *grad, lm_tensor *momentum_buffer,
                         lm_tensor *second_momentum, const lm_muon_args *args);

#endif
