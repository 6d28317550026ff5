/* The part of NCCL's interface (2.14 and later) that nccl.c uses, declared here so that a build
 * needs no header of it. The values are NCCL's. */
#ifndef LM_COMM_NCCL_H
#define LM_COMM_NCCL_H

#include <cuda_runtime.h>
#include <stddef.h>

typedef struct ncclComm *ncclComm_t;
typedef struct ncclUniqueId {
  char internal[128];
} ncclUniqueId;
typedef struct ncclConfig {
  size_t size;
  unsigned magic, version;
  int blocking;
} ncclConfig;
enum { NCCL_MAGIC = (int)0xcafebeef, NCCL_2_14 = 21400 };
enum { ncclSuccess = 0, ncclInternalError = 3, ncclInvalidArgument = 4, ncclInProgress = 7 };
enum { ncclSum = 0, ncclMax = 2, ncclMin = 3, ncclAvg = 4 };
enum { ncclUint8 = 1, ncclInt32 = 2, ncclFloat32 = 7, ncclBfloat16 = 9 };

int ncclGetVersion(int *version);
int ncclGetUniqueId(ncclUniqueId *id);
int ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                           ncclConfig *config);
int ncclCommGetAsyncError(ncclComm_t comm, int *error);
const char *ncclGetErrorString(int error);
int ncclCommFinalize(ncclComm_t comm);
int ncclCommDestroy(ncclComm_t comm);
int ncclCommAbort(ncclComm_t comm);
int ncclAllReduce(const void *from, void *to, size_t count, int dtype, int op, ncclComm_t comm,
                  cudaStream_t stream);
int ncclReduceScatter(const void *from, void *to, size_t count, int dtype, int op, ncclComm_t comm,
                      cudaStream_t stream);
int ncclAllGather(const void *from, void *to, size_t count, int dtype, ncclComm_t comm,
                  cudaStream_t stream);
int ncclBroadcast(const void *from, void *to, size_t count, int dtype, int root, ncclComm_t comm,
                  cudaStream_t stream);
int ncclSend(const void *from, size_t count, int dtype, int peer, ncclComm_t comm,
             cudaStream_t stream);
int ncclRecv(void *to, size_t count, int dtype, int peer, ncclComm_t comm, cudaStream_t stream);
int ncclGroupStart(void);
int ncclGroupEnd(void);

#endif
