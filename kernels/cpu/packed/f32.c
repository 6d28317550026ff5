/* Packed products in f32, once a variant: as many rows and vectors of 16 columns as its registers
 * hold. Compilers break the vectors down where the CPU's are shorter. */
#include <stdint.h>

#define LM__UNIT 16
static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c);
#include "cpu/packed/driver.h"

#define LM__JOIN2(a, b) a##b
#define LM__JOIN(a, b) LM__JOIN2(a, b)
#define LM__STRING2(s) #s
#define LM__STRING(s) LM__STRING2(s)

typedef float sixteen __attribute__((vector_size(64), may_alias));

#if defined(__AVX512F__)
#define LM__ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
enum { ROWS = 8, WIDE = 1 }; /* 8 x 2 vectors */
#elif defined(__AVX2__)
#define LM__ROWS(X) X(0) X(1) X(2) X(3)
enum { ROWS = 4, WIDE = 0 }; /* 4 rows of 2 half vectors */
#else
#define LM__ROWS(X) X(0) X(1)
enum { ROWS = 2, WIDE = 0 };
#endif

static void some_rows(int64_t tiles, const char *a, const char *b, int64_t panel, float *c) {
#define LM__ZERO(r) sixteen u##r = {0}, v##r = {0};
#define LM__STEP(r)                                                                                \
  u##r += row[16 * (r)] * b0;                                                                      \
  if (WIDE) v##r += row[16 * (r)] * b1;
#define LM__KEEP(r)                                                                                \
  memcpy(c + (r)*LM__BLOCK, &u##r, 64);                                                            \
  if (WIDE) memcpy(c + (r)*LM__BLOCK + 16, &v##r, 64);
  LM__ROWS(LM__ZERO)
  for (int64_t t = 0; t < tiles; t++, a += LM__TILE, b += LM__TILE)
    for (int k = 0; k < 16; k++) {
      const float *row = (const float *)(const void *)a + k;
      const sixteen b0 = *(const sixteen *)(const void *)(b + (ptrdiff_t)k * 64);
      const sixteen b1 =
          WIDE ? *(const sixteen *)(const void *)(b + panel + (ptrdiff_t)k * 64) : b0;
      LM__ROWS(LM__STEP)
    }
  LM__ROWS(LM__KEEP)
#undef LM__KEEP
#undef LM__STEP
#undef LM__ZERO
}

static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c) {
  for (int r = 0; r < LM__BLOCK; r += ROWS)
    for (int column = 0; column < LM__BLOCK; column += WIDE ? LM__BLOCK : 16)
      some_rows(tiles, a + r / 16 * panel + (ptrdiff_t)(r % 16) * 64, b + column / 16 * panel,
                panel, c + (ptrdiff_t)r * LM__BLOCK + column);
}

#define LM__TABLE LM__JOIN(lm__packed_f32_, LM_VARIANT)
extern const lm__packed_kernel LM__TABLE;
const lm__packed_kernel LM__TABLE = {.name = LM__STRING(LM_VARIANT) "_f32",
                                     .dtype = LM_F32,
                                     .unit = LM__UNIT,
                                     .strip = strip,
                                     .emit = emit};
