/* The table of one CPU variant; compiled once a variant, like the kernels it lists. */
#include "cpu/kernel.h"

#define LM__STRING2(s) #s
#define LM__STRING(s) LM__STRING2(s)

extern const lm__backend_table LM_KERNEL(table);
/* clang-format off */
const lm__backend_table LM_KERNEL(table) = {
    .variant = LM__STRING(LM_VARIANT),
#define ENTRY(op) .op = LM_KERNEL(op),
    ENTRY(fill)
    ENTRY(arange)
    ENTRY(copy)
    ENTRY(unary)
    ENTRY(binary)
    ENTRY(binary_scalar)
    ENTRY(axpy)
    ENTRY(reduce)
    ENTRY(arg_reduce)
    ENTRY(count_nonfinite)
    ENTRY(random_uniform)
    ENTRY(random_normal)
    ENTRY(singular_values)
    ENTRY(matmul)
    ENTRY(adamw_step)
    ENTRY(polar_express)
    ENTRY(muon_step)
    ENTRY(muon_measure)
    ENTRY(muon_scratch)
    ENTRY(embedding)
    ENTRY(embedding_backward)
    ENTRY(rms_norm)
    ENTRY(rms_norm_backward)
    ENTRY(rotary)
    ENTRY(rotary_norm)
    ENTRY(rotary_norm_backward)
    ENTRY(attention)
    ENTRY(attention_backward)
    ENTRY(cross_entropy)
    ENTRY(cross_entropy_backward)
    ENTRY(linear_cross_entropy)
    ENTRY(softmax)
    ENTRY(scaled_add)
    ENTRY(scaled_add_backward)
    ENTRY(gated_add)
    ENTRY(gated_add_backward)
    ENTRY(rank_reduce)
#undef ENTRY
};
/* clang-format on */
