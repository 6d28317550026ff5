/* Races and misaligned accesses: kernels are compiled so that each access to memory calls a
 * function of this file first (the compiler's -fsanitize=thread, whose runtime library this takes
 * the place of).
 *
 *   shared memory  two threads of a block, one of which writes: between them there must have been a
 *                  __syncthreads, or, in one warp, a __syncwarp. Shuffles and votes order nothing.
 *   device memory  two blocks of a launch, one of which writes: nothing orders them. Atomics are
 *                  not looked at.
 *   everywhere     an access of 2, 4, 8 or 16 bytes that is not aligned to as many.
 *
 * What came before is known for every two bytes: the last write, and who has read since. */
#include <stdlib.h>
#include <sys/mman.h>

#include "cuda/emulated/internal.h"

enum { CELL = 2, SEVERAL = -1 };

/* Of shared memory; lane -1: nobody yet. */
typedef struct shared_cell {
  unsigned long long block; /* that this is about */
  int writer, reader;       /* lanes; reader: the last, of the warp that read last */
  unsigned write_barrier, write_warp_barrier, read_barrier, read_warp_barrier;
  unsigned readers; /* warps that have read since read_barrier */
  bool several;     /* lanes of the reader's warp have, since its last __syncwarp */
} shared_cell;

typedef struct device_cell {
  unsigned write_launch, writer, read_launch;
  int reader; /* blocks; reader SEVERAL: more than one */
} device_cell;

_Thread_local bool lm_emulated_watching;
lm_emulated_moment lm_emulated_now;

static shared_cell *shared_cells;
static device_cell *device_cells;

/* ---- shared memory ---- */

static const char *const did[] = {"is read", "is written"};

static void shared_race(size_t at, bool writes, bool wrote, int other) {
  size_t in = at * CELL;
  const char *const kind = lm_emulated_shared_kind(&in);
  lm_emulated_fail("a race: byte %zu of %s shared memory %s here and %s by thread %d, with no "
                   "barrier between",
                   in, kind, did[writes], did[wrote] + 3, other);
}

static void look_at_shared(size_t at, bool writes) {
  const lm_emulated_moment *now = &lm_emulated_now;
  const int me = (int)lm_emulated_self->linear, warp = me / 32;
  shared_cell *c = &shared_cells[at];
  if (c->block != now->block) *c = (shared_cell){.block = now->block, .writer = -1, .reader = -1};
  if (c->writer >= 0 && c->writer != me && c->write_barrier == now->barriers &&
      (c->writer / 32 != warp || c->write_warp_barrier == now->warp_barriers[warp]))
    shared_race(at, writes, true, c->writer);
  const bool read = c->reader >= 0 && c->read_barrier == now->barriers;
  const bool same = read && c->reader / 32 == warp,
             close = same && c->read_warp_barrier == now->warp_barriers[warp];
  if (writes) {
    if (read && c->readers & ~(1u << warp)) shared_race(at, true, false, c->reader);
    if (close && (c->several || c->reader != me)) shared_race(at, true, false, c->reader);
    c->writer = me;
    c->write_barrier = now->barriers;
    c->write_warp_barrier = now->warp_barriers[warp];
    c->reader = -1;
    return;
  }
  c->readers = (read ? c->readers : 0) | 1u << warp;
  c->several = close && (c->several || c->reader != me);
  c->reader = me;
  c->read_barrier = now->barriers;
  c->read_warp_barrier = now->warp_barriers[warp];
}

/* ---- device memory ---- */

static void device_race(size_t at, bool writes, bool wrote, int other) {
  char text[256];
  lm_emulated_describe(lm_emulated_arena_at(at * CELL), text, sizeof text);
  if (other == SEVERAL)
    lm_emulated_fail("a race: %s %s by this block and %s by others of the launch", text,
                     did[writes], did[wrote] + 3);
  lm_emulated_fail("a race: %s %s by this block and %s by block number %d of the launch", text,
                   did[writes], did[wrote] + 3, other);
}

static void look_at_device(size_t at, bool writes) {
  const unsigned launch = lm_emulated_now.launch, me = lm_emulated_now.number;
  device_cell *c = &device_cells[at];
  if (c->write_launch == launch && c->writer != me) device_race(at, writes, true, (int)c->writer);
  if (writes) {
    if (c->read_launch == launch && c->reader != (int)me) device_race(at, true, false, c->reader);
    c->write_launch = launch;
    c->writer = me;
  } else if (c->read_launch != launch) {
    c->read_launch = launch;
    c->reader = (int)me;
  } else if (c->reader != (int)me) {
    c->reader = SEVERAL;
  }
}

/* ---- what the compiler and the other files call ---- */

static void *cells(size_t bytes) {
  void *p =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

void lm_emulated_watch_memory(size_t shared_bytes, size_t device_bytes) {
  if (!shared_cells) shared_cells = cells(shared_bytes / CELL * sizeof *shared_cells);
  if (!device_cells && device_bytes)
    device_cells = cells(device_bytes / CELL * sizeof *device_cells);
}

void lm_emulated_forget_memory(size_t at, size_t bytes) {
  if (device_cells)
    (void)madvise((void *)(device_cells + at / CELL), bytes / CELL * sizeof *device_cells,
                  MADV_DONTNEED);
}

void lm_emulated_access(const void *p, size_t bytes, bool writes) {
  if (!lm_emulated_watching) return;
  size_t at = 0;
  if (lm_emulated_shared_offset(p, &at)) {
    if (shared_cells)
      for (size_t c = at / CELL; c <= (at + bytes - 1) / CELL; c++) look_at_shared(c, writes);
  } else if (bytes > 1 && device_cells && lm_emulated_arena_offset(p, &at)) {
    for (size_t c = at / CELL; c <= (at + bytes - 1) / CELL; c++) look_at_device(c, writes);
  }
}

/* Memory of the device or of the block, which an instruction that wide takes at multiples of it. */
static void aligned_access(const void *p, size_t bytes, bool writes) {
  size_t at = 0;
  if (!lm_emulated_watching) return;
  if ((uintptr_t)p % bytes != 0 &&
      (lm_emulated_shared_offset(p, &at) || lm_emulated_arena_offset(p, &at)))
    lm_emulated_fail("a misaligned address: %zu bytes at once at %p", bytes, p);
  lm_emulated_access(p, bytes, writes);
}

void __tsan_init(void);
void __tsan_init(void) {}
void __tsan_func_entry(void *caller);
void __tsan_func_entry(void *caller) { (void)caller; }
void __tsan_func_exit(void);
void __tsan_func_exit(void) {}
#define ACCESS(name, bytes, writes)                                                                \
  void __tsan_##name(const void *p);                                                               \
  void __tsan_##name(const void *p) { aligned_access(p, bytes, writes); }
ACCESS(read1, 1, false)
ACCESS(read2, 2, false)
ACCESS(read4, 4, false)
ACCESS(read8, 8, false)
ACCESS(read16, 16, false)
ACCESS(write1, 1, true)
ACCESS(write2, 2, true)
ACCESS(write4, 4, true)
ACCESS(write8, 8, true)
ACCESS(write16, 16, true)
void __tsan_read_range(const void *p, size_t bytes);
void __tsan_read_range(const void *p, size_t bytes) { lm_emulated_access(p, bytes, false); }
void __tsan_write_range(const void *p, size_t bytes);
void __tsan_write_range(const void *p, size_t bytes) { lm_emulated_access(p, bytes, true); }
