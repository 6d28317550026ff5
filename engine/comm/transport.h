/* Messages between two ranks: what a transport (mpi.c, tcp.c) implements, and all that the
 * collectives (collectives.c) need of it. Called from the communication thread only. */
#ifndef LM_COMM_TRANSPORT_H
#define LM_COMM_TRANSPORT_H

#include <stddef.h>

#include "comm/comm.h"

typedef struct lm__transport {
  const char *name;
  size_t request_bytes; /* of a message on its way; it may be moved in memory as it is */
  /* As in lm__comm_table; but the collectives see to it that every rank has come. */
  int (*start)(int *rank, int *world_size, double deadline);
  void (*stop)(void);
  void (*abort)(int code);
  /* Begin to send or receive a message of 1 to LM__MESSAGE bytes. From one rank to another,
   * messages arrive in the order in which they were sent; both sides know how long each is. */
  int (*send)(int to, const void *data, int bytes, void *request);
  int (*receive)(int from, void *data, int bytes, void *request);
  /* Move what can be moved of all messages. Of these requests, finished[0..*count) are the numbers
   * of those that were done since the last call; *count = -1: there were none left to be done. */
  int (*test)(int n, void *requests, int *finished, int *count);
  /* Sleep until something can be moved, or so long. */
  void (*nap)(long ns);
  /* LM__WORDS bytes beside the messages (roll_call.c): to a rank that may not listen, lost if they
   * cannot leave at once; and the next that have come: false if none. */
  void (*say)(int to, const void *words);
  bool (*hear)(int *from, void *words);
} lm__transport;

enum {
  LM__MESSAGE = 1 << 26,
  LM__CULPRIT = 256,
  LM__WORDS = 8 + LM__LABEL + 32 + LM__CULPRIT + 512
};

const lm__transport *lm__transport_mpi(void); /* NULL in a build without it */
const lm__transport *lm__transport_tcp(void);
/* Before TCP's start: who this is, and where the ranks meet (comm/rendezvous.h). */
int lm__tcp_configure(int rank, int world_size, const char *where, const char *job);

/* The table of collectives made of this transport's messages; one at a time. */
const lm__comm_table *lm__comm_over(const lm__transport *transport);

#endif
