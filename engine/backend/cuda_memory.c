/* Device memory: the runtime's stream-ordered pool, which keeps what is freed and hands it out
 * again without asking the driver; and copies through pinned memory of the host. */
#include "backend/cuda_memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"

enum { SLOTS = 4, SLOT_BYTES = 1 << 20 };

static struct {
  int device;
  char name[64];
  cudaStream_t stream;
  cudaMemPool_t pool;
  size_t live, peak;
  /* a ring of pinned memory: what the host writes waits here until it is on the device */
  char *slots[SLOTS];
  cudaEvent_t arrived[SLOTS];
  bool busy[SLOTS];
  unsigned turn;
} memory;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

cudaError_t lm__cuda_memory_start(int device, const char *name, cudaStream_t stream) {
  uint64_t keep = UINT64_MAX; /* what is freed stays in the pool when the host waits */
  memory.device = device;
  memory.stream = stream;
  (void)snprintf(memory.name, sizeof memory.name, "%s", name);
  cudaError_t e = cudaDeviceGetDefaultMemPool(&memory.pool, device);
  if (e == cudaSuccess)
    e = cudaMemPoolSetAttribute(memory.pool, cudaMemPoolAttrReleaseThreshold, &keep);
  for (int i = 0; i < SLOTS && e == cudaSuccess; i++) {
    e = cudaHostAlloc((void **)&memory.slots[i], SLOT_BYTES, cudaHostAllocDefault);
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&memory.arrived[i], cudaEventDisableTiming);
  }
  return e;
}

/* ---- allocation ---- */

static double reserved(void) {
  uint64_t bytes = 0;
  (void)cudaMemPoolGetAttribute(memory.pool, cudaMemPoolAttrReservedMemCurrent, &bytes);
  return (double)bytes;
}

static const char *human(double bytes, char *buffer, size_t size) {
  if (bytes >= 1e9)
    (void)snprintf(buffer, size, "%.2f GB", bytes / 1e9);
  else
    (void)snprintf(buffer, size, "%.1f MB", bytes / 1e6);
  return buffer;
}

static int out_of_memory(const char *op, size_t bytes) {
  char asked[32], used[32], unused[32], all[32], fits[32];
  size_t free_bytes = 0, total = 0;
  const double live = (double)memory.live;
  (void)cudaMemGetInfo(&free_bytes, &total);
  const double spare = (double)free_bytes + (reserved() > live ? reserved() - live : 0);
  return lm__fail(
      LM_ENOMEM,
      "%s%sout of memory on cuda:%d (%s): asked for %s with %s live and %s of %s free; "
      "at most %s more would fit; make the batch, the sequence or the model smaller, or "
      "free tensors first",
      op, *op ? ": " : "", memory.device, memory.name, human((double)bytes, asked, sizeof asked),
      human(live, used, sizeof used), human((double)free_bytes, unused, sizeof unused),
      human((double)total, all, sizeof all), human(spare, fits, sizeof fits));
}

static int take(const char *op, void **data, size_t bytes) {
  cudaError_t e = cudaMallocAsync(data, bytes, memory.stream);
  if (e == cudaErrorMemoryAllocation) { /* what is on its way back may be enough */
    (void)cudaGetLastError();
    (void)cudaStreamSynchronize(memory.stream);
    (void)cudaMemPoolTrimTo(memory.pool, 0);
    e = cudaMallocAsync(data, bytes, memory.stream);
  }
  if (e == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return out_of_memory(op, bytes);
  }
  return lm__cuda_check(*op ? op : "allocate", e);
}

int lm__cuda_allocate(void **data, size_t bytes) {
  *data = NULL;
  if (bytes == 0) return LM_OK;
  LM__TRY(take("", data, bytes));
  (void)pthread_mutex_lock(&lock);
  memory.live += bytes;
  if (memory.live > memory.peak) memory.peak = memory.live;
  (void)pthread_mutex_unlock(&lock);
  return LM_OK;
}

void lm__cuda_release(void *data, size_t bytes) {
  if (!data) return;
  (void)cudaFreeAsync(data, memory.stream);
  (void)pthread_mutex_lock(&lock);
  memory.live -= bytes;
  (void)pthread_mutex_unlock(&lock);
}

int lm__cuda_keep(const char *op, void **p, size_t bytes) {
  *p = NULL;
  return bytes == 0 ? LM_OK : take(op, p, bytes);
}
void lm__cuda_give_back(void *p) {
  if (p) (void)cudaFreeAsync(p, memory.stream);
}

int lm__cuda_scratch(const char *op, void **p, size_t bytes) {
  bool served = false;
  *p = NULL;
  if (bytes == 0) return LM_OK;
  LM__TRY(lm__cuda_graph_scratch(op, p, bytes, &served));
  return served ? LM_OK : take(op, p, bytes);
}
void lm__cuda_scratch_free(void *p) {
  if (p && !lm__cuda_graph_scratch_free()) lm__cuda_give_back(p);
}

double lm__cuda_memory(int what) {
  size_t free_bytes = 0, total = 0;
  switch (what) {
    case LM_MEMORY_LIVE:
      return (double)memory.live;
    case LM_MEMORY_PEAK:
      return (double)memory.peak;
    case LM_MEMORY_RESERVED:
      return reserved();
    case LM_MEMORY_RESET_PEAK:
      (void)pthread_mutex_lock(&lock);
      memory.peak = memory.live;
      (void)pthread_mutex_unlock(&lock);
      return (double)memory.peak;
    case LM_MEMORY_TRIM:
      (void)cudaStreamSynchronize(memory.stream);
      (void)cudaMemPoolTrimTo(memory.pool, 0);
      return reserved();
    default:
      (void)cudaMemGetInfo(&free_bytes, &total);
      return what == LM_MEMORY_FREE ? (double)free_bytes : (double)total;
  }
}

/* ---- copies ---- */

/* The next slot of pinned memory, once what lay there has arrived. */
static int next_slot(const char *op, unsigned *slot) {
  *slot = memory.turn++ % SLOTS;
  if (!memory.busy[*slot]) return LM_OK;
  memory.busy[*slot] = false;
  return lm__cuda_check(op, cudaEventSynchronize(memory.arrived[*slot]));
}

int lm__cuda_write(const char *op, void *device, const void *host, size_t bytes) {
  LM__TRY(lm__cuda_graph_refuse(op));
  for (size_t at = 0; at < bytes;) {
    const size_t n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
    unsigned slot = 0;
    LM__TRY(next_slot(op, &slot));
    memcpy(memory.slots[slot], (const char *)host + at, n);
    LM__TRY(lm__cuda_check(op, cudaMemcpyAsync((char *)device + at, memory.slots[slot], n,
                                               cudaMemcpyHostToDevice, memory.stream)));
    LM__TRY(lm__cuda_check(op, cudaEventRecord(memory.arrived[slot], memory.stream)));
    memory.busy[slot] = true;
    at += n;
  }
  return LM_OK;
}

/* Two slots in turn: one is copied out of while the other is filled. */
int lm__cuda_read(const char *op, void *host, const void *device, size_t bytes) {
  size_t before_at = 0, before_n = 0;
  unsigned before = 0;
  LM__TRY(lm__cuda_graph_refuse(op));
  for (size_t at = 0; at < bytes || before_n > 0;) {
    const size_t n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
    unsigned slot = 0;
    if (n > 0) {
      LM__TRY(next_slot(op, &slot));
      LM__TRY(lm__cuda_check(op, cudaMemcpyAsync(memory.slots[slot], (const char *)device + at, n,
                                                 cudaMemcpyDeviceToHost, memory.stream)));
      LM__TRY(lm__cuda_check(op, cudaEventRecord(memory.arrived[slot], memory.stream)));
    }
    if (before_n > 0) {
      LM__TRY(lm__cuda_check(op, cudaEventSynchronize(memory.arrived[before])));
      memcpy((char *)host + before_at, memory.slots[before], before_n);
    }
    before = slot;
    before_at = at;
    before_n = n;
    at += n;
  }
  return lm__cuda_synchronize(op);
}
