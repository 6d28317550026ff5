/* The world of one process: every collective is done before it began. */
#include <string.h>

#include "comm/comm.h"

static int start(int *rank, int *world_size, double deadline) {
  (void)deadline;
  *rank = 0;
  *world_size = 1;
  return LM_OK;
}
static void stop(void) {}
static void abort_job(int code) { (void)code; }

static int nothing(const lm__collective *c, double deadline) {
  (void)c;
  (void)deadline;
  return LM_OK;
}

static int gather(const lm__collective *c, double deadline) {
  (void)deadline;
  if (c->out != c->data)
    memmove(c->out, c->data, (size_t)c->count * (size_t)lm_dtype_size(c->dtype));
  return LM_OK;
}

static int scatter(const lm__collective *c, double deadline) {
  (void)deadline;
  if (c->out != c->data)
    memmove(c->data, c->out, (size_t)c->count * (size_t)lm_dtype_size(c->dtype));
  return LM_OK;
}

const lm__comm_table lm__comm_self = {
    .name = "self",
    .start = start,
    .stop = stop,
    .abort = abort_job,
    .run = {nothing, nothing, nothing, nothing, nothing, gather, scatter},
    .meet = nothing,
};
