/* Between a kernel's source and the emulated runtime: the threads of a block, what they exchange,
 * and shared memory. */
#ifndef LM_EMULATED_THREADS_H
#define LM_EMULATED_THREADS_H

#include "cuda/emulated/cuda_runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lm_emulated_size {
  unsigned x, y, z;
} lm_emulated_size;

typedef struct lm_emulated_lane {
  lm_emulated_size thread;
  unsigned linear;
} lm_emulated_lane;

typedef struct lm_emulated_grid_state {
  lm_emulated_size index, block, grid;
} lm_emulated_grid_state;

extern lm_emulated_lane *lm_emulated_self;
extern lm_emulated_grid_state lm_emulated_grid;

/* Bytes that a lane can hand to the others of its warp at once. */
enum { LM_EMULATED_SLOT = 64 };

void lm_emulated_block_barrier(void);
int lm_emulated_block_or(int predicate);
/* Wait until every lane in mask has called the same; op is a string literal. */
void lm_emulated_meet(const char *op, unsigned mask);
/* The same, each handing over size bytes: returns 32 slots, to be given back with leave. */
const void *lm_emulated_exchange(const char *op, unsigned mask, const void *mine, size_t size);
void lm_emulated_leave(const void *slots);
/* End the kernel as a fault does, with a message. */
void lm_emulated_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Copies that arrive when waited for. */
void lm_emulated_copy_later(void *to, const void *from, size_t bytes, size_t from_bytes);
void lm_emulated_commit_copies(void);
void lm_emulated_wait_copies(int all_but);

/* Warpgroups (wgmma.c): d has n elements a lane. Shared addresses are of dynamic shared memory. */
uint32_t lm_emulated_shared_address(const void *p);
void lm_emulated_fence_async(void);
void lm_emulated_wgmma_fence(void);
void lm_emulated_wgmma(float *d, int n, uint64_t a, uint64_t b, bool transposed);
void lm_emulated_wgmma_commit(void);
void lm_emulated_wgmma_wait(int all_but);

typedef struct lm_emulated_site {
  unsigned long long block; /* the block that the memory was given out in */
  void *data;
} lm_emulated_site;
void *lm_emulated_shared(lm_emulated_site *site, size_t bytes, size_t alignment);
void *lm_emulated_dynamic_shared(void);

void lm_emulated_begin_arguments(void);
void lm_emulated_check_pointer(const void *p);
/* run(arguments) once a thread; while the stream is captured, note it down instead. */
cudaError_t lm_emulated_launch(void (*run)(const void *), const void *arguments, size_t bytes,
                               lm_emulated_size grid, lm_emulated_size block, size_t shared,
                               cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
