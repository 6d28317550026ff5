/* Packed products in bf16 with AMX: a block is 2 x 2 tiles of f32, kept in tile registers while k
 * runs. Compiled twice: with AMX for the instructions, and without, on any CPU, with the tiles and
 * their three instructions in plain C, which checks packing, tile layout and driver where there is
 * no AMX. The instructions have run in an emulator, with the bits of the plain C (docs/log.md), not
 * yet on a CPU. */
#include <stdint.h>

#define LM__UNIT 32
#define LM__LEFT rows
static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c);
#include "cpu/packed/driver.h"

#ifdef LM_HAVE_AMX
#include <immintrin.h>

/* Palette 1: eight tiles of 16 rows of 64 bytes. */
static void tiles_begin(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    config.bytes[i] = 64;
    config.rows[i] = 16;
  }
  __asm__ volatile("" ::"m"(config)
                   : "memory"); /* gcc 12 does not see that the next line reads it */
  _tile_loadconfig(&config);
}
static void tiles_end(void) { _tile_release(); }
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, p) _tile_loadd(t, p, 64)
#define TILE_STORE(t, p, bytes) _tile_stored(t, p, bytes)
#define TILE_DP(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILES

#else
/* The instructions as the manual gives them: even and odd elements are summed apart over a tile. */
typedef union tile {
  uint16_t pairs[16][16][2];
  float f32[16][16];
} tile;

static void tile_dp(tile *c, const tile *a, const tile *b) {
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      float sum[2] = {0, 0};
      for (int k = 0; k < 16; k++)
        for (int e = 0; e < 2; e++)
          sum[e] += lm_bf16_to_f32(a->pairs[m][k][e]) * lm_bf16_to_f32(b->pairs[k][n][e]);
      c->f32[m][n] += sum[0] + sum[1];
    }
}
static void tile_store(const tile *t, char *to, int64_t bytes) {
  for (int r = 0; r < 16; r++) memcpy(to + r * bytes, t->f32[r], 64);
}
#define TILE_ZERO(t) memset(&tmm[t], 0, sizeof(tile))
#define TILE_LOAD(t, p) memcpy(&tmm[t], p, sizeof(tile))
#define TILE_STORE(t, p, bytes) tile_store(&tmm[t], (char *)(p), bytes)
#define TILE_DP(c, a, b) tile_dp(&tmm[c], &tmm[a], &tmm[b])
#define TILES tile tmm[8];
static void tiles_begin(void) {}
static void tiles_end(void) {}
#endif

static void product_block(int64_t tiles, const char *a, const char *b, int64_t panel, float *c) {
  enum { ROW = LM__BLOCK * sizeof(float) };
  TILES
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  for (int64_t t = 0; t < tiles; t++, a += LM__TILE, b += LM__TILE) {
    TILE_LOAD(4, a);
    TILE_LOAD(5, a + panel);
    TILE_LOAD(6, b);
    TILE_LOAD(7, b + panel);
    TILE_DP(0, 4, 6);
    TILE_DP(1, 4, 7);
    TILE_DP(2, 5, 6);
    TILE_DP(3, 5, 7);
  }
  TILE_STORE(0, c, ROW);
  TILE_STORE(1, c + 16, ROW);
  TILE_STORE(2, c + 16 * LM__BLOCK, ROW);
  TILE_STORE(3, c + 16 * LM__BLOCK + 16, ROW);
}

/* Tile registers are configured while a strip runs and given back after it: an open configuration
 * makes each switch of threads dearer. */
static void tile_strip(const lm__product *p, int64_t s, char *temp) {
  tiles_begin();
  strip(p, s, temp);
  tiles_end();
}

#ifdef LM_HAVE_AMX
extern const lm__packed_kernel lm__packed_amx_bf16;
const lm__packed_kernel lm__packed_amx_bf16 = {.name = "amx_bf16",
#else
extern const lm__packed_kernel lm__packed_portable_bf16;
const lm__packed_kernel lm__packed_portable_bf16 = {.name = "portable_bf16",
#endif
                                               .dtype = LM_BF16,
                                               .unit = LM__UNIT,
                                               .left_by_rows = true,
                                               .strip = tile_strip,
                                               .emit = emit,
                                               .read = read};
