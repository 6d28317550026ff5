/* NVIDIA GPUs: which one, its stream, what goes wrong on it, and the table of what it does.
 *
 * One process uses one device, chosen before its first tensor lies there; all kernels run on one
 * stream, in the order they were issued, and the host waits only where somebody asks for a number.
 * Memory is in cuda_memory.c, the arithmetic in kernels/cuda. */
#include "backend/cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda_memory.h"
#include "core/error.h"
#include "cuda/prototypes.h"

enum { RECENT = 8 }; /* launches whose names a fault's message gives */

static struct {
  bool tried, ready, chosen; /* chosen: by lm_cuda_select */
  int preferred;
  char problem[256]; /* why there is no device */
  char text[512];    /* what lm_cuda_info shows */
  int index, count, processors, capability;
  size_t shared_limit;
  cudaStream_t stream;
  char broken[512]; /* what a fault said: nothing works on the device after it */
  bool wait_always; /* LUMUON_CUDA_SYNC=1: a fault is found at its own op */
  const char *recent[RECENT];
  unsigned launches;     /* since the host last waited, for `recent` */
  lm__reporter reporter; /* reporter.taken[1]: the word that makes steps do nothing */
} gpu;
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;

/* ---- the device ---- */

static int no_device(cudaError_t error) {
  int driver = 0, runtime = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime);
  if (driver == 0)
    (void)snprintf(gpu.problem, sizeof gpu.problem, "no NVIDIA driver on this machine");
  else if (error == cudaErrorInsufficientDriver)
    (void)snprintf(gpu.problem, sizeof gpu.problem,
                   "the NVIDIA driver is too old: it knows CUDA %d.%d, this build needs %d.%d or "
                   "later; update the driver, or build with an older toolkit",
                   driver / 1000, driver % 1000 / 10, runtime / 1000, 0);
  else if (error == cudaErrorNoDevice)
    (void)snprintf(gpu.problem, sizeof gpu.problem,
                   "no NVIDIA GPU (or CUDA_VISIBLE_DEVICES hides it)");
  else
    (void)snprintf(gpu.problem, sizeof gpu.problem, "CUDA does not start: %s",
                   cudaGetErrorString(error));
  return 0;
}

#ifdef LM_CUDA_EMULATED
#define BY_EMULATION " (emulated by the CPU)"
#else
#define BY_EMULATION ""
#endif

/* The smallest capability that the build has code for. */
enum { OLDEST = 80 };

static cudaError_t open_device(void) {
  struct cudaDeviceProp p;
  cudaError_t e = cudaSetDevice(gpu.index);
  if (e == cudaSuccess) e = cudaGetDeviceProperties(&p, gpu.index);
  if (e != cudaSuccess) return e;
  gpu.capability = 10 * p.major + p.minor;
  gpu.processors = p.multiProcessorCount;
  gpu.shared_limit = p.sharedMemPerBlockOptin;
  (void)snprintf(gpu.text, sizeof gpu.text, "%.200s, %.1f GiB, capability %d.%d%s", p.name,
                 (double)p.totalGlobalMem / 1073741824.0, p.major, p.minor, BY_EMULATION);
  if (gpu.capability < OLDEST) {
    (void)snprintf(gpu.problem, sizeof gpu.problem,
                   "%.100s has compute capability %d.%d; this build needs %d.%d or later", p.name,
                   p.major, p.minor, OLDEST / 10, OLDEST % 10);
    return cudaErrorNotSupported;
  }
  e = cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking);
  if (e == cudaSuccess)
    e = cudaHostAlloc((void **)&gpu.reporter.report, sizeof *gpu.reporter.report,
                      cudaHostAllocMapped);
  if (e == cudaSuccess) {
    memset(gpu.reporter.report, 0, sizeof *gpu.reporter.report);
    e = cudaMalloc((void **)&gpu.reporter.taken, 2 * sizeof *gpu.reporter.taken);
  }
  if (e == cudaSuccess)
    e = cudaMemsetAsync(gpu.reporter.taken, 0, 2 * sizeof *gpu.reporter.taken, gpu.stream);
  if (e == cudaSuccess) e = lm__cuda_memory_start(gpu.index, p.name, gpu.stream);
  return e;
}

static bool start(void) {
  const char *wait_always = getenv("LUMUON_CUDA_SYNC");
  (void)pthread_mutex_lock(&starting);
  if (!gpu.tried) {
    gpu.wait_always = wait_always && strcmp(wait_always, "0") != 0;
    cudaError_t e = cudaGetDeviceCount(&gpu.count);
    if (e == cudaSuccess && !gpu.chosen && gpu.count > 0) gpu.index = gpu.preferred % gpu.count;
    if (e == cudaSuccess && gpu.index >= gpu.count) e = cudaErrorInvalidDevice;
    if (e == cudaSuccess) e = open_device();
    gpu.ready = e == cudaSuccess;
    if (!gpu.ready && !gpu.problem[0]) (void)no_device(e);
    gpu.tried = true;
  }
  (void)pthread_mutex_unlock(&starting);
  return gpu.ready;
}

int lm_cuda_count(void) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

int lm_cuda_select(int index) {
  if (gpu.tried && gpu.ready) {
    if (index == gpu.index) return LM_OK;
    return lm__fail(
        LM_EDEVICE,
        "cuda:%d: this process already uses cuda:%d, and a process uses one GPU; choose "
        "it before the first tensor lies there",
        index, gpu.index);
  }
  const int count = lm_cuda_count();
  if (index < 0 || index >= count) {
    if (count == 0) return lm__fail(LM_EDEVICE, "cuda:%d: %s", index, lm_cuda_problem());
    return lm__fail(LM_EDEVICE, "cuda:%d: there %s %d GPU%s, cuda:0%s", index,
                    count == 1 ? "is" : "are", count, count == 1 ? "" : "s",
                    count == 1 ? "" : " and so on");
  }
  gpu.index = index;
  gpu.chosen = true;
  if (start()) return LM_OK;
  return lm__fail(LM_EDEVICE, "cuda:%d: %s", index, gpu.problem);
}

int lm_cuda_prefer(int number) {
  if (number < 0) return lm__fail(LM_EINVAL, "cuda_prefer: %d is below 0", number);
  gpu.preferred = number;
  if (!gpu.tried || !gpu.ready || gpu.chosen || gpu.index == number % gpu.count) return LM_OK;
  return lm__fail(LM_EDEVICE,
                  "this process already uses cuda:%d, and as number %d on its machine it should "
                  "use cuda:%d; choose it before the first tensor lies on a GPU",
                  gpu.index, number, number % gpu.count);
}

int lm_cuda_selected(void) { return start() ? gpu.index : -1; }
const char *lm_cuda_info(void) { return start() ? gpu.text : ""; }
const char *lm_cuda_problem(void) { return start() ? "" : gpu.problem; }

cudaStream_t lm__cuda_stream(void) {
  const cudaStream_t captured = lm__cuda_graph_stream();
  return captured ? captured : gpu.stream;
}
int lm__cuda_processors(void) { return gpu.processors; }
int lm__cuda_capability(void) { return gpu.capability; }
size_t lm__cuda_shared_limit(void) { return gpu.shared_limit; }
lm__reporter lm__cuda_reporter(void) { return gpu.reporter; }
int *lm__cuda_skip(void) { return gpu.reporter.taken + 1; }

/* ---- what goes wrong ---- */

/* Errors after which the device's context is lost. */
static bool is_fault(cudaError_t e) {
  return (e >= cudaErrorIllegalAddress && e <= cudaErrorLaunchFailure &&
          e != cudaErrorLaunchOutOfResources) ||
         e == cudaErrorECCUncorrectable;
}

static const char *recent_ops(const char *op, char *text, size_t size) {
  const unsigned n = gpu.launches < RECENT ? gpu.launches : RECENT;
  size_t used = (size_t)snprintf(text, size, "%s", op);
  if (gpu.wait_always || n == 0) return text;
#ifndef LM_CUDA_EMULATED
  used = (size_t)snprintf(text, size, "one of the last ops (newest first: ");
  for (unsigned i = 0; i < n && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, i ? ", %s" : "%s",
                             gpu.recent[(gpu.launches - 1 - i) % RECENT]);
  if (used < size) (void)snprintf(text + used, size - used, "; LUMUON_CUDA_SYNC=1 tells which)");
#endif
  (void)used;
  return text;
}

int lm__cuda_check(const char *op, cudaError_t error) {
  char text[320];
  if (error == cudaSuccess) return LM_OK;
  if (gpu.broken[0])
    return lm__fail(LM_EDEVICE, "%s: the GPU cannot be used any more in this process: %s", op,
                    gpu.broken);
  (void)cudaGetLastError();
  if (!is_fault(error))
    return lm__fail(LM_EDEVICE, "%s: cuda:%d: %s", op, gpu.index, cudaGetErrorString(error));
  (void)snprintf(gpu.broken, sizeof gpu.broken, "a kernel faulted on cuda:%d in %s: %s", gpu.index,
                 recent_ops(op, text, sizeof text), cudaGetErrorString(error));
  return lm__fail(LM_EDEVICE, "%s", gpu.broken);
}

int lm__cuda_launched(const char *op, cudaError_t error) {
  gpu.recent[gpu.launches++ % RECENT] = op;
  if (error == cudaSuccess && gpu.wait_always && !lm__cuda_graph_stream())
    error = cudaStreamSynchronize(gpu.stream);
  return error == cudaSuccess ? LM_OK : lm__cuda_check(op, error);
}

/* Names of gradients that were looked at, for the message of a report: the lists of the last few
 * optimizers, each with a number that is never used again. */
enum { LISTS = 8 };
static struct {
  int64_t number;
  int n;
  char **names;
} lists[LISTS];
static int64_t lists_made;

static bool same_names(int i, int n, const char *const *names) {
  bool same = lists[i].number > 0 && lists[i].n == n;
  for (int k = 0; k < n && same; k++) same = strcmp(lists[i].names[k], names[k]) == 0;
  return same;
}

/* The number of a list, which is copied where it is new; 0 for want of memory. */
static int64_t number_of(int n, const char *const *names) {
  for (int i = 0; i < LISTS; i++)
    if (same_names(i, n, names)) return lists[i].number;
  size_t bytes = (size_t)n * sizeof(char *);
  for (int k = 0; k < n; k++) bytes += strlen(names[k]) + 1;
  char **copy = malloc(bytes ? bytes : 1);
  if (!copy) return 0;
  char *text = (char *)(copy + n);
  for (int k = 0; k < n; k++) {
    const size_t length = strlen(names[k]) + 1;
    copy[k] = memcpy(text, names[k], length);
    text += length;
  }
  const int at = (int)(lists_made % LISTS);
  free(lists[at].names);
  lists[at].names = copy;
  lists[at].n = n;
  return lists[at].number = ++lists_made;
}

static const char *name_of(long long position) {
  for (int i = 0; i < LISTS; i++)
    if (lists[i].number > 0 && lists[i].number == position >> 32 &&
        (position & 0xffffffff) < lists[i].n)
      return lists[i].names[position & 0xffffffff];
  return "a parameter";
}

/* The report of a kernel as an error, once. */
static int take_report(void) {
  lm__report *shared = gpu.reporter.report;
  if (*(volatile int *)&shared->kind == LM_REPORT_NONE) return LM_OK;
  const lm__report r = *shared;
  shared->kind = LM_REPORT_NONE;
  LM__TRY(lm__cuda_check(
      "report", cudaMemsetAsync(gpu.reporter.taken, 0, sizeof *gpu.reporter.taken, gpu.stream)));
  if (r.kind == LM_REPORT_NONFINITE) {
    char more[64] = "";
    if (r.limit > 0) (void)snprintf(more, sizeof more, ", and so have %lld others", r.limit);
    return lm__fail(LM_ENONFINITE,
                    "%.32s: the gradient of %s has %lld NaN or Inf%s; nothing was changed, by this "
                    "step or those since",
                    r.op, name_of(r.position), r.value, more);
  }
  return lm__fail(LM_EINDEX,
                  "%.32s: %s %lld at element %lld (counted from 1) is outside the vocabulary of "
                  "%lld (0 to %lld%s); found on the GPU, which took 0 in its place and went on",
                  r.op, r.kind == LM_REPORT_TARGET ? "target" : "index", r.value, r.position + 1,
                  r.limit, r.limit - 1, r.kind == LM_REPORT_TARGET ? ", or -1 for none" : "");
}

int lm__cuda_synchronize(const char *op) {
  LM__TRY(lm__cuda_graph_refuse(op));
  LM__TRY(lm__cuda_check(op, cudaStreamSynchronize(gpu.stream)));
  gpu.launches = 0;
  return take_report();
}

/* ---- the table ---- */

static int guard(int n, const lm_tensor *const *grads, const char *const *names, lm_tensor *tally,
                 int policy) {
  return lm__guard_cuda(n, grads, number_of(n, names), tally, policy);
}

static int wait_for_all(void) { return lm__cuda_synchronize("synchronize"); }

/* clang-format off */
static const lm__backend_table table = {
    .variant = "cuda",
    .allocate = lm__cuda_allocate,
    .release = lm__cuda_release,
    .read = lm__cuda_read,
    .write = lm__cuda_write,
    .synchronize = wait_for_all,
    .memory = lm__cuda_memory,
    .side = &lm__cuda_side,
    .guard = guard,
#define ENTRY(op) .op = lm__##op##_cuda,
    ENTRY(fill)
    ENTRY(arange)
    ENTRY(copy)
    ENTRY(unary)
    ENTRY(binary)
    ENTRY(binary_scalar)
    ENTRY(axpy)
    ENTRY(embedding)
    ENTRY(embedding_backward)
    ENTRY(rms_norm)
    ENTRY(rms_norm_backward)
    ENTRY(rotary)
    ENTRY(rotary_norm)
    ENTRY(rotary_norm_backward)
    ENTRY(attention)
    ENTRY(attention_backward)
    ENTRY(cross_entropy)
    ENTRY(cross_entropy_backward)
    ENTRY(linear_cross_entropy)
    ENTRY(softmax)
    ENTRY(reduce)
    ENTRY(arg_reduce)
    ENTRY(random_uniform)
    ENTRY(random_normal)
    ENTRY(scaled_add)
    ENTRY(scaled_add_backward)
    ENTRY(gated_add)
    ENTRY(gated_add_backward)
    ENTRY(singular_values)
    ENTRY(count_nonfinite)
    ENTRY(matmul)
    ENTRY(adamw_step)
    ENTRY(polar_express)
    ENTRY(muon_step)
    ENTRY(muon_measure)
    ENTRY(muon_scratch)
#undef ENTRY
};
/* clang-format on */

const lm__backend_table *lm__cuda_backend(void) { return start() ? &table : NULL; }
