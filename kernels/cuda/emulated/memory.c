/* Device memory of the emulated runtime: pages apart, closed to everybody but kernels and copies.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda/emulated/internal.h"

/* Blocks ascend in the arena and no address is given out twice, so that a pointer to what was
 * freed stays one. */
typedef struct block {
  char *data, *pages;
  size_t bytes, page_bytes;
} block;

enum { ALIGNMENT = 16, CANARY = 0xA5, UNSET = 0xFF }; /* bytes of 0xFF are NaNs in floats */

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char *arena, *arena_end, *next_pages;
static block *blocks, *pinned;
static size_t n_blocks, room, n_pinned, pinned_room;
static size_t used, used_high, reserved, reserved_high;
static int key = -1;
static _Thread_local int depth;
static int openers; /* threads, where there are no protection keys */

double lm_emulated_setting(const char *name, double otherwise) {
  const char *text = getenv(name);
  return text && *text ? atof(text) : otherwise;
}

static size_t total(void) {
  return (size_t)lm_emulated_setting("LUMUON_EMULATED_MEMORY", 4294967296.0);
}

static bool prepare(void) {
  if (arena) return true;
  for (size_t size = (size_t)1 << 41; size >= (size_t)1 << 34; size >>= 1) {
    void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) continue;
    arena = next_pages = p;
    arena_end = arena + size;
    break;
  }
  if (arena) lm_emulated_watch_memory(0, (size_t)(arena_end - arena));
  if (arena) key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
  return arena != NULL;
}

/* With protection keys opening is a register of this thread; without, the pages are changed. */
static void protect(const block *b, bool open) {
  const int way = open ? PROT_READ | PROT_WRITE : PROT_NONE;
  if (key < 0) (void)mprotect(b->pages, b->page_bytes, way);
}

void lm_emulated_open(void) {
  if (depth++ > 0) return;
  if (key >= 0) {
    (void)pkey_set(key, 0);
    return;
  }
  (void)pthread_mutex_lock(&lock);
  if (openers++ == 0)
    for (size_t i = 0; i < n_blocks; i++) protect(&blocks[i], true);
  (void)pthread_mutex_unlock(&lock);
}

void lm_emulated_close_all(void) {
  const bool was_open = depth > 0;
  depth = 0;
  if (key >= 0) {
    (void)pkey_set(key, PKEY_DISABLE_ACCESS);
    return;
  }
  if (!was_open) return;
  (void)pthread_mutex_lock(&lock);
  if (--openers == 0)
    for (size_t i = 0; i < n_blocks; i++) protect(&blocks[i], false);
  (void)pthread_mutex_unlock(&lock);
}

void lm_emulated_close(void) {
  if (depth == 1) lm_emulated_close_all();
  if (depth > 0) depth--;
}

/* The last block that begins at or below p. */
static const block *below(const void *p) {
  size_t low = 0, high = n_blocks;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (blocks[middle].pages <= (const char *)p)
      low = middle + 1;
    else
      high = middle;
  }
  return low ? &blocks[low - 1] : NULL;
}

static bool within(const block *b, const void *p, size_t bytes) {
  const char *first = p;
  return first >= b->data && first + bytes <= b->data + b->bytes;
}

bool lm_emulated_is_device(const void *p) {
  return (const char *)p >= arena && (const char *)p < arena_end;
}

bool lm_emulated_arena_offset(const void *p, size_t *at) {
  *at = (size_t)((const char *)p - arena);
  return lm_emulated_is_device(p);
}
const void *lm_emulated_arena_at(size_t at) { return arena + at; }

bool lm_emulated_may_touch(const void *p, size_t bytes) {
  bool fine = false;
  (void)pthread_mutex_lock(&lock);
  const block *b = below(p);
  fine = b && within(b, p, bytes);
  for (size_t i = 0; i < n_pinned && !fine; i++) fine = within(&pinned[i], p, bytes);
  (void)pthread_mutex_unlock(&lock);
  return fine;
}

void lm_emulated_describe(const void *p, char *text, size_t size) {
  const block *b = below(p);
  if (!lm_emulated_is_device(p))
    (void)snprintf(text, size, "address %p, which is no device memory", p);
  else if (!b || (const char *)p >= b->pages + b->page_bytes + 4096)
    (void)snprintf(text, size, "address %p, in device memory that is not allocated (any more)", p);
  else
    (void)snprintf(text, size, "address %p, %+lld bytes from the start of a block of %zu bytes", p,
                   (long long)((const char *)p - b->data), b->bytes);
}

static cudaError_t allocate(void **p, size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const size_t taken = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  const size_t page_bytes = (taken + page - 1) / page * page;
  *p = NULL;
  if (bytes == 0) return cudaSuccess;
  if (!prepare() || used + bytes > total() || bytes > total()) return cudaErrorMemoryAllocation;
  if ((size_t)(arena_end - next_pages) < page_bytes + page) return cudaErrorMemoryAllocation;
  if (n_blocks == room) {
    room = room ? 2 * room : 1024;
    blocks = realloc(blocks, room * sizeof *blocks);
  }
  block b = {NULL, next_pages, bytes, page_bytes};
  b.data = b.pages + (page_bytes - taken);
  next_pages += page_bytes + page;
  if (key >= 0)
    (void)pkey_mprotect(b.pages, page_bytes, PROT_READ | PROT_WRITE, key);
  else
    protect(&b, true);
  lm_emulated_open();
  memset(b.pages, CANARY, page_bytes);
  memset(b.data, UNSET, bytes);
  lm_emulated_close();
  if (openers == 0) protect(&b, false);
  blocks[n_blocks++] = b;
  used += bytes;
  if (used > used_high) used_high = used;
  if (used > reserved) reserved = used;
  if (reserved > reserved_high) reserved_high = reserved;
  *p = b.data;
  return cudaSuccess;
}

static bool intact(const block *b) {
  bool fine = true;
  lm_emulated_open();
  for (const char *c = b->pages; c < b->data && fine; c++) fine = (unsigned char)*c == CANARY;
  for (const char *c = b->data + b->bytes; c < b->pages + b->page_bytes && fine; c++)
    fine = (unsigned char)*c == CANARY;
  lm_emulated_close();
  return fine;
}

static cudaError_t release(void *p) {
  if (!p) return cudaSuccess;
  const block *found = below(p);
  if (!found || found->data != p) return cudaErrorInvalidValue;
  const block b = *found;
  const size_t at = (size_t)(found - blocks);
  const bool fine = intact(&b);
  (void)mmap(b.pages, b.page_bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  lm_emulated_forget_memory((size_t)(b.pages - arena), b.page_bytes);
  memmove(blocks + at, blocks + at + 1, (n_blocks - at - 1) * sizeof *blocks);
  n_blocks--;
  used -= b.bytes;
  if (fine) return cudaSuccess;
  return lm_emulated_break(cudaErrorIllegalAddress,
                           "something was written beside a block of %zu bytes of device memory",
                           b.bytes);
}

static cudaError_t locked(cudaError_t (*f)(void **, size_t), void **p, size_t bytes) {
  if (lm_emulated_broken()) return lm_emulated_broken();
  (void)pthread_mutex_lock(&lock);
  const cudaError_t error = f(p, bytes);
  (void)pthread_mutex_unlock(&lock);
  return lm_emulated_error(error);
}
static cudaError_t release_one(void **p, size_t bytes) {
  (void)bytes;
  return release(*p);
}

static cudaError_t outside_captures(cudaError_t (*f)(void **, size_t), void **p, size_t bytes) {
  const cudaError_t error = lm_emulated_uncaptured();
  return error ? error : locked(f, p, bytes);
}
static cudaError_t in_safety(cudaError_t (*f)(void **, size_t), void **p, size_t bytes) {
  const cudaError_t error = lm_emulated_safe();
  return error ? error : locked(f, p, bytes);
}
/* The runtime would make them part of the graph, which then has memory of its own: not done here,
 * and not wanted. On another stream they are as ever where the thread captures in relaxed mode. */
static cudaError_t in_order(cudaError_t (*f)(void **, size_t), void **p, size_t bytes,
                            cudaStream_t stream) {
  return lm_emulated_captures(stream) ? outside_captures(f, p, bytes) : in_safety(f, p, bytes);
}

cudaError_t cudaMalloc(void **p, size_t bytes) { return in_safety(allocate, p, bytes); }
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream) {
  return in_order(allocate, p, bytes, stream);
}
cudaError_t cudaFree(void *p) { return outside_captures(release_one, &p, 0); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream) {
  return in_order(release_one, &p, 0, stream);
}

static cudaError_t pin(void **p, size_t bytes) {
  if (n_pinned == pinned_room) {
    pinned_room = pinned_room ? 2 * pinned_room : 64;
    pinned = realloc(pinned, pinned_room * sizeof *pinned);
  }
  *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!*p) return cudaErrorMemoryAllocation;
  pinned[n_pinned++] = (block){*p, *p, bytes, bytes};
  return cudaSuccess;
}
static cudaError_t unpin(void **p, size_t bytes) {
  (void)bytes;
  if (!*p) return cudaSuccess;
  for (size_t i = 0; i < n_pinned; i++)
    if (pinned[i].data == *p) {
      free(*p);
      pinned[i] = pinned[--n_pinned];
      return cudaSuccess;
    }
  return cudaErrorInvalidValue;
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
  (void)flags;
  return in_safety(pin, p, bytes);
}
cudaError_t cudaFreeHost(void *p) { return outside_captures(unpin, &p, 0); }
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
  (void)flags;
  *device = host;
  return lm_emulated_error(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
  *total_bytes = total();
  *free_bytes = *total_bytes - reserved;
  return lm_emulated_error(lm_emulated_broken());
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
  (void)device;
  *pool = (cudaMemPool_t)&lock;
  return lm_emulated_error(lm_emulated_broken());
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value) {
  (void)pool;
  if (which == cudaMemPoolAttrUsedMemHigh && *(uint64_t *)value == 0) used_high = used;
  if (which == cudaMemPoolAttrReservedMemHigh && *(uint64_t *)value == 0) reserved_high = reserved;
  return lm_emulated_error(lm_emulated_broken());
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value) {
  (void)pool;
  *(uint64_t *)value = which == cudaMemPoolAttrUsedMemCurrent       ? used
                       : which == cudaMemPoolAttrUsedMemHigh        ? used_high
                       : which == cudaMemPoolAttrReservedMemCurrent ? reserved
                                                                    : reserved_high;
  return lm_emulated_error(lm_emulated_broken());
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
  (void)pool;
  reserved = used > keep ? used : keep < reserved ? keep : reserved;
  return lm_emulated_error(lm_emulated_broken());
}

void lm_emulated_reset_memory(void) {
  while (n_blocks) (void)release(blocks[n_blocks - 1].data);
  used = used_high = reserved = reserved_high = 0;
}

/* ---- copies ---- */

static bool allowed(const void *p, size_t bytes, bool device) {
  return device ? lm_emulated_may_touch(p, bytes) : !lm_emulated_is_device(p);
}

typedef struct copy_call {
  void *to;
  const void *from;
  size_t bytes;
} copy_call;

static cudaError_t do_copy(const void *call) {
  const copy_call *c = call;
  lm_emulated_open();
  memmove(c->to, c->from, c->bytes);
  lm_emulated_close();
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const copy_call call = {to, from, bytes};
  if (lm_emulated_broken()) return lm_emulated_broken();
  if (bytes == 0) return cudaSuccess;
  if (kind == cudaMemcpyDefault) { /* whichever they are */
    if (!allowed(to, bytes, lm_emulated_is_device(to)) ||
        !allowed(from, bytes, lm_emulated_is_device(from)))
      return lm_emulated_error(cudaErrorInvalidValue);
  } else if (!allowed(to, bytes,
                      kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
             !allowed(from, bytes,
                      kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)) {
    return lm_emulated_error(cudaErrorInvalidValue);
  }
  if (lm_emulated_captures(stream) &&
      !(lm_emulated_may_touch(to, bytes) && lm_emulated_may_touch(from, bytes)))
    return lm_emulated_uncaptured(); /* the host's memory must be pinned */
  if (lm_emulated_capture(stream, do_copy, &call, sizeof call)) return cudaSuccess;
  return do_copy(&call);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  const cudaError_t error = lm_emulated_uncaptured();
  return error ? error : cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

typedef struct set_call {
  void *p;
  int value;
  size_t bytes;
} set_call;

static cudaError_t do_set(const void *call) {
  const set_call *c = call;
  lm_emulated_open();
  memset(c->p, c->value, c->bytes);
  lm_emulated_close();
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
  const set_call call = {p, value, bytes};
  if (lm_emulated_broken()) return lm_emulated_broken();
  if (bytes == 0) return cudaSuccess;
  if (!lm_emulated_may_touch(p, bytes)) return lm_emulated_error(cudaErrorInvalidValue);
  if (lm_emulated_capture(stream, do_set, &call, sizeof call)) return cudaSuccess;
  return do_set(&call);
}
