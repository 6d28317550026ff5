/* Collectives between GPUs by NCCL, loaded when the first is asked for. The communicator does not
 * block: a call that returns ncclInProgress is asked after until it is on the stream
 * (cuda_side.c's) or the deadline has passed. Everything is in place, on the tensors' own memory.
 */
#include "comm/nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/cuda.h"
#include "backend/library.h"
#include "comm/comm.h"
#include "core/error.h"

#define FUNCTIONS(F)                                                                               \
  F(ncclGetVersion)                                                                                \
  F(ncclGetUniqueId)                                                                               \
  F(ncclCommInitRankConfig)                                                                        \
  F(ncclCommGetAsyncError)                                                                         \
  F(ncclGetErrorString)                                                                            \
  F(ncclCommFinalize)                                                                              \
  F(ncclCommDestroy)                                                                               \
  F(ncclCommAbort)                                                                                 \
  F(ncclAllReduce)                                                                                 \
  F(ncclReduceScatter)                                                                             \
  F(ncclAllGather)                                                                                 \
  F(ncclBroadcast)                                                                                 \
  F(ncclSend)                                                                                      \
  F(ncclRecv)                                                                                      \
  F(ncclGroupStart)                                                                                \
  F(ncclGroupEnd)

static struct {
  bool tried, loaded;
  char text[32];
  ncclComm_t comm;
#define FIELD(name) __typeof__(name) *name;
  FUNCTIONS(FIELD)
#undef FIELD
} nccl;

/* ---- the library ---- */

#ifdef LM_CUDA_EMULATED

static bool load(void) {
#define TAKE(name) nccl.name = name;
  FUNCTIONS(TAKE)
#undef TAKE
  return true;
}

#else

static bool take(void *library) {
  bool all = true;
#define TAKE(name) all = lm__library_function(library, #name, (void *)&nccl.name) && all;
  FUNCTIONS(TAKE)
#undef TAKE
  return all;
}

static bool load(void) {
  static const char *const packages[] = {"nccl", NULL};
  const lm__library library = {"libnccl.so.2", "LUMUON_NCCL", packages};
  return lm__library_load(&library, take);
}

#endif

static bool start_library(void) {
  const char *const own = getenv("LUMUON_NCCL");
  int version = 0;
  if (nccl.tried) return nccl.loaded;
  nccl.tried = true;
  if (own && strcmp(own, "none") == 0) return false;
  if (!load() || nccl.ncclGetVersion(&version) != ncclSuccess) return false;
  (void)snprintf(nccl.text, sizeof nccl.text, "NCCL %d.%d.%d", version / 10000, version / 100 % 100,
                 version % 100);
  nccl.loaded = version >= NCCL_2_14;
  return nccl.loaded;
}

static const char *name(void) { return nccl.text; }

static bool describe(char *gpu, size_t size) {
  char boot[64] = "", bus[32] = "";
  FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
  if (f) {
    if (!fgets(boot, sizeof boot, f)) boot[0] = 0;
    (void)fclose(f);
  }
  boot[strcspn(boot, "\n")] = 0;
  if (cudaDeviceGetPCIBusId(bus, sizeof bus, lm_cuda_selected()) != cudaSuccess) return false;
  (void)snprintf(gpu, size, "%s %s", boot, bus);
  return start_library();
}

/* ---- the communicator ---- */

static int check(int result) {
  if (result == ncclSuccess || result == ncclInProgress) return LM_OK;
  return lm__fail(LM_EDIST, "%s: %s", nccl.text, nccl.ncclGetErrorString(result));
}

/* Until what was called last is on the stream. */
static int ready(double deadline) {
  const struct timespec nap = {.tv_nsec = 20000};
  for (;;) {
    int state = ncclSuccess;
    LM__TRY(check(nccl.ncclCommGetAsyncError(nccl.comm, &state)));
    LM__TRY(check(state));
    if (state == ncclSuccess) return LM_OK;
    if (lm__clock() > deadline)
      return lm__fail(LM_EDIST, "%s has not got ready; is a GPU or the network lost?", nccl.text);
    (void)nanosleep(&nap, NULL);
  }
}

static int unique(char *id) {
  ncclUniqueId own;
  LM__TRY(check(nccl.ncclGetUniqueId(&own)));
  memcpy(id, own.internal, sizeof own.internal);
  return LM_OK;
}

static int start(const char *id, int rank, int size, double deadline) {
  ncclConfig config = {sizeof config, (unsigned)NCCL_MAGIC, NCCL_2_14, 0};
  ncclUniqueId shared;
  memcpy(shared.internal, id, sizeof shared.internal);
  LM__TRY(check(nccl.ncclCommInitRankConfig(&nccl.comm, size, shared, rank, &config)));
  return ready(deadline);
}

static int gather(const lm__collective *c, size_t bytes, int rank, int size, cudaStream_t stream) {
  LM__TRY(check(nccl.ncclGroupStart()));
  int status = LM_OK;
  if (rank != c->root)
    status = check(nccl.ncclSend(c->data, bytes, ncclUint8, c->root, nccl.comm, stream));
  for (int r = 0; rank == c->root && r < size && status == LM_OK; r++)
    if (r != rank)
      status =
          check(nccl.ncclRecv(c->out + (size_t)r * bytes, bytes, ncclUint8, r, nccl.comm, stream));
  LM__TRY(check(nccl.ncclGroupEnd()));
  LM__TRY(status);
  char *own = rank == c->root ? c->out + (size_t)rank * bytes : NULL;
  if (!own || own == c->data) return LM_OK;
  if (cudaMemcpyAsync(own, c->data, bytes, cudaMemcpyDeviceToDevice, stream) == cudaSuccess)
    return LM_OK;
  return lm__fail(LM_EDEVICE, "%s: the root's own part cannot be copied", nccl.text);
}

/* Mean, sum, ... by NCCL's names; what only moves does so as bytes. */
static int launch(const lm__collective *c, int rank, int size, double deadline) {
  static const int ops[] = {[LM_DIST_SUM] = ncclSum,
                            [LM_DIST_MEAN] = ncclAvg,
                            [LM_DIST_MAX] = ncclMax,
                            [LM_DIST_MIN] = ncclMin};
  const cudaStream_t stream = lm__cuda_side_stream();
  const size_t count = (size_t)c->count, bytes = count * (size_t)lm_dtype_size(c->dtype);
  const size_t slice = bytes / (size_t)size;
  const int dtype = c->dtype == LM_F32    ? ncclFloat32
                    : c->dtype == LM_BF16 ? ncclBfloat16
                                          : ncclInt32;
  char *own = c->data + (size_t)rank * slice;
  int status = LM_OK;
  switch (c->kind) {
    case LM__ALL_REDUCE:
      status =
          check(nccl.ncclAllReduce(c->data, c->data, count, dtype, ops[c->op], nccl.comm, stream));
      break;
    case LM__REDUCE_SCATTER:
      status = check(nccl.ncclReduceScatter(c->data, own, count / (size_t)size, dtype, ops[c->op],
                                            nccl.comm, stream));
      break;
    case LM__ALL_GATHER:
      status = check(nccl.ncclAllGather(own, c->data, slice, ncclUint8, nccl.comm, stream));
      break;
    case LM__BROADCAST:
      status =
          check(nccl.ncclBroadcast(c->data, c->data, bytes, ncclUint8, c->root, nccl.comm, stream));
      break;
    default:
      status = gather(c, bytes, rank, size, stream);
  }
  LM__TRY(status);
  LM__TRY(ready(deadline));
  return lm__cuda_side_finish();
}

static int trouble(void) {
  int state = ncclSuccess;
  LM__TRY(check(nccl.ncclCommGetAsyncError(nccl.comm, &state)));
  return check(state);
}

/* In good order, or at once: the others may not come any more. */
static void stop(bool well) {
  if (!nccl.comm) return;
  if (well && check(nccl.ncclCommFinalize(nccl.comm)) == LM_OK && ready(lm__clock() + 5) == LM_OK)
    (void)nccl.ncclCommDestroy(nccl.comm);
  else
    (void)nccl.ncclCommAbort(nccl.comm);
  nccl.comm = NULL;
}

const lm__gpu_links lm__nccl = {name, describe, unique, start, launch, trouble, stop};
