#include "core/tensor.h"

static const struct {
  const char *name;
  int size;
} dtypes[LM_DTYPES] = {
    [LM_F32] = {"f32", 4}, [LM_BF16] = {"bf16", 2}, [LM_F16] = {"f16", 2},
    [LM_I32] = {"i32", 4}, [LM_U16] = {"u16", 2},   [LM_U8] = {"u8", 1},
};

const char *lm_dtype_name(int dtype) {
  return dtype >= 0 && dtype < LM_DTYPES ? dtypes[dtype].name : NULL;
}

int lm_dtype_size(int dtype) { return dtype >= 0 && dtype < LM_DTYPES ? dtypes[dtype].size : 0; }

bool lm__is_float(int dtype) { return dtype == LM_F32 || dtype == LM_BF16 || dtype == LM_F16; }

const char *lm_device_name(int device) {
  return device == LM_CPU ? "cpu" : device == LM_CUDA ? "cuda" : NULL;
}
