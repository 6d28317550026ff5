/* Packed products in f32, once a variant: as many rows and vectors of 16 columns as its registers
 * hold. */
#include <stdint.h>

#define LM__UNIT 16
#define LM__LEFT words
static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c);
#include "cpu/packed/driver.h"

#define LM__JOIN2(a, b) a##b
#define LM__JOIN(a, b) LM__JOIN2(a, b)
#define LM__STRING2(s) #s
#define LM__STRING(s) LM__STRING2(s)

/* LANES a vector; ROWS by VECTORS of them are summed in registers, SPAN columns. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, VECTORS = 2, SPAN = 32 };
#define LM__ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#elif defined(__AVX2__)
enum { LANES = 8, ROWS = 4, VECTORS = 2, SPAN = 16 };
#define LM__ROWS(X) X(0) X(1) X(2) X(3)
#else
enum { LANES = 4, ROWS = 2, VECTORS = 4, SPAN = 16 };
#define LM__ROWS(X) X(0) X(1)
#endif
typedef float vector __attribute__((vector_size(LANES * 4), may_alias));

/* Vector v of row k of the right operand's tiles: a panel has 16 columns of the result. */
#define LM__COLUMNS(v)                                                                             \
  (*(const vector *)(const void *)(b + (v)*LANES / 16 * panel + k * 64 + (v)*LANES % 16 * 4))

/* c (ROWS rows, SPAN columns) = rows of a left panel times right ones. The sums have names, as in
 * bf16_avx512.c. */
static void some_rows(int64_t tiles, const char *a, const char *b, int64_t panel, float *c) {
#define LM__ZERO(r) vector s##r = {0}, t##r = {0}, u##r = {0}, v##r = {0};
#define LM__STEP(r)                                                                                \
  {                                                                                                \
    const float x = ((const float *)(const void *)a)[16 * k + (r)];                                \
    s##r += x * b0;                                                                                \
    t##r += x * b1;                                                                                \
    if (VECTORS > 2) u##r += x * b2;                                                               \
    if (VECTORS > 2) v##r += x * b3;                                                               \
  }
#define LM__PUT(r, v, sum) memcpy(c + (r)*LM__BLOCK + (ptrdiff_t)(v)*LANES, &(sum), sizeof(vector));
#define LM__KEEP(r)                                                                                \
  LM__PUT(r, 0, s##r)                                                                              \
  LM__PUT(r, 1, t##r)                                                                              \
  if (VECTORS > 2) LM__PUT(r, 2, u##r)                                                             \
  if (VECTORS > 2) LM__PUT(r, 3, v##r)
  LM__ROWS(LM__ZERO)
  for (int64_t tile = 0; tile < tiles; tile++, a += LM__TILE, b += LM__TILE)
    for (ptrdiff_t k = 0; k < 16; k++) {
      const vector b0 = LM__COLUMNS(0), b1 = LM__COLUMNS(1);
      const vector b2 = VECTORS > 2 ? LM__COLUMNS(2) : b0, b3 = VECTORS > 2 ? LM__COLUMNS(3) : b0;
      LM__ROWS(LM__STEP)
    }
  LM__ROWS(LM__KEEP)
#undef LM__KEEP
#undef LM__PUT
#undef LM__STEP
#undef LM__ZERO
}

static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c) {
  for (int r = 0; r < LM__BLOCK; r += ROWS)
    for (int column = 0; column < LM__BLOCK; column += SPAN)
      some_rows(tiles, a + r / 16 * panel + (ptrdiff_t)(r % 16) * 4, b + column / 16 * panel, panel,
                c + (ptrdiff_t)r * LM__BLOCK + column);
}

#define LM__TABLE LM__JOIN(lm__packed_f32_, LM_VARIANT)
extern const lm__packed_kernel LM__TABLE;
const lm__packed_kernel LM__TABLE = {.name = LM__STRING(LM_VARIANT) "_f32",
                                     .dtype = LM_F32,
                                     .unit = LM__UNIT,
                                     .strip = strip,
                                     .emit = emit,
                                     .read = read};
