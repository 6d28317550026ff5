/* Which path Muon's products take, on the CPU and on a GPU.
 *
 * The rule. CPU: packed products where padding to multiples of 32 costs less than halving saves;
 * the Gram form from n = 2 m on, where it has fewer operations. GPU: whole products by cuBLASLt;
 * the Gram form from n = 3 m on, and not below m = 64, where products cost next to nothing and in
 * bf16 rounding shows most. A rule depends on the shape alone.
 *
 * The measurement, once a shape and precision (CPU: and number of threads; GPU: and number of
 * matrices, which are multiplied at once): every path twice, the better time of each. The rule's
 * path stays unless another takes less than 0.87 of its time: where times differ by less, noise
 * would choose, and two runs would not have the same bits. On the CPU two steps are taken, and say
 * what five take, because the Gram form's runs are of 2, 1 and 2 steps, and a run of one is a step
 * of the halves; a GPU takes five. On the CPU the group that is stepped first says how many
 * matrices are measured at once, but the choice is for any number of them: what a matrix becomes
 * does not depend on how many are beside it.
 */
#include "backend/tuning.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "core/error.h"
#include "cpu/packed.h"

static int path = LM_MUON_AUTO;
static int deterministic = -1; /* -1: ask the environment */
static lm_muon_report last;

/* ---- what is asked for ---- */

const char *lm_muon_path_name(int which) {
  static const char *const names[LM_MUON_PATHS] = {"auto", "written", "halves", "gram"};
  return which >= 0 && which < LM_MUON_PATHS ? names[which] : NULL;
}

int lm_set_muon_path(int which) {
  if (!lm_muon_path_name(which))
    return lm__fail(LM_EINVAL, "set_muon_path: %d is not in 0..%d", which, LM_MUON_PATHS - 1);
  path = which;
  return LM_OK;
}
int lm_muon_path(void) { return path; }

void lm_set_deterministic(int on) { deterministic = on != 0; }
int lm_deterministic(void) {
  if (deterministic < 0) {
    const char *value = getenv("LUMUON_DETERMINISTIC");
    deterministic = value && *value && strcmp(value, "0") != 0;
  }
  return deterministic;
}

/* ---- what the last step did ---- */

void lm__muon_done(const lm_muon_report *report) { last = *report; }

int lm_muon_last(lm_muon_report *out) {
  if (!out) return lm__fail(LM_EINVAL, "muon_last: out is NULL: nowhere to write");
  if (last.path == LM_MUON_AUTO)
    return lm__fail(LM_EINVAL, "muon_last: no Muon step has been made yet");
  *out = last;
  return LM_OK;
}

/* ---- the rule ---- */

static int rule(int device, int64_t rows, int64_t cols) {
  const int64_t m = rows < cols ? rows : cols, n = rows < cols ? cols : rows;
  if (device == LM_CUDA) return m >= 64 && n >= 3 * m ? LM_MUON_GRAM : LM_MUON_WRITTEN;
  const double whole = (double)m * (double)m * (double)n;
  const double padded = (double)lm__padded(m) * (double)lm__padded(m) * (double)lm__padded(n);
  if (padded > 1.2 * whole) return LM_MUON_WRITTEN;
  return n >= 2 * m ? LM_MUON_GRAM : LM_MUON_HALVES;
}

/* ---- the measurement ---- */

enum { ROUNDS = 2, STEPS = 2, STEPS_OF_GPU = 5, REMEMBERED = 256, MATRICES_AT_ONCE = 8 };
static const double WORTH = 4e6; /* m^2 n of a matrix for which it pays to measure */
static const double CLEARLY = 0.87;

static lm_muon_choice known[REMEMBERED];
static int known_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void lm__muon_forget(void) {
  (void)pthread_mutex_lock(&lock);
  known_count = 0;
  (void)pthread_mutex_unlock(&lock);
}

static bool measure_all(lm_muon_choice *c, int64_t group, lm__measure_fn measure) {
  const int64_t rows = (int64_t)c->rows, cols = (int64_t)c->cols;
  const bool longish = rows >= 2 * cols || cols >= 2 * rows, gpu = c->device == LM_CUDA;
  const int64_t count = gpu ? (int64_t)c->count : group;
  const int paths = longish ? LM_MUON_PATHS : LM_MUON_GRAM;
  double best[LM_MUON_PATHS] = {0};
  for (int round = 0; round < ROUNDS; round++)
    for (int p = LM_MUON_WRITTEN; p < paths; p++) {
      const double seconds =
          measure(count, rows, cols, c->precision, p, gpu ? STEPS_OF_GPU : STEPS);
      if (seconds < 0) return false;
      if (round == 0 || seconds < best[p]) best[p] = seconds;
    }
  if (gpu) {
    for (int p = LM_MUON_WRITTEN; p < paths; p++) c->ms[p] = 1e3 * best[p];
    return true;
  }
  c->ms[LM_MUON_WRITTEN] = 2.5e3 * best[LM_MUON_WRITTEN];
  c->ms[LM_MUON_HALVES] = 2.5e3 * best[LM_MUON_HALVES];
  if (longish) c->ms[LM_MUON_GRAM] = 2e3 * best[LM_MUON_GRAM] + 0.5e3 * best[LM_MUON_HALVES];
  return true;
}

/* Whether the choice is to be remembered. A measurement that failed, for want of memory, would fail
 * at the next step again; one that was interrupted would not. group: matrices of the one that asks;
 * measure: NULL for the rule alone. */
static bool choose(lm_muon_choice *c, int64_t group, lm__measure_fn measure) {
  const double m = c->rows < c->cols ? c->rows : c->cols, n = c->rows < c->cols ? c->cols : c->rows;
  c->path = c->rule = rule(c->device, (int64_t)c->rows, (int64_t)c->cols);
  if (lm_deterministic() || !measure || m * m * n < WORTH) return false;
  if (!measure_all(c, group, measure)) return !lm_interrupted();
  c->measured = 1;
  for (int p = LM_MUON_WRITTEN; p < LM_MUON_PATHS; p++)
    if (c->ms[p] > 0 && c->ms[p] < CLEARLY * c->ms[c->rule] && c->ms[p] < c->ms[c->path])
      c->path = p;
  return true;
}

/* What the measured times belong to, besides the shape. */
static lm_muon_choice question(int device, int64_t count, int64_t rows, int64_t cols,
                               int precision) {
  lm_muon_choice c = {.rows = (double)rows, .cols = (double)cols};
  c.device = device;
  c.precision = precision;
  if (device == LM_CUDA) {
    c.count = (double)(count < MATRICES_AT_ONCE ? count : MATRICES_AT_ONCE);
    c.kernel = precision == LM_PRECISION_BF16 ? lm_gpu_muon_kernel() : "";
  } else {
    const int dtype = precision == LM_PRECISION_BF16 && lm_cpu_fast_bf16() ? LM_BF16 : LM_F32;
    c.count = 1;
    c.threads = lm_threads();
    c.kernel = lm__packed_kernel_for(dtype)->name;
  }
  return c;
}

static bool same_question(const lm_muon_choice *a, const lm_muon_choice *b) {
  return a->device == b->device && a->count == b->count && a->rows == b->rows &&
         a->cols == b->cols && a->precision == b->precision && a->threads == b->threads &&
         a->kernel == b->kernel;
}

static lm_muon_choice look_up(lm_muon_choice c, int64_t group, lm__measure_fn measure) {
  (void)pthread_mutex_lock(&lock);
  for (int i = 0; i < known_count; i++)
    if (same_question(&known[i], &c)) {
      c = known[i];
      (void)pthread_mutex_unlock(&lock);
      if (lm_deterministic()) c.path = c.rule;
      return c;
    }
  if (choose(&c, group, known_count < REMEMBERED ? measure : NULL)) known[known_count++] = c;
  (void)pthread_mutex_unlock(&lock);
  return c;
}

int lm__muon_path_for(int device, int64_t count, int64_t rows, int64_t cols, int precision,
                      lm__measure_fn measure) {
  if (path != LM_MUON_AUTO) return path;
  return look_up(question(device, count, rows, cols, precision), count, measure).path;
}

static int check_bank(const char *op, double count, double rows, double cols, int precision) {
  if (!(count >= 1 && rows >= 1 && cols >= 1 && count * rows * cols < 1e12))
    return lm__fail(LM_EINVAL, "%s: %g x %g x %g is no shape of a bank", op, count, rows, cols);
  if (precision != LM_PRECISION_F32 && precision != LM_PRECISION_BF16)
    return lm__fail(LM_EINVAL, "%s: precision = %d is neither f32 (%d) nor bf16 (%d)", op,
                    precision, LM_PRECISION_F32, LM_PRECISION_BF16);
  return LM_OK;
}

int lm_muon_scratch(double *out, int device, double count, double rows, double cols,
                    int precision) {
  const lm__backend_table *backend;
  if (!out) return lm__fail(LM_EINVAL, "muon_scratch: out is NULL: nowhere to write");
  LM__TRY(check_bank("muon_scratch", count, rows, cols, precision));
  LM__OP(backend, muon_scratch, device);
  *out = backend->muon_scratch((int64_t)count, (int64_t)rows, (int64_t)cols, precision);
  return LM_OK;
}

int lm_muon_choose(lm_muon_choice *out, int device, double count, double rows, double cols,
                   int precision) {
  const lm__backend_table *backend;
  if (!out) return lm__fail(LM_EINVAL, "muon_choose: out is NULL: nowhere to write");
  LM__TRY(check_bank("muon_choose", count, rows, cols, precision));
  LM__OP(backend, muon_measure, device);
  *out = look_up(question(device, (int64_t)count, (int64_t)rows, (int64_t)cols, precision),
                 (int64_t)count, backend->muon_measure);
  return LM_OK;
}
