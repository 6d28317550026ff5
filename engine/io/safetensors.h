/* What the reader and the writer of safetensors files share: the format's limits and dtypes. */
#ifndef LM_IO_SAFETENSORS_H
#define LM_IO_SAFETENSORS_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors files are little-endian and are read and written as they lie in memory"
#endif

/* Bytes of the u64 that starts a file, and the longest JSON header that may follow it. */
enum { LM__ST_PREFIX = 8, LM__ST_MAX_HEADER = 100000000 };

typedef struct lm__st_dtype {
  const char *name;
  uint32_t bits;
  int dtype; /* enum lm_dtype, or -1: in the format, but no tensors of it here */
} lm__st_dtype;

/* By the name in a file; NULL for what the format does not have. */
const lm__st_dtype *lm__st_dtype_named(const char *name);
/* The file's name of a Lumuon dtype: "F32". */
const char *lm__st_dtype_name(int dtype);

#endif
