/* What the emulated CUDA promises (docs/cuda.md): a program of checks, one named on the command
 * line. Built with -DLUMUON_CUDA=emulated; spec/emulated_spec.lua runs it. */
#include <stdio.h>
#include <stdlib.h>

#include "cuda/mma.cuh"
#include "cuda/reduce.cuh"

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                      \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

namespace {

template <class T> T *device(size_t n) {
  void *p = nullptr;
  CHECK(cudaMalloc(&p, n * sizeof(T)) == cudaSuccess);
  return static_cast<T *>(p);
}
template <class T> void send(T *to, const T *from, size_t n) {
  CHECK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
}
template <class T> void fetch(T *to, const T *from, size_t n) {
  CHECK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
}
template <class... P> cudaError_t start(void (*kernel)(P...), dim3 grid, dim3 block, P... args) {
  return lm_emulated_start<P...>(kernel, grid, block, 0, nullptr, args...);
}
void faults(cudaError_t got, cudaError_t expected, const char *text) {
  CHECK(got == expected);
  printf("%s\n", cudaGetErrorString(got));
  CHECK(strstr(cudaGetErrorString(got), text) != nullptr);
  CHECK(cudaDeviceSynchronize() == expected); /* for ever */
}

/* ---- threads that work together ---- */

LM_GLOBAL together(float *out, unsigned *votes) {
  const int i = (int)threadIdx.x;
  out[i] = lm__block_reduce<lm__sum, 256>((float)i, 0.0f) +
           lm__block_reduce<lm__max, 256>((float)i, -1.0f);
  out[256 + i] = __shfl_down_sync(0xffffffffu, (float)i, 1);
  out[512 + i] = __shfl_sync(0xffffffffu, (float)i, 3, 8);
  const unsigned half = i % 32 < 16 ? 0x0000ffffu : 0xffff0000u; /* two groups at once */
  out[768 + i] = __shfl_xor_sync(half, (float)i, 1);
  votes[i] = __ballot_sync(0xffffffffu, i % 3 == 0);
}
void check_together() {
  float *out = device<float>(1024), got[1024];
  unsigned *votes = device<unsigned>(256), ballots[256];
  CHECK((start<float *, unsigned *>(together, 1, 256, out, votes)) == cudaSuccess);
  fetch(got, out, 1024);
  fetch(ballots, votes, 256);
  for (int i = 0; i < 256; i++) {
    CHECK(got[i] == 255.0f * 128 + 255);
    CHECK(got[256 + i] == (float)(i % 32 == 31 ? i : i + 1));
    CHECK(got[512 + i] == (float)(i / 8 * 8 + 3));
    CHECK(got[768 + i] == (float)(i ^ 1));
    for (int j = 0; j < 32; j++) CHECK((ballots[i] >> j & 1) == ((i / 32 * 32 + j) % 3 == 0));
  }
}

/* ---- tensor cores ---- */

/* d = a b: a (16, 16), b (16, 8) or its transpose, bf16, through shared memory. */
LM_GLOBAL product(float *d, const lm_bf16 *a, const lm_bf16 *b, int b_is_transposed) {
  LM_SHARED(lm_bf16, rows, [16][24]);
  LM_SHARED(lm_bf16, cols, [16][24]);
  const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 32; i += 32) {
    lm__copy_async(&rows[i / 2][i % 2 * 8], a + i / 2 * 16 + i % 2 * 8);
    if (b_is_transposed) {
      if (i < 16) lm__copy_async(&cols[i / 2][i % 2 * 8], b + i / 2 * 16 + i % 2 * 8);
    } else if (i < 16) {
      lm__copy_async(&cols[i][0], b + i * 8);
    }
  }
  lm__commit_copies();
  lm__wait_copies<0>();
  __syncthreads();
  uint32_t fa[4], fb[2];
  lm__load_matrices<false>(fa, &rows[lane % 8 + lane / 8 % 2 * 8][lane / 16 * 8]);
  if (b_is_transposed)
    lm__load_matrices<false>(fb, &cols[lane % 8][lane / 8 % 2 * 8]);
  else
    lm__load_matrices<true>(fb, &cols[lane % 16][0]);
  float sum[4] = {1, 1, 1, 1};
  lm__mma(sum, fa, fb);
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}
void check_product() {
  lm_bf16 a[256], b[128], b_turned[128];
  float want[128], got[128];
  for (int i = 0; i < 256; i++) a[i].bits = lm_f32_to_bf16((float)((i * 7 + 3) % 31 - 15));
  for (int k = 0; k < 16; k++)
    for (int n = 0; n < 8; n++)
      b[k * 8 + n] = b_turned[n * 16 + k] = {lm_f32_to_bf16((float)((k * 5 + n * 11) % 23 - 11))};
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 8; n++) {
      want[m * 8 + n] = 1;
      for (int k = 0; k < 16; k++)
        want[m * 8 + n] += lm_bf16_to_f32(a[m * 16 + k].bits) * lm_bf16_to_f32(b[k * 8 + n].bits);
    }
  float *d = device<float>(128);
  lm_bf16 *da = device<lm_bf16>(256), *db = device<lm_bf16>(128);
  send(da, a, 256);
  for (int turned = 0; turned < 2; turned++) {
    send(db, turned ? b_turned : b, 128);
    CHECK((start<float *, const lm_bf16 *, const lm_bf16 *, int>(product, 1, 32, d, da, db,
                                                                 turned)) == cudaSuccess);
    fetch(got, d, 128);
    CHECK(memcmp(got, want, sizeof got) == 0);
  }
}

/* ---- copies that must be waited for, memory that must be written ---- */

LM_GLOBAL pipeline(const float *in, float *out) {
  LM_SHARED(float, two, [2][4]);
  LM_SHARED(float, unset, [4]);
  lm__copy_async(two[0], in);
  lm__commit_copies();
  lm__copy_async(two[1], in + 4, false);
  lm__commit_copies();
  out[0] = two[0][0];
  lm__wait_copies<1>();
  out[1] = two[0][3];
  out[2] = two[1][3];
  lm__wait_copies<0>();
  out[3] = two[1][3];
  out[4] = unset[2];
}
void check_pipeline() {
  const float values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float *in = device<float>(8), *out = device<float>(6), got[6];
  send(in, values, 8);
  CHECK((start<const float *, float *>(pipeline, 1, 1, in, out)) == cudaSuccess);
  fetch(got, out, 6);
  CHECK(got[0] != got[0] && got[1] == 4 && got[2] != got[2] && got[3] == 0);
  CHECK(got[4] != got[4]); /* shared memory */
  CHECK(got[5] != got[5]); /* device memory */
}

/* ---- what is found ---- */

LM_GLOBAL write_at(float *p, long long at) {
  if (threadIdx.x == 5) p[at] = 1;
}
void check_beyond() {
  faults((start<float *, long long>(write_at, 1, 8, device<float>(100), 100)),
         cudaErrorIllegalAddress,
         "from the start of a block of 400 bytes; block (0, 0, 0), thread (5, 0, 0)");
}
void check_freed() {
  float *p = device<float>(100);
  CHECK(cudaFree(p) == cudaSuccess);
  faults((start<float *, long long>(write_at, 1, 8, p, 0)), cudaErrorIllegalAddress,
         "not allocated");
}
void check_host_pointer() {
  float here[8];
  faults((start<float *, long long>(write_at, 1, 8, here, 0)), cudaErrorIllegalAddress,
         "a kernel was given");
}
void check_beside() {
  char *p = device<char>(13); /* three bytes short of what is aligned */
  float *q = reinterpret_cast<float *>(p);
  CHECK((start<float *, long long>(write_at, 1, 8, q, 3)) == cudaSuccess);
  faults(cudaFree(p), cudaErrorIllegalAddress, "written beside a block of 13 bytes");
}

LM_GLOBAL part_at_barrier(int *out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncwarp();
  if (threadIdx.x >= 32) (void)__shfl_sync(threadIdx.x == 40 ? 0xffffffffu : 0xfffffeffu, 1, 0);
  out[threadIdx.x] = 1;
}
void check_barrier() {
  faults((start<int *>(part_at_barrier, 1, 64, device<int>(64))), cudaErrorLaunchFailure,
         "waits for ever");
}
LM_GLOBAL lane_missing(int *out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
}
void check_lane() {
  faults((start<int *>(lane_missing, 1, 32, device<int>(32))), cudaErrorLaunchFailure,
         "__shfl_xor_sync with mask ffffffff waits for ever");
}
LM_GLOBAL early_end(int *out) {
  if (threadIdx.x % 2) return; /* who has ended is not waited for */
  __syncthreads();
  out[threadIdx.x] = 1;
}
void check_early_end() {
  int *out = device<int>(64), got[64];
  CHECK((start<int *>(early_end, 2, 64, out)) == cudaSuccess);
  fetch(got, out, 64);
  CHECK(got[0] == 1 && got[62] == 1 && got[1] == -1);
}

/* ---- graphs ---- */

LM_GLOBAL add(float *p, float by) { p[threadIdx.x] += by; }
void check_graph() {
  cudaStream_t stream;
  cudaGraph_t graph[2];
  cudaGraphExec_t exec;
  cudaGraphExecUpdateResultInfo info;
  float *p = device<float>(4), got[4];
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  for (int i = 0; i < 2; i++) {
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK(cudaMemsetAsync(p, 0, 16, stream) == cudaSuccess);
    const float by = i == 0 ? 1.5f : 2.5f;
    CHECK((lm_emulated_start<float *, float>(add, 1, 4, 0, stream, p, by)) == cudaSuccess);
    CHECK((lm_emulated_start<float *, float>(add, 1, 4, 0, stream, p, by)) == cudaSuccess);
    CHECK(cudaStreamEndCapture(stream, &graph[i]) == cudaSuccess);
  }
  CHECK(cudaGraphInstantiate(&exec, graph[0], 0) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
  fetch(got, p, 4);
  CHECK(got[3] == 3);
  CHECK(cudaGraphExecUpdate(exec, graph[1], &info) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
  fetch(got, p, 4);
  CHECK(got[0] == 5);
}

/* Each of these ends a capture. */
void check_misuse() {
  cudaStream_t stream, other;
  cudaEvent_t event;
  float *p = device<float>(4), here[4] = {};
  void *memory = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaEventCreate(&event) == cudaSuccess && cudaEventRecord(event, other) == cudaSuccess);
  for (int i = 0;; i++) {
    cudaGraph_t graph;
    cudaError_t error = cudaSuccess;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK((lm_emulated_start<float *, float>(add, 1, 4, 0, stream, p, 1)) == cudaSuccess);
    switch (i) {
      case 0:
        error = cudaStreamSynchronize(stream);
        break;
      case 1:
        error = cudaStreamQuery(stream);
        break;
      case 2:
        error = cudaDeviceSynchronize();
        break;
      case 3:
        error = cudaEventQuery(event);
        break;
      case 4:
        error = cudaEventSynchronize(event);
        break;
      case 5:
        error = cudaMalloc(&memory, 8);
        break;
      case 6:
        error = cudaFree(p);
        break;
      case 7:
        error = cudaHostAlloc(&memory, 8, cudaHostAllocDefault);
        break;
      case 8:
        error = cudaMallocAsync(&memory, 8, stream);
        break;
      case 9:
        error = cudaMemcpy(here, p, 16, cudaMemcpyDeviceToHost);
        break;
      case 10: /* pageable memory */
        error = cudaMemcpyAsync(here, p, 16, cudaMemcpyDeviceToHost, stream);
        break;
      case 11: /* the legacy stream */
        (void)lm_emulated_start<float *, float>(add, 1, 4, 0, nullptr, p, 1);
        error = cudaErrorStreamCaptureUnsupported;
        break;
      default: /* memory of another stream is not the capture's business */
        CHECK(cudaMallocAsync(&memory, 8, other) == cudaSuccess);
        CHECK(cudaFreeAsync(memory, other) == cudaSuccess);
        CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess && graph);
        return;
    }
    CHECK(error == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph);
    (void)cudaGetLastError();
  }
}

const struct {
  const char *name;
  void (*run)();
} checks[] = {
    {"together", check_together},   {"product", check_product},
    {"pipeline", check_pipeline},   {"beyond", check_beyond},
    {"freed", check_freed},         {"host_pointer", check_host_pointer},
    {"beside", check_beside},       {"barrier", check_barrier},
    {"lane", check_lane},           {"graph", check_graph},
    {"early_end", check_early_end}, {"misuse", check_misuse},
};
} // namespace

int main(int argc, char **argv) {
  for (const auto &check : checks)
    if (argc == 2 && strcmp(argv[1], check.name) == 0) {
      check.run();
      return 0;
    }
  fprintf(stderr, "usage: emulated_checks NAME\n");
  return 2;
}
