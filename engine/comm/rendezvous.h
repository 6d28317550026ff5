/* How the ranks of a job find each other where no MPI does it: rank 0 waits at a known place, the
 * others come there, each leaves a few bytes, and all get everyone's. */
#ifndef LM_COMM_RENDEZVOUS_H
#define LM_COMM_RENDEZVOUS_H

#include "comm/net.h"

enum { LM__BLOB = 128, LM__JOB = 64 }; /* a blob holds NCCL's unique id */

typedef struct lm__rendezvous {
  int rank, world_size;
  /* "tcp://host:port": rank 0 listens on that port, and host is its machine.
   * "file:///path" on a disk that all share: rank 0 writes there where it listens. */
  const char *place;
  const char *job; /* which job, "" if nobody said: those of another are refused */
} lm__rendezvous;

typedef struct lm__peer {
  char address[LM__ADDRESS]; /* of the rank's machine in figures, as it can be reached from here */
  char blob[LM__BLOB];
} lm__peer;

/* Whether place is one; else LM_EINVAL says what is wrong with it. */
int lm__rendezvous_check(const char *place);
/* The port that rank 0 is to have there; 0 for a file. */
int lm__rendezvous_port(const char *place);

/* Give blob (LM__BLOB bytes), get all[0..world_size). held[0..world_size): connections, or -1, that
 * the caller closes: rank 0's to the others, the others' to rank 0. Each is to be open until its
 * rank needs it no more, so that rank 0 sees one that dies before then. Others are waited for, and
 * tried again, until the deadline; LM_EDIST then names the ranks that have not come. A rank that
 * counts another number of ranks, or whose number another has, ends it on all sides, with both
 * sides' values. Who does not speak this protocol, or is of another job, is turned away, and the
 * wait goes on. */
int lm__rendezvous_meet(const lm__rendezvous *r, const void *blob, lm__peer *all, int *held,
                        double deadline);

#endif
