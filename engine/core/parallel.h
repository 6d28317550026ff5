/* The one thread pool: OpenMP, behind one function. Kernels hold no thread code of their own. */
#ifndef LM_CORE_PARALLEL_H
#define LM_CORE_PARALLEL_H

#include <stdint.h>

typedef void (*lm__range_fn)(int64_t begin, int64_t end, void *arg);

/* Call fn on ranges that cover [0, n), each a contiguous share of whole grains, one a thread. Runs
 * in the caller for n <= grain and inside another parallel loop. The shares depend on n, grain and
 * the number of threads only. */
void lm__parallel_for(int64_t n, int64_t grain, lm__range_fn fn, void *arg);

/* The same with one item at a time, handed out as threads get free: for items of uneven cost. fn
 * must not care which thread takes which item. */
void lm__parallel_items(int64_t n, lm__range_fn fn, void *arg);

#endif
