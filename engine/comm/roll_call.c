#include "comm/roll_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const double ANSWER_WITHIN = 1; /* seconds */
enum { ASKS = 1, ANSWERS, ENDS };

/* Of ranks beyond what fits, nobody says for whom they wait. */
enum { RANKS = 4096 };

typedef struct words {
  int32_t what, busy;
  char where[LM__LABEL + 32], culprit[LM__CULPRIT];
  unsigned char waits_for[RANKS / 8];
} words;
_Static_assert(sizeof(words) == LM__WORDS, "what a transport carries");

static words describe(int what, const lm__whereabouts *own) {
  words w = {.what = what, .busy = own->in != NULL};
  if (own->in)
    (void)snprintf(w.where, sizeof w.where, "%s of '%s'", lm__collective_name(own->in->kind),
                   own->in->label);
  for (int r = 0; own->waits_for && r < own->size && r < RANKS; r++)
    if (own->waits_for[r]) w.waits_for[r / 8] |= (unsigned char)(1 << r % 8);
  return w;
}

static bool waits(const words *w, int r) { return r < RANKS && (w->waits_for[r / 8] >> r % 8 & 1); }

static void say_to_all(const lm__transport *via, const lm__whereabouts *own, const words *w) {
  for (int r = 0; r < own->size; r++)
    if (r != own->rank) via->say(r, w);
}

/* The next words of anybody's; questions are answered here. */
static bool hear(const lm__transport *via, const lm__whereabouts *own, int *from, words *w) {
  if (!via->hear(from, w)) return false;
  w->where[sizeof w->where - 1] = 0;
  w->culprit[sizeof w->culprit - 1] = 0;
  if (w->what == ASKS) {
    const words here = describe(ANSWERS, own);
    via->say(*from, &here);
  }
  if (w->what == ENDS) lm__comm_told(own->rank, *from, w->where, w->culprit);
  return true;
}

void lm__roll_call_listen(const lm__transport *via, const lm__whereabouts *own) {
  words w;
  int from = 0;
  while (hear(via, own, &from, &w)) {
  }
}

/* Follow who waits for whom from own; culprit[r]: it waits for nobody, or has not answered. True
 * once all on the way have answered. */
static bool follow(const lm__whereabouts *own, const words *answers, bool *culprit, int *todo) {
  bool complete = true;
  int n = 0;
  bool seen[own->size];
  for (int r = 0; r < own->size; r++) {
    culprit[r] = false;
    seen[r] = r == own->rank;
    if (own->waits_for[r] && !seen[r]) todo[n++] = r;
  }
  for (int i = 0; i < n; i++) seen[todo[i]] = true;
  for (int i = 0; i < n; i++) {
    const words *w = &answers[todo[i]];
    bool for_anybody = false;
    for (int r = 0; r < own->size; r++) {
      if (!w->busy || !waits(w, r)) continue;
      for_anybody = true;
      if (!seen[r]) todo[n++] = r;
      seen[r] = true;
    }
    culprit[todo[i]] = !for_anybody;
    complete = complete && w->what == ANSWERS;
  }
  return complete;
}

static void put_into_words(const lm__whereabouts *own, const words *answers, const bool *culprit,
                           char *text, size_t size) {
  size_t used = 0;
  text[0] = 0;
  for (int r = 0; r < own->size && used + 120 < size; r++) {
    const words *w = &answers[r];
    if (!culprit[r]) continue;
    used += (size_t)snprintf(text + used, size - used, "%sank %d holds the others up: it %s%.100s",
                             used ? "; r" : "R", r,
                             w->what != ANSWERS ? "does not answer"
                             : w->busy          ? "is at work in "
                                                : "is in no collective, its program elsewhere",
                             w->what == ANSWERS && w->busy ? w->where : "");
  }
  if (used > 0) (void)snprintf(text + used, size - used, ". ");
}

void lm__roll_call(const lm__transport *via, const lm__whereabouts *own, char *text, size_t size) {
  const struct timespec nap = {.tv_nsec = 5000000};
  const size_t n = (size_t)own->size;
  words *answers = calloc(n, sizeof *answers), w;
  bool *culprit = calloc(n, sizeof *culprit);
  int *todo = calloc(n, sizeof *todo), from = 0;
  if (!answers || !culprit || !todo) abort();
  const words here = describe(ASKS, own);
  say_to_all(via, own, &here);
  const double until = lm__clock() + ANSWER_WITHIN;
  while (!follow(own, answers, culprit, todo) && lm__clock() < until) {
    while (hear(via, own, &from, &w))
      if (w.what == ANSWERS && from >= 0 && from < own->size) answers[from] = w;
    (void)nanosleep(&nap, NULL);
  }
  put_into_words(own, answers, culprit, text, size);
}

void lm__roll_call_tell(const lm__transport *via, const lm__whereabouts *own, const char *text) {
  words w = describe(ENDS, own);
  (void)snprintf(w.culprit, sizeof w.culprit, "%s", text);
  say_to_all(via, own, &w);
}
