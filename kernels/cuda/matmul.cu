/* out = alpha a b + beta out, for matrices and batches of them, through cuBLASLt
 * (backend/cublaslt.h).
 *
 * A product takes its operands as they lie wherever one of a matrix's dims has stride 1; others,
 * and operands of another dtype than the product runs in (bf16 where both are bf16, else f32), are
 * copied first. Leading dims that continue the rows of a are joined with them, so that an
 * activation (B, T, C) times a weight is one product; what is left of them is a strided batch, or,
 * where no one stride crosses them, several. */
#include "backend/cublaslt.h"
#include "core/matrix.h"
#include "cuda/kernel.cuh"

namespace {

/* The matrices of one operand: batch dims as in the tensor, then rows and columns. */
struct operand {
  lm_tensor t;     /* a view; owns nothing */
  lm_tensor *copy; /* freed at the end; NULL where the tensor itself serves */
  bool transposed; /* unit stride in the rows' dim */
  int64_t ld;
};

bool serves(operand *o) { return lm__matrix_serves(&o->t, &o->transposed, &o->ld); }

/* A contiguous tensor of the operand's shape, with its values if read. */
int materialise(operand *o, int dtype, bool read) {
  LM__TRY(lm_tensor_new(&o->copy, dtype, LM_CUDA, o->t.ndim, o->t.shape));
  if (read) LM__TRY(lm__copy_cuda(o->copy, &o->t));
  o->t = *o->copy;
  o->transposed = false;
  o->ld = o->t.shape[o->t.ndim - 1];
  return LM_OK;
}

/* Dim d and d + 1 become one. */
void join(lm_tensor *t, int d) {
  if (t->shape[d + 1] != 1) t->strides[d] = t->strides[d + 1];
  t->shape[d] *= t->shape[d + 1];
  for (int e = d + 1; e < t->ndim - 1; e++) {
    t->shape[e] = t->shape[e + 1];
    t->strides[e] = t->strides[e + 1];
  }
  t->ndim--;
}
bool joins(const lm_tensor *t, int d) {
  return t->shape[d] == 1 || t->shape[d + 1] == 1 ||
         t->strides[d] == t->shape[d + 1] * t->strides[d + 1];
}
void join_rows(lm_tensor *a, lm_tensor *out) {
  while (a->ndim > 2) {
    const int d = a->ndim - 3;
    if (a->shape[d] != 1 && a->shape[d + 1] != 1 && !(joins(a, d) && joins(out, d))) return;
    join(a, d);
    join(out, d);
  }
}

void swap_last(lm_tensor *t) {
  const int i = t->ndim - 2, j = t->ndim - 1;
  const int64_t size = t->shape[i], stride = t->strides[i];
  t->shape[i] = t->shape[j];
  t->strides[i] = t->strides[j];
  t->shape[j] = size;
  t->strides[j] = stride;
}

/* Batch dims with no stride of their own, for a matrix that serves all. */
void repeat(lm_tensor *t, const lm_tensor *like) {
  const int more = like->ndim - t->ndim;
  if (more <= 0) return;
  for (int d = 1; d >= 0; d--) {
    t->shape[d + more] = t->shape[d];
    t->strides[d + more] = t->strides[d];
  }
  for (int d = 0; d < more; d++) {
    t->shape[d] = like->shape[d];
    t->strides[d] = 0;
  }
  t->ndim = like->ndim;
}

int multiply(operand *o, float alpha, float beta) {
  lm_tensor out = o[0].t, a = o[1].t, b = o[2].t;
  repeat(&b, &a);
  for (int d = out.ndim - 4; d >= 0; d--)
    if (joins(&out, d) && joins(&a, d) && joins(&b, d)) join(&out, d), join(&a, d), join(&b, d);
  const int dims = out.ndim - 2, inner = dims - 1; /* batch dims, the strided one */
  lm__cuda_product p = {};
  p.m = out.shape[dims];
  p.n = out.shape[dims + 1];
  p.k = a.shape[dims + 1];
  p.batch = dims > 0 ? out.shape[inner] : 1;
  p.transpose_a = o[1].transposed;
  p.transpose_b = o[2].transposed;
  p.in = a.dtype;
  p.out_dtype = out.dtype;
  p.lda = o[1].ld;
  p.ldb = o[2].ld;
  p.ldo = o[0].ld;
  if (dims > 0) {
    p.stride_a = a.strides[inner];
    p.stride_b = b.strides[inner];
    p.stride_out = out.strides[inner];
  }
  p.alpha = alpha;
  p.beta = beta;
  int64_t products = 1;
  for (int d = 0; d < inner; d++) products *= out.shape[d];
  for (int64_t i = 0; i < products; i++) {
    int64_t rest = i, at_a = 0, at_b = 0, at_out = 0;
    for (int d = inner - 1; d >= 0; d--) {
      const int64_t at = rest % out.shape[d];
      rest /= out.shape[d];
      at_a += at * a.strides[d];
      at_b += at * b.strides[d];
      at_out += at * out.strides[d];
    }
    p.a = lm__pointer<char>(&a) + at_a * lm_dtype_size(a.dtype);
    p.b = lm__pointer<char>(&b) + at_b * lm_dtype_size(b.dtype);
    p.out = lm__pointer<char>(&out) + at_out * lm_dtype_size(out.dtype);
    LM__TRY(lm__cuda_multiply("matmul", &p));
  }
  return LM_OK;
}

/* out *= beta, where there is nothing to sum. */
int scale(lm_tensor *out, float beta) {
  return beta == 0.0f   ? lm__fill_cuda(out, 0)
         : beta == 1.0f ? LM_OK
                        : lm__binary_scalar_cuda(out, LM_MUL, out, beta, 0);
}
} // namespace

extern "C" int lm__matmul_cuda(lm_tensor *out, const lm_tensor *a, const lm_tensor *b, float alpha,
                               float beta) {
  if (lm__numel(out) == 0) return LM_OK;
  if (a->shape[a->ndim - 1] == 0) return scale(out, beta);
  operand o[3] = {{*out, NULL, false, 0}, {*a, NULL, false, 0}, {*b, NULL, false, 0}};
  if (b->ndim == 2) join_rows(&o[1].t, &o[0].t);
  const int last = o[0].t.ndim - 1;
  if (o[0].t.strides[last] != 1 && o[0].t.strides[last - 1] == 1 && o[2].t.ndim == o[1].t.ndim) {
    const operand first = o[1]; /* out' = b' a' */
    o[1] = o[2];
    o[2] = first;
    for (int i = 0; i < 3; i++) swap_last(&o[i].t);
  }
  const lm_tensor target = o[0].t;
  const int dtype = a->dtype == LM_BF16 && b->dtype == LM_BF16 ? LM_BF16 : LM_F32;
  const bool out_serves = serves(&o[0]) && !o[0].transposed &&
                          (dtype == LM_BF16 || target.dtype == LM_F32) &&
                          !lm__overlap(&target, &o[1].t) && !lm__overlap(&target, &o[2].t);
  int status = LM_OK;
  if (!out_serves)
    status = materialise(&o[0], dtype == LM_BF16 ? target.dtype : (int)LM_F32, beta != 0.0f);
  for (int i = 1; i < 3 && status == LM_OK; i++)
    if (!serves(&o[i]) || o[i].t.dtype != dtype) status = materialise(&o[i], dtype, true);
  if (status == LM_OK) status = multiply(o, alpha, beta);
  if (status == LM_OK && o[0].copy) {
    lm_tensor result = target;
    status = lm__copy_cuda(&result, o[0].copy);
  }
  for (int i = 0; i < 3; i++) lm_tensor_free(o[i].copy);
  return status;
}
