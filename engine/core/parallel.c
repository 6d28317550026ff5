#include "core/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <signal.h>

#include "core/error.h"

int lm_threads(void) { return omp_get_max_threads(); }

/* Workers take no signals, which threads inherit from the one that starts them: a handler's frame
 * on a worker's stack would overwrite what oneDNN's kernels keep below the stack pointer. */
static void start_workers(void) {
  static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
  sigset_t all, before;
  (void)sigfillset(&all);
  for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) (void)sigdelset(&all, faults[i]);
  if (pthread_sigmask(SIG_BLOCK, &all, &before) != 0) return;
#pragma omp parallel
  __asm__ volatile("" ::: "memory"); /* nothing: the region itself starts them */
  (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int lm_set_threads(int n) {
  if (n < 1 || n > 1024) return lm__fail(LM_EINVAL, "set_threads: %d is not in 1..1024", n);
  omp_set_num_threads(n);
  start_workers();
  return LM_OK;
}

void lm__parallel_for(int64_t n, int64_t grain, lm__range_fn fn, void *arg) {
  if (grain < 1) grain = 1;
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t most = omp_get_max_threads();
  const int team = (int)(grains < most ? grains : most);
  if (n <= 0) return;
  if (team <= 1 || omp_in_parallel()) {
    fn(0, n, arg);
    return;
  }
#pragma omp parallel num_threads(team)
  {
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = grains * me / threads * grain;
    int64_t end = grains * (me + 1) / threads * grain;
    if (end > n) end = n;
    if (begin < end) fn(begin, end, arg);
  }
}

void lm__parallel_items(int64_t n, lm__range_fn fn, void *arg) {
  if (n <= 1 || omp_get_max_threads() == 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < n; i++) fn(i, i + 1, arg);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; i++) fn(i, i + 1, arg);
}
