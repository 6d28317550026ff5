/* The part of NCCL that comm/nccl.c uses, between processes of one machine, through a file in
 * memory that all map: a slot a rank. Every call is done when it returns, and says ncclInProgress
 * all the same, as a communicator that does not block may. */
#include "comm/nccl.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cuda/emulated/internal.h"

enum { SLOT = 1 << 26, RECEIVES = 64 };

typedef struct shared {
  atomic_int arrived, turn;
} shared;

struct ncclComm {
  shared *all;
  char *slots;
  int rank, size, busy; /* busy: how often it still says ncclInProgress */
};

static struct {
  ncclComm_t comm;
  int n;
  struct {
    void *to;
    size_t bytes;
    int peer;
  } receives[RECEIVES];
} group;

int ncclGetVersion(int *version) {
  *version = 22800;
  return ncclSuccess;
}

const char *ncclGetErrorString(int error) {
  return error == ncclInvalidArgument ? "invalid argument" : "internal error";
}

int ncclGetUniqueId(ncclUniqueId *id) {
  memset(id, 0, sizeof *id);
  (void)snprintf(id->internal, sizeof id->internal, "/dev/shm/lumuon-nccl-XXXXXX");
  const int f = mkstemp(id->internal);
  if (f < 0) return ncclInternalError;
  (void)close(f);
  return ncclSuccess;
}

static void barrier(ncclComm_t c) {
  const struct timespec nap = {.tv_nsec = 50000};
  const int turn = atomic_load(&c->all->turn);
  if (atomic_fetch_add(&c->all->arrived, 1) + 1 == c->size) {
    atomic_store(&c->all->arrived, 0);
    atomic_fetch_add(&c->all->turn, 1);
  } else {
    while (atomic_load(&c->all->turn) == turn) (void)nanosleep(&nap, NULL);
  }
}

static char *slot(ncclComm_t c, int rank) { return c->slots + (size_t)rank * SLOT; }

static int later(ncclComm_t c) {
  c->busy = 2;
  return ncclInProgress;
}

int ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                           ncclConfig *config) {
  const size_t bytes = 4096 + (size_t)size * SLOT;
  if (config->magic != (unsigned)NCCL_MAGIC || config->size != sizeof *config || config->blocking)
    return ncclInvalidArgument;
  const int f = open(id.internal, O_RDWR | O_CLOEXEC);
  if (f < 0 || ftruncate(f, (off_t)bytes) != 0) return ncclInternalError;
  char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
  (void)close(f);
  ncclComm_t c = calloc(1, sizeof *c);
  if (p == MAP_FAILED || !c) return ncclInternalError;
  *c = (struct ncclComm){(shared *)p, p + 4096, rank, size, 0};
  barrier(c);
  if (rank == 0) (void)unlink(id.internal);
  *comm = c;
  return later(c);
}

int ncclCommGetAsyncError(ncclComm_t c, int *error) {
  *error = c->busy > 0 ? ncclInProgress : ncclSuccess;
  if (c->busy > 0) c->busy--;
  return ncclSuccess;
}

int ncclCommFinalize(ncclComm_t c) { return later(c); }
int ncclCommDestroy(ncclComm_t c) {
  (void)munmap(c->all, 4096 + (size_t)c->size * SLOT);
  free(c);
  return ncclSuccess;
}
int ncclCommAbort(ncclComm_t c) { return ncclCommDestroy(c); }

/* Device memory to or from a slot. */
static bool copy(void *to, const void *from, size_t bytes) {
  const bool out = lm_emulated_is_device(to);
  const void *const device = out ? to : from;
  if (bytes > SLOT || !lm_emulated_may_touch(device, bytes)) return false;
  lm_emulated_open();
  memcpy(to, from, bytes);
  lm_emulated_close();
  return true;
}

static size_t width(int dtype) { return dtype == ncclUint8 ? 1 : dtype == ncclBfloat16 ? 2 : 4; }

static double value(const char *p, int dtype, size_t i) {
  uint32_t bits = 0;
  float x = 0;
  int32_t n = 0;
  if (dtype == ncclInt32) {
    memcpy(&n, p + 4 * i, sizeof n);
    return n;
  }
  if (dtype == ncclFloat32) memcpy(&bits, p + 4 * i, 4);
  if (dtype == ncclBfloat16) memcpy((char *)&bits + 2, p + 2 * i, 2);
  memcpy(&x, &bits, sizeof x);
  return x;
}

static void put(char *p, int dtype, size_t i, double v) {
  const int32_t n = dtype == ncclInt32 ? (int32_t)v : 0;
  const float x = (float)v;
  uint32_t bits = 0;
  if (dtype == ncclInt32) {
    memcpy(p + 4 * i, &n, sizeof n);
    return;
  }
  memcpy(&bits, &x, sizeof bits);
  if (dtype == ncclFloat32) {
    memcpy(p + 4 * i, &bits, 4);
    return;
  }
  bits += 0x7fff + (bits >> 16 & 1);
  memcpy(p + 2 * i, (char *)&bits + 2, 2);
}

/* out[i] = op over the ranks' elements begin + i. */
static void reduce(ncclComm_t c, char *out, size_t begin, size_t count, int dtype, int op) {
  for (size_t i = 0; i < count; i++) {
    double sum = value(slot(c, 0), dtype, begin + i);
    for (int r = 1; r < c->size; r++) {
      const double v = value(slot(c, r), dtype, begin + i);
      if (op == ncclMax)
        sum = v > sum ? v : sum;
      else if (op == ncclMin)
        sum = v < sum ? v : sum;
      else
        sum += v;
    }
    put(out, dtype, i, op == ncclAvg ? sum / c->size : sum);
  }
}

static int reduced(ncclComm_t c, const void *from, size_t all, void *to, size_t begin, size_t count,
                   int dtype, int op) {
  if (!copy(slot(c, c->rank), from, all * width(dtype))) return ncclInvalidArgument;
  barrier(c);
  char *result = malloc(count * width(dtype) + 1);
  if (!result) return ncclInternalError;
  reduce(c, result, begin, count, dtype, op);
  const bool fine = copy(to, result, count * width(dtype));
  free(result);
  barrier(c);
  return fine ? later(c) : ncclInvalidArgument;
}

int ncclAllReduce(const void *from, void *to, size_t count, int dtype, int op, ncclComm_t c,
                  cudaStream_t stream) {
  (void)stream;
  return reduced(c, from, count, to, 0, count, dtype, op);
}

int ncclReduceScatter(const void *from, void *to, size_t count, int dtype, int op, ncclComm_t c,
                      cudaStream_t stream) {
  (void)stream;
  return reduced(c, from, count * (size_t)c->size, to, count * (size_t)c->rank, count, dtype, op);
}

int ncclAllGather(const void *from, void *to, size_t count, int dtype, ncclComm_t c,
                  cudaStream_t stream) {
  const size_t bytes = count * width(dtype);
  bool fine = copy(slot(c, c->rank), from, bytes);
  (void)stream;
  barrier(c);
  for (int r = 0; r < c->size; r++)
    fine = copy((char *)to + (size_t)r * bytes, slot(c, r), bytes) && fine;
  barrier(c);
  return fine ? later(c) : ncclInvalidArgument;
}

int ncclBroadcast(const void *from, void *to, size_t count, int dtype, int root, ncclComm_t c,
                  cudaStream_t stream) {
  const size_t bytes = count * width(dtype);
  bool fine = c->rank != root || copy(slot(c, root), from, bytes);
  (void)stream;
  barrier(c);
  fine = copy(to, slot(c, root), bytes) && fine;
  barrier(c);
  return fine ? later(c) : ncclInvalidArgument;
}

int ncclGroupStart(void) {
  memset(&group, 0, sizeof group);
  return ncclSuccess;
}

int ncclSend(const void *from, size_t count, int dtype, int peer, ncclComm_t c,
             cudaStream_t stream) {
  (void)peer, (void)stream;
  group.comm = c;
  return copy(slot(c, c->rank), from, count * width(dtype)) ? ncclSuccess : ncclInvalidArgument;
}

int ncclRecv(void *to, size_t count, int dtype, int peer, ncclComm_t c, cudaStream_t stream) {
  (void)stream;
  if (group.n == RECEIVES) return ncclInvalidArgument;
  group.comm = c;
  group.receives[group.n].to = to;
  group.receives[group.n].bytes = count * width(dtype);
  group.receives[group.n++].peer = peer;
  return ncclSuccess;
}

int ncclGroupEnd(void) {
  bool fine = true;
  if (!group.comm) return ncclSuccess;
  barrier(group.comm);
  for (int i = 0; i < group.n; i++)
    fine = copy(group.receives[i].to, slot(group.comm, group.receives[i].peer),
                group.receives[i].bytes) &&
           fine;
  barrier(group.comm);
  return fine ? later(group.comm) : ncclInvalidArgument;
}
