/* Whom do they all wait for? A rank whose collective takes too long knows only whom it waits for
 * itself, and that one may be waiting for another. So it asks all of them where they are, follows
 * the answers to who waits for nobody, and tells everybody before it ends. */
#ifndef LM_COMM_ROLL_CALL_H
#define LM_COMM_ROLL_CALL_H

#include "comm/transport.h"

/* Where this rank is. */
typedef struct lm__whereabouts {
  const lm__collective *in; /* NULL: in none */
  const bool *waits_for;    /* a flag a rank; NULL: for nobody */
  int rank, size;
} lm__whereabouts;

/* Called now and then by every rank that waits or has nothing to do: answers who asks, and ends the
 * process if another has found the culprit. */
void lm__roll_call_listen(const lm__transport *via, const lm__whereabouts *own);

/* Whoever holds own->in up, in a sentence (or nothing), found within a second. */
void lm__roll_call(const lm__transport *via, const lm__whereabouts *own, char *text, size_t size);

/* Tell the others, who then end with the same sentence. */
void lm__roll_call_tell(const lm__transport *via, const lm__whereabouts *own, const char *text);

#endif
