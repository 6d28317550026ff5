/* An optimizer's step as one launch: a CUDA graph of what lm_guard_gradients, lm_adamw_step and
 * lm_muon_step start on the GPU.
 *
 * The same calls are made at every step between lm_graph_begin and lm_graph_end, and mean, in turn:
 *
 *   rehearse  the first time they run as ever. What they depend on is noted (the key: addresses,
 *             shapes, paths, coefficients), how much scratch memory they hold at once, and how many
 *             bytes of settings they have. Libraries are loaded, forms measured.
 *   capture   the second time they are captured: scratch memory is one block that stays the
 *             graph's, and kernels are given the place in it where their settings will lie.
 *   update    from then on they launch nothing: each compares its key and hands over its settings
 *             (learning rates, momentum, decay, factors of the step count), which one copy brings
 *             to the device before the graph is launched. A key that differs ends the graph, and
 *             the calls are rehearsed again.
 *
 * Settings lie in memory, not in the graph's nodes, because then a launch needs one copy of some
 * hundred bytes whatever the number of kernels, and no node is ever looked up or set. The copy goes
 * through cuda_memory.c's ring of pinned slots, which the host does not touch before they have
 * arrived; it waits in the stream for the launch before it.
 *
 * What is captured goes to a stream of its own, so that tensors that are freed meanwhile, by the
 * garbage collector, are freed as ever: in relaxed mode, since the others count cudaMallocAsync and
 * cudaFreeAsync on any stream among the calls that end a capture. */
#include <stdlib.h>
#include <string.h>

#include "backend/cuda_memory.h"
#include "core/error.h"

enum mode { OFF, REHEARSE, CAPTURE, UPDATE };

typedef struct bytes {
  unsigned char *data;
  size_t n, room;
} bytes;

struct lm_graph {
  lm_graph *next; /* of the dead */
  cudaGraphExec_t exec;
  bool rehearsed;
  bytes key, settings;
  size_t settings_bytes, scratch; /* of the rehearsal */
  char *memory;                   /* on the device: scratch, then settings */
  double counts[LM_GRAPH_COUNTS];
};

static _Thread_local struct {
  lm_graph *graph;
  enum mode mode;
  size_t key_at, settings_at;
  bool changed; /* the key is another one */
  bool failed;  /* no memory for it */
  bool paused;
  size_t used, live, peak; /* scratch: bytes, blocks, most bytes at once */
} now;
static cudaStream_t capture_stream;
static lm_graph *dead; /* freed while another one was begun: a capture allows no waiting */

static size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

static unsigned char *room_for(bytes *b, size_t more) {
  if (b->n + more > b->room) {
    const size_t room = 2 * (b->n + more);
    unsigned char *data = realloc(b->data, room);
    if (!data) return NULL;
    b->data = data;
    b->room = room;
  }
  b->n += more;
  return b->data + b->n - more;
}

/* ---- what the ops' launchers ask ---- */

cudaStream_t lm__cuda_graph_stream(void) { return now.mode == CAPTURE ? capture_stream : NULL; }

bool lm__cuda_graph_active(void) { return now.mode == CAPTURE || now.mode == UPDATE; }

void lm__cuda_graph_key(const void *key, size_t n) {
  if (now.mode == OFF || now.changed || now.failed) return;
  bytes *all = &now.graph->key;
  if (now.mode == REHEARSE) {
    unsigned char *at = room_for(all, n);
    if (at)
      memcpy(at, key, n);
    else
      now.failed = true;
    return;
  }
  now.changed = n > all->n - now.key_at || memcmp(all->data + now.key_at, key, n) != 0;
  if (!now.changed) now.key_at += n;
}

bool lm__cuda_graph_settings(const void *values, size_t n, const void **there) {
  *there = NULL;
  if (now.mode == OFF) return true;
  lm_graph *g = now.graph;
  const size_t at = now.settings_at;
  now.settings_at += rounded(n, 16);
  if (now.mode == REHEARSE) return true;
  if (now.settings_at > g->settings_bytes) now.changed = true;
  if (now.changed) return false;
  memcpy(g->settings.data + at, values, n);
  *there = g->memory + g->scratch + at;
  return now.mode == CAPTURE;
}

bool lm__cuda_graph_goes_on(void) { return now.mode != UPDATE && !now.changed; }

void lm__cuda_graph_pause(bool paused) { now.paused = paused; }

/* Blocks are given back one after another until none is left: then the next one is the first. */
int lm__cuda_graph_scratch(const char *op, void **p, size_t n, bool *served) {
  *served = false;
  if (now.mode == OFF || now.paused) return LM_OK;
  const size_t at = now.used;
  now.used += rounded(n, 256);
  now.live++;
  if (now.used > now.peak) now.peak = now.used;
  if (now.mode == REHEARSE) return LM_OK;
  *served = true;
  if (now.mode == CAPTURE && now.used <= now.graph->scratch) {
    *p = now.graph->memory + at;
    return LM_OK;
  }
  now.live--;
  now.used = at;
  return lm__fail(LM_EDEVICE, "%s: needs scratch memory that it did not need before", op);
}
bool lm__cuda_graph_scratch_free(void) {
  if (now.mode == OFF || now.paused) return false;
  if (now.live > 0 && --now.live == 0) now.used = 0;
  return now.mode != REHEARSE;
}

int lm__cuda_graph_refuse(const char *op) {
  if (now.mode != CAPTURE) return LM_OK;
  return lm__fail(LM_EDEVICE, "%s: cannot be part of a step that is captured", op);
}

/* ---- the graph ---- */

/* As if it had never been rehearsed. */
static void forget(lm_graph *g) {
  if (g->exec) {
    (void)cudaStreamSynchronize(lm__cuda_stream()); /* it may be running; no capture is */
    (void)cudaGraphExecDestroy(g->exec);
  }
  lm__cuda_give_back(g->memory);
  g->exec = NULL;
  g->memory = NULL;
  g->rehearsed = false;
  g->key.n = 0;
}

int lm_graph_new(lm_graph **out, int device) {
  if (!out) return lm__fail(LM_EINVAL, "graph: out is NULL: nowhere to write");
  *out = NULL;
  if (device != LM_CUDA)
    return lm__fail(LM_ENOTSUP, "graph: steps are captured on a GPU; on the CPU there is no need");
  if (!lm__backend(LM_CUDA)) return lm__missing_op("graph", LM_CUDA);
  lm_graph *g = calloc(1, sizeof *g);
  if (!g) return lm__fail(LM_ENOMEM, "graph: out of memory for a handle");
  *out = g;
  return LM_OK;
}

static void bury(lm_graph *g) {
  forget(g);
  free(g->key.data);
  free(g->settings.data);
  free(g);
}

/* No step is under way any more. */
static void finish(void) {
  now.mode = OFF;
  now.graph = NULL;
  while (dead) {
    lm_graph *g = dead;
    dead = g->next;
    bury(g);
  }
}

void lm_graph_free(lm_graph *g) {
  if (!g) return;
  if (now.graph == g) (void)lm_graph_abort(g);
  if (now.mode == OFF) {
    bury(g);
  } else {
    g->next = dead;
    dead = g;
  }
}

static int start_capture(lm_graph *g) {
  if (!capture_stream)
    LM__TRY(
        lm__cuda_check("graph", cudaStreamCreateWithFlags(&capture_stream, cudaStreamNonBlocking)));
  g->settings.n = 0;
  if (!room_for(&g->settings, g->settings_bytes))
    return lm__fail(LM_ENOMEM, "graph: out of memory for %zu bytes of settings", g->settings_bytes);
  if (!g->memory)
    LM__TRY(lm__cuda_keep("graph", (void **)&g->memory, g->scratch + g->settings_bytes));
  return lm__cuda_check("graph",
                        cudaStreamBeginCapture(capture_stream, cudaStreamCaptureModeRelaxed));
}

int lm_graph_begin(lm_graph *g, int *runs) {
  if (!g || !runs) return lm__fail(LM_EINVAL, "graph: the graph or runs is NULL");
  if (now.mode != OFF) return lm__fail(LM_EINVAL, "graph: a step has begun that has not ended");
  const enum mode mode = g->exec ? UPDATE : g->rehearsed ? CAPTURE : REHEARSE;
  if (mode == REHEARSE) g->key.n = 0;
  if (mode == CAPTURE) LM__TRY(start_capture(g));
  memset(&now, 0, sizeof now);
  now.graph = g;
  now.mode = mode;
  *runs = mode == REHEARSE;
  return LM_OK;
}

/* Settings to the device, and go. */
static int launch(lm_graph *g) {
  LM__TRY(lm__cuda_write("step", g->memory + g->scratch, g->settings.data, g->settings_bytes));
  LM__TRY(lm__cuda_launched("step", cudaGraphLaunch(g->exec, lm__cuda_stream())));
  g->counts[LM_GRAPH_LAUNCHES]++;
  return LM_OK;
}

static int end_capture(lm_graph *g, bool wanted) {
  cudaGraph_t graph = NULL;
  int status = lm__cuda_check("graph", cudaStreamEndCapture(capture_stream, &graph));
  if (status == LM_OK && wanted)
    status = lm__cuda_check("graph", cudaGraphInstantiate(&g->exec, graph, 0));
  if (status != LM_OK) g->exec = NULL;
  if (graph) (void)cudaGraphDestroy(graph);
  if (status == LM_OK && wanted) g->counts[LM_GRAPH_CAPTURES]++;
  return status;
}

int lm_graph_end(lm_graph *g, int *again) {
  if (!g || !again) return lm__fail(LM_EINVAL, "graph: the graph or again is NULL");
  *again = 0;
  if (now.mode == OFF || now.graph != g)
    return lm__fail(LM_EINVAL, "graph: no step has begun that could end");
  const enum mode mode = now.mode;
  const bool same = !now.changed && now.key_at == g->key.n && now.settings_at == g->settings_bytes;
  const bool failed = now.failed;
  const size_t settings = now.settings_at, peak = now.peak;
  if (mode == REHEARSE) {
    finish();
    g->rehearsed = !failed;
    g->settings_bytes = settings;
    g->scratch = peak;
    g->counts[LM_GRAPH_PLAIN]++;
    return LM_OK;
  }
  const int status = mode == CAPTURE ? end_capture(g, same) : LM_OK;
  finish();
  if (status != LM_OK) {
    forget(g);
    return status;
  }
  if (same) return launch(g);
  forget(g);
  *again = 1;
  return LM_OK;
}

int lm_graph_abort(lm_graph *g) {
  if (!g || now.graph != g) return LM_OK;
  const enum mode mode = now.mode;
  if (mode == CAPTURE) {
    cudaGraph_t graph = NULL;
    (void)cudaStreamEndCapture(capture_stream, &graph);
    (void)cudaGetLastError();
    if (graph) (void)cudaGraphDestroy(graph);
  }
  finish();
  if (mode != UPDATE) forget(g);
  return LM_OK;
}

int lm_graph_counts(const lm_graph *g, double *out) {
  if (!g || !out) return lm__fail(LM_EINVAL, "graph: the graph or out is NULL");
  memcpy(out, g->counts, sizeof g->counts);
  return LM_OK;
}
