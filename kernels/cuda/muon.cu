/* Muon with NorMuon variance reduction and cautious decay, for a bank of matrices: the formulas are
 * at the top of kernels/cpu/muon.c, the scalar ones in math/muon.h.
 *
 * Launches: the momentum and the norms of U's rows (reads G and M, writes M); a factor for each
 * row; X = scaled U (reads G and M); the products; sums of X X over the longer side; V and the
 * factor of each row or column of X; p (reads X). Nothing goes to the host. Sums are added in f64,
 * in one order. A step that lm_guard_gradients holds back leaves M, V and p as they are. */
#include "math/muon.h"

#include "cuda/polar.cuh"
#include "cuda/reduce.cuh"
#include "cuda/walk.cuh"

namespace {
constexpr int CHUNK = 128; /* rows whose squares a block adds for a column */

/* sums[row] = sum over columns of X X; a warp a row. */
template <class T, int span>
LM_GLOBAL row_squares(const T *x, double *sums, int64_t rows, int64_t cols) {
  const int64_t row = (int64_t)blockIdx.x * LM__ROWS_A_BLOCK + threadIdx.x / LM_WARP;
  double sum = 0;
  if (row >= rows) return;
  for (int64_t j = threadIdx.x % LM_WARP * span; j < cols; j += LM_WARP * span)
    for (int e = 0; e < span; e += lm__pack<T>::size) {
      if constexpr (span == 1) {
        const double v = (double)lm__to_float(x[row * cols + j]);
        sum += v * v;
      } else {
        const lm__pack<T> pack = lm__load_pack(x + row * cols + j + e);
#pragma unroll
        for (int i = 0; i < lm__pack<T>::size; i++) {
          const double v = (double)lm__to_float(pack.at[i]);
          sum += v * v;
        }
      }
    }
  sum = lm__warp_reduce<lm__sum>(sum);
  if (threadIdx.x % LM_WARP == 0) sums[row] = sum;
}

/* parts[matrix][chunk][column] = sum over CHUNK rows of X X. A block has LM_WARP columns (times
 * span) of a chunk, each of its warps every eighth row. */
template <class T, int span>
LM_GLOBAL column_squares(const T *x, double *parts, int64_t rows, int64_t cols, int64_t across,
                         int64_t chunks) {
  LM_SHARED(double, partial, [LM__ROWS_A_BLOCK][LM_WARP * span + 1]);
  const int lane = (int)threadIdx.x % LM_WARP, warp = (int)threadIdx.x / LM_WARP;
  const int64_t block = blockIdx.x / across, matrix = block / chunks, chunk = block % chunks;
  const int64_t first = (int64_t)(blockIdx.x % across) * LM_WARP * span, j = first + lane * span;
  const int64_t end = (chunk + 1) * CHUNK < rows ? (chunk + 1) * CHUNK : rows;
  double sum[span] = {};
  x += matrix * rows * cols;
  if (j < cols)
    for (int64_t i = chunk * CHUNK + warp; i < end; i += LM__ROWS_A_BLOCK) {
      float v[span];
      if constexpr (span == 1)
        v[0] = lm__to_float(x[i * cols + j]);
      else
        lm__load_span(v, x, sizeof(T) == 2 ? LM_BF16 : LM_F32, i * cols + j);
#pragma unroll
      for (int e = 0; e < span; e++) sum[e] += (double)v[e] * (double)v[e];
    }
#pragma unroll
  for (int e = 0; e < span; e++) partial[warp][lane * span + e] = sum[e];
  __syncthreads();
  for (int c = (int)threadIdx.x; c < LM_WARP * span; c += LM_THREADS) {
    double all = 0;
    for (int w = 0; w < LM__ROWS_A_BLOCK; w++) all += partial[w][c];
    if (first + c < cols) parts[block * cols + first + c] = all;
  }
}

struct variance {
  const double *parts; /* (count, chunks, side) */
  double *sums;        /* (count, side) */
  float *second, *scale;
  int64_t side, chunks;
  double reduced, least; /* size of the mean's dim, smaller side */
  lm__muon_numbers numbers;
  int renormalize;
  const int *skip;
};

/* A block a matrix: V's next value, and what each row or column of X is multiplied by. */
LM_GLOBAL variances(variance v) {
  if (*v.skip) return;
  const double *parts = v.parts + blockIdx.x * v.chunks * v.side;
  double *sums = v.sums + blockIdx.x * v.side;
  float *second = v.second + blockIdx.x * v.side, *scale = v.scale + blockIdx.x * v.side;
  double total = 0, before = 0, after = 0;
  for (int64_t i = threadIdx.x; i < v.side; i += LM_THREADS) {
    double sum = 0;
    for (int64_t c = 0; c < v.chunks; c++) sum += parts[c * v.side + i];
    sums[i] = sum;
    total += sum;
  }
  total = lm__block_reduce<lm__sum, LM_THREADS>(total, 0.0);
  const double rate = lm__read_numbers(v.numbers).rate;
  const double renormalize = v.renormalize ? lm_muon_renormalize(total, v.least) : 1.0;
  for (int64_t i = threadIdx.x; i < v.side; i += LM_THREADS) {
    const double mean = sums[i] * renormalize * renormalize / v.reduced;
    second[i] = lm_muon_second(second[i], mean, rate);
    const double r = lm_muon_even_out(second[i]);
    before += mean * v.reduced;
    after += mean * v.reduced * r * r;
  }
  before = lm__block_reduce<lm__sum, LM_THREADS>(before, 0.0);
  after = lm__block_reduce<lm__sum, LM_THREADS>(after, 0.0);
  const double restore = renormalize * lm_muon_restore(before, after);
  for (int64_t i = threadIdx.x; i < v.side; i += LM_THREADS)
    scale[i] = (float)(lm_muon_even_out(second[i]) * restore);
}

struct update {
  float *param;
  const void *x;
  const float *scale;
  int dtype; /* of x */
  int64_t total, rows, cols;
  bool by_row;
  lm__muon_numbers numbers;
  const int *skip;
};

/* A warp a row. */
template <int span> LM_GLOBAL updates(update u) {
  const int64_t row = (int64_t)blockIdx.x * LM__ROWS_A_BLOCK + threadIdx.x / LM_WARP;
  if (row >= u.total || *u.skip) return;
  const lm__muon_settings numbers = lm__read_numbers(u.numbers);
  const float *scales = u.by_row ? u.scale + row : u.scale + row / u.rows * u.cols;
  for (int64_t j = threadIdx.x % LM_WARP * span; j < u.cols; j += LM_WARP * span) {
    float p[span], x[span], scale[span];
    if constexpr (span == 1) {
      p[0] = u.param[row * u.cols + j];
      x[0] = lm__load(u.x, u.dtype, row * u.cols + j);
      scale[0] = scales[u.by_row ? 0 : j];
    } else {
      lm__load_span(p, u.param, LM_F32, row * u.cols + j);
      lm__load_span(x, u.x, u.dtype, row * u.cols + j);
      if (u.by_row) {
#pragma unroll
        for (int e = 0; e < span; e++) scale[e] = scales[0];
      } else {
        lm__load_span(scale, scales, LM_F32, j);
      }
    }
#pragma unroll
    for (int e = 0; e < span; e++)
      p[e] = lm_muon_update(p[e], x[e] * scale[e], numbers.lr, numbers.lr_decay);
    if constexpr (span == 1)
      u.param[row * u.cols + j] = p[0];
    else
      lm__store_span(u.param, LM_F32, row * u.cols + j, p);
  }
}

/* Sums of squares over the longer side, for each row or in chunks for each column. */
template <class T> int squares(const lm__bank *b, bool by_row, int64_t chunks, double *parts) {
  const T *x = static_cast<const T *>(b->x);
  const bool spans = b->cols % LM__SPAN == 0;
  if (by_row)
    return lm__launch({b->op, lm__blocks(b->count * b->rows, LM__ROWS_A_BLOCK), LM_THREADS},
                      spans ? row_squares<T, LM__SPAN> : row_squares<T, 1>, x, parts,
                      b->count * b->rows, b->cols);
  const int64_t width = (int)LM_WARP * (spans ? (int)LM__SPAN : 1);
  const int64_t across = (b->cols + width - 1) / width;
  return lm__launch({b->op, lm__blocks(b->count * chunks * across, 1), LM_THREADS},
                    spans ? column_squares<T, LM__SPAN> : column_squares<T, 1>, x, parts, b->rows,
                    b->cols, across, chunks);
}

int step(lm__bank *b, lm_tensor *param, const lm_tensor *grad, lm_tensor *momentum_buffer,
         lm_tensor *second_momentum, const lm_muon_args *args, const lm__muon_numbers &numbers,
         int64_t chunks) {
  const bool by_row = b->rows >= b->cols;
  lm__bank_source source = {};
  variance v = {};
  update u = {};
  source.grad = lm__pointer<float>(grad);
  source.momentum = lm__pointer<float>(momentum_buffer);
  source.numbers = v.numbers = u.numbers = numbers;
  source.equilibrate = args->row_equilibrate;
  source.skip = u.skip = v.skip = lm__cuda_skip();
  LM__TRY(lm__bank_fill(b, &source));
  LM__TRY(lm__bank_run(b));
  v.side = b->n;
  v.chunks = chunks;
  double *parts = static_cast<double *>(b->extra);
  v.parts = parts;
  v.sums = parts + b->count * chunks * v.side;
  v.scale = reinterpret_cast<float *>(v.sums + b->count * v.side);
  v.second = lm__pointer<float>(second_momentum);
  v.reduced = (double)b->m;
  v.least = (double)b->m;
  v.renormalize = args->renormalize;
  LM__TRY(b->dtype == LM_BF16 ? squares<lm_bf16>(b, by_row, chunks, parts)
                              : squares<float>(b, by_row, chunks, parts));
  LM__TRY(lm__launch({b->op, (unsigned)b->count, LM_THREADS}, variances, v));
  u.param = lm__pointer<float>(param);
  u.x = b->x;
  u.scale = v.scale;
  u.dtype = b->dtype;
  u.total = b->count * b->rows;
  u.rows = b->rows;
  u.cols = b->cols;
  u.by_row = by_row;
  const bool spans = b->cols % LM__SPAN == 0 && lm__is_aligned(u.param);
  return lm__launch({b->op, lm__blocks(u.total, LM__ROWS_A_BLOCK), LM_THREADS},
                    spans ? updates<LM__SPAN> : updates<1>, u);
}
} // namespace

namespace {
int64_t chunks_of(int64_t rows, int64_t cols) {
  return rows >= cols ? 1 : (rows + CHUNK - 1) / CHUNK;
}
size_t extra_bytes(int64_t count, int64_t rows, int64_t cols) {
  const size_t entries = (size_t)(count * (rows >= cols ? rows : cols));
  return entries * ((size_t)(chunks_of(rows, cols) + 1) * sizeof(double) + sizeof(float));
}

lm__muon_settings settings_of(const lm_muon_args *args, int64_t rows, int64_t cols) {
  const double lr = args->lr * sqrt(fmax(1.0, (double)rows / (double)cols));
  lm__muon_settings s = {};
  s.one_minus_momentum = (float)(1.0 - args->momentum);
  s.lookahead = args->nesterov ? (float)args->momentum : 1.0f;
  s.lr = (float)lr;
  s.lr_decay = (float)(lr * args->weight_decay);
  s.rate = 1.0 - args->beta2;
  return s;
}

/* All that launches depend on beside the settings. */
struct dependence {
  const void *param, *grad, *momentum, *second;
  int64_t count, rows, cols, path, row_equilibrate, renormalize;
  const char *kernel; /* of symmetric products */
  lm_polar_args polar;
};
} // namespace

extern "C" int lm__muon_step_cuda(lm_tensor *param, const lm_tensor *grad,
                                  lm_tensor *momentum_buffer, lm_tensor *second_momentum,
                                  const lm_muon_args *args) {
  lm__bank bank;
  if (lm__numel(param) == 0) return LM_OK;
  const int64_t count = param->shape[0], rows = param->shape[1], cols = param->shape[2];
  const int path = lm__bank_path(param, &args->polar);
  const dependence key = {lm__data(param),
                          lm__data(grad),
                          lm__data(momentum_buffer),
                          lm__data(second_momentum),
                          count,
                          rows,
                          cols,
                          path,
                          args->row_equilibrate,
                          args->renormalize,
                          path == LM_MUON_HALVES ? lm_gpu_muon_kernel() : nullptr,
                          args->polar};
  lm__muon_numbers numbers = {settings_of(args, rows, cols), nullptr};
  const void *there = nullptr;
  lm__cuda_graph_key(&key, sizeof key);
  if (!lm__cuda_graph_settings(&numbers.given, sizeof numbers.given, &there)) return LM_OK;
  numbers.there = static_cast<const lm__muon_settings *>(there);
  LM__TRY(
      lm__bank_new(&bank, "muon_step", param, &args->polar, path, extra_bytes(count, rows, cols)));
  const int status = step(&bank, param, grad, momentum_buffer, second_momentum, args, numbers,
                          chunks_of(rows, cols));
  /* G and M twice, M written, p read and written: 28; X written and read twice */
  if (status == LM_OK)
    lm__bank_report(&bank, (double)lm__numel(param) * (28 + 3 * lm_dtype_size(bank.dtype)));
  lm__bank_free(&bank);
  return status;
}

extern "C" double lm__muon_scratch_cuda(int64_t count, int64_t rows, int64_t cols, int precision) {
  lm_polar_args polar = {};
  polar.precision = precision;
  const int path = lm__muon_path_for(LM_CUDA, count, rows, cols, precision, nullptr);
  return (double)lm__bank_scratch(count, rows, cols, &polar, path, extra_bytes(count, rows, cols));
}
