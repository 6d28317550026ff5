/* How long a path of Polar Express takes on the GPU: what engine/backend/tuning.c asks before it
 * chooses. The host waits for the second of two events around the products. */
#include "cuda/polar.cuh"

namespace {
#ifdef LM_CUDA_EMULATED
enum { BEFORE = 0, RUNS = 1 }; /* the emulated clock says the same every time */
#else
enum { BEFORE = 1, RUNS = 3 }; /* the first run loads kernels and wakes the GPU */
#endif

int runs(lm__bank *bank, int n) {
  for (int i = 0; i < n; i++) LM__TRY(lm__bank_run(bank));
  return LM_OK;
}

/* Milliseconds of RUNS runs on a bank filled from x. */
int time_runs(lm__bank *bank, const lm_tensor *x, cudaEvent_t begin, cudaEvent_t end, float *ms) {
  lm__bank_source source = {};
  source.grad = lm__pointer<float>(x);
  LM__TRY(lm__bank_fill(bank, &source));
  LM__TRY(runs(bank, BEFORE));
  LM__TRY(lm__cuda_check(bank->op, cudaEventRecord(begin, lm__cuda_stream())));
  LM__TRY(runs(bank, RUNS));
  LM__TRY(lm__cuda_check(bank->op, cudaEventRecord(end, lm__cuda_stream())));
  LM__TRY(lm__cuda_check(bank->op, cudaEventSynchronize(end)));
  return lm__cuda_check(bank->op, cudaEventElapsedTime(ms, begin, end));
}

/* Whether a path is one of its own for such matrices: what cannot be halved is done as written. */
bool exists(int64_t rows, int64_t cols, int precision, int path) {
  const int64_t m = rows < cols ? rows : cols, n = rows < cols ? cols : rows;
  if (path == LM_MUON_HALVES) return precision == LM_PRECISION_BF16 && lm__symmetric_serves(m, n);
  return path != LM_MUON_GRAM || (m >= 64 && n >= 2 * m);
}
} // namespace

extern "C" double lm__muon_measure_cuda(int64_t count, int64_t rows, int64_t cols, int precision,
                                        int path, int steps) {
  static const double abc[3] = {1.875, -1.25, 0.375}; /* Newton-Schulz: tame for any input */
  const int64_t shape[3] = {count, rows, cols};
  lm_tensor *x = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  lm__bank bank;
  lm_polar_args args = {};
  float ms = -1;
  if (!exists(rows, cols, precision, path)) return 0;
  args.ns_steps = steps;
  args.precision = precision;
  args.norm_scale = 1.02;
  for (int i = 0; i < steps; i++) memcpy(args.coefficients + 3 * i, abc, sizeof abc);
  int status = lm_tensor_new(&x, LM_F32, LM_CUDA, 3, shape);
  if (status == LM_OK) status = lm__random_uniform_cuda(x, -0.5, 0.5, 1, 0, 0);
  if (status == LM_OK) status = lm__cuda_check("muon_measure", cudaEventCreate(&begin));
  if (status == LM_OK) status = lm__cuda_check("muon_measure", cudaEventCreate(&end));
  lm__cuda_graph_pause(true); /* this memory is not the step's */
  if (status == LM_OK) status = lm__bank_new(&bank, "muon_measure", x, &args, path, 0);
  if (status == LM_OK) {
    status = time_runs(&bank, x, begin, end, &ms);
    lm__bank_free(&bank);
  }
  lm__cuda_graph_pause(false);
  if (begin) (void)cudaEventDestroy(begin);
  if (end) (void)cudaEventDestroy(end);
  lm_tensor_free(x);
  return status == LM_OK ? 1e-3 * (double)ms / (double)(RUNS * count) : -1;
}
