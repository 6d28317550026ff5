/* Lumuon: the public surface of the engine.
 *
 * This is the whole C API, and LuaJIT reads this very file (preprocessed with LM_FFI defined at
 * build time), so it keeps to what ffi.cdef accepts: no macros in declarations but LM_API, no
 * structs by value, no callbacks, no bit-fields, no 64-bit enums.
 *
 * Conventions
 *  - A function that can fail returns int: LM_OK (0), or an LM_E... code with a message in
 *    lm_last_error(). A failed call has written nothing, unless its comment says otherwise.
 *  - Out-parameters come first. For `lm_tensor **out`: with *out == NULL the result is allocated
 *    and *out is set; otherwise *out must have the right shape and device, and is written into.
 *  - Sizes that Lua reads come back as double; dims are counted from 0 here and from 1 in Lua.
 *  - Arithmetic is in f32, whatever the storage dtype.
 */
#ifndef LUMUON_H
#define LUMUON_H

#ifndef LM_FFI
#include <stddef.h>
#include <stdint.h>
#define LM_API __attribute__((visibility("default")))
#ifdef __cplusplus
extern "C" {
#endif
#else
#define LM_API
#endif

enum { LM_ABI_VERSION = 1, LM_MAX_DIMS = 8 };

/* ---- errors ------------------------------------------------------------------------------ */

enum lm_status {
  LM_OK = 0,
  LM_EINVAL = 1,      /* an argument or option out of range */
  LM_ESHAPE = 2,      /* shapes that do not fit */
  LM_EDTYPE = 3,      /* a dtype the op does not take */
  LM_EDEVICE = 4,     /* tensors on different devices, or a device that is not there */
  LM_EINDEX = 5,      /* an index outside its tensor */
  LM_ENOMEM = 6,      /* no memory: asked, live and limit are in the message */
  LM_EIO = 7,         /* the operating system refused a file operation */
  LM_EFORMAT = 8,     /* a file that is not what it claims to be */
  LM_ENONFINITE = 9,  /* a NaN or Inf where none may be */
  LM_EINTERRUPT = 10, /* lm_interrupt() was called (Ctrl-C) */
  LM_ENOTSUP = 11,    /* this build or device cannot do it */
  LM_EDIST = 12       /* a collective failed, or the ranks disagree */
};

LM_API int lm_abi_version(void);
LM_API const char *lm_version(void);
/* Message of this thread's last failed call; valid until its next call that fails. */
LM_API const char *lm_last_error(void);
/* "LM_ESHAPE" for LM_ESHAPE; "unknown" for what is no code. */
LM_API const char *lm_status_name(int status);

/* Ask running and coming engine calls to end with LM_EINTERRUPT. Async-signal-safe. */
LM_API void lm_interrupt(void);
LM_API void lm_interrupt_clear(void);
LM_API int lm_interrupted(void);

/* ---- what this machine is ------------------------------------------------------------------ */

/* CPU kernels in use: "avx512", "avx2" or "base". */
LM_API const char *lm_cpu_variant(void);
/* Choose the kernels by name (for tests and comparisons); refused if the CPU lacks them. */
LM_API int lm_set_cpu_variant(const char *name);
/* Comma-separated features of this CPU that matter here: "avx2,avx512f,avx512_bf16,amx_bf16". */
LM_API const char *lm_cpu_features(void);
/* 1 where products in bf16 are faster than in f32 (AVX-512 BF16 or AMX). */
LM_API int lm_cpu_fast_bf16(void);
/* Name and version of each library in use, a line each: "oneDNN 2.6.3 (avx512_core_bf16)". */
LM_API const char *lm_libraries(void);
/* The limit of products in a precision (enum lm_precision): floating point operations a second of
 * multiply-adds on registers alone, on lm_threads() threads; the best of a few tries, 20 ms.
 * kernel: "amx_bf16", "avx512_bf16", "avx512", "avx2" or "plain"; bf16 has f32's where the CPU has
 * no multiply-add of bf16. */
LM_API int lm_peak_rate(double *out, const char **kernel, int precision);
LM_API int lm_threads(void);
/* Threads for the engine's loops and for oneDNN, 1 to 1024. */
LM_API int lm_set_threads(int n);

/* ---- dtypes and devices --------------------------------------------------------------------- */

enum lm_dtype {
  LM_F32 = 0,
  LM_BF16 = 1,
  LM_F16 = 2,
  LM_I32 = 3,
  LM_U16 = 4,
  LM_U8 = 5,
  LM_DTYPES = 6
};
enum lm_device { LM_CPU = 0, LM_CUDA = 1, LM_DEVICES = 2 };

LM_API const char *lm_dtype_name(int dtype);   /* "f32", ...; NULL for what is no dtype */
LM_API int lm_dtype_size(int dtype);           /* bytes an element; 0 for what is no dtype */
LM_API const char *lm_device_name(int device); /* "cpu", "cuda" */
LM_API int lm_device_available(int device);    /* 1 if this build and machine have it */

/* NVIDIA GPUs: how many there are; which one this process uses (-1: none; 0 unless chosen); its
 * name, memory and capability ("" where there is none); why there is none ("" where there is one).
 */
LM_API int lm_cuda_count(void);
LM_API int lm_cuda_selected(void);
LM_API const char *lm_cuda_info(void);
LM_API const char *lm_cuda_problem(void);
/* Choose the GPU by its index, before the first tensor lies there. */
LM_API int lm_cuda_select(int index);
/* Which it is unless one is chosen: number, divided by how many there are, leaves its index. */
LM_API int lm_cuda_prefer(int number);
/* Wait until a device has done all it was given. What went wrong there is told here, or by the next
 * call that needs a number from it: a kernel's fault, an index out of range, a NaN in a gradient.
 */
LM_API int lm_synchronize(int device);

/* ---- memory ---------------------------------------------------------------------------------- */

/* Of a device: bytes in live tensors; their peak since it was reset; what the process has taken
 * from the device, the spare included; the device's free memory and all of it. Resetting the peak
 * and giving spare memory back return what is left. */
enum lm_memory_what {
  LM_MEMORY_LIVE = 0,
  LM_MEMORY_PEAK = 1,
  LM_MEMORY_RESERVED = 2,
  LM_MEMORY_FREE = 3,
  LM_MEMORY_TOTAL = 4,
  LM_MEMORY_RESET_PEAK = 5,
  LM_MEMORY_TRIM = 6
};
LM_API double lm_device_memory(int device, int what);
/* Bytes in live tensors on all devices together. */
LM_API double lm_memory_live_everywhere(void);

/* The same for the CPU. */

/* Bytes in live tensors; their peak; bytes kept for reuse; blocks ever asked of the system. */
LM_API double lm_memory_live(void);
LM_API double lm_memory_peak(void);
LM_API double lm_memory_cached(void);
LM_API double lm_memory_system_allocs(void);
LM_API void lm_memory_reset_peak(void);
/* Give cached blocks back to the system. */
LM_API void lm_memory_trim(void);
/* Most bytes live tensors may take; default: the machine's memory, or its cgroup's. 0: default. */
LM_API int lm_set_memory_limit(double bytes);
LM_API double lm_memory_limit(void);

/* ---- tensors ----------------------------------------------------------------------------------
 */

typedef struct lm_tensor lm_tensor; /* dtype, device, shape, strides, and a share in a storage */

/* An uninitialised contiguous tensor. ndim 0 to LM_MAX_DIMS; sizes >= 0. */
LM_API int lm_tensor_new(lm_tensor **out, int dtype, int device, int ndim, const int64_t *shape);
/* A view of base's storage: strides and offset in elements, offset counted from base's first
 * element, strides >= 0. Refused if any element would lie outside the storage. */
LM_API int lm_tensor_view(lm_tensor **out, const lm_tensor *base, int ndim, const int64_t *shape,
                          const int64_t *strides, int64_t offset);
/* Drop a handle; the storage goes with its last one. NULL is fine. */
LM_API void lm_tensor_free(lm_tensor *t);
LM_API int lm_tensor_dtype(const lm_tensor *t);
LM_API int lm_tensor_device(const lm_tensor *t);
LM_API int lm_tensor_ndim(const lm_tensor *t);
LM_API double lm_tensor_size(const lm_tensor *t, int dim);
LM_API double lm_tensor_stride(const lm_tensor *t, int dim);
LM_API double lm_tensor_offset(const lm_tensor *t); /* elements from the storage's start */
LM_API double lm_tensor_numel(const lm_tensor *t);
LM_API int lm_tensor_is_contiguous(const lm_tensor *t);
/* First element; for reading and writing from Lua on the CPU, NULL elsewhere. */
LM_API void *lm_tensor_data(const lm_tensor *t);
/* Its address as a number, on any device: to tell whether two tensors begin at one place. */
LM_API double lm_tensor_address(const lm_tensor *t);
/* 1 if both share a storage. */
LM_API int lm_tensor_shares_storage(const lm_tensor *a, const lm_tensor *b);
/* Element at index[0..ndim): any dtype as a double. */
LM_API int lm_tensor_get(double *out, const lm_tensor *t, const int64_t *index);
LM_API int lm_tensor_set(lm_tensor *t, const int64_t *index, double value);

/* ---- filling and copying ------------------------------------------------------------------------
 */

/* Every element = value. Integer dtypes: value must be an integer in range. */
LM_API int lm_fill(lm_tensor *t, double value);
/* t[i] = start + i * step, 1-D. */
LM_API int lm_arange(lm_tensor *t, double start, double step);
/* Philox4x32-10 (Salmon et al. 2011): element i is number `position + i` of (seed, stream). In
 * [low, high); integer dtypes take whole numbers low < high. */
LM_API int lm_random_uniform(lm_tensor *t, double low, double high, uint64_t seed, uint64_t stream,
                             uint64_t position);
/* Box-Muller over the same stream. f32, bf16 or f16. */
LM_API int lm_random_normal(lm_tensor *t, double mean, double std, uint64_t seed, uint64_t stream,
                            uint64_t position);
/* dst = src, cast to dst's dtype, src broadcast to dst's shape; any strides, any overlap. To
 * integers truncates; values out of range, and NaN, are refused. */
LM_API int lm_copy(lm_tensor *dst, const lm_tensor *src);
/* A 64-bit hash of a contiguous tensor's dtype and bytes, to compare what processes hold. */
LM_API int lm_hash(uint64_t *out, const lm_tensor *t);

/* ---- elementwise
 * ---------------------------------------------------------------------------------- */

enum lm_unary_op {
  LM_NEG,
  LM_ABS,
  LM_SIGN,
  LM_SQUARE,
  LM_SQRT,
  LM_RSQRT,
  LM_RECIPROCAL,
  LM_EXP,
  LM_LOG,
  LM_SIN,
  LM_COS,
  LM_TANH,
  LM_SIGMOID,
  LM_RELU,
  LM_RELU2,
  LM_FLOOR,
  LM_CEIL,
  LM_ROUND,
  LM_ISFINITE,
  LM_UNARY_OPS
};
enum lm_binary_op {
  LM_ADD,
  LM_SUB,
  LM_MUL,
  LM_DIV,
  LM_POW,
  LM_MAXIMUM,
  LM_MINIMUM,
  LM_EQ,
  LM_NE,
  LM_LT,
  LM_LE,
  LM_GT,
  LM_GE,
  LM_TANH_GRAD,    /* a: output, b: gradient -> b (1 - a^2) */
  LM_SIGMOID_GRAD, /* a: output, b: gradient -> b a (1 - a) */
  LM_RELU_GRAD,    /* a: input, b: gradient -> b [a > 0] */
  LM_RELU2_GRAD,   /* a: input, b: gradient -> 2 b max(a, 0) */
  LM_BINARY_OPS
};
/* out = op(a). Allocated out has a's dtype (f32 for integers). out may be a. */
LM_API int lm_unary(lm_tensor **out, int op, const lm_tensor *a);
/* out = a op b, broadcast (numpy's rules). Allocated out: the wider float of both, f32 if none is
 * a float, i32 for +, -, * of integers. Comparisons: u8. out may be a or b. */
LM_API int lm_binary(lm_tensor **out, int op, const lm_tensor *a, const lm_tensor *b);
/* out = a op value, or value op a if reversed. */
LM_API int lm_binary_scalar(lm_tensor **out, int op, const lm_tensor *a, double value,
                            int reversed);
/* y += alpha * x, x broadcast to y's shape. */
LM_API int lm_axpy(lm_tensor *y, double alpha, const lm_tensor *x);

/* ---- reductions
 * ------------------------------------------------------------------------------------- */

enum lm_reduce_op { LM_SUM, LM_MEAN, LM_MAX, LM_MIN, LM_PROD, LM_NORM, LM_REDUCE_OPS };
/* out = op over the dims whose bit is set in dims (bit d for dim d); keepdim keeps them as 1.
 * Accumulated in f64; result f32 (a's dtype for floats). Fixed order:
 * the same bits whatever the threads. A NaN wins in max and min, which refuse to reduce nothing.
 * LM_NORM: sqrt of the sum of squares. */
LM_API int lm_reduce(lm_tensor **out, int op, const lm_tensor *a, uint32_t dims, int keepdim);
/* out (i32) = index of the largest (LM_MAX) or smallest (LM_MIN) along dim, first of equals;
 * a NaN is both. */
LM_API int lm_arg_reduce(lm_tensor **out, int op, const lm_tensor *a, int dim, int keepdim);
/* How many elements are NaN or Inf. */
LM_API int lm_count_nonfinite(double *out, const lm_tensor *a);

/* ---- linear algebra
 * ----------------------------------------------------------------------------------- */

/* out = alpha * a @ b + beta * out. a (..., M, K), b (..., K, N), out (..., M, N); leading dims
 * equal, or b has none. Any strides. Both f32, both bf16, or mixed (cast to f32); f32 accumulation.
 * Allocated out: f32 if either is f32, else bf16. beta != 0 needs *out given. Interrupted, a given
 * *out may be half-written. */
LM_API int lm_matmul(lm_tensor **out, const lm_tensor *a, const lm_tensor *b, double alpha,
                     double beta);
/* A linear layer: out = x w' (+ residual, unless NULL). x (..., in) contiguous, w (out, in),
 * residual and out (..., out). Allocated out: f32 if x or w is f32, else bf16. */
LM_API int lm_linear(lm_tensor **out, const lm_tensor *x, const lm_tensor *w,
                     const lm_tensor *residual);
/* grad_x = grad_out w + beta grad_x, and grad_w = grad_out' x + beta grad_w (f32 if allocated). */
LM_API int lm_linear_grad_x(lm_tensor **grad_x, const lm_tensor *grad_out, const lm_tensor *w,
                            double beta);
LM_API int lm_linear_grad_w(lm_tensor **grad_w, const lm_tensor *grad_out, const lm_tensor *x,
                            double beta);
/* Singular values in descending order: a (..., M, N) -> out (..., min(M,N)) f32. One-sided Jacobi
 * (Hestenes 1958) in f64. For looking at updates, not for inner loops. */
LM_API int lm_singular_values(lm_tensor **out, const lm_tensor *a);

/* ---- what a GPT needs
 * ---------------------------------------------------------------------------------- */

/* out (..., C) = table[idx]; table (V, C), idx i32 (...). An index outside 0..V-1 is LM_EINDEX. */
LM_API int lm_embedding(lm_tensor **out, const lm_tensor *table, const lm_tensor *idx);
/* grad_table[idx] += grad_out, in index order, a row summed in f32 and rounded once: the same bits
 * whatever the threads. */
LM_API int lm_embedding_backward(lm_tensor *grad_table, const lm_tensor *grad_out,
                                 const lm_tensor *idx);

/* out = scale * x / sqrt(mean(x^2) + eps) over the last dim (Zhang & Sennrich 2019). eps < 0: the
 * dtype's machine epsilon (2^-23 for f32, 2^-7 for bf16). out may be x; grad_x may be grad_out or
 * x. */
LM_API int lm_rms_norm(lm_tensor **out, const lm_tensor *x, double eps, double scale);
LM_API int lm_rms_norm_backward(lm_tensor **grad_x, const lm_tensor *grad_out, const lm_tensor *x,
                                double eps, double scale);

/* Rotary embedding, half-split (Su et al. 2021): x (B, T, H, D), cos and sin f32 (>= T, D/2).
 * y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos; inverse: the transposed rotation (its backward).
 * out may be x. */
LM_API int lm_rotary(lm_tensor **out, const lm_tensor *x, const lm_tensor *cos_table,
                     const lm_tensor *sin_table, int inverse);

/* lm_rms_norm of lm_rotary of x, in one pass: what queries and keys go through. out may be x;
 * grad_x may be grad_out. */
LM_API int lm_rotary_norm(lm_tensor **out, const lm_tensor *x, const lm_tensor *cos_table,
                          const lm_tensor *sin_table, double eps, double scale);
LM_API int lm_rotary_norm_backward(lm_tensor **grad_x, const lm_tensor *grad_out,
                                   const lm_tensor *x, const lm_tensor *cos_table,
                                   const lm_tensor *sin_table, double eps, double scale);

/* Causal attention with an online softmax (Dao et al. 2022): q (B, T, H, D), k and v
 * (B, T, Hkv, D) with H a multiple of Hkv; out like q; lse f32 (B, H, T). window: a token sees
 * itself and `window` before it; < 0: all. Never stores a T x T matrix. Interrupted, it leaves
 * given results half-written, and so does its backward. */
LM_API int lm_attention(lm_tensor **out, lm_tensor **lse, const lm_tensor *q, const lm_tensor *k,
                        const lm_tensor *v, double scale, int window);
LM_API int lm_attention_backward(lm_tensor **grad_q, lm_tensor **grad_k, lm_tensor **grad_v,
                                 const lm_tensor *grad_out, const lm_tensor *q, const lm_tensor *k,
                                 const lm_tensor *v, const lm_tensor *out, const lm_tensor *lse,
                                 double scale, int window);

/* Mean cross-entropy of softcap * tanh(logits / softcap) (softcap <= 0: of the logits) against
 * targets i32, over targets that are not -1. logits (..., Vpad), targets (...): only the first
 * vocab_size columns count. loss: f32, no dims; lse: f32 (...). A target outside -1..vocab_size-1
 * is LM_EINDEX. No valid target: loss is NaN, as in PyTorch. */
LM_API int lm_cross_entropy(lm_tensor **loss, lm_tensor **lse, const lm_tensor *logits,
                            const lm_tensor *targets, int vocab_size, double softcap);
/* grad_logits = grad_loss * d loss / d logits; may be the logits themselves (written in place);
 * padding columns and rows without a target get 0. grad_loss: f32, no dims or one element. */
LM_API int lm_cross_entropy_backward(lm_tensor **grad_logits, const lm_tensor *grad_loss,
                                     const lm_tensor *logits, const lm_tensor *targets,
                                     const lm_tensor *lse, int vocab_size, double softcap);
/* lm_cross_entropy of lm_linear's logits, x (..., C) and w (Vpad, C), both f32 or both bf16,
 * without ever storing them all: some rows at a time. grad_x and grad_w (f32 if allocated): d loss
 * / dx and / dw; a NULL of the two is not wanted. Interrupted, it leaves given results
 * half-written. */
LM_API int lm_linear_cross_entropy(lm_tensor **loss, lm_tensor **grad_x, lm_tensor **grad_w,
                                   const lm_tensor *x, const lm_tensor *w, const lm_tensor *targets,
                                   int vocab_size, double softcap);
/* Softmax over the last dim; out may be a. */
LM_API int lm_softmax(lm_tensor **out, const lm_tensor *a);

/* out = a*x + b*y for one-element tensors a and b: the residual mix of nanochat's GPT. out may be x
 * or y. */
LM_API int lm_scaled_add(lm_tensor **out, const lm_tensor *a, const lm_tensor *x,
                         const lm_tensor *b, const lm_tensor *y);
/* grad_a += sum(grad_out*x), grad_b += sum(grad_out*y); grad_x = a*grad_out; grad_y += b*grad_out.
 * A NULL among the four is not wanted. grad_x may be grad_out. */
LM_API int lm_scaled_add_backward(lm_tensor *grad_a, lm_tensor **grad_x, lm_tensor *grad_b,
                                  lm_tensor *grad_y, const lm_tensor *grad_out, const lm_tensor *a,
                                  const lm_tensor *x, const lm_tensor *b, const lm_tensor *y);
/* out = x + scale * sigmoid(gate) * y; x, y (..., H, D), gate (..., H). out may be x or y. */
LM_API int lm_gated_add(lm_tensor **out, const lm_tensor *x, const lm_tensor *gate,
                        const lm_tensor *y, double scale);
/* grad_gate and grad_y; grad_x is grad_out itself. */
LM_API int lm_gated_add_backward(lm_tensor **grad_gate, lm_tensor **grad_y,
                                 const lm_tensor *grad_out, const lm_tensor *gate,
                                 const lm_tensor *y, double scale);

/* ---- the optimizers
 * ---------------------------------------------------------------------------------------- */

typedef struct lm_adamw_args {
  double lr;           /* >= 0 */
  double beta1, beta2; /* [0, 1) */
  double eps;          /* > 0 */
  double weight_decay; /* >= 0 */
  double step;         /* counts from 1 */
  /* NULL; or the tally that lm_guard_gradients keeps on the tensors' GPU: where steps have been
   * skipped that the host has not heard of, step is one more than were made before. */
  const lm_tensor *tally;
} lm_adamw_args;

/* AdamW, decoupled decay (Loshchilov & Hutter 2019), fused: one pass, in place, for n tensors.
 * param[i], grad[i], exp_avg[i], exp_avg_sq[i]: same shape, f32 or bf16, contiguous. The caller has
 * checked the gradients (lm_count_nonfinite). */
LM_API int lm_adamw_step(int n, lm_tensor *const *param, const lm_tensor *const *grad,
                         lm_tensor *const *exp_avg, lm_tensor *const *exp_avg_sq,
                         const lm_adamw_args *args);

enum { LM_MAX_NS_STEPS = 16 };
enum lm_precision { LM_PRECISION_F32 = 0, LM_PRECISION_BF16 = 1 };

typedef struct lm_polar_args {
  int ns_steps;            /* 0 to LM_MAX_NS_STEPS: rows of coefficients in use */
  int precision;           /* enum lm_precision */
  double norm_scale;       /* s of X = U / (|U|_F s + 1e-6) */
  double coefficients[48]; /* (a, b, c) of each step */
} lm_polar_args;

/* Polar Express (Amsel et al. 2025): the polar factor of each matrix by a composition of odd
 * quintics. in (K, rows, cols) f32 -> out f32, same shape; in may be out. */
LM_API int lm_polar_express(lm_tensor **out, const lm_tensor *in, const lm_polar_args *args);

typedef struct lm_muon_args {
  double lr;              /* >= 0, before the shape factor sqrt(max(1, rows/cols)) */
  double momentum, beta2; /* [0, 1) */
  double weight_decay;    /* >= 0, cautious */
  int nesterov;           /* U = G + momentum (M - G), else U = M */
  int row_equilibrate;    /* head */
  int renormalize;        /* head */
  lm_polar_args polar;
} lm_muon_args;

/* Muon with NorMuon variance reduction and cautious decay (Jordan 2024; Li et al. 2025; nanochat).
 * param, grad, momentum_buffer: f32 (K, rows, cols) contiguous, updated in place (grad is only
 * read); second_momentum: f32 (K, rows, 1) if rows >= cols, else (K, 1, cols). The caller has
 * checked the gradients (lm_count_nonfinite). */
LM_API int lm_muon_step(lm_tensor *param, const lm_tensor *grad, lm_tensor *momentum_buffer,
                        lm_tensor *second_momentum, const lm_muon_args *args);

/* ---- how Muon's products are done ---------------------------------------------------------------
 *
 * The same polynomial in three ways; golden limits hold for each. A fixed rule of shape and
 * precision takes one; for matrices that are not small the first step measures them all, and what
 * is clearly faster than the rule's overrules it for the rest of the process (docs/muon-cpu.md).
 */
enum lm_muon_path {
  LM_MUON_AUTO = 0,
  LM_MUON_WRITTEN = 1, /* every product in full, by oneDNN or cuBLASLt: the reference */
  LM_MUON_HALVES = 2,  /* symmetric products compute half and mirror it, by kernels of our own */
  LM_MUON_GRAM = 3,    /* several steps on the small matrices before X is multiplied; CPU: halved */
  LM_MUON_PATHS = 4
};
LM_API const char *lm_muon_path_name(int path); /* "auto", ...; NULL for what is no path */
/* Take this path from now on, whatever the shape (for tests and comparisons); LM_MUON_AUTO: choose.
 */
LM_API int lm_set_muon_path(int path);
LM_API int lm_muon_path(void);
/* The kernel of packed bf16 products by name: "avx512_bf16", "amx_bf16", "portable_bf16"; "auto".
 * Refused where this CPU lacks it. */
LM_API int lm_set_muon_kernel(const char *name);
/* The GPU's kernel of symmetric products (LM_MUON_HALVES): "mma_bf16" or, on compute
 * capability 9.0, "wgmma_bf16"; "auto": the faster, if its results are the other's (deterministic:
 * "mma_bf16"). lm_gpu_muon_kernel: the one that is taken, "" without a GPU; the note says why not
 * wgmma_bf16. */
LM_API int lm_set_gpu_muon_kernel(const char *name);
LM_API const char *lm_gpu_muon_kernel(void);
LM_API const char *lm_gpu_muon_kernel_note(void);
/* 1: no choice is made by measurement, so that two runs cannot choose differently. */
LM_API void lm_set_deterministic(int on);
LM_API int lm_deterministic(void);

/* How `count` matrices (rows, cols) are done on a device: as a step would, this measures what was
 * not measured before. precision: enum lm_precision. */
typedef struct lm_muon_choice {
  double rows, cols;
  double count; /* that the times are for: at most 8 on a GPU, 1 on the CPU */
  int device, precision;
  int threads;              /* of the CPU, else 0 */
  int path, rule;           /* taken; what the fixed rule says */
  int measured;             /* 0: ms is empty */
  double ms[LM_MUON_PATHS]; /* five steps on one matrix, by path; 0 for what was not tried */
  const char *kernel;       /* of halved products */
} lm_muon_choice;
LM_API int lm_muon_choose(lm_muon_choice *out, int device, double count, double rows, double cols,
                          int precision);

/* Bytes that lm_muon_step takes on a device beside its tensors, for `count` matrices (rows, cols),
 * with the threads and path of now; a path that would be chosen by measurement goes by the rule. */
LM_API int lm_muon_scratch(double *out, int device, double count, double rows, double cols,
                           int precision);

/* What the last lm_muon_step or lm_polar_express of this process did. */
typedef struct lm_muon_report {
  int path;           /* enum lm_muon_path, never AUTO */
  int matrices;       /* K */
  const char *kernel; /* of its products: "onednn", "avx512_bf16", "cublaslt", "mma_bf16", ... */
  double operations;  /* floating point operations its products executed */
  double bytes;       /* read and written outside the products */
  double scratch;     /* bytes of memory it took beside its tensors */
} lm_muon_report;
LM_API int lm_muon_last(lm_muon_report *out);

/* What lm_guard_gradients counts of an optimizer's steps, on the device: i32 (LM_TALLY_SIZE),
 * zeros at first. */
enum lm_tally {
  LM_TALLY_MADE = 0,     /* steps that went ahead */
  LM_TALLY_SKIPPED = 1,  /* that did not */
  LM_TALLY_GRADIENT = 2, /* the last of those with a NaN or Inf: its first gradient that has any */
  LM_TALLY_BAD = 3,      /* how many are in it */
  LM_TALLY_OTHERS = 4,   /* gradients beside it that have some */
  LM_TALLY_SIZE = 5
};
enum lm_nonfinite_policy {
  LM_NONFINITE_ERROR = 0, /* the next call that waits for the device is LM_ENONFINITE */
  LM_NONFINITE_SKIP = 1   /* the tally tells */
};

/* On a device that computes beside the host: look for NaN and Inf in n gradients (f32 or bf16,
 * contiguous), there. Where one has any, lm_adamw_step and lm_muon_step on that device change
 * nothing until the next call of this; nor do they where something was found that the host has not
 * been told yet. With LM_NONFINITE_ERROR it is told of a NaN or Inf by the error of the next call
 * that waits for the device, with the gradient's names[i]. tally: see above, or NULL. n == 0: steps
 * go ahead, and are not counted. LM_ENOTSUP on the CPU: there lm_count_nonfinite answers at once.
 */
LM_API int lm_guard_gradients(int device, int n, const lm_tensor *const *grads,
                              const char *const *names, lm_tensor *tally, int policy);

/* A step as one launch, on a GPU. Between begin and end make the same calls of lm_guard_gradients,
 * lm_adamw_step and lm_muon_step at every step, and no other ones: the first time they run; the
 * second time they are captured as a CUDA graph; from then on they only hand over their numbers
 * (learning rates, momentum, betas, eps, decay, the step), and lm_graph_end launches the graph with
 * them. Where anything else has changed (tensors, shapes, coefficients, forms), end starts nothing,
 * sets *again to 1, and begin, the calls and end are to be repeated, which runs and captures them
 * anew. After an error between the two: lm_graph_abort, and nothing of the step is done, unless it
 * ran. The graph's scratch memory stays taken until lm_graph_free. LM_ENOTSUP on the CPU. */
typedef struct lm_graph lm_graph;
LM_API int lm_graph_new(lm_graph **out, int device);
LM_API int lm_graph_begin(lm_graph *graph, int *runs); /* *runs: whether the calls run at once */
LM_API int lm_graph_end(lm_graph *graph, int *again);
LM_API int lm_graph_abort(lm_graph *graph);
LM_API void lm_graph_free(lm_graph *graph);
enum lm_graph_count {
  LM_GRAPH_PLAIN = 0,    /* steps that ran as ever */
  LM_GRAPH_CAPTURES = 1, /* captures that were made */
  LM_GRAPH_LAUNCHES = 2, /* steps that were launched */
  LM_GRAPH_COUNTS = 3
};
LM_API int lm_graph_counts(const lm_graph *graph, double *out); /* LM_GRAPH_COUNTS of them */

/* ---- collectives -------------------------------------------------------------------------------
 *
 * The ranks 0..world_size-1 of a job run the same program and make the same calls in the same
 * order. Each call below issues a collective and returns at once with a handle; a communication
 * thread runs them in that order. The handle holds the tensors' storages until the collective is
 * done: it may be waited for twice, once or never, and freed at any time. Until then nobody else
 * may write the tensors, nor read what is being written. Tensors are contiguous; a slice is the
 * rank'th of world_size equal parts of a tensor's elements.
 *
 * Sums are added in rank order in f64 and rounded once: the same bits on every rank. `label` says
 * in messages what the data is. A rank that does not arrive within the timeout ends the job, with a
 * message that names the collective, the label and the ranks. That, and over TCP a rank that ends
 * before the others, are the cases in which the engine ends the process. Without lm_dist_init, or
 * with LM_DIST_SELF, the world is this process.
 */

enum lm_dist_transport { LM_DIST_SELF = 0, LM_DIST_MPI = 1, LM_DIST_TCP = 2 };
enum lm_dist_op {
  LM_DIST_SUM = 0,
  LM_DIST_MEAN = 1,
  LM_DIST_MAX = 2,
  LM_DIST_MIN = 3,
  LM_DIST_OPS = 4
};

typedef struct lm_dist_options {
  int transport;        /* enum lm_dist_transport */
  double timeout;       /* seconds a collective may take */
  double start_timeout; /* seconds until every rank has started */
  int links;            /* 1: in a world of one, too, a GPU's tensors go by NCCL, where it is */
  /* For LM_DIST_TCP, which nobody tells who it is: */
  int rank, world_size;
  const char *rendezvous; /* tcp://host:port, rank 0's; or file:///path that all share */
  const char *job;        /* ranks of another job are refused; NULL: of none */
} lm_dist_options;

LM_API int lm_dist_available(int transport); /* 1 if this build has it */
LM_API int lm_dist_init(const lm_dist_options *options);
LM_API int lm_dist_initialized(void);
LM_API int lm_dist_rank(void);
LM_API int lm_dist_world_size(void);
LM_API const char *lm_dist_transport(void); /* "self", "mpi" or "tcp" */
/* Run what was issued, then leave the world. Every rank calls it (after a barrier, best). */
LM_API void lm_dist_finalize(void);
/* End this process with code, at once; the launcher then ends the others. Returns in a world of
 * one.
 */
LM_API void lm_dist_abort(int code);
LM_API int lm_dist_set_timeout(double seconds);
/* For measurements: collectives take this much longer, a byte that this rank sends. */
LM_API int lm_dist_set_delay(double seconds_per_byte);
/* Bytes this rank has sent so far; of what NCCL sends, as many as in a ring of the ranks. */
LM_API double lm_dist_wire_bytes(void);

typedef struct lm_work lm_work; /* a collective that was issued */

/* t = op over all ranks' t. f32, bf16; i32 but for LM_DIST_MEAN. */
LM_API int lm_dist_all_reduce(lm_work **out, lm_tensor *t, int op, const char *label);
/* This rank's slice of t = op over all ranks' of it; the other slices are undefined afterwards. */
LM_API int lm_dist_reduce_scatter(lm_work **out, lm_tensor *t, int op, const char *label);
/* Every rank gives its slice of t, and gets all others'. Any dtype, as the next ones. */
LM_API int lm_dist_all_gather(lm_work **out, lm_tensor *t, const char *label);
/* t = rank root's t. */
LM_API int lm_dist_broadcast(lm_work **out, lm_tensor *t, int root, const char *label);
/* whole, on rank root (NULL elsewhere) = the ranks' parts behind each other. */
LM_API int lm_dist_gather(lm_work **out, lm_tensor *whole, const lm_tensor *part, int root,
                          const char *label);
/* The reverse: part = this rank's of the parts that lie behind each other in rank root's whole
 * (NULL elsewhere). On the CPU. */
LM_API int lm_dist_scatter(lm_work **out, lm_tensor *part, const lm_tensor *whole, int root,
                           const char *label);
LM_API int lm_dist_barrier(lm_work **out, const char *label);

/* Block until done; the collective's own error, or LM_EINTERRUPT (it goes on then; wait again). */
LM_API int lm_work_wait(lm_work *work);
LM_API int lm_work_done(const lm_work *work); /* 1 if done; NULL is */
LM_API double
lm_work_seconds(const lm_work *work);    /* it took, without the queue; -1 before the end */
LM_API void lm_work_free(lm_work *work); /* drop the handle; NULL is fine */

/* ---- safetensors
 * ---------------------------------------------------------------------------------------------- */

typedef struct lm_safetensors lm_safetensors;

/* Map a file and check all of its header (docs in engine/io/safetensors.c). */
LM_API int lm_safetensors_open(lm_safetensors **out, const char *path);
LM_API void lm_safetensors_close(lm_safetensors *file);
LM_API int lm_safetensors_count(const lm_safetensors *file);
LM_API const char *lm_safetensors_name(const lm_safetensors *file, int i);
/* A tensor of its own with the bytes of entry i. LM_ENOTSUP for what the format has and Lumuon has
 * not (I64, nine dims); a given *out is partly written if the copying fails or is interrupted. */
LM_API int lm_safetensors_read(lm_tensor **out, const lm_safetensors *file, int i);
/* Entry i's dtype, ndim and shape (room for LM_MAX_DIMS), where such a tensor can be read. */
LM_API int lm_safetensors_shape(const lm_safetensors *file, int i, int *dtype, int *ndim,
                                int64_t *shape);
LM_API int lm_safetensors_meta_count(const lm_safetensors *file);
LM_API const char *lm_safetensors_meta_key(const lm_safetensors *file, int i);
LM_API const char *lm_safetensors_meta_value(const lm_safetensors *file, int i);
/* Write n tensors (contiguous) and m pairs of metadata: to a temporary file beside path, flushed to
 * disk, then renamed over it, so that path is always a whole file, the old one or the new one. */
LM_API int lm_safetensors_save(const char *path, int n, const char *const *names,
                               const lm_tensor *const *tensors, int m, const char *const *keys,
                               const char *const *values);

/* The same with the tensors' bytes coming one after the other, in any order: what they are is
 * known beforehand. shapes: all tensors' sizes behind each other, ndims[i] of tensor i. */
typedef struct lm_safetensors_writer lm_safetensors_writer;
LM_API int lm_safetensors_create(lm_safetensors_writer **out, const char *path, int n,
                                 const char *const *names, const int *dtypes, const int *ndims,
                                 const int64_t *shapes, int m, const char *const *keys,
                                 const char *const *values);
/* Tensor i of those is t: contiguous, on the CPU, of the dtype and shape that were said; once. */
LM_API int lm_safetensors_put(lm_safetensors_writer *writer, int i, const lm_tensor *t);
/* Once all were put: flush and rename. The writer is gone afterwards, whatever is returned. */
LM_API int lm_safetensors_commit(lm_safetensors_writer *writer);
/* Remove what was written; path is as it was, and the writer gone. NULL is fine. */
LM_API void lm_safetensors_abandon(lm_safetensors_writer *writer);

/* ---- token shards
 * ---------------------------------------------------------------------------------------------- */

typedef struct lm_shard lm_shard;

/* Open a file of tokens as llm.c writes them, and check its header and length (the format and its
 * rules: engine/io/shards.c). */
LM_API int lm_shard_open(lm_shard **out, const char *path);
LM_API void lm_shard_close(lm_shard *file); /* NULL is fine */
LM_API double lm_shard_count(const lm_shard *file);
/* Tokens first, first + 1, ... (counted from 0) to fill out: i32, contiguous, on the CPU. */
LM_API int lm_shard_read(lm_tensor *out, const lm_shard *file, double first);
/* Write a shard: u16 tokens, or i32 ones (stored as u32) from 0 on; path is always a whole file. */
LM_API int lm_shard_save(const char *path, const lm_tensor *tokens);

#if defined(__cplusplus) && !defined(LM_FFI)
}
#endif

#endif
