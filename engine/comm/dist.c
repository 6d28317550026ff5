/* Entry points of the collectives: which world this process is in, arguments checked. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/backend.h"
#include "comm/transport.h"
#include "core/error.h"

enum { MOST_RANKS = 4096 };
static int world_rank, world_size = 1;
static bool initialized;

int lm_dist_available(int transport) {
  if (transport == LM_DIST_SELF) return 1;
  return transport == LM_DIST_TCP || (transport == LM_DIST_MPI && lm__transport_mpi() != NULL);
}

static int need_seconds(const char *op, const char *name, double value) {
  if (value > 0 && value <= 1e6) return LM_OK;
  return lm__fail(LM_EINVAL, "%s: %s = %g must be seconds, above 0 and at most 1e6", op, name,
                  value);
}

static int configure_tcp(const lm_dist_options *o) {
  if (o->world_size < 1 || o->world_size > MOST_RANKS || o->rank < 0 || o->rank >= o->world_size)
    return lm__fail(LM_EINVAL, "dist_init: rank %d of %d: at most %d ranks, counted from 0",
                    o->rank, o->world_size, MOST_RANKS);
  if (!o->rendezvous) return lm__fail(LM_EINVAL, "dist_init: rendezvous is missing");
  return lm__tcp_configure(o->rank, o->world_size, o->rendezvous, o->job ? o->job : "");
}

int lm_dist_init(const lm_dist_options *o) {
  if (initialized) return lm__fail(LM_EINVAL, "dist_init: was called before");
  LM__TRY(need_seconds("dist_init", "timeout", o->timeout));
  LM__TRY(need_seconds("dist_init", "start_timeout", o->start_timeout));
  const lm__transport *transport = o->transport == LM_DIST_MPI   ? lm__transport_mpi()
                                   : o->transport == LM_DIST_TCP ? lm__transport_tcp()
                                                                 : NULL;
  if (o->transport == LM_DIST_TCP) LM__TRY(configure_tcp(o));
  if (o->transport != LM_DIST_SELF && !transport)
    return lm__fail(LM_ENOTSUP,
                    "dist_init: this build has no MPI; install libopenmpi-dev and openmpi-bin, "
                    "then build again");
  const lm__comm_table *table = transport ? lm__comm_over(transport) : &lm__comm_self;
  lm__staged_want_links(o->links != 0);
  LM__TRY(lm__queue_start(table, o->timeout, o->start_timeout, &world_rank, &world_size));
  initialized = true;
  return LM_OK;
}

int lm_dist_initialized(void) { return initialized; }
int lm_dist_rank(void) { return world_rank; }
int lm_dist_world_size(void) { return world_size; }
const char *lm_dist_transport(void) { return lm__queue_table()->name; }
double lm_dist_wire_bytes(void) { return lm__wire_bytes; }

int lm_dist_set_timeout(double seconds) {
  LM__TRY(need_seconds("dist_set_timeout", "timeout", seconds));
  lm__queue_set_timeout(seconds);
  return LM_OK;
}

int lm_dist_set_delay(double seconds_per_byte) {
  if (!(seconds_per_byte >= 0 && seconds_per_byte <= 1))
    return lm__fail(LM_EINVAL, "dist_set_delay: %g is not in 0..1 seconds a byte",
                    seconds_per_byte);
  lm__queue_set_delay(seconds_per_byte);
  return LM_OK;
}

void lm_dist_finalize(void) {
  lm__queue_stop();
  initialized = false;
  world_rank = 0;
  world_size = 1;
}

void lm_dist_abort(int code) {
  if (world_size == 1) return;
  (void)fflush(NULL);
  _exit(code ? code : 1); /* the launcher ends the other ranks */
}

/* ---- collectives ---- */

static int need(const char *op, const lm_tensor *t) {
  if (!t) return lm__fail(LM_EINVAL, "%s: the tensor is missing or was freed", op);
  if (t->device != LM_CPU && !lm__backend(t->device)->side)
    return lm__fail(LM_EDEVICE, "%s: no collectives of tensors on %s", op,
                    lm_device_name(t->device));
  LM__TRY(lm__need_writable(op, t));
  return lm__need_contiguous(op, "the tensor", t);
}

static int need_reducible(const char *op, const lm_tensor *t, int how) {
  LM__TRY(need(op, t));
  if (how < 0 || how >= LM_DIST_OPS)
    return lm__fail(LM_EINVAL, "%s: %d is none of sum, mean, max, min", op, how);
  if (t->dtype != LM_F32 && t->dtype != LM_BF16 && (t->dtype != LM_I32 || how == LM_DIST_MEAN))
    return lm__fail(LM_EDTYPE, "%s: needs f32 or bf16 (or i32, but for a mean), got %s", op,
                    lm__describe(t));
  return LM_OK;
}

static int need_slices(const char *op, const lm_tensor *t) {
  if (lm__numel(t) % world_size == 0) return LM_OK;
  return lm__fail(LM_ESHAPE,
                  "%s: the %lld elements of %s cannot be divided among %d ranks; pad the first dim",
                  op, (long long)lm__numel(t), lm__describe(t), world_size);
}

static int need_root(const char *op, int root) {
  if (root >= 0 && root < world_size) return LM_OK;
  return lm__fail(LM_EINVAL, "%s: rank %d is not in 0..%d", op, root, world_size - 1);
}

static lm__collective describe(int kind, const lm_tensor *t, int op, int root, const char *label) {
  lm__collective c = {.kind = kind, .op = op, .root = root, .dtype = -1, .device = LM_CPU};
  if (t) {
    c.dtype = t->dtype;
    c.device = t->device;
    c.count = lm__numel(t);
    c.data = lm__data(t);
  }
  (void)snprintf(c.label, sizeof c.label, "%s", label && *label ? label : "no label");
  return c;
}

static int issue(lm_work **out, int kind, lm_tensor *t, int op, int root, const char *label) {
  const lm__collective c = describe(kind, t, op, root, label);
  return lm__queue_issue(out, &c, t ? t->storage : NULL, NULL);
}

int lm_dist_all_reduce(lm_work **out, lm_tensor *t, int op, const char *label) {
  *out = NULL;
  LM__TRY(need_reducible("all_reduce", t, op));
  return issue(out, LM__ALL_REDUCE, t, op, 0, label);
}

int lm_dist_reduce_scatter(lm_work **out, lm_tensor *t, int op, const char *label) {
  *out = NULL;
  LM__TRY(need_reducible("reduce_scatter", t, op));
  LM__TRY(need_slices("reduce_scatter", t));
  return issue(out, LM__REDUCE_SCATTER, t, op, 0, label);
}

int lm_dist_all_gather(lm_work **out, lm_tensor *t, const char *label) {
  *out = NULL;
  LM__TRY(need("all_gather", t));
  LM__TRY(need_slices("all_gather", t));
  return issue(out, LM__ALL_GATHER, t, 0, 0, label);
}

int lm_dist_broadcast(lm_work **out, lm_tensor *t, int root, const char *label) {
  *out = NULL;
  LM__TRY(need("broadcast", t));
  LM__TRY(need_root("broadcast", root));
  return issue(out, LM__BROADCAST, t, 0, root, label);
}

int lm_dist_gather(lm_work **out, lm_tensor *whole, const lm_tensor *part, int root,
                   const char *label) {
  const bool receives = root == world_rank;
  *out = NULL;
  LM__TRY(need("gather", part));
  LM__TRY(need_root("gather", root));
  if (receives) {
    LM__TRY(need("gather", whole));
    if (whole->device != part->device)
      return lm__fail(LM_EDEVICE, "gather: the part lies on %s, the whole on %s",
                      lm_device_name(part->device), lm_device_name(whole->device));
    if (whole->dtype != part->dtype || lm__numel(whole) != lm__numel(part) * world_size)
      return lm__fail(LM_ESHAPE, "gather: %s does not hold %d times %s", lm__describe(whole),
                      world_size, lm__describe(part));
  }
  lm__collective c = describe(LM__GATHER, part, 0, root, label);
  if (receives) c.out = lm__data(whole);
  return lm__queue_issue(out, &c, part->storage, receives ? whole->storage : NULL);
}

int lm_dist_scatter(lm_work **out, lm_tensor *part, const lm_tensor *whole, int root,
                    const char *label) {
  const bool gives = root == world_rank;
  *out = NULL;
  LM__TRY(need("scatter", part));
  LM__TRY(need_root("scatter", root));
  if (gives) LM__TRY(need("scatter", whole));
  if (part->device != LM_CPU || (gives && whole->device != LM_CPU))
    return lm__fail(LM_EDEVICE, "scatter: takes tensors on the cpu; use :to(\"cpu\")");
  if (gives && (whole->dtype != part->dtype || lm__numel(whole) != lm__numel(part) * world_size))
    return lm__fail(LM_ESHAPE, "scatter: %s does not hold %d times %s", lm__describe(whole),
                    world_size, lm__describe(part));
  lm__collective c = describe(LM__SCATTER, part, 0, root, label);
  if (gives) c.out = lm__data(whole);
  return lm__queue_issue(out, &c, part->storage, gives ? whole->storage : NULL);
}

int lm_dist_barrier(lm_work **out, const char *label) {
  *out = NULL;
  return issue(out, LM__BARRIER, NULL, 0, 0, label);
}
