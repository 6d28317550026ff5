/* Packed products in bf16 with AVX-512 BF16: 8 rows by 2 vectors of columns in registers. A row's
 * pair of elements is one 32-bit broadcast; the eight of a step lie side by side. */
#include <immintrin.h>
#include <stdint.h>

#define LM__UNIT 32
#define LM__LEFT words
static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c);
#include "cpu/packed/driver.h"

#define LM__ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* c (8 rows of 32 columns) (+)= half a panel of the left operand times two of the right. The rows'
 * sums have names: compilers differ in whether they keep an array of vectors in registers. */
static void eight_rows(bool more, int64_t tiles, const char *a, const char *b, int64_t panel,
                       float *c) {
#define LM__START(r)                                                                               \
  __m512 u##r = more ? _mm512_load_ps(c + (r)*LM__BLOCK) : _mm512_setzero_ps();                    \
  __m512 v##r = more ? _mm512_load_ps(c + (r)*LM__BLOCK + 16) : _mm512_setzero_ps();
#define LM__STEP(r)                                                                                \
  {                                                                                                \
    int32_t pair;                                                                                  \
    memcpy(&pair, a + p * 64 + (r)*4, 4);                                                          \
    const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);                                          \
    u##r = _mm512_dpbf16_ps(u##r, x, b0);                                                          \
    v##r = _mm512_dpbf16_ps(v##r, x, b1);                                                          \
  }
#define LM__KEEP(r)                                                                                \
  _mm512_store_ps(c + (r)*LM__BLOCK, u##r);                                                        \
  _mm512_store_ps(c + (r)*LM__BLOCK + 16, v##r);
  LM__ROWS(LM__START)
  for (int64_t t = 0; t < tiles; t++, a += LM__TILE, b += LM__TILE)
    for (ptrdiff_t p = 0; p < 16; p++) {
      const __m512bh b0 = (__m512bh)_mm512_load_si512(b + p * 64);
      const __m512bh b1 = (__m512bh)_mm512_load_si512(b + panel + p * 64);
      LM__ROWS(LM__STEP)
    }
  LM__ROWS(LM__KEEP)
#undef LM__KEEP
#undef LM__STEP
#undef LM__START
}

/* k in pieces whose tiles of A and B stay in the first cache for the four passes over them. */
enum { PIECE = 8 };

static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c) {
  for (int64_t t = 0; t < tiles; t += PIECE, a += PIECE * LM__TILE, b += PIECE * LM__TILE)
    for (int eight = 0; eight < 4; eight++)
      eight_rows(t > 0, tiles - t < PIECE ? tiles - t : PIECE,
                 a + eight / 2 * panel + (ptrdiff_t)(eight % 2) * 32, b, panel,
                 c + (ptrdiff_t)eight * 8 * LM__BLOCK);
}

extern const lm__packed_kernel lm__packed_avx512_bf16;
const lm__packed_kernel lm__packed_avx512_bf16 = {.name = "avx512_bf16",
                                                  .dtype = LM_BF16,
                                                  .unit = LM__UNIT,
                                                  .strip = strip,
                                                  .emit = emit,
                                                  .read = read};
