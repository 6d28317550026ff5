/* Collectives made of messages between two ranks, over any transport (transport.h), for tensors in
 * the machine's memory:
 *
 *   every collective   a header to each rank: who has arrived, and in which collective
 *   reduce_scatter     each rank sends slice r to rank r, which adds them up in rank order
 *   all_gather         each rank sends its slice to all
 *   all_reduce         both; up to SMALL elements everyone sends all it has to all
 *   broadcast          a binomial tree;  gather: each rank to root;  scatter: root to each
 *
 * So the sum is in rank order whatever the transport's own algorithms are, each rank sends (N-1)/N
 * of the data, which is the least possible, and whoever waits knows for whom.
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "comm/roll_call.h"
#include "core/error.h"

enum { SMALL = 8192 };
static const double LISTEN = 0.1; /* seconds between two looks at what the others ask */
static const int64_t REDUCE_PIECE = (int64_t)1 << 18; /* elements */

static const lm__transport *via;
static int rank, size;
static char *received; /* reduce: what the other ranks sent, kept from one collective to the next */
static size_t received_bytes;

/* ---- a batch of messages ---- */

typedef struct batch {
  char *requests; /* via->request_bytes each */
  int *peers, *finished;
  bool *done;
  int n, capacity;
} batch;

/* After an error the messages may still be on their way: their memory is left alone. */
static void batch_free(batch *b) {
  free(b->requests);
  free(b->peers);
  free(b->finished);
  free(b->done);
  *b = (batch){0};
}

static int grow(batch *b) {
  const size_t capacity = b->capacity ? 2 * (size_t)b->capacity : 64, n = (size_t)b->n;
  batch wider = {.requests = malloc(capacity * via->request_bytes),
                 .peers = malloc(capacity * sizeof *b->peers),
                 .finished = malloc(capacity * sizeof *b->finished),
                 .done = malloc(capacity * sizeof *b->done),
                 .n = b->n,
                 .capacity = (int)capacity};
  if (!wider.requests || !wider.peers || !wider.finished || !wider.done) {
    batch_free(&wider);
    return lm__fail(LM_ENOMEM, "dist: out of memory for a message");
  }
  if (n > 0) {
    memcpy(wider.requests, b->requests, n * via->request_bytes);
    memcpy(wider.peers, b->peers, n * sizeof *b->peers);
    memcpy(wider.done, b->done, n * sizeof *b->done);
  }
  batch_free(b);
  *b = wider;
  return LM_OK;
}

static int post(batch *b, bool send, int peer, void *data, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += LM__MESSAGE) {
    const int n = (int)(bytes - at < LM__MESSAGE ? bytes - at : LM__MESSAGE);
    if (b->n == b->capacity) LM__TRY(grow(b));
    char *request = b->requests + (size_t)b->n * via->request_bytes, *piece = (char *)data + at;
    if (send) {
      LM__TRY(via->send(peer, piece, n, request));
      lm__wire_bytes += n;
    } else {
      LM__TRY(via->receive(peer, piece, n, request));
    }
    b->peers[b->n] = peer;
    b->done[b->n] = false;
    b->n += 1;
  }
  return LM_OK;
}

static void find_missing(const batch *b, bool *missing) {
  for (int r = 0; r < size; r++) missing[r] = false;
  for (int i = 0; i < b->n; i++)
    if (!b->done[i]) missing[b->peers[i]] = true;
}

/* In a collective, or (NULL) in none. */
static void listen_to_others(const lm__collective *c, const batch *b) {
  bool missing[size];
  if (c) find_missing(b, missing);
  const lm__whereabouts own = {c, c ? missing : NULL, rank, size};
  lm__roll_call_listen(via, &own);
}

static void timed_out(const lm__collective *c, const batch *b) {
  bool missing[size], arrived[size];
  char why[LM__CULPRIT];
  find_missing(b, missing);
  const lm__whereabouts own = {c, missing, rank, size};
  lm__roll_call(via, &own, why, sizeof why);
  for (int r = 0; r < size; r++) arrived[r] = !missing[r];
  lm__roll_call_tell(via, &own, why);
  lm__comm_timed_out(c, arrived, rank, size, why);
}

/* Until all of the batch is done. Nothing progresses unless the transport is called, so this polls:
 * briefly without a pause, then ever more rarely, so as to leave the cores to the arithmetic. A
 * thread that is not urgent must not yield: the scheduler then lets the arithmetic run to the next
 * tick, milliseconds later, while one that wakes from a nap is let in at once. */
static int wait_all(const lm__collective *c, batch *b, double deadline) {
  const bool urgent = lm__queue_urgent();
  const double spin = urgent ? 100e-6 : 10e-6;
  double quiet_since = lm__clock(), listened = quiet_since;
  long pause = 5000; /* ns */
  while (b->n > 0) {
    int n = 0;
    const int status = via->test(b->n, b->requests, b->finished, &n);
    if (status) { /* a rank that is gone may have said why */
      listen_to_others(c, b);
      return status;
    }
    if (n < 0) break;
    for (int i = 0; i < n; i++) b->done[b->finished[i]] = true;
    const double now = lm__clock();
    if (now > listened + LISTEN) {
      listen_to_others(c, b);
      listened = now;
    }
    if (n > 0) {
      quiet_since = now;
      pause = 5000;
    } else if (now > deadline) {
      timed_out(c, b);
    } else if (now - quiet_since < spin) {
      if (urgent) (void)sched_yield(); /* to another rank's such thread on this core */
    } else {
      via->nap(pause);
      if (pause < 200000) pause += pause / 2;
    }
  }
  b->n = 0;
  return LM_OK;
}

/* ---- headers ---- */

typedef struct header {
  int64_t count;
  int32_t kind, op, dtype, root, device, unused;
  char label[LM__LABEL];
} header;

static const char *describe(const header *h, char *text, size_t bytes) {
  static const char *const ops[LM_DIST_OPS] = {"sum", "mean", "max", "min"};
  const bool reduces = h->kind == LM__ALL_REDUCE || h->kind == LM__REDUCE_SCATTER;
  char root[24] = "";
  if (h->kind == LM__BROADCAST || h->kind == LM__GATHER || h->kind == LM__SCATTER)
    (void)snprintf(root, sizeof root, ", root %d", (int)h->root);
  if (h->kind == LM__BARRIER)
    (void)snprintf(text, bytes, "barrier '%s'", h->label);
  else
    (void)snprintf(
        text, bytes, "%s%s%s '%s' of %lld %s%s%s%s", lm__collective_name(h->kind),
        reduces ? " " : "", reduces && h->op >= 0 && h->op < LM_DIST_OPS ? ops[h->op] : "",
        h->label, (long long)h->count, lm_dtype_name(h->dtype) ? lm_dtype_name(h->dtype) : "?",
        h->device == LM_CPU ? "" : " on ",
        h->device != LM_CPU && lm_device_name(h->device) ? lm_device_name(h->device) : "", root);
  return text;
}

/* Every rank learns that every other is in the same collective. */
static int meet(const lm__collective *c, double deadline) {
  header mine = {.count = c->count,
                 .kind = c->kind,
                 .op = c->op,
                 .dtype = c->dtype,
                 .root = c->root,
                 .device = c->device};
  batch b = {0};
  int status = LM_OK;
  memcpy(mine.label, c->label, sizeof mine.label);
  header *theirs = calloc((size_t)size, sizeof *theirs);
  if (!theirs) return lm__fail(LM_ENOMEM, "dist: out of memory for %d headers", size);
  for (int r = 0; r < size; r++) {
    if (r == rank) continue;
    LM__TRY(post(&b, false, r, &theirs[r], sizeof mine));
    LM__TRY(post(&b, true, r, &mine, sizeof mine));
  }
  LM__TRY(wait_all(c, &b, deadline));
  for (int r = 0; r < size && status == LM_OK; r++)
    if (r != rank && memcmp(&theirs[r], &mine, sizeof mine) != 0) {
      char here[160], there[160];
      status = lm__fail(LM_EDIST,
                        "dist: the ranks are in different collectives: rank %d in %s, rank %d in "
                        "%s; every rank must make the same calls in the same order",
                        rank, describe(&mine, here, sizeof here), r,
                        describe(&theirs[r], there, sizeof there));
    }
  batch_free(&b);
  free(theirs);
  return status;
}

/* ---- data ---- */

static int64_t lowest(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t slice_of(const lm__collective *c) { return (c->count + size - 1) / size; }

/* Elements [*begin, *begin + returned) of piece k of rank r's slice. */
static int64_t piece(const lm__collective *c, int r, int64_t k, int64_t *begin) {
  const int64_t slice = slice_of(c), end = lowest((r + 1) * slice, c->count);
  *begin = r * slice + k * REDUCE_PIECE;
  return *begin < end ? lowest(REDUCE_PIECE, end - *begin) : 0;
}

static int need_received(size_t bytes) {
  if (bytes <= received_bytes) return LM_OK;
  free(received);
  received = malloc(bytes);
  received_bytes = received ? bytes : 0;
  if (received) return LM_OK;
  return lm__fail(LM_ENOMEM, "dist: out of memory for %zu bytes from other ranks", bytes);
}

/* Add what all ranks have of [begin, begin + n); theirs lies at `from`, `stride` bytes a rank. */
static void add_up(const lm__collective *c, int64_t begin, int64_t n, char *from, size_t stride) {
  const void *sources[size];
  char *own = c->data + begin * lm_dtype_size(c->dtype);
  for (int r = 0; r < size; r++) sources[r] = r == rank ? own : from + (size_t)r * stride;
  lm__backend(LM_CPU)->rank_reduce(c->dtype, c->op, size, sources, own, n);
}

static int post_reduce(batch *b, const lm__collective *c, int64_t k, char *into, size_t stride) {
  const int64_t width = lm_dtype_size(c->dtype);
  int64_t begin = 0;
  const int64_t n = piece(c, rank, k, &begin);
  for (int i = 1; i < size; i++) { /* start at the next rank, so that no rank is everyone's first */
    const int to = (rank + i) % size, from = (rank - i + size) % size;
    int64_t there = 0;
    const int64_t m = piece(c, to, k, &there);
    if (n > 0) LM__TRY(post(b, false, from, into + (size_t)from * stride, n * width));
    if (m > 0) LM__TRY(post(b, true, to, c->data + there * width, m * width));
  }
  return LM_OK;
}

/* Two pieces are on their way at a time: one travels while the other is added up. */
static int reduce_slices(const lm__collective *c, double deadline) {
  const size_t stride = (size_t)REDUCE_PIECE * (size_t)lm_dtype_size(c->dtype);
  const int64_t pieces = (slice_of(c) + REDUCE_PIECE - 1) / REDUCE_PIECE;
  batch b[2] = {{0}, {0}};
  LM__TRY(need_received(2 * (size_t)size * stride));
  char *half[2] = {received, received + (size_t)size * stride};
  if (pieces > 0) LM__TRY(post_reduce(&b[0], c, 0, half[0], stride));
  for (int64_t k = 0; k < pieces; k++) {
    const int now = (int)(k % 2);
    if (k + 1 < pieces) LM__TRY(post_reduce(&b[!now], c, k + 1, half[!now], stride));
    LM__TRY(wait_all(c, &b[now], deadline));
    int64_t begin = 0;
    const int64_t n = piece(c, rank, k, &begin);
    add_up(c, begin, n, half[now], stride);
  }
  batch_free(&b[0]);
  batch_free(&b[1]);
  return LM_OK;
}

static int gather_slices(const lm__collective *c, double deadline) {
  const int64_t width = lm_dtype_size(c->dtype), slice = slice_of(c);
  batch b = {0};
  for (int i = 1; i < size; i++) {
    const int to = (rank + i) % size, from = (rank - i + size) % size;
    const int64_t mine = lowest(rank * slice, c->count), theirs = lowest(from * slice, c->count);
    const int64_t n = lowest(slice, c->count - mine), m = lowest(slice, c->count - theirs);
    LM__TRY(post(&b, false, from, c->data + theirs * width, m * width));
    LM__TRY(post(&b, true, to, c->data + mine * width, n * width));
  }
  LM__TRY(wait_all(c, &b, deadline));
  batch_free(&b);
  return LM_OK;
}

static int exchange_all(const lm__collective *c, double deadline) {
  const size_t bytes = (size_t)c->count * (size_t)lm_dtype_size(c->dtype);
  batch b = {0};
  LM__TRY(need_received((size_t)size * bytes));
  for (int r = 0; r < size; r++) {
    if (r == rank) continue;
    char *into = received + (size_t)r * bytes;
    LM__TRY(post(&b, false, r, into, (int64_t)bytes));
    LM__TRY(post(&b, true, r, c->data, (int64_t)bytes));
  }
  LM__TRY(wait_all(c, &b, deadline));
  add_up(c, 0, c->count, received, bytes);
  batch_free(&b);
  return LM_OK;
}

/* ---- the table ---- */

static int barrier(const lm__collective *c, double deadline) {
  return size > 1 ? meet(c, deadline) : LM_OK;
}

static int all_reduce(const lm__collective *c, double deadline) {
  if (size == 1) return LM_OK;
  LM__TRY(meet(c, deadline));
  if (c->count <= SMALL) return exchange_all(c, deadline);
  LM__TRY(reduce_slices(c, deadline));
  return gather_slices(c, deadline);
}

static int reduce_scatter(const lm__collective *c, double deadline) {
  if (size == 1) return LM_OK;
  LM__TRY(meet(c, deadline));
  return reduce_slices(c, deadline);
}

static int all_gather(const lm__collective *c, double deadline) {
  if (size == 1) return LM_OK;
  LM__TRY(meet(c, deadline));
  return gather_slices(c, deadline);
}

static int broadcast(const lm__collective *c, double deadline) {
  const int64_t bytes = c->count * lm_dtype_size(c->dtype), step = (int64_t)1 << 22;
  const int own = (rank - c->root + size) % size; /* the root is 0 of the tree */
  int bit = 1;
  batch b = {0};
  LM__TRY(meet(c, deadline));
  while (bit < size && !(own & bit)) bit <<= 1;
  for (int64_t at = 0; at < bytes; at += step) {
    const int64_t n = lowest(step, bytes - at);
    if (own > 0) LM__TRY(post(&b, false, (own - bit + c->root) % size, c->data + at, n));
    LM__TRY(wait_all(c, &b, deadline));
    for (int child = bit >> 1; child > 0; child >>= 1)
      if (own + child < size)
        LM__TRY(post(&b, true, (own + child + c->root) % size, c->data + at, n));
    LM__TRY(wait_all(c, &b, deadline));
  }
  batch_free(&b);
  return LM_OK;
}

static int gather(const lm__collective *c, double deadline) {
  const int64_t bytes = c->count * lm_dtype_size(c->dtype);
  batch b = {0};
  LM__TRY(meet(c, deadline));
  if (rank == c->root) {
    if (bytes > 0) memmove(c->out + rank * bytes, c->data, (size_t)bytes);
    for (int r = 0; r < size; r++)
      if (r != rank) LM__TRY(post(&b, false, r, c->out + r * bytes, bytes));
  } else {
    LM__TRY(post(&b, true, c->root, c->data, bytes));
  }
  LM__TRY(wait_all(c, &b, deadline));
  batch_free(&b);
  return LM_OK;
}

static int scatter(const lm__collective *c, double deadline) {
  const int64_t bytes = c->count * lm_dtype_size(c->dtype);
  batch b = {0};
  LM__TRY(meet(c, deadline));
  if (rank == c->root) {
    for (int r = 0; r < size; r++)
      if (r != rank) LM__TRY(post(&b, true, r, c->out + r * bytes, bytes));
    if (bytes > 0) memmove(c->data, c->out + rank * bytes, (size_t)bytes);
  } else {
    LM__TRY(post(&b, false, c->root, c->data, bytes));
  }
  LM__TRY(wait_all(c, &b, deadline));
  batch_free(&b);
  return LM_OK;
}

static void idle(void) { listen_to_others(NULL, NULL); }

static int start(int *own_rank, int *world_size, double deadline) {
  LM__TRY(via->start(own_rank, world_size, deadline));
  rank = *own_rank;
  size = *world_size;
  const lm__collective hello = {.kind = LM__BARRIER, .dtype = -1, .label = "start"};
  return meet(&hello, deadline);
}

static void stop(void) {
  via->stop();
  free(received);
  received = NULL;
  received_bytes = 0;
}

static void abort_job(int code) { via->abort(code); }

static lm__comm_table table = {
    .start = start,
    .stop = stop,
    .abort = abort_job,
    .run = {barrier, all_reduce, reduce_scatter, all_gather, broadcast, gather, scatter},
    .meet = meet,
    .idle = idle,
};

const lm__comm_table *lm__comm_over(const lm__transport *transport) {
  via = transport;
  table.name = transport->name;
  return &table;
}
