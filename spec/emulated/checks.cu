/* What the emulated CUDA promises (docs/cuda.md): a program of checks, one named on the command
 * line. Built with -DLUMUON_CUDA=emulated; spec/emulated_spec.lua runs it. */
#include <initializer_list>

#include "check.h"
#include "cuda/mma.cuh"
#include "cuda/reduce.cuh"

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
  out[blockIdx.x * 64 + threadIdx.x] = 1;
}
void check_early_end() {
  int *out = device<int>(128), got[64];
  CHECK((start<int *>(early_end, 2, 64, out)) == cudaSuccess);
  fetch(got, out, 64);
  CHECK(got[0] == 1 && got[62] == 1 && got[1] == -1);
}

/* ---- races, addresses ---- */

/* Each thread tells the next one: with a barrier that orders both, or one that does not. */
enum { BLOCK_BARRIER, WARP_BARRIER, SHUFFLE };
LM_GLOBAL tell(int *out, int barrier) {
  LM_SHARED(int, told, [64]);
  const int i = (int)threadIdx.x;
  told[i] = i;
  if (barrier == BLOCK_BARRIER)
    __syncthreads();
  else if (barrier == WARP_BARRIER)
    __syncwarp();
  else
    (void)__shfl_sync(0xffffffffu, i, 0);
  out[i] = told[(i + 1) % (int)blockDim.x];
  __syncthreads();
  if (barrier == BLOCK_BARRIER) told[(i + 2) % (int)blockDim.x] = 1; /* after it was read */
}
cudaError_t start_tell(int threads, int barrier) {
  return start<int *, int>(tell, 1, (unsigned)threads, device<int>(64), barrier);
}
void check_ordered() {
  CHECK(start_tell(64, BLOCK_BARRIER) == cudaSuccess);
  CHECK(start_tell(32, WARP_BARRIER) == cudaSuccess);
}
void check_race() {
  faults(start_tell(64, WARP_BARRIER), cudaErrorLaunchFailure, "with no barrier between");
}
void check_warp_race() {
  faults(start_tell(32, SHUFFLE), cudaErrorLaunchFailure, "with no barrier between");
}

/* Two threads write halves of a word, which is none; then one reads what the other writes late. */
LM_GLOBAL late(uint16_t *out) {
  LM_SHARED(uint16_t, halves, [2]);
  halves[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = halves[0];
  if (threadIdx.x == 1) halves[0] = 2;
}
void check_late_write() {
  faults((start<uint16_t *>(late, 1, 2, device<uint16_t>(2))), cudaErrorLaunchFailure,
         "a race: byte 0 of static shared memory");
}

/* Blocks share an element, by an atomic and then without. */
LM_GLOBAL share(int *p, bool atomic) {
  if (atomic)
    atomicAdd(p, 1);
  else
    *p += 1;
}
void check_blocks() {
  int *p = device<int>(4);
  CHECK((start<int *, bool>(share, 2, 1, p, true)) == cudaSuccess);
  CHECK((start<int *, bool>(share, 1, 1, p, false)) == cudaSuccess); /* launches are in order */
  CHECK((start<int *, bool>(share, 1, 1, p, false)) == cudaSuccess);
  faults((start<int *, bool>(share, 2, 1, p, false)), cudaErrorLaunchFailure,
         "written by block number 0 of the launch");
}

LM_GLOBAL copy_pack(float *p, int from) { lm__store_pack(p, lm__load_pack(p + from)); }
void check_aligned() {
  float *p = device<float>(12);
  CHECK((start<float *, int>(copy_pack, 1, 1, p, 4)) == cudaSuccess);
  faults((start<float *, int>(copy_pack, 1, 1, p, 2)), cudaErrorLaunchFailure,
         "a misaligned address: 16 bytes at once");
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

/* Each of these ends a capture; `relaxed` ones only where it is not in relaxed mode. */
void check_misuse() {
  static cudaStream_t stream, other;
  static cudaEvent_t event, within;
  static float *p, here[4];
  static void *memory, *given;
  const struct {
    bool relaxed;
    cudaError_t (*call)();
  } calls[] = {
      {false, [] { return cudaStreamSynchronize(stream); }},
      {false, [] { return cudaStreamQuery(stream); }},
      {false, [] { return cudaDeviceSynchronize(); }},
      {false, [] { return cudaEventQuery(within); }},
      {false, [] { return cudaFree(p); }},
      {false, [] { return cudaMallocAsync(&memory, 8, stream); }},
      {false, [] { return cudaMemcpy(here, p, 16, cudaMemcpyDeviceToHost); }},
      {false, /* pageable memory */
       [] { return cudaMemcpyAsync(here, p, 16, cudaMemcpyDeviceToHost, stream); }},
      {false, /* the legacy stream */
       [] {
         (void)lm_emulated_start<float *, float>(add, 1, 4, 0, nullptr, p, 1);
         return cudaErrorStreamCaptureUnsupported;
       }},
      {true, [] { return cudaEventQuery(event); }},
      {true, [] { return cudaEventSynchronize(event); }},
      {true, [] { return cudaMalloc(&memory, 8); }},
      {true, [] { return cudaHostAlloc(&memory, 8, cudaHostAllocDefault); }},
      {true, [] { return cudaMallocAsync(&memory, 8, other); }},
      {true, [] { return cudaFreeAsync(given, other); }},
  };
  p = device<float>(4);
  given = device<float>(4);
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaEventCreate(&event) == cudaSuccess && cudaEventRecord(event, other) == cudaSuccess);
  CHECK(cudaEventCreate(&within) == cudaSuccess);
  for (const auto mode : {cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed})
    for (const auto &one : calls) {
      cudaGraph_t graph;
      const bool fine = one.relaxed && mode == cudaStreamCaptureModeRelaxed;
      CHECK(cudaStreamBeginCapture(stream, mode) == cudaSuccess);
      CHECK((lm_emulated_start<float *, float>(add, 1, 4, 0, stream, p, 1)) == cudaSuccess);
      CHECK(cudaEventRecord(within, stream) == cudaSuccess);
      CHECK(one.call() == (fine ? cudaSuccess : cudaErrorStreamCaptureUnsupported));
      CHECK(cudaStreamEndCapture(stream, &graph) ==
            (fine ? cudaSuccess : cudaErrorStreamCaptureInvalidated));
      CHECK((graph != nullptr) == fine);
      (void)cudaGetLastError();
    }
}

const named_check checks[] = {
    {"together", check_together},   {"product", check_product},
    {"pipeline", check_pipeline},   {"beyond", check_beyond},
    {"freed", check_freed},         {"host_pointer", check_host_pointer},
    {"beside", check_beside},       {"barrier", check_barrier},
    {"lane", check_lane},           {"graph", check_graph},
    {"early_end", check_early_end}, {"misuse", check_misuse},
    {"ordered", check_ordered},     {"race", check_race},
    {"warp_race", check_warp_race}, {"late_write", check_late_write},
    {"blocks", check_blocks},       {"aligned", check_aligned},
};
} // namespace

int main(int argc, char **argv) { return run_named(checks, argc, argv); }
