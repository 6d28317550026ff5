/* Collectives of tensors in a GPU's memory by way of the host's: to pinned memory, once the device
 * has computed what was asked of it before the collective, the CPU's collective there, and back.
 * Only what a rank gives goes one way, and what it gets the other. */
#include <stdio.h>
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
  if (c->device == LM_CPU || c->count == 0 || (size == 1 && c->kind != LM__GATHER))
    return table->run[c->kind](c, deadline);
  side = lm__backend(c->device)->side;
  const int status = exchange(table, c, mark, rank, size, deadline);
  if (status != LM_EDEVICE && status != LM_ENOMEM) return status;
  char why[300];
  (void)snprintf(why, sizeof why, "%s", lm_last_error());
  return lm__fail(status, "%s of '%s' by way of the host: %s", lm__collective_name(c->kind),
                  c->label, why);
}

void lm__staged_stop(void) {
  if (pinned) side->unpin(pinned);
  pinned = NULL;
  pinned_bytes = 0;
}
