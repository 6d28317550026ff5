/* Collectives of tensors in a GPU's memory, once the device has computed what was asked of it
 * before the collective: between the GPUs, where every rank has one of its own and NCCL; else by
 * way of the host's memory: to pinned memory, the CPU's collective there, and back. Only what a
 * rank gives goes one way, and what it gets the other. Which it is the ranks find out at the first
 * of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/backend.h"
#include "comm/comm.h"
#include "core/error.h"

typedef struct range {
  size_t begin, bytes;
} range;

static const lm__side_copies *side;
static char *pinned; /* kept from one collective to the next */
static size_t pinned_bytes;
static bool decided, linked, wanted; /* wanted: in a world of one, too */

static int room(size_t bytes) {
  if (bytes <= pinned_bytes) return LM_OK;
  side->unpin(pinned);
  pinned = NULL;
  pinned_bytes = 0;
  LM__TRY(side->pin((void **)&pinned, bytes));
  pinned_bytes = bytes;
  return LM_OK;
}

static int settle(double deadline) {
  const struct timespec nap = {.tv_nsec = 20000};
  for (;;) {
    bool done = false;
    LM__TRY(side->done(&done));
    if (done) return LM_OK;
    if (linked) LM__TRY(side->links->trouble());
    if (lm__clock() > deadline)
      return lm__fail(LM_EDEVICE, "the GPU has not finished what it was given before this");
    (void)nanosleep(&nap, NULL);
  }
}

/* What rank gives of c->data, and what it gets there. */
static void plan(const lm__collective *c, int rank, int size, range *gives, range *gets) {
  const size_t all = (size_t)c->count * (size_t)lm_dtype_size(c->dtype);
  const range whole = {0, all}, nothing = {0, 0};
  const range slice = {all / (size_t)size * (size_t)rank, all / (size_t)size};
  const bool root = rank == c->root;
  *gives = c->kind == LM__ALL_GATHER ? slice : c->kind == LM__BROADCAST && !root ? nothing : whole;
  *gets = c->kind == LM__REDUCE_SCATTER                                 ? slice
          : c->kind == LM__GATHER || (c->kind == LM__BROADCAST && root) ? nothing
                                                                        : whole;
}

static int exchange(const lm__comm_table *table, const lm__collective *c, void *mark, int rank,
                    int size, double deadline) {
  const size_t all = (size_t)c->count * (size_t)lm_dtype_size(c->dtype);
  const size_t gathered = c->out ? all * (size_t)size : 0, apart = (all + 63) / 64 * 64;
  range gives, gets;
  lm__collective here = *c;
  plan(c, rank, size, &gives, &gets);
  LM__TRY(room(apart + gathered));
  LM__TRY(side->after(mark));
  LM__TRY(side->to_host(pinned + gives.begin, c->data + gives.begin, gives.bytes));
  LM__TRY(settle(deadline));
  here.data = pinned;
  if (c->out) here.out = pinned + apart;
  LM__TRY(table->run[c->kind](&here, deadline));
  if (c->out) LM__TRY(side->to_device(c->out, here.out, gathered));
  LM__TRY(side->to_device(c->data + gets.begin, pinned + gets.begin, gets.bytes));
  return settle(deadline);
}

/* ---- between GPUs ---- */

enum { CARD = 128 }; /* bytes that a rank says of itself: its GPU, nothing: none with links */

/* Why not all ranks have a GPU of their own and links; "" if they have. */
static void look_at(const char *cards, int size, char *why, size_t room_for) {
  why[0] = 0;
  for (int r = 0; r < size; r++) {
    const char *own = cards + (size_t)r * CARD;
    if (!*own) {
      (void)snprintf(why, room_for, "rank %d has no NCCL", r);
      return;
    }
    for (int q = 0; q < r; q++)
      if (strcmp(own, cards + (size_t)q * CARD) == 0) {
        (void)snprintf(why, room_for, "ranks %d and %d share a GPU", q, r);
        return;
      }
  }
}

static int decide(const lm__comm_table *table, int rank, int size, double deadline) {
  char why[96], id[LM__UNIQUE] = "";
  char *cards = calloc((size_t)size, CARD), *own = cards ? cards + (size_t)rank * CARD : NULL;
  if (!cards) return lm__fail(LM_ENOMEM, "dist: out of memory for %d ranks' GPUs", size);
  if (!side->links->describe(own, CARD)) own[0] = 0;
  const lm__collective all = {.kind = LM__ALL_GATHER,
                              .dtype = LM_U8,
                              .device = LM_CPU,
                              .count = (int64_t)size * CARD,
                              .data = cards,
                              .label = "GPUs"};
  const int status = table->run[LM__ALL_GATHER](&all, deadline);
  if (status == LM_OK) look_at(cards, size, why, sizeof why);
  free(cards);
  LM__TRY(status);
  linked = !why[0];
  if (linked) {
    const lm__collective told = {.kind = LM__BROADCAST,
                                 .dtype = LM_U8,
                                 .device = LM_CPU,
                                 .count = LM__UNIQUE,
                                 .data = id,
                                 .label = "NCCL's id"};
    if (rank == 0) LM__TRY(side->links->unique(id));
    LM__TRY(table->run[LM__BROADCAST](&told, deadline));
    LM__TRY(side->links->start(id, rank, size, deadline));
  }
  if (rank == 0 && linked)
    (void)fprintf(stderr, "lumuon: GPU tensors: %s\n", side->links->name());
  else if (rank == 0)
    (void)fprintf(stderr, "lumuon: GPU tensors: %s (%s)\n",
                  size > 1 ? "staged through the host" : "stay where they are", why);
  decided = true;
  return LM_OK;
}

/* What rank sends where the ranks form a ring. NCCL does not say what it sent, and may take another
 * way than a ring. */
static double ring_bytes(const lm__collective *c, int rank, int size) {
  const double all = (double)c->count * (double)lm_dtype_size(c->dtype);
  switch (c->kind) {
    case LM__ALL_REDUCE:
      return 2 * all * (size - 1) / size;
    case LM__REDUCE_SCATTER:
    case LM__ALL_GATHER:
      return all * (size - 1) / size;
    case LM__BROADCAST: /* all pass it on but the last */
      return (rank + 1) % size == c->root ? 0 : all;
    default: /* gather */
      return rank == c->root ? 0 : all;
  }
}

static int between_gpus(const lm__comm_table *table, const lm__collective *c, void *mark, int rank,
                        int size, double deadline) {
  LM__TRY(table->meet(c, deadline));
  LM__TRY(side->after(mark));
  int status = side->links->launch(c, rank, size, deadline);
  if (status == LM_OK) lm__wire_bytes += ring_bytes(c, rank, size);
  if (status == LM_OK) status = settle(deadline);
  if (status) { /* the device may be waiting for the others */
    char why[300];
    (void)snprintf(why, sizeof why, "%s", lm_last_error());
    side->links->stop(false);
    return lm__fail(status, "%s", why);
  }
  return LM_OK;
}

int lm__staged_mark(const lm__collective *c, void **mark) {
  *mark = NULL;
  if (c->device == LM_CPU) return LM_OK;
  return lm__backend(c->device)->side->mark(mark);
}

void lm__staged_forget(const lm__collective *c, void *mark) {
  if (mark) lm__backend(c->device)->side->forget(mark);
}

int lm__staged_run(const lm__comm_table *table, const lm__collective *c, void *mark, int rank,
                   int size, double deadline) {
  const bool moves = size > 1 || c->kind == LM__GATHER; /* without links */
  if (c->device == LM_CPU || c->count == 0 || !(moves || wanted))
    return table->run[c->kind](c, deadline);
  side = lm__backend(c->device)->side;
  int status = LM_OK;
  if ((size > 1 || wanted) && !decided) {
    status = table->meet(c, deadline);
    if (status == LM_OK) status = side->after(mark);
    if (status == LM_OK) status = decide(table, rank, size, deadline);
  }
  if (status == LM_OK && !linked && !moves) return table->run[c->kind](c, deadline);
  if (status == LM_OK)
    status = (linked ? between_gpus : exchange)(table, c, mark, rank, size, deadline);
  if (status != LM_EDEVICE && status != LM_ENOMEM) return status;
  char why[300];
  (void)snprintf(why, sizeof why, "%s", lm_last_error());
  return lm__fail(status, "%s of '%s' on the GPU: %s", lm__collective_name(c->kind), c->label, why);
}

void lm__staged_want_links(bool always) { wanted = always; }

void lm__staged_stop(void) {
  if (linked) side->links->stop(true);
  decided = linked = false;
  if (pinned) side->unpin(pinned);
  pinned = NULL;
  pinned_bytes = 0;
}
