/* What the files of the emulated runtime share. */
#ifndef LM_EMULATED_INTERNAL_H
#define LM_EMULATED_INTERNAL_H

#include <stdbool.h>

#include "cuda/emulated/threads.h"

/* Set the error that calls return from now on, for ever: what a fault does to a context. */
cudaError_t lm_emulated_break(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
cudaError_t lm_emulated_broken(void); /* that error, or cudaSuccess */
/* Keep an error for cudaGetLastError and return it. */
cudaError_t lm_emulated_error(cudaError_t error);

/* Let this thread touch device memory, and not: nested pairs. */
void lm_emulated_open(void);
void lm_emulated_close(void);
void lm_emulated_close_all(void);
bool lm_emulated_may_touch(const void *p, size_t bytes); /* all in one live block, or pinned */
bool lm_emulated_is_device(const void *p);               /* an address of device memory at all */
void lm_emulated_describe(const void *p, char *text, size_t size);
void lm_emulated_reset_memory(void);
/* Let the clock of events go on: a launch of so many blocks, with so many operations of cuBLASLt.
 */
void lm_emulated_tick(double blocks, double operations);
double lm_emulated_setting(const char *name, double otherwise);

/* All threads of all blocks; cudaErrorLaunchFailure or cudaErrorIllegalAddress where it failed. */
cudaError_t lm_emulated_run(void (*run)(const void *), const void *arguments, lm_emulated_size grid,
                            lm_emulated_size block, size_t shared);

/* cudaSuccess, or, where this thread captures a stream, an error that ends the capture: what a call
 * answers that a capture does not allow. */
cudaError_t lm_emulated_uncaptured(void);
/* The same of a call that only a capture in relaxed mode allows. */
cudaError_t lm_emulated_safe(void);
bool lm_emulated_captures(cudaStream_t stream); /* or is the legacy stream, which may not be used */

/* What lies at a shared address; whether a thread has copied something there and not fenced it. */
const void *lm_emulated_shared_at(uint32_t address, size_t bytes);
bool lm_emulated_unfenced(void);
bool lm_emulated_shared_offset(const void *p, size_t *at); /* false: it is not of shared memory */
const char *lm_emulated_shared_kind(size_t *at); /* "static" or "dynamic"; *at: from its start */
bool lm_emulated_arena_offset(const void *p, size_t *at); /* of device memory */
const void *lm_emulated_arena_at(size_t at);
void lm_emulated_wgmma_begin(unsigned lane);
void lm_emulated_wgmma_end(void);

/* ---- races (races.c) ---- */

/* Where a block's threads are: what orders their accesses. */
typedef struct lm_emulated_moment {
  unsigned launch, number;    /* of the launch in the process, of the block in the launch */
  unsigned long long block;   /* of the block in the process */
  unsigned barriers;          /* that the block has passed */
  unsigned warp_barriers[32]; /* that each of its warps has */
} lm_emulated_moment;
extern lm_emulated_moment lm_emulated_now;
extern _Thread_local bool lm_emulated_watching; /* this thread runs a kernel */
void lm_emulated_watch_memory(size_t shared_bytes, size_t device_bytes);
void lm_emulated_forget_memory(size_t at, size_t bytes); /* of the device: given back */
/* An access of the running lane's, beside those that the compiler tells of. */
void lm_emulated_access(const void *p, size_t bytes, bool writes);

/* Note a call down if the stream is captured; true if it was noted. */
bool lm_emulated_capture(cudaStream_t stream, cudaError_t (*call)(const void *),
                         const void *arguments, size_t bytes);

#endif
