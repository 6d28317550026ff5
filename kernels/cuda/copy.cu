/* dst = value, start + i step, or src cast to dst's dtype. */
#include "cuda/walk.cuh"

namespace {

/* One element of 1, 2 or 4 bytes, the bits as they are. */
LM_DEVICE void move_bits(void *dst, int64_t i, const void *src, int64_t j, int size) {
  if (size == 4)
    static_cast<uint32_t *>(dst)[i] = static_cast<const uint32_t *>(src)[j];
  else if (size == 2)
    static_cast<uint16_t *>(dst)[i] = static_cast<const uint16_t *>(src)[j];
  else
    static_cast<uint8_t *>(dst)[i] = static_cast<const uint8_t *>(src)[j];
}

LM_GLOBAL copy_bits(lm__layout w, int size) {
  LM_GRID_STRIDE(i, w.n) {
    int64_t offset[2];
    lm__offsets<2>(w, i, offset);
    move_bits(w.data[0], offset[0], w.data[1], offset[1], size);
  }
}

/* A transpose, say: dims 0 and 1 of three (the first may be 1), src's own fast dim the other one.
 * Through a tile in shared memory, so that both sides go along their rows. */
enum { TILE = 32, TILE_ROWS = 8 };
LM_GLOBAL copy_tiles(lm__layout w, int size) {
  LM_SHARED(uint32_t, tile, [TILE][TILE + 1]);
  const int d = w.ndim - 2;
  const int64_t row0 = (int64_t)blockIdx.y * TILE, col0 = (int64_t)blockIdx.x * TILE;
  int64_t dst0 = 0, src0 = 0;
  if (d == 1) {
    dst0 = blockIdx.z * w.strides[0][0];
    src0 = blockIdx.z * w.strides[1][0];
  }
  for (int k = (int)threadIdx.y; k < TILE; k += TILE_ROWS) { /* lanes along src's fast dim: rows */
    const int64_t row = row0 + threadIdx.x, col = col0 + k;
    if (row < w.shape[d] && col < w.shape[d + 1])
      move_bits(&tile[k][threadIdx.x], 0, w.data[1],
                src0 + row * w.strides[1][d] + col * w.strides[1][d + 1], size);
  }
  __syncthreads();
  for (int k = (int)threadIdx.y; k < TILE; k += TILE_ROWS) { /* lanes along dst's: columns */
    const int64_t row = row0 + k, col = col0 + threadIdx.x;
    if (row < w.shape[d] && col < w.shape[d + 1])
      move_bits(w.data[0], dst0 + row * w.strides[0][d] + col * w.strides[0][d + 1],
                &tile[threadIdx.x][k], 0, size);
  }
}

/* Whole numbers into i32, which f32 would round. */
LM_GLOBAL copy_to_i32(lm__layout w) {
  LM_GRID_STRIDE(i, w.n) {
    int64_t offset[2];
    lm__offsets<2>(w, i, offset);
    const int32_t x = w.dtype[1] == LM_U8
                          ? reinterpret_cast<const uint8_t *>(w.data[1])[offset[1]]
                          : reinterpret_cast<const uint16_t *>(w.data[1])[offset[1]];
    reinterpret_cast<int32_t *>(w.data[0])[offset[0]] = x;
  }
}

struct cast {
  __device__ float operator()(int64_t, const float *in) const { return in[1]; }
};
struct constant {
  float value;
  __device__ float operator()(int64_t, const float *) const { return value; }
};

LM_GLOBAL fill_i32(lm__layout w, int32_t value) {
  LM_GRID_STRIDE(i, w.n) {
    int64_t offset[1];
    lm__offsets<1>(w, i, offset);
    reinterpret_cast<int32_t *>(w.data[0])[offset[0]] = value;
  }
}

LM_GLOBAL arange(char *data, int dtype, int64_t n, int64_t stride, double start, double step) {
  LM_GRID_STRIDE(i, n) {
    const double value = __dadd_rn(start, __dmul_rn((double)i, step)); /* not fused: as the CPU */
    if (dtype == LM_I32)
      reinterpret_cast<int32_t *>(data)[i * stride] = (int32_t)value;
    else
      lm__store(data, dtype, i * stride, (float)value);
  }
}
} // namespace

extern "C" int lm__fill_cuda(lm_tensor *t, double value) {
  const lm_tensor *const tensors[] = {t};
  const lm__layout w = lm__layout_of(1, tensors);
  if (w.n == 0) return LM_OK;
  if (value == 0 && w.ndim == 1 && w.strides[0][0] == 1) /* zeros are zero bits in every dtype */
    return lm__cuda_launched("fill", cudaMemsetAsync(w.data[0], 0,
                                                     (size_t)w.n * (size_t)lm_dtype_size(t->dtype),
                                                     lm__cuda_stream()));
  if (t->dtype == LM_I32) /* f32 does not hold every int32 */
    return lm__launch({"fill", lm__round_blocks(w.n, LM_THREADS), LM_THREADS}, fill_i32, w,
                      (int32_t)value);
  return lm__map<1, false>("fill", tensors, constant{(float)value});
}

extern "C" int lm__arange_cuda(lm_tensor *t, double start, double step) {
  return lm__launch({"arange", lm__round_blocks(t->shape[0], LM_THREADS), LM_THREADS}, arange,
                    static_cast<char *>(lm__data(t)), t->dtype, t->shape[0], t->strides[0], start,
                    step);
}

extern "C" int lm__copy_cuda(lm_tensor *dst, const lm_tensor *src) {
  const lm_tensor *const tensors[] = {dst, src};
  const lm__layout w = lm__layout_of(2, tensors);
  const int size = lm_dtype_size(dst->dtype), last = w.ndim - 1;
  if (w.n == 0) return LM_OK;
  if (dst->dtype != src->dtype) {
    if (dst->dtype == LM_I32 && !lm__is_float(src->dtype))
      return lm__launch({"copy", lm__round_blocks(w.n, LM_THREADS), LM_THREADS}, copy_to_i32, w);
    return lm__map<2, false>("copy", tensors, cast{});
  }
  if (w.ndim == 1 && w.strides[0][0] == 1 && w.strides[1][0] == 1)
    return lm__cuda_launched("copy",
                             cudaMemcpyAsync(w.data[0], w.data[1], (size_t)w.n * (size_t)size,
                                             cudaMemcpyDeviceToDevice, lm__cuda_stream()));
  if (last >= 1 && last <= 2 && w.strides[0][last] == 1 && w.strides[1][last - 1] == 1 &&
      w.shape[last] >= TILE && w.shape[last - 1] >= TILE && (last == 1 || w.shape[0] <= 65535) &&
      w.shape[last - 1] <= 65535 * TILE) {
    const dim3 grid(lm__blocks(w.shape[last], TILE), lm__blocks(w.shape[last - 1], TILE),
                    last == 2 ? (unsigned)w.shape[0] : 1);
    return lm__launch({"copy", grid, dim3(TILE, TILE_ROWS)}, copy_tiles, w, size);
  }
  return lm__launch({"copy", lm__round_blocks(w.n, LM_THREADS), LM_THREADS}, copy_bits, w, size);
}
