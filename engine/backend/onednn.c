/* oneDNN's C API, versions 2.6 (Debian 12) and 3.x (Ubuntu 24.04).
 *
 * f32 goes through dnnl_sgemm: measured against the matmul primitive it is as fast for large
 * products, five times faster for 32 x 32 ones, and takes alpha, beta and strides at each call.
 * bf16 needs a primitive, which has sizes, strides, alpha and beta compiled in. Each thread keeps
 * the primitives it used last; their scratchpads are ours, because in 2.6 a primitive that owns its
 * scratchpad may only run on the thread that made it.
 */
#include "backend/onednn.h"

#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "lumuon.h"

static int failed(const char *what, const lm__gemm *g, dnnl_status_t status) {
  return lm__fail(status == dnnl_out_of_memory ? LM_ENOMEM : LM_ENOTSUP,
                  "matmul: oneDNN cannot %s %s (%lld, %lld) @ (%lld, %lld): status %d", what,
                  lm_dtype_name(g->in), (long long)g->m, (long long)g->k, (long long)g->k,
                  (long long)g->n, (int)status);
}

/* ---- f32 ---- */

static int run_f32(const lm__gemm *g) {
  const dnnl_status_t status =
      dnnl_sgemm(g->transpose_a ? 'T' : 'N', g->transpose_b ? 'T' : 'N', g->m, g->n, g->k, g->alpha,
                 g->a, g->lda, g->b, g->ldb, g->beta, g->c, g->ldc);
  return status == dnnl_success ? LM_OK : failed("multiply", g, status);
}

/* ---- bf16: primitives, kept a thread ---- */

typedef struct key { /* no padding: compared as bytes */
  int64_t m, n, k, lda, ldb, ldc;
  float alpha, beta;
  int transpose_a, transpose_b, out, threads;
} key;

typedef struct product {
  key key;
  dnnl_primitive_t primitive; /* NULL: a free slot */
  dnnl_memory_t a, b, c, scratch;
  size_t scratch_bytes;
} product;

enum { SLOTS = 64, WAYS = 4 };
typedef struct products {
  dnnl_stream_t stream;
  void *scratch; /* kept: a warm step asks nobody for memory */
  size_t scratch_bytes;
  product slot[SLOTS][WAYS];
  unsigned char next[SLOTS]; /* the way to replace next */
} products;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t of_thread;
static dnnl_engine_t engine;

static void forget(product *p) {
  if (!p->primitive) return;
  (void)dnnl_primitive_destroy(p->primitive);
  (void)dnnl_memory_destroy(p->a);
  (void)dnnl_memory_destroy(p->b);
  (void)dnnl_memory_destroy(p->c);
  (void)dnnl_memory_destroy(p->scratch);
  memset(p, 0, sizeof *p);
}

static void forget_all(void *arg) {
  products *all = arg;
  for (int s = 0; s < SLOTS; s++)
    for (int w = 0; w < WAYS; w++) forget(&all->slot[s][w]);
  (void)dnnl_stream_destroy(all->stream);
  free(all->scratch);
  free(all);
}

static void start(void) {
  if (pthread_key_create(&of_thread, forget_all) != 0) return;
  (void)dnnl_engine_create(&engine, dnnl_cpu, 0);
}

static products *products_of_thread(void) {
  (void)pthread_once(&once, start);
  if (!engine) return NULL;
  products *all = pthread_getspecific(of_thread);
  if (all) return all;
  all = calloc(1, sizeof *all);
  if (!all) return NULL;
  if (dnnl_stream_create(&all->stream, engine, dnnl_stream_default_flags) != dnnl_success ||
      pthread_setspecific(of_thread, all) != 0) {
    free(all);
    return NULL;
  }
  return all;
}

static product *slot_of(products *all, const key *wanted, bool *found) {
  uint64_t hash = 14695981039346656037u;
  const unsigned char *bytes = (const void *)wanted;
  for (size_t i = 0; i < sizeof *wanted; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
  const size_t s = hash >> 32 & (SLOTS - 1);
  *found = true;
  for (int w = 0; w < WAYS; w++)
    if (all->slot[s][w].primitive && !memcmp(&all->slot[s][w].key, wanted, sizeof *wanted))
      return &all->slot[s][w];
  *found = false;
  product *p = &all->slot[s][all->next[s]];
  all->next[s] = (unsigned char)((all->next[s] + 1) % WAYS);
  forget(p);
  return p;
}

/* What 2.6 and 3.x write differently: memory descriptors, attributes, primitive descriptors. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t descriptor;
typedef const_dnnl_memory_desc_t const_descriptor;
static dnnl_status_t describe(descriptor *d, int64_t rows, int64_t cols, dnnl_data_type_t type,
                              int64_t row, int64_t col) {
  const dnnl_dims_t dims = {rows, cols}, strides = {row, col};
  return dnnl_memory_desc_create_with_strides(d, 2, dims, type, strides);
}
static void undescribe(descriptor *d) { (void)dnnl_memory_desc_destroy(*d); }
static const_descriptor pointer(const descriptor *d) { return *d; }
static dnnl_status_t append_alpha(dnnl_post_ops_t ops, float alpha) {
  return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_linear, alpha, 0.0f);
}
static dnnl_status_t append_beta(dnnl_post_ops_t ops, float beta) {
  return dnnl_post_ops_append_sum(ops, beta, 0, dnnl_data_type_undef);
}
static dnnl_status_t create_descriptor(dnnl_primitive_desc_t *out, const descriptor *a,
                                       const descriptor *b, const descriptor *c,
                                       dnnl_primitive_attr_t attributes) {
  return dnnl_matmul_primitive_desc_create(out, engine, *a, *b, NULL, *c, attributes);
}
#else
typedef dnnl_memory_desc_t descriptor;
typedef const dnnl_memory_desc_t *const_descriptor;
static dnnl_status_t describe(descriptor *d, int64_t rows, int64_t cols, dnnl_data_type_t type,
                              int64_t row, int64_t col) {
  const dnnl_dims_t dims = {rows, cols}, strides = {row, col};
  return dnnl_memory_desc_init_by_strides(d, 2, dims, type, strides);
}
static void undescribe(descriptor *d) { (void)d; }
static const_descriptor pointer(const descriptor *d) { return d; }
static dnnl_status_t append_alpha(dnnl_post_ops_t ops, float alpha) {
  return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_linear, alpha, 0.0f);
}
static dnnl_status_t append_beta(dnnl_post_ops_t ops, float beta) {
  return dnnl_post_ops_append_sum(ops, beta);
}
static dnnl_status_t create_descriptor(dnnl_primitive_desc_t *out, const descriptor *a,
                                       const descriptor *b, const descriptor *c,
                                       dnnl_primitive_attr_t attributes) {
  dnnl_matmul_desc_t op;
  const dnnl_status_t status = dnnl_matmul_desc_init(&op, a, b, NULL, c);
  return status == dnnl_success ? dnnl_primitive_desc_create(out, &op, attributes, engine, NULL)
                                : status;
}
#endif

#define DNN(call)                                                                                  \
  if (status == dnnl_success) status = (call)

static dnnl_status_t create(product *p, const lm__gemm *g) {
  dnnl_status_t status = dnnl_success;
  descriptor a, b, c;
  dnnl_post_ops_t ops = NULL;
  dnnl_primitive_attr_t attributes = NULL;
  dnnl_primitive_desc_t op = NULL;
  memset(&a, 0, sizeof a);
  memset(&b, 0, sizeof b);
  memset(&c, 0, sizeof c);
  DNN(describe(&a, g->m, g->k, dnnl_bf16, g->transpose_a ? 1 : g->lda,
               g->transpose_a ? g->lda : 1));
  DNN(describe(&b, g->k, g->n, dnnl_bf16, g->transpose_b ? 1 : g->ldb,
               g->transpose_b ? g->ldb : 1));
  DNN(describe(&c, g->m, g->n, g->out == LM_BF16 ? dnnl_bf16 : dnnl_f32, g->ldc, 1));
  DNN(dnnl_post_ops_create(&ops));
  if (g->alpha != 1.0f) DNN(append_alpha(ops, g->alpha));
  if (g->beta != 0.0f) DNN(append_beta(ops, g->beta));
  DNN(dnnl_primitive_attr_create(&attributes));
  DNN(dnnl_primitive_attr_set_post_ops(attributes, ops));
  DNN(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
  DNN(create_descriptor(&op, &a, &b, &c, attributes));
  DNN(dnnl_primitive_create(&p->primitive, op));
  DNN(dnnl_memory_create(&p->a, pointer(&a), engine, DNNL_MEMORY_NONE));
  DNN(dnnl_memory_create(&p->b, pointer(&b), engine, DNNL_MEMORY_NONE));
  DNN(dnnl_memory_create(&p->c, pointer(&c), engine, DNNL_MEMORY_NONE));
  if (status == dnnl_success) {
    const_descriptor scratch = dnnl_primitive_desc_query_md(op, dnnl_query_scratchpad_md, 0);
    p->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    status = dnnl_memory_create(&p->scratch, scratch, engine, DNNL_MEMORY_NONE);
  }
  if (op) (void)dnnl_primitive_desc_destroy(op);
  if (attributes) (void)dnnl_primitive_attr_destroy(attributes);
  if (ops) (void)dnnl_post_ops_destroy(ops);
  undescribe(&a);
  undescribe(&b);
  undescribe(&c);
  return status;
}

static int run_bf16(const lm__gemm *g) {
  products *all = products_of_thread();
  if (!all) return lm__fail(LM_ENOMEM, "matmul: oneDNN does not start on this thread");
  const key wanted = {.m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .lda = g->lda,
                      .ldb = g->ldb,
                      .ldc = g->ldc,
                      .alpha = g->alpha,
                      .beta = g->beta,
                      .transpose_a = g->transpose_a,
                      .transpose_b = g->transpose_b,
                      .out = g->out,
                      .threads = omp_in_parallel() ? 1 : omp_get_max_threads()};
  bool found = false;
  dnnl_status_t status = dnnl_success;
  product *p = slot_of(all, &wanted, &found);
  if (!found) {
    status = create(p, g);
    if (status != dnnl_success) {
      forget(p);
      return failed("prepare", g, status);
    }
    p->key = wanted;
  }
  if (p->scratch_bytes > all->scratch_bytes) {
    const size_t bytes = (p->scratch_bytes + 4095) / 4096 * 4096;
    free(all->scratch);
    all->scratch = aligned_alloc(4096, bytes);
    all->scratch_bytes = all->scratch ? bytes : 0;
    if (!all->scratch) return failed("get memory for", g, dnnl_out_of_memory);
  }
  DNN(dnnl_memory_set_data_handle(p->a, (void *)(uintptr_t)g->a));
  DNN(dnnl_memory_set_data_handle(p->b, (void *)(uintptr_t)g->b));
  DNN(dnnl_memory_set_data_handle(p->c, g->c));
  DNN(dnnl_memory_set_data_handle(p->scratch, all->scratch));
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->a},
                                       {DNNL_ARG_WEIGHTS, p->b},
                                       {DNNL_ARG_DST, p->c},
                                       {DNNL_ARG_SCRATCHPAD, p->scratch}};
  DNN(dnnl_primitive_execute(p->primitive, all->stream, 4, arguments));
  DNN(dnnl_stream_wait(all->stream));
  return status == dnnl_success ? LM_OK : failed("multiply", g, status);
}

int lm__gemm_run(const lm__gemm *g) { return g->in == LM_F32 ? run_f32(g) : run_bf16(g); }
