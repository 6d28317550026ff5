/* The threads of a block on one thread of the CPU.
 *
 * A lane is a thread of the block, a fiber a stack that runs lanes one after another. A lane that
 * must wait keeps its fiber, and another fiber goes on with the lanes that are ready, or not begun;
 * so a kernel without barriers runs on one fiber, as a loop. When nobody can go on and lanes still
 * wait, the kernel would hang: that is a fault here, with who waits where. */
#undef _FORTIFY_SOURCE /* its longjmp refuses to go from stack to stack */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "cuda/emulated/internal.h"

enum { MOST_LANES = 1024, WARPS = MOST_LANES / 32, MEETINGS = 40, STACK = 256 << 10, GUARD = 4096 };
enum { SHARED_BYTES = 1 << 20, SHARED_LIMIT = 227 << 10, ARGUMENTS = 64 };

typedef struct fiber {
  struct fiber *next; /* among the idle */
  jmp_buf context;
  char *stack;
  struct lane *lane; /* that it runs, or that waits on it */
  bool begun;
} fiber;

typedef struct pending {
  void *to;
  const void *from;
  size_t bytes, from_bytes;
  int group;
} pending;

typedef struct lane {
  lm_emulated_lane public; /* first: lm_emulated_self points at it */
  fiber *fiber;
  struct lane *next; /* among the ready */
  const char *waits; /* at what, or NULL */
  unsigned mask;     /* for whom in its warp */
  int predicate;     /* of __syncthreads_or */
  pending *copies;
  int n_copies, room, group;
  bool unfenced; /* copies have arrived since the last fence.proxy.async */
} lane;

typedef struct meeting { /* of the lanes in mask */
  unsigned mask, arrived, left;
  const char *op;
  size_t size;
  _Alignas(16) char slots[32][LM_EMULATED_SLOT];
} meeting;

lm_emulated_lane *lm_emulated_self;
lm_emulated_grid_state lm_emulated_grid;

static struct {
  void (*run)(const void *);
  const void *arguments;
  unsigned n, begun, done, at_barrier;
  int any, any_result;
  lane *first_ready, *last_ready;
  unsigned long long serial;
  size_t shared_used, dynamic_bytes;
  bool reversed;
} now;

static lane lanes[MOST_LANES];
static meeting meetings[WARPS][MEETINGS];
static fiber *idle, *current;
static fiber *all[MOST_LANES + 1];
static int n_fibers;
static jmp_buf host; /* where the launch waits */
static char fault[512];
static cudaError_t fault_code;
static char *shared_memory, *dynamic_end;
static volatile sig_atomic_t in_kernel;
static pthread_t kernel_thread;

/* ---- fibers ---- */

static void fiber_main(void);

static void start_context(fiber *f) {
  ucontext_t entry;
  (void)getcontext(&entry);
  entry.uc_stack.ss_sp = f->stack + GUARD;
  entry.uc_stack.ss_size = STACK;
  entry.uc_link = NULL;
  makecontext(&entry, fiber_main, 0);
  f->begun = true;
  current = f;
  (void)setcontext(&entry);
  abort(); /* setcontext does not return */
}

static fiber *take_fiber(void) {
  fiber *f = idle;
  if (f) {
    idle = f->next;
    return f;
  }
  f = calloc(1, sizeof *f);
  f->stack = mmap(NULL, GUARD + STACK, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  (void)mprotect(f->stack, GUARD, PROT_NONE);
  all[n_fibers++] = f;
  return f;
}

static void go_to(fiber *f) {
  current = f;
  if (!f->begun) start_context(f);
  _longjmp(f->context, 1);
}

static void back_to_host(cudaError_t code) {
  fault_code = code;
  _longjmp(host, 1);
}

void lm_emulated_fail(const char *format, ...) {
  va_list args;
  char text[384];
  const lm_emulated_size b = lm_emulated_grid.index;
  const lm_emulated_size t =
      lm_emulated_self ? lm_emulated_self->thread : (lm_emulated_size){0, 0, 0};
  va_start(args, format);
  (void)vsnprintf(text, sizeof text, format, args);
  va_end(args);
  (void)snprintf(fault, sizeof fault, "%s; block (%u, %u, %u), thread (%u, %u, %u)", text, b.x, b.y,
                 b.z, t.x, t.y, t.z);
  back_to_host(cudaErrorLaunchFailure);
  abort();
}

static void nobody_can_go_on(void) {
  for (unsigned i = 0; i < now.n; i++)
    if (lanes[i].waits) {
      lm_emulated_self = &lanes[i].public;
      if (strncmp(lanes[i].waits, "__syncthreads", 13) == 0)
        lm_emulated_fail("%s waits for ever: %u of %u threads have come, %u have ended",
                         lanes[i].waits, now.at_barrier, now.n, now.done);
      lm_emulated_fail("%s with mask %08x waits for ever: not all of its lanes come",
                       lanes[i].waits, lanes[i].mask);
    }
  lm_emulated_fail("lost threads");
}

/* Who goes on: a lane that is ready, one that has not begun, or, all being done, NULL: the host. */
static fiber *choose_next(void) {
  if (now.first_ready) {
    lane *l = now.first_ready;
    now.first_ready = l->next;
    if (!now.first_ready) now.last_ready = NULL;
    return l->fiber;
  }
  if (now.begun < now.n) return take_fiber();
  if (now.done < now.n) nobody_can_go_on();
  return NULL;
}

/* A function of its own: nothing but its arguments lives across the jump. */
static __attribute__((noinline)) void jump(fiber *from, fiber *to) {
  if (_setjmp(from->context) != 0) return;
  if (to) go_to(to);
  back_to_host(cudaSuccess);
}

/* Go on with somebody else; returns when this fiber's turn has come again. */
static void switch_away(fiber *me) {
  fiber *next = choose_next();
  if (next != me) jump(me, next);
  lm_emulated_self = me->lane ? &me->lane->public : NULL;
}

static void make_ready(lane *l) {
  l->waits = NULL;
  l->next = NULL;
  if (now.last_ready)
    now.last_ready->next = l;
  else
    now.first_ready = l;
  now.last_ready = l;
}

static void wait_here(const char *what, unsigned mask) {
  lane *me = (lane *)lm_emulated_self;
  me->waits = what;
  me->mask = mask;
  switch_away(me->fiber);
}

static void open_barrier(lane *but) {
  lm_emulated_now.barriers++;
  now.at_barrier = 0;
  now.any_result = now.any;
  now.any = 0;
  for (unsigned i = 0; i < now.n; i++)
    if (&lanes[i] != but && lanes[i].waits && strncmp(lanes[i].waits, "__syncthreads", 13) == 0)
      make_ready(&lanes[i]);
}

static void fiber_main(void) {
  for (;;) {
    fiber *me = current;
    while (!now.first_ready && now.begun < now.n) { /* the ready first: fewer stacks in use */
      lane *l = &lanes[now.reversed ? now.n - 1 - now.begun : now.begun];
      now.begun++;
      l->fiber = me;
      me->lane = l;
      lm_emulated_self = &l->public;
      now.run(now.arguments);
      lm_emulated_wait_copies(0);
      lm_emulated_wgmma_end();
      now.done++;
      if (now.at_barrier > 0 && now.at_barrier == now.n - now.done) open_barrier(NULL);
    }
    me->lane = NULL;
    me->next = idle;
    idle = me;
    switch_away(me);
  }
}

/* ---- meeting others ---- */

static void block_barrier(const char *what) {
  lane *me = (lane *)lm_emulated_self;
  now.at_barrier++;
  if (now.at_barrier == now.n - now.done)
    open_barrier(me);
  else
    wait_here(what, 0);
}
void lm_emulated_block_barrier(void) { block_barrier("__syncthreads"); }
int lm_emulated_block_or(int predicate) {
  now.any |= predicate != 0;
  block_barrier("__syncthreads_or");
  const int result = now.any_result;
  block_barrier("__syncthreads_or"); /* so that nobody begins the next before all have read */
  return result;
}

const void *lm_emulated_exchange(const char *op, unsigned mask, const void *mine, size_t size) {
  lane *me = (lane *)lm_emulated_self;
  const unsigned warp = me->public.linear / 32, bit = 1u << me->public.linear % 32;
  const unsigned first = warp * 32, there = now.n - first < 32 ? now.n - first : 32;
  const unsigned exist = there == 32 ? 0xffffffffu : (1u << there) - 1;
  meeting *m = NULL, *spare = NULL;
  if (!(mask & bit)) lm_emulated_fail("%s: mask %08x leaves out the lane that calls it", op, mask);
  if (mask & ~exist)
    lm_emulated_fail("%s: mask %08x names lanes that the warp of %u threads has not", op, mask,
                     there);
  for (int i = 0; i < MEETINGS && !m; i++) {
    meeting *one = &meetings[warp][i];
    if (!one->mask)
      spare = spare ? spare : one;
    else if (one->mask == mask && one->arrived != mask)
      m = one;
  }
  if (!m) {
    if (!spare) lm_emulated_fail("%s: too many groups of lanes wait in one warp", op);
    m = spare;
    m->mask = mask;
    m->arrived = m->left = 0;
    m->op = op;
    m->size = size;
  }
  if (strcmp(m->op, op) != 0 || m->size != size)
    lm_emulated_fail("lanes of one warp part: some are at %s, some at %s", m->op, op);
  memcpy(m->slots[me->public.linear % 32], mine, size);
  m->arrived |= bit;
  if (m->arrived != mask) {
    wait_here(op, mask);
  } else {
    for (unsigned i = 0; i < there; i++)
      if (mask >> i & 1 && &lanes[first + i] != me) make_ready(&lanes[first + i]);
  }
  return m->slots;
}

void lm_emulated_leave(const void *slots) {
  meeting *m = (meeting *)((char *)(uintptr_t)slots - offsetof(meeting, slots));
  m->left |= 1u << lm_emulated_self->linear % 32;
  if (m->left == m->mask) m->mask = 0;
}

void lm_emulated_meet(const char *op, unsigned mask) {
  const char nothing = 0;
  const void *slots = lm_emulated_exchange(op, mask, &nothing, sizeof nothing);
  const meeting *m = (const meeting *)((const char *)slots - offsetof(meeting, slots));
  if (m->left == 0 && strcmp(op, "__syncwarp") == 0) /* the first to go on: all have come */
    lm_emulated_now.warp_barriers[lm_emulated_self->linear / 32]++;
  lm_emulated_leave(slots);
}

/* ---- copies that arrive later ---- */

void lm_emulated_copy_later(void *to, const void *from, size_t bytes, size_t from_bytes) {
  lane *me = (lane *)lm_emulated_self;
  if ((uintptr_t)to % bytes || (from_bytes && (uintptr_t)from % bytes))
    lm_emulated_fail("an asynchronous copy of %zu bytes from %p to %p is not aligned", bytes, from,
                     to);
  lm_emulated_access(to, bytes, true);
  if (from_bytes) lm_emulated_access(from, from_bytes, false);
  if (now.reversed) { /* the other extreme: it arrives at once, and what lay there is gone */
    memcpy(to, from, from_bytes);
    memset((char *)to + from_bytes, 0, bytes - from_bytes);
    return;
  }
  if (me->n_copies == me->room) {
    me->room = me->room ? 2 * me->room : 16;
    me->copies = realloc(me->copies, (size_t)me->room * sizeof *me->copies);
  }
  me->copies[me->n_copies++] = (pending){to, from, bytes, from_bytes, me->group};
}

void lm_emulated_commit_copies(void) { ((lane *)lm_emulated_self)->group++; }

void lm_emulated_wait_copies(int all_but) {
  lane *me = (lane *)lm_emulated_self;
  int kept = 0;
  for (int i = 0; i < me->n_copies; i++) {
    const pending c = me->copies[i];
    if (all_but > 0 && c.group >= me->group - all_but) {
      me->copies[kept++] = c;
      continue;
    }
    lm_emulated_access(c.to, c.bytes, true);
    memcpy(c.to, c.from, c.from_bytes);
    memset((char *)c.to + c.from_bytes, 0, c.bytes - c.from_bytes);
    me->unfenced = true;
  }
  me->n_copies = kept;
}

/* ---- shared memory ---- */

static void *shared_pages(void) {
  if (!shared_memory) {
    shared_memory = mmap(NULL, 2 * SHARED_BYTES + 3 * GUARD, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    (void)mprotect(shared_memory, GUARD, PROT_NONE);
    (void)mprotect(shared_memory + GUARD + SHARED_BYTES, GUARD, PROT_NONE);
    dynamic_end = shared_memory + 2 * GUARD + 2 * SHARED_BYTES;
    (void)mprotect(dynamic_end, GUARD, PROT_NONE);
    lm_emulated_watch_memory(2 * SHARED_BYTES + 2 * GUARD, 0);
  }
  return shared_memory + GUARD;
}

void *lm_emulated_shared(lm_emulated_site *site, size_t bytes, size_t alignment) {
  if (site->block == now.serial) return site->data;
  char *base = shared_pages();
  if (alignment < 16) alignment = 16;
  now.shared_used = (now.shared_used + alignment - 1) / alignment * alignment;
  site->data = base + now.shared_used;
  site->block = now.serial;
  memset(site->data, 0xFF, bytes); /* NaNs: nobody may count on zeros */
  now.shared_used += bytes;
  if (now.shared_used > 48 << 10)
    lm_emulated_fail("a block declares %zu bytes of static shared memory; 48 KiB is the most",
                     now.shared_used);
  return site->data;
}

bool lm_emulated_shared_offset(const void *p, size_t *at) {
  const uintptr_t first = (uintptr_t)shared_memory + GUARD;
  *at = (uintptr_t)p - first;
  return shared_memory && (uintptr_t)p >= first && (const char *)p < dynamic_end;
}

void *lm_emulated_dynamic_shared(void) {
  (void)shared_pages();
  return dynamic_end - (now.dynamic_bytes + 127) / 128 * 128;
}

const char *lm_emulated_shared_kind(size_t *at) {
  const char *p = shared_memory + GUARD + *at, *dynamic = lm_emulated_dynamic_shared();
  if (p < dynamic) return "static";
  *at = (size_t)(p - dynamic);
  return "dynamic";
}

enum { WINDOW = 1 << 18 }; /* of shared addresses; dynamic shared memory ends where it ends */

uint32_t lm_emulated_shared_address(const void *p) {
  const char *dynamic = lm_emulated_dynamic_shared();
  if ((const char *)p < dynamic || (const char *)p >= dynamic_end)
    lm_emulated_fail("the shared address of %p, which is not in dynamic shared memory", p);
  return (uint32_t)((const char *)p - (dynamic_end - WINDOW));
}

const void *lm_emulated_shared_at(uint32_t address, size_t bytes) {
  const char *p = dynamic_end - WINDOW + address, *dynamic = lm_emulated_dynamic_shared();
  if (p < dynamic || p + bytes > dynamic_end)
    lm_emulated_fail("shared address %05x is not in the block's %zu bytes", address,
                     now.dynamic_bytes);
  lm_emulated_access(p, bytes, false);
  return p;
}

void lm_emulated_fence_async(void) { ((lane *)lm_emulated_self)->unfenced = false; }
bool lm_emulated_unfenced(void) {
  for (unsigned i = 0; i < now.n; i++)
    if (lanes[i].unfenced) return true;
  return false;
}

/* ---- running ---- */

static struct sigaction before_segv, before_bus;

static void on_fault(int sig, siginfo_t *info, void *context) {
  char text[256];
  (void)context;
  if (!in_kernel || !pthread_equal(pthread_self(), kernel_thread)) { /* not ours */
    (void)sigaction(sig, sig == SIGSEGV ? &before_segv : &before_bus, NULL);
    return;
  }
  const lm_emulated_size b = lm_emulated_grid.index;
  const lm_emulated_size t =
      lm_emulated_self ? lm_emulated_self->thread : (lm_emulated_size){0, 0, 0};
  lm_emulated_describe(info->si_addr, text, sizeof text);
  (void)snprintf(fault, sizeof fault, "%s; block (%u, %u, %u), thread (%u, %u, %u)", text, b.x, b.y,
                 b.z, t.x, t.y, t.z);
  back_to_host(cudaErrorIllegalAddress);
}

static void catch_faults(void) {
  static bool installed;
  stack_t own = {.ss_size = 64 << 10}, there;
  struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
  if (sigaltstack(NULL, &there) == 0 && there.ss_flags & SS_DISABLE) {
    own.ss_sp = malloc(own.ss_size);
    (void)sigaltstack(&own, NULL);
  }
  if (installed) return;
  installed = true;
  action.sa_sigaction = on_fault;
  (void)sigaction(SIGSEGV, &action, &before_segv);
  (void)sigaction(SIGBUS, &action, &before_bus);
}

static __attribute__((noinline)) void enter(fiber *f) {
  if (_setjmp(host) == 0) go_to(f);
}

static void run_block(void) {
  now.serial++;
  lm_emulated_now.block = now.serial;
  lm_emulated_now.barriers = 0;
  memset(lm_emulated_now.warp_barriers, 0, sizeof lm_emulated_now.warp_barriers);
  now.begun = now.done = now.at_barrier = 0;
  now.any = now.any_result = 0;
  now.first_ready = now.last_ready = NULL;
  now.shared_used = 0;
  if (now.dynamic_bytes) memset(lm_emulated_dynamic_shared(), 0xFF, now.dynamic_bytes);
  for (unsigned i = 0; i < now.n; i++) {
    lanes[i].waits = NULL;
    lanes[i].n_copies = lanes[i].group = 0;
    lanes[i].unfenced = false;
    lm_emulated_wgmma_begin(i);
  }
  enter(take_fiber());
}

/* After a fault fibers are in the middle of something: all begin anew. */
static void drop_fibers(void) {
  idle = NULL;
  for (int i = 0; i < n_fibers; i++) {
    all[i]->begun = false;
    all[i]->lane = NULL;
    all[i]->next = idle;
    idle = all[i];
  }
  memset(meetings, 0, sizeof meetings);
}

cudaError_t lm_emulated_run(void (*run)(const void *), const void *arguments, lm_emulated_size grid,
                            lm_emulated_size block, size_t shared) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  const char *order = getenv("LUMUON_EMULATED_ORDER");
  const unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
  const unsigned long long blocks = (unsigned long long)grid.x * grid.y * grid.z;
  if (threads == 0 || threads > MOST_LANES || block.z > 64 || blocks == 0 || grid.y > 65535 ||
      grid.z > 65535 || grid.x > 2147483647u || shared > SHARED_LIMIT)
    return cudaErrorInvalidConfiguration;
  (void)pthread_mutex_lock(&lock);
  catch_faults();
  lm_emulated_open();
  kernel_thread = pthread_self();
  now.run = run;
  now.arguments = arguments;
  now.n = (unsigned)threads;
  now.dynamic_bytes = shared;
  now.reversed = order && strcmp(order, "reverse") == 0;
  lm_emulated_grid.grid = grid;
  lm_emulated_grid.block = block;
  for (unsigned i = 0; i < now.n; i++) {
    lanes[i].public.linear = i;
    lanes[i].public.thread =
        (lm_emulated_size){i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  fault_code = cudaSuccess;
  fault[0] = 0;
  lm_emulated_now.launch++;
  lm_emulated_watching = true;
  in_kernel = 1;
  for (unsigned long long i = 0; i < blocks && fault_code == cudaSuccess; i++) {
    const unsigned long long b = now.reversed ? blocks - 1 - i : i;
    lm_emulated_grid.index = (lm_emulated_size){
        (unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
    lm_emulated_now.number = (unsigned)b;
    run_block();
  }
  in_kernel = 0;
  lm_emulated_watching = false;
  if (fault_code != cudaSuccess) {
    drop_fibers();
    lm_emulated_close_all();
    (void)lm_emulated_break(fault_code, "%s", fault);
  } else {
    lm_emulated_close();
  }
  lm_emulated_self = NULL;
  const cudaError_t code = fault_code;
  (void)pthread_mutex_unlock(&lock);
  return code;
}
