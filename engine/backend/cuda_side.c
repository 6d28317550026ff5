/* Copies beside the ops, for the communication thread: a stream of their own, which waits for what
 * the stream of the ops had been given when a mark was made. Errors do not go through
 * lm__cuda_check: it is the other thread's, which finds the same fault with all that it knows. */
#include "backend/cuda.h"
#include "comm/comm.h"
#include "core/error.h"

static struct {
  bool ready;
  cudaStream_t stream;
  cudaEvent_t copied;
} side;

static int check(cudaError_t e) {
  if (e == cudaSuccess) return LM_OK;
  (void)cudaGetLastError();
  return lm__fail(e == cudaErrorMemoryAllocation ? LM_ENOMEM : LM_EDEVICE, "cuda:%d: %s",
                  lm_cuda_selected(), cudaGetErrorString(e));
}

/* The thread that copies says first which device it means. */
static int begin(void) {
  LM__TRY(check(cudaSetDevice(lm_cuda_selected())));
  if (side.ready) return LM_OK;
  LM__TRY(check(cudaStreamCreateWithFlags(&side.stream, cudaStreamNonBlocking)));
  LM__TRY(check(cudaEventCreateWithFlags(&side.copied, cudaEventDisableTiming)));
  side.ready = true;
  return LM_OK;
}

static int mark(void **out) {
  cudaEvent_t event = NULL;
  *out = NULL;
  LM__TRY(check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming)));
  const int status = check(cudaEventRecord(event, lm__cuda_stream()));
  if (status)
    (void)cudaEventDestroy(event);
  else
    *out = event;
  return status;
}

static void forget(void *m) {
  if (m) (void)cudaEventDestroy(m);
}

static int after(void *m) {
  LM__TRY(begin());
  return check(cudaStreamWaitEvent(side.stream, m, 0));
}

static int to_host(void *host, const void *device, size_t bytes) {
  LM__TRY(check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, side.stream)));
  return check(cudaEventRecord(side.copied, side.stream));
}

static int to_device(void *device, const void *host, size_t bytes) {
  LM__TRY(check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, side.stream)));
  return check(cudaEventRecord(side.copied, side.stream));
}

static int done(bool *yes) {
  const cudaError_t e = cudaEventQuery(side.copied);
  *yes = e == cudaSuccess;
  if (e != cudaErrorNotReady) return check(e);
  (void)cudaGetLastError();
  return LM_OK;
}

static int pin(void **host, size_t bytes) {
  LM__TRY(begin());
  return check(cudaHostAlloc(host, bytes, cudaHostAllocDefault));
}

static void unpin(void *host) {
  if (host) (void)cudaFreeHost(host);
}

cudaStream_t lm__cuda_side_stream(void) { return side.stream; }
int lm__cuda_side_finish(void) { return check(cudaEventRecord(side.copied, side.stream)); }

const lm__side_copies lm__cuda_side = {mark, forget, after, to_host,  to_device,
                                       done, pin,    unpin, &lm__nccl};
