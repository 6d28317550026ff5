/* Collectives: what a transport implements, and the queue that runs them.
 *
 * lm_dist_* (dist.c) checks its arguments and makes a lm_work; the communication thread (queue.c)
 * takes works in the order they were issued, the same on every rank, and hands each to the table; a
 * GPU's tensors go by NCCL or through the host's memory (staged.c). A table's functions block until
 * the collective is done, and are called from the communication thread only: for MPI that thread is
 * the one that called MPI_Init.
 */
#ifndef LM_COMM_COMM_H
#define LM_COMM_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/tensor.h"

enum lm__collective_kind {
  LM__BARRIER,
  LM__ALL_REDUCE,
  LM__REDUCE_SCATTER,
  LM__ALL_GATHER,
  LM__BROADCAST,
  LM__GATHER,
  LM__SCATTER,
  LM__COLLECTIVES
};
enum { LM__LABEL = 64 };

typedef struct lm__collective {
  int kind, op, dtype, root, device;
  int64_t count; /* elements of data */
  char *data;    /* in place; gather: what this rank gives; scatter: what it gets */
  char *out;     /* gather and scatter on root: world_size * count elements */
  char label[LM__LABEL];
} lm__collective;

typedef struct lm__comm_table {
  const char *name;
  /* The communication thread's first and last calls. start sets rank and world size; `deadline`
   * (lm__clock) is when to give up. */
  int (*start)(int *rank, int *world_size, double deadline);
  void (*stop)(void);
  /* End every process of the job; returns only where the transport cannot. */
  void (*abort)(int code);
  /* One function a collective. Before any data moves, ranks tell each other which collective they
   * are in: a rank that is in another is an error that names both. Past `deadline`:
   * lm__comm_timed_out. */
  int (*run[LM__COLLECTIVES])(const lm__collective *c, double deadline);
  /* That part of it alone. */
  int (*meet)(const lm__collective *c, double deadline);
  void (*idle)(void); /* called now and then while there is nothing to do */
} lm__comm_table;

extern const lm__comm_table lm__comm_self;

double lm__clock(void); /* seconds, monotonic */
const char *lm__collective_name(int kind);

/* Bytes handed to the network by this rank; of NCCL's, see staged.c. */
extern double lm__wire_bytes;

/* Says which collective waits for whom, and ends the job. arrived: a flag a rank; why: a sentence
 * more, or "". */
_Noreturn void lm__comm_timed_out(const lm__collective *c, const bool *arrived, int rank,
                                  int world_size, const char *why);
/* The same where rank `from` has said so: which collective, and why. */
_Noreturn void lm__comm_told(int rank, int from, const char *which, const char *why);

/* Collectives between GPUs (nccl.c), launched on the stream of the device's side copies. */
enum { LM__UNIQUE = 128 };
typedef struct lm__gpu_links {
  const char *(*name)(void);
  /* Which GPU this is, the same text for the same one; false: there are no links here. */
  bool (*describe)(char *gpu, size_t size);
  int (*unique)(char *id); /* on rank 0, for everybody's start; LM__UNIQUE bytes */
  int (*start)(const char *id, int rank, int size, double deadline);
  int (*launch)(const lm__collective *c, int rank, int size, double deadline);
  int (*trouble)(void); /* asked while a collective runs */
  void (*stop)(bool well);
} lm__gpu_links;
extern const lm__gpu_links lm__nccl;

/* staged.c. mark: what the GPU had been given when c was issued; NULL for the CPU's tensors. */
int lm__staged_mark(const lm__collective *c, void **mark);
void lm__staged_forget(const lm__collective *c, void *mark);
/* Run c by the table's collectives of the host's memory. */
int lm__staged_run(const lm__comm_table *table, const lm__collective *c, void *mark, int rank,
                   int size, double deadline);
void lm__staged_stop(void);
void lm__staged_want_links(bool always); /* between GPUs: in a world of one, too */

/* queue.c */
struct lm_work;
int lm__queue_start(const lm__comm_table *table, double timeout, double start_timeout, int *rank,
                    int *world_size);
void lm__queue_stop(void);
/* Issue c; the storages, if any, are held until it is done. */
int lm__queue_issue(struct lm_work **out, const lm__collective *c, lm__storage *a, lm__storage *b);
void lm__queue_set_timeout(double seconds);
void lm__queue_set_delay(double seconds_per_byte);
const lm__comm_table *lm__queue_table(void);
bool lm__queue_urgent(void); /* has the communication thread, which asks, real-time priority? */

#endif
