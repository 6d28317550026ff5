/* out = sum, mean, max, min, product or sqrt(sum of squares) over some dims, accumulated in f64.
 *
 *   rows     the innermost dim is reduced: the threads of a warp or a block run along it;
 *   columns  the innermost dim is kept: a thread a result, so that a warp reads side by side.
 * A long reduction is cut into blocks whose partial results are combined in order. Cuts depend on
 * the shape only: the same bits on every GPU. */
#include "core/sides.h"
#include "cuda/reduce.cuh"

namespace {

enum {
  ROW_BLOCK = 1 << 15,
  SHORT_ROW = 1024,
  COLUMN_THREADS = 1 << 17,
  WARPS = LM_THREADS / LM_WARP
};

LM_DEVICE double identity(int op) {
  return op == LM_PROD  ? 1.0
         : op == LM_MAX ? -(double)INFINITY
         : op == LM_MIN ? (double)INFINITY
                        : 0.0;
}

/* Accumulators a and x; a NaN wins in max and min. */
LM_DEVICE double join(int op, double a, double x) {
  switch (op) {
    case LM_PROD:
      return a * x;
    case LM_MAX:
      return x > a || x != x ? x : a;
    case LM_MIN:
      return x < a || x != x ? x : a;
    default:
      return a + x;
  }
}

LM_DEVICE double of_element(int op, float x) {
  const double wide = (double)x;
  return op == LM_NORM ? wide * wide : wide;
}

typedef struct job {
  int op, final_op, dtype, out_dtype;
  const void *a;
  void *out;
  lm__side kept, gone;
  int64_t blocks, block; /* the reduced range in blocks of so many elements */
  double *partial;       /* (blocks, kept.n), or NULL for one block */
} job;

LM_DEVICE int64_t locate(const lm__side &s, int64_t i, const int64_t *strides) {
  int64_t offset = 0;
  for (int d = s.ndim - 1; d > 0; d--) {
    offset += i % s.shape[d] * strides[d];
    i /= s.shape[d];
  }
  return offset + i * strides[0];
}

LM_DEVICE void finish(const job &j, int64_t kept, double acc) {
  const double result = j.final_op == LM_MEAN   ? acc / (double)j.gone.n
                        : j.final_op == LM_NORM ? sqrt(acc)
                                                : acc;
  lm__store(j.out, j.out_dtype, locate(j.kept, kept, j.kept.out_strides), (float)result);
}

/* Elements first, first + step, ... of the reduced range before `end`. */
LM_DEVICE double gather(const job &j, int64_t base, int64_t first, int64_t end, int64_t step) {
  double acc = identity(j.op);
  if (j.gone.ndim == 1) {
    const int64_t stride = j.gone.strides[0];
    for (int64_t i = first; i < end; i += step)
      acc = join(j.op, acc, of_element(j.op, lm__load(j.a, j.dtype, base + i * stride)));
    return acc;
  }
  for (int64_t i = first; i < end; i += step)
    acc = join(j.op, acc,
               of_element(j.op, lm__load(j.a, j.dtype, base + locate(j.gone, i, j.gone.strides))));
  return acc;
}

LM_DEVICE double across_warp(int op, double acc) {
#pragma unroll
  for (int distance = LM_WARP / 2; distance > 0; distance /= 2)
    acc = join(op, acc, __shfl_xor_sync(0xffffffffu, acc, distance));
  return acc;
}
LM_DEVICE double across_block(int op, double acc) {
  LM_SHARED(double, partial, [WARPS]);
  const int lane = (int)threadIdx.x % LM_WARP;
  acc = across_warp(op, acc);
  if (lane == 0) partial[threadIdx.x / LM_WARP] = acc;
  __syncthreads();
  acc = across_warp(op, lane < WARPS ? partial[lane] : identity(op));
  __syncthreads();
  return acc;
}

/* A warp a short row. */
LM_GLOBAL short_rows(job j) {
  const int64_t warps = (int64_t)gridDim.x * WARPS;
  for (int64_t kept = (int64_t)blockIdx.x * WARPS + threadIdx.x / LM_WARP; kept < j.kept.n;
       kept += warps) {
    const int64_t base = locate(j.kept, kept, j.kept.strides);
    const double acc = across_warp(j.op, gather(j, base, threadIdx.x % LM_WARP, j.gone.n, LM_WARP));
    if (threadIdx.x % LM_WARP == 0) finish(j, kept, acc);
  }
}

/* A block of threads a block of a row. */
LM_GLOBAL long_rows(job j) {
  const int64_t tasks = j.kept.n * j.blocks;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t kept = task % j.kept.n, block = task / j.kept.n;
    const int64_t base = locate(j.kept, kept, j.kept.strides), begin = block * j.block;
    const int64_t end = begin + j.block < j.gone.n ? begin + j.block : j.gone.n;
    const double acc = across_block(j.op, gather(j, base, begin + threadIdx.x, end, LM_THREADS));
    if (threadIdx.x != 0) continue;
    if (j.partial)
      j.partial[task] = acc;
    else
      finish(j, kept, acc);
  }
}

/* A thread a block of a column. */
LM_GLOBAL columns(job j) {
  LM_GRID_STRIDE(task, j.kept.n * j.blocks) {
    const int64_t kept = task % j.kept.n, begin = task / j.kept.n * j.block;
    const int64_t end = begin + j.block < j.gone.n ? begin + j.block : j.gone.n;
    const double acc = gather(j, locate(j.kept, kept, j.kept.strides), begin, end, 1);
    if (j.partial)
      j.partial[task] = acc;
    else
      finish(j, kept, acc);
  }
}

/* A warp a result: lanes take partial results in turn. */
LM_GLOBAL combine(job j) {
  const int64_t warps = (int64_t)gridDim.x * WARPS;
  for (int64_t kept = (int64_t)blockIdx.x * WARPS + threadIdx.x / LM_WARP; kept < j.kept.n;
       kept += warps) {
    double acc = identity(j.op);
    for (int64_t b = threadIdx.x % LM_WARP; b < j.blocks; b += LM_WARP)
      acc = join(j.op, acc, j.partial[b * j.kept.n + kept]);
    acc = across_warp(j.op, acc);
    if (threadIdx.x % LM_WARP == 0) finish(j, kept, acc);
  }
}
} // namespace

extern "C" int lm__reduce_cuda(lm_tensor *out, int op, const lm_tensor *a, uint32_t dims) {
  job j = {};
  void *scratch = nullptr;
  j.op = op == LM_MEAN ? LM_SUM : op;
  j.final_op = op;
  j.dtype = a->dtype;
  j.out_dtype = out->dtype;
  j.a = lm__data(a);
  j.out = lm__data(out);
  const bool by_column = lm__split_dims(&j.kept, &j.gone, a, out, dims) && j.kept.n >= LM_WARP;
  if (j.kept.n == 0) return LM_OK;
  j.blocks = 1;
  if (by_column) { /* enough threads for a whole GPU, of 32 elements or more each */
    j.blocks = COLUMN_THREADS / j.kept.n;
    if (j.blocks > j.gone.n / 32) j.blocks = j.gone.n / 32;
    if (j.blocks < 1) j.blocks = 1;
    j.block = (j.gone.n + j.blocks - 1) / j.blocks;
  } else {
    j.block = ROW_BLOCK;
  }
  j.blocks = j.gone.n > 0 ? (j.gone.n + j.block - 1) / j.block : 1;
  if (j.blocks > 1) {
    LM__TRY(lm__cuda_scratch("reduce", &scratch, (size_t)(j.blocks * j.kept.n) * sizeof(double)));
    j.partial = static_cast<double *>(scratch);
  }
  int status;
  if (by_column)
    status = lm__launch({"reduce", lm__round_blocks(j.kept.n * j.blocks, LM_THREADS), LM_THREADS},
                        columns, j);
  else if (j.gone.n <= SHORT_ROW)
    status = lm__launch({"reduce", lm__round_blocks(j.kept.n, WARPS), LM_THREADS}, short_rows, j);
  else
    status =
        lm__launch({"reduce", lm__round_blocks(j.kept.n * j.blocks, 1), LM_THREADS}, long_rows, j);
  if (status == LM_OK && j.partial)
    status = lm__launch({"reduce", lm__round_blocks(j.kept.n, WARPS), LM_THREADS}, combine, j);
  lm__cuda_scratch_free(scratch);
  return status;
}
