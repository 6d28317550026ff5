/* out = alpha a b + beta out, for matrices and batches of them, through oneDNN.
 *
 * oneDNN's products want a unit stride in one of a matrix's two dims and none shared by two
 * elements. What is different (or of another dtype than the product runs in, or a result that
 * overlaps an operand) is copied first. Leading dims that continue the rows of a are joined with
 * them, so that an activation (B, T, C) times a weight is one product.
 */
#include "backend/onednn.h"
#include "core/matrix.h"
#include "cpu/kernel.h"

/* The matrices of one operand: batch dims as in the tensor, then rows and columns. */
typedef struct operand {
  const lm_tensor *t;
  lm_tensor *copy; /* freed at the end; NULL where the tensor itself serves */
  bool transposed; /* unit stride in the rows' dim */
  int64_t ld;
} operand;

/* Strides as a product takes them. */
static bool serves(operand *o) { return lm__matrix_serves(o->t, &o->transposed, &o->ld); }

/* A contiguous tensor of t's shape, with its values if read. */
static int materialise(operand *o, int dtype, bool read) {
  LM__TRY(lm_tensor_new(&o->copy, dtype, LM_CPU, o->t->ndim, o->t->shape));
  if (read) LM__TRY(LM_KERNEL(copy)(o->copy, o->t));
  o->t = o->copy;
  o->transposed = false;
  o->ld = o->t->shape[o->t->ndim - 1];
  return LM_OK;
}

typedef struct batch {
  lm__gemm product;
  const lm_tensor *a, *b, *out; /* b without batch dims: one matrix for all */
  int dims;                     /* leading dims */
  int status;
} batch;

/* A product that takes long runs by blocks of rows, so that Ctrl-C is seen between them. */
static int run_product(lm__gemm product) {
  const int64_t m = product.m, in_size = lm_dtype_size(product.in);
  const int64_t out_size = lm_dtype_size(product.out);
  const double work = 2.0 * (double)m * (double)product.n * (double)product.k, most = 5e10;
  int64_t rows = m;
  if (work > most) rows = ((int64_t)((double)m * most / work) / 64 + 1) * 64;
  const char *a = product.a;
  char *c = product.c;
  for (int64_t first = 0; first < m; first += rows) {
    if (first > 0 && lm_interrupted()) return lm__fail(LM_EINTERRUPT, "matmul: interrupted");
    product.m = m - first < rows ? m - first : rows;
    product.a = a + first * (product.transpose_a ? 1 : product.lda) * in_size;
    product.c = c + first * product.ldc * out_size;
    LM__TRY(lm__gemm_run(&product));
  }
  return LM_OK;
}

static void range_products(int64_t begin, int64_t end, void *arg) {
  batch *w = arg;
  for (int64_t i = begin; i < end; i++) {
    int64_t rest = i, a = 0, b = 0, out = 0;
    for (int d = w->dims - 1; d >= 0; d--) {
      const int64_t at = rest % w->out->shape[d];
      rest /= w->out->shape[d];
      a += at * w->a->strides[d];
      b += w->b->ndim > 2 ? at * w->b->strides[d] : 0;
      out += at * w->out->strides[d];
    }
    lm__gemm product = w->product;
    product.a = (const char *)product.a + a * lm_dtype_size(w->a->dtype);
    product.b = (const char *)product.b + b * lm_dtype_size(w->b->dtype);
    product.c = (char *)product.c + out * lm_dtype_size(w->out->dtype);
    const int status = run_product(product);
    if (status != LM_OK) __atomic_store_n(&w->status, status, __ATOMIC_RELAXED);
  }
}

/* Join the leading dims with the rows where both a and out go on with one stride. */
static void join_rows(lm_tensor *a, lm_tensor *out) {
  while (a->ndim > 2) {
    const int d = a->ndim - 3;
    const bool one_row = a->shape[d + 1] == 1;
    if (a->shape[d] != 1 && !one_row &&
        (a->strides[d] != a->shape[d + 1] * a->strides[d + 1] ||
         out->strides[d] != out->shape[d + 1] * out->strides[d + 1]))
      return;
    lm_tensor *const both[] = {a, out};
    for (int i = 0; i < 2; i++) {
      both[i]->shape[d] *= both[i]->shape[d + 1];
      if (!one_row) both[i]->strides[d] = both[i]->strides[d + 1];
      both[i]->shape[d + 1] = both[i]->shape[d + 2];
      both[i]->strides[d + 1] = both[i]->strides[d + 2];
      both[i]->ndim--;
    }
  }
}

static int multiply(operand *out, operand *a, operand *b, float alpha, float beta) {
  batch w = {.a = a->t, .b = b->t, .out = out->t, .dims = out->t->ndim - 2};
  const int rows = w.dims, cols = w.dims + 1;
  int64_t n = 1;
  for (int d = 0; d < w.dims; d++) n *= w.out->shape[d];
  w.product = (lm__gemm){.m = w.out->shape[rows],
                         .n = w.out->shape[cols],
                         .k = w.a->shape[cols],
                         .transpose_a = a->transposed,
                         .transpose_b = b->transposed,
                         .lda = a->ld,
                         .ldb = b->ld,
                         .ldc = out->ld,
                         .in = w.a->dtype,
                         .out = w.out->dtype,
                         .a = lm__data(w.a),
                         .b = lm__data(w.b),
                         .c = lm__data(w.out),
                         .alpha = alpha,
                         .beta = beta};
  const double work = 2.0 * (double)w.product.m * (double)w.product.n * (double)w.product.k;
  if (n > 1 && work < 1e8) /* small ones: a thread each */
    lm__parallel_for(n, 1, range_products, &w);
  else
    range_products(0, n, &w);
  if (w.status == LM_OK || n == 1) return w.status; /* the message is on the thread that failed */
  return lm__fail(w.status, "matmul: a product failed in a batch of %lld", (long long)n);
}

static void swap_last(lm_tensor *t) {
  const int i = t->ndim - 2, j = t->ndim - 1;
  const int64_t size = t->shape[i], stride = t->strides[i];
  t->shape[i] = t->shape[j];
  t->strides[i] = t->strides[j];
  t->shape[j] = size;
  t->strides[j] = stride;
}

/* out *= beta, where there is nothing to sum. */
static int scale(lm_tensor *out, float beta) {
  return beta == 0.0f   ? LM_KERNEL(fill)(out, 0)
         : beta == 1.0f ? LM_OK
                        : LM_KERNEL(binary_scalar)(out, LM_MUL, out, beta, 0);
}

int LM_KERNEL(matmul)(lm_tensor *out, const lm_tensor *a, const lm_tensor *b, float alpha,
                      float beta) {
  if (lm__numel(out) == 0) return LM_OK;
  if (a->shape[a->ndim - 1] == 0) return scale(out, beta);
  lm_tensor va = *a, vb = *b, vout = *out; /* views to rearrange; they own nothing */
  if (b->ndim == 2) join_rows(&va, &vout);
  if (vout.strides[vout.ndim - 1] != 1 && vout.strides[vout.ndim - 2] == 1 && vb.ndim == va.ndim) {
    const lm_tensor first = va; /* out' = b' a' */
    va = vb;
    vb = first;
    swap_last(&va);
    swap_last(&vb);
    swap_last(&vout);
  }
  const bool bf16 = a->dtype == LM_BF16 && b->dtype == LM_BF16 && lm_cpu_fast_bf16();
  const int dtype = bf16 ? LM_BF16 : LM_F32;
  operand o[3] = {{.t = &vout}, {.t = &va}, {.t = &vb}};
  const bool out_serves = serves(&o[0]) && !o[0].transposed && (bf16 || vout.dtype == LM_F32) &&
                          !lm__overlap(&vout, &va) && !lm__overlap(&vout, &vb);
  int status = LM_OK;
  if (!out_serves) status = materialise(&o[0], bf16 ? vout.dtype : LM_F32, beta != 0.0f);
  for (int i = 1; i < 3 && status == LM_OK; i++)
    if (!serves(&o[i]) || o[i].t->dtype != dtype) status = materialise(&o[i], dtype, true);
  if (status == LM_OK) status = multiply(&o[0], &o[1], &o[2], alpha, beta);
  if (status == LM_OK && o[0].copy) status = LM_KERNEL(copy)(&vout, o[0].copy);
  for (int i = 0; i < 3; i++) lm_tensor_free(o[i].copy);
  return status;
}
