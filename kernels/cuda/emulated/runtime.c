/* The emulated runtime's devices, errors, streams, events and graphs. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/emulated/internal.h"

/* ---- errors ---- */

static cudaError_t last, sticky;
static char detail[640];

static const struct {
  cudaError_t code;
  const char *name, *text;
} errors[] = {
#define E(code, text)                                                                              \
  { code, #code, text }
    E(cudaSuccess, "no error"),
    E(cudaErrorInvalidValue, "invalid argument"),
    E(cudaErrorMemoryAllocation, "out of memory"),
    E(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    E(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    E(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    E(cudaErrorInvalidDevice, "invalid device ordinal"),
    E(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    E(cudaErrorLaunchFailure, "unspecified launch failure"),
    E(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    E(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    E(cudaErrorNotSupported, "operation not supported"),
#undef E
};

const char *cudaGetErrorName(cudaError_t error) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == error) return errors[i].name;
  return "cudaErrorUnknown";
}
const char *cudaGetErrorString(cudaError_t error) {
  static char text[800];
  const char *found = "unknown error";
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == error) found = errors[i].text;
  if (error != cudaSuccess && error == sticky && detail[0])
    (void)snprintf(text, sizeof text, "%s (%s)", found, detail);
  else
    (void)snprintf(text, sizeof text, "%s", found);
  return text;
}

cudaError_t lm_emulated_error(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}
cudaError_t lm_emulated_broken(void) { return sticky; }
cudaError_t lm_emulated_break(cudaError_t error, const char *format, ...) {
  va_list args;
  if (sticky != cudaSuccess) return sticky;
  va_start(args, format);
  (void)vsnprintf(detail, sizeof detail, format, args);
  va_end(args);
  sticky = last = error;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return sticky ? sticky : last; }
cudaError_t cudaGetLastError(void) {
  const cudaError_t error = cudaPeekAtLastError();
  last = cudaSuccess;
  return error;
}

/* ---- devices ---- */

static int current_device;

static cudaError_t driver(void) {
  const char *text = getenv("LUMUON_EMULATED_DRIVER");
  if (text && strcmp(text, "old") == 0) return cudaErrorInsufficientDriver;
  if (text && strcmp(text, "none") == 0) return cudaErrorInsufficientDriver;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  if (sticky) return sticky;
  (void)snprintf(text, (size_t)size, "0000:%02x:00.0", (unsigned)device + 1);
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
  const char *text = getenv("LUMUON_EMULATED_DRIVER");
  *version = text && strcmp(text, "none") == 0  ? 0
             : text && strcmp(text, "old") == 0 ? 11040
                                                : 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
  *count = 0;
  if (driver() != cudaSuccess) return lm_emulated_error(driver());
  *count = (int)lm_emulated_setting("LUMUON_EMULATED_DEVICES", 1);
  return lm_emulated_error(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return error;
  if (device < 0 || device >= count) return lm_emulated_error(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  size_t free_bytes = 0;
  (void)device;
  memset(p, 0, sizeof *p);
  (void)snprintf(p->name, sizeof p->name, "emulated GPU");
  (void)cudaMemGetInfo(&free_bytes, &p->totalGlobalMem);
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = 227 << 10;
  const int capability = (int)lm_emulated_setting("LUMUON_EMULATED_CAPABILITY", 90);
  p->major = capability / 10;
  p->minor = capability % 10;
  p->multiProcessorCount = 4; /* few: grids are made as large as the machine */
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->l2CacheSize = 1 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  struct cudaDeviceProp p;
  (void)cudaGetDeviceProperties(&p, device);
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? (int)p.sharedMemPerBlockOptin
           : attribute == cudaDevAttrMultiProcessorCount        ? p.multiProcessorCount
           : attribute == cudaDevAttrComputeCapabilityMajor     ? p.major
                                                                : p.minor;
  return cudaSuccess;
}
/* The stream that this thread captures, and whether something was done that ends the capture. */
static _Thread_local cudaStream_t captured;
static _Thread_local bool invalid;
static _Thread_local enum cudaStreamCaptureMode capture_mode;

cudaError_t lm_emulated_uncaptured(void) {
  if (!captured) return cudaSuccess;
  invalid = true;
  return lm_emulated_error(cudaErrorStreamCaptureUnsupported);
}

cudaError_t lm_emulated_safe(void) {
  return capture_mode == cudaStreamCaptureModeRelaxed ? cudaSuccess : lm_emulated_uncaptured();
}

/* A wait for the device, where none may be. */
static cudaError_t waited(void) {
  const char *text = getenv("LUMUON_EMULATED_WAIT");
  if (text && strcmp(text, "refused") == 0)
    return lm_emulated_break(cudaErrorLaunchFailure, "the host waited for the device");
  return lm_emulated_error(sticky);
}
cudaError_t cudaDeviceSynchronize(void) {
  const cudaError_t error = lm_emulated_uncaptured();
  return error ? error : waited();
}
cudaError_t cudaDeviceReset(void) {
  lm_emulated_reset_memory();
  sticky = last = cudaSuccess;
  detail[0] = 0;
  return cudaSuccess;
}

/* ---- streams, and what is captured on them ---- */

typedef struct call {
  cudaError_t (*run)(const void *);
  void *arguments;
  size_t bytes;
} call;

struct CUgraph_st {
  call *calls;
  size_t n, room;
};
struct CUgraphExec_st {
  struct CUgraph_st graph;
};
struct CUstream_st {
  struct CUgraph_st *capturing;
};
struct CUevent_st {
  double at;     /* microseconds */
  bool captured; /* has no time, and cannot be waited for */
};

static _Thread_local double clock_now; /* of what this thread launched: its events are compared */

void lm_emulated_tick(double blocks, double operations) {
  clock_now += lm_emulated_setting("LUMUON_EMULATED_LAUNCH", 2) +
               lm_emulated_setting("LUMUON_EMULATED_BLOCK", 0.01) * blocks +
               lm_emulated_setting("LUMUON_EMULATED_PRODUCT", 10) * 1e-9 * operations;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  (void)flags;
  if (sticky) return sticky;
  *stream = calloc(1, sizeof **stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  free(stream);
  return sticky;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!stream || stream->capturing) {
    const cudaError_t error = lm_emulated_uncaptured();
    if (error) return error;
  }
  return waited();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (!stream || stream->capturing) {
    const cudaError_t error = lm_emulated_uncaptured();
    if (error) return error;
  }
  return lm_emulated_error(sticky);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  (void)stream, (void)event, (void)flags;
  return lm_emulated_error(sticky);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  (void)flags;
  if (sticky) return sticky;
  *event = calloc(1, sizeof **event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return sticky;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->captured = stream && stream->capturing;
  event->at = clock_now;
  return lm_emulated_error(sticky);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const cudaError_t error = event->captured ? lm_emulated_uncaptured() : lm_emulated_safe();
  if (error) return error;
  return lm_emulated_error(event->captured ? cudaErrorInvalidValue : sticky);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (begin->captured || end->captured) return lm_emulated_error(cudaErrorInvalidValue);
  *milliseconds = (float)(1e-3 * (end->at - begin->at));
  return lm_emulated_error(sticky);
}

bool lm_emulated_captures(cudaStream_t stream) {
  return stream ? stream->capturing != NULL : captured != NULL;
}

bool lm_emulated_capture(cudaStream_t stream, cudaError_t (*run)(const void *),
                         const void *arguments, size_t bytes) {
  if (!stream) (void)lm_emulated_uncaptured(); /* the legacy stream waits for all others */
  if (!stream || !stream->capturing) return false;
  struct CUgraph_st *g = stream->capturing;
  if (g->n == g->room) {
    g->room = g->room ? 2 * g->room : 16;
    g->calls = realloc(g->calls, g->room * sizeof *g->calls);
  }
  call c = {run, malloc(bytes), bytes};
  memcpy(c.arguments, arguments, bytes);
  g->calls[g->n++] = c;
  return true;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  if (sticky) return sticky;
  if (!stream || stream->capturing || captured) return lm_emulated_error(cudaErrorInvalidValue);
  stream->capturing = calloc(1, sizeof *stream->capturing);
  captured = stream;
  capture_mode = mode;
  invalid = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  if (!stream || !stream->capturing) return lm_emulated_error(cudaErrorInvalidValue);
  *graph = stream->capturing;
  stream->capturing = NULL;
  captured = NULL;
  if (!invalid) return lm_emulated_error(sticky);
  (void)cudaGraphDestroy(*graph);
  *graph = NULL;
  return lm_emulated_error(cudaErrorStreamCaptureInvalidated);
}

static void clear_calls(struct CUgraph_st *g) {
  for (size_t i = 0; i < g->n; i++) free(g->calls[i].arguments);
  free(g->calls);
  memset(g, 0, sizeof *g);
}
static void copy_calls(struct CUgraph_st *to, const struct CUgraph_st *from) {
  to->calls = calloc(from->n ? from->n : 1, sizeof *to->calls);
  to->n = to->room = from->n;
  for (size_t i = 0; i < from->n; i++) {
    to->calls[i] = from->calls[i];
    to->calls[i].arguments = malloc(from->calls[i].bytes);
    memcpy(to->calls[i].arguments, from->calls[i].arguments, from->calls[i].bytes);
  }
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  (void)flags;
  *exec = calloc(1, sizeof **exec);
  copy_calls(&(*exec)->graph, graph);
  return lm_emulated_error(sticky);
}
/* Like the real one: the same calls in the same order, with other arguments. */
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo *info) {
  bool same = exec->graph.n == graph->n;
  for (size_t i = 0; i < graph->n && same; i++)
    same = exec->graph.calls[i].run == graph->calls[i].run &&
           exec->graph.calls[i].bytes == graph->calls[i].bytes;
  info->result = same ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateError;
  if (!same) return lm_emulated_error(cudaErrorInvalidValue);
  clear_calls(&exec->graph);
  copy_calls(&exec->graph, graph);
  return lm_emulated_error(sticky);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  (void)stream;
  cudaError_t error = sticky;
  for (size_t i = 0; i < exec->graph.n && error == cudaSuccess; i++)
    error = exec->graph.calls[i].run(exec->graph.calls[i].arguments);
  return lm_emulated_error(error);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  clear_calls(graph);
  free(graph);
  return sticky;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  clear_calls(&exec->graph);
  free(exec);
  return sticky;
}

/* ---- launches ---- */

typedef struct launch_call {
  void (*run)(const void *);
  lm_emulated_size grid, block;
  size_t shared;
  _Alignas(16) char arguments[4096];
} launch_call;

static const void *bad_pointer;

void lm_emulated_begin_arguments(void) { bad_pointer = NULL; }
void lm_emulated_check_pointer(const void *p) {
  if (p && !lm_emulated_may_touch(p, 0)) bad_pointer = p;
}

static cudaError_t do_launch(const void *arguments) {
  const launch_call *c = arguments;
  lm_emulated_tick((double)c->grid.x * c->grid.y * c->grid.z, 0);
  return lm_emulated_run(c->run, c->arguments, c->grid, c->block, c->shared);
}

cudaError_t lm_emulated_launch(void (*run)(const void *), const void *arguments, size_t bytes,
                               lm_emulated_size grid, lm_emulated_size block, size_t shared,
                               cudaStream_t stream) {
  launch_call c = {run, grid, block, shared, {0}};
  if (sticky) return sticky;
  if (bytes > sizeof c.arguments) return lm_emulated_error(cudaErrorInvalidValue);
  if (bad_pointer) {
    char text[256];
    lm_emulated_describe(bad_pointer, text, sizeof text);
    return lm_emulated_break(cudaErrorIllegalAddress, "a kernel was given %s", text);
  }
  memcpy(c.arguments, arguments, bytes);
  if (lm_emulated_capture(stream, do_launch, &c, sizeof c)) return cudaSuccess;
  return lm_emulated_error(do_launch(&c));
}
