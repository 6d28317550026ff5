/* wgmma carried out lane by lane, its operands found in shared memory through the descriptors as
 * the PTX manual lays them out. A product is computed when it is issued, from what lies in memory
 * then, and its accumulators come back when they are waited for: until then they are NaNs. What
 * must not be: memory that changes between the two, accumulators written meanwhile, a fence left
 * out, warps of a group that go different ways. */
#include <stdlib.h>
#include <string.h>

#include "cuda/emulated/internal.h"
#include "math/float.h"

enum { LANES = 1024, GROUP = 128, MOST = 128, K = 16, PENDING = 64, RING = 64 };

typedef struct product {
  uint64_t a, b;
  uint32_t check; /* of the operands as they were */
  unsigned number;
  bool transposed;
  int group;
} product;

typedef struct accumulators {
  float *registers; /* the lane's own, while a product is under way; else NULL */
  int n, pending, group;
  bool fenced;
  unsigned issued;
  float sums[MOST];
  product products[PENDING];
} accumulators;

static accumulators lanes[LANES];
static struct {          /* what a warp's lanes read together */
  unsigned number, seen; /* of the product; of the last that was looked at again */
  uint32_t check;
  float a[16][K], b[MOST * 2][K];
} warps[LANES / 32];
static struct {
  uint64_t a, b;
  unsigned number;
} issued[LANES / GROUP][RING];

static accumulators *mine(void) { return &lanes[lm_emulated_self->linear]; }

/* ---- operands ---- */

static uint64_t field(uint64_t descriptor, int first, int bits) {
  return descriptor >> first & (((uint64_t)1 << bits) - 1);
}

static float element(uint64_t descriptor, bool transposed, int row, int k) {
  const uint32_t start = (uint32_t)field(descriptor, 0, 14) << 4;
  const uint32_t leading = (uint32_t)field(descriptor, 16, 14) << 4;
  const uint32_t stride = (uint32_t)field(descriptor, 32, 14) << 4;
  uint32_t at = start;
  uint16_t bits;
  if (transposed) /* 64 rows side by side; 8 of k 128 bytes apart */
    at += (uint32_t)(row % 64 * 2 + k % 8 * 128) + (uint32_t)(row / 64) * leading +
          (uint32_t)(k / 8) * stride;
  else /* k side by side; 8 rows 128 bytes apart */
    at += (uint32_t)(k * 2 + row % 8 * 128) + (uint32_t)(row / 8) * stride;
  at ^= (at >> 7 & 7) << 4;
  memcpy(&bits, lm_emulated_shared_at(at, 2), 2);
  return lm_bf16_to_f32(bits);
}

/* Both operands of a warp; returns a number that tells whether they are the same. */
static uint32_t read_operands(const product *p, int n, float (*a)[K], float (*b)[K]) {
  const int warp = (int)(lm_emulated_self->linear / 32 % 4);
  uint32_t check = 2166136261u;
  for (int row = 0; row < 16 + 2 * n; row++)
    for (int k = 0; k < K; k++) {
      const float x = row < 16 ? element(p->a, p->transposed, 16 * warp + row, k)
                               : element(p->b, p->transposed, row - 16, k);
      *(row < 16 ? &a[row][k] : &b[row - 16][k]) = x;
      check = (check ^ lm_f32_bits(x)) * 16777619u;
    }
  return check;
}

/* The lane's part of a b, added to its sums. */
static void multiply(accumulators *s, product *p) {
  const unsigned warp = lm_emulated_self->linear / 32;
  const int lane = (int)(lm_emulated_self->linear % 32);
  if (warps[warp].number != p->number) {
    warps[warp].number = p->number;
    warps[warp].check = read_operands(p, s->n, warps[warp].a, warps[warp].b);
  }
  p->check = warps[warp].check;
  for (int i = 0; i < s->n; i++) { /* d[4 j + 2 h + e]: row g + 8 h, column 8 j + 2 t + e */
    const float *a = warps[warp].a[lane / 4 + i / 2 % 2 * 8];
    const float *b = warps[warp].b[i / 4 * 8 + lane % 4 * 2 + i % 2];
    float sum = 0;
    for (int k = 0; k < K; k++) sum += a[k] * b[k];
    s->sums[i] += sum;
  }
}

/* Are the operands still what they were? One lane of a warp looks. */
static void look_again(const accumulators *s, const product *p) {
  static float a[16][K], b[MOST * 2][K];
  const unsigned warp = lm_emulated_self->linear / 32;
  if (warps[warp].seen >= p->number) return;
  warps[warp].seen = p->number;
  if (read_operands(p, s->n, a, b) != p->check)
    lm_emulated_fail("wgmma: its operands in shared memory have changed before it was done");
}

static void check_descriptor(uint64_t d) {
  if (field(d, 62, 2) != 1)
    lm_emulated_fail("wgmma: only swizzles of 128 bytes are emulated, this descriptor has mode %d",
                     (int)field(d, 62, 2));
  if (field(d, 49, 3) || field(d, 14, 2) || field(d, 30, 2) || field(d, 46, 3) || field(d, 52, 10))
    lm_emulated_fail("wgmma: descriptor %016llx has bits where none belong", (unsigned long long)d);
}

/* As on a GPU that does something else. */
static bool wrong(void) {
  const char *how = getenv("LUMUON_EMULATED_WGMMA");
  return how && strcmp(how, "wrong") == 0;
}

/* ---- the instructions ---- */

void lm_emulated_wgmma_fence(void) {
  lm_emulated_meet("wgmma.fence", 0xffffffffu);
  mine()->fenced = true;
}

void lm_emulated_wgmma(float *d, int n, uint64_t a, uint64_t b, bool transposed) {
  accumulators *s = mine();
  const unsigned group = lm_emulated_self->linear / GROUP;
  const uint64_t both[2] = {a, b};
  const void *slots = lm_emulated_exchange("wgmma", 0xffffffffu, both, sizeof both);
  for (int i = 0; i < 32; i++)
    if (memcmp((const char *)slots + (size_t)i * LM_EMULATED_SLOT, both, sizeof both) != 0)
      lm_emulated_fail("wgmma: the lanes of a warp have different descriptors");
  lm_emulated_leave(slots);
  const unsigned number = ++s->issued, place = number % RING;
  if (issued[group][place].number != number) { /* the group's first warp */
    issued[group][place].number = number;
    issued[group][place].a = a;
    issued[group][place].b = b;
  } else if (issued[group][place].a != a || issued[group][place].b != b) {
    lm_emulated_fail("wgmma: the warps of a group have different descriptors");
  }
  check_descriptor(a);
  check_descriptor(b);
  if (lm_emulated_unfenced())
    lm_emulated_fail("wgmma: what a thread copied to shared memory has had no fence.proxy.async");
  if (s->registers && s->registers != d)
    lm_emulated_fail("wgmma: only one set of accumulators at a time is emulated");
  if (s->pending == PENDING) lm_emulated_fail("wgmma: too many under way");
  if (!s->registers) {
    if (!s->fenced) lm_emulated_fail("wgmma: its accumulators have had no wgmma.fence");
    s->registers = d;
    s->n = n;
    memcpy(s->sums, d, (size_t)n * sizeof *d);
    memset(d, 0xFF, (size_t)n * sizeof *d);
  }
  product *p = &s->products[s->pending++];
  *p = (product){.a = a, .b = b, .number = s->issued, .transposed = transposed, .group = s->group};
  multiply(s, p);
}

void lm_emulated_wgmma_commit(void) {
  lm_emulated_meet("wgmma.commit_group", 0xffffffffu);
  mine()->group++;
}

void lm_emulated_wgmma_wait(int all_but) {
  accumulators *s = mine();
  int kept = 0;
  lm_emulated_meet("wgmma.wait_group", 0xffffffffu);
  for (int i = 0; i < s->pending; i++) {
    const product p = s->products[i];
    if (p.group >= s->group - all_but)
      s->products[kept++] = p;
    else
      look_again(s, &p);
  }
  s->pending = kept;
  if (kept > 0 || !s->registers) return;
  for (int i = 0; i < s->n; i++)
    if (lm_f32_bits(s->registers[i]) != 0xFFFFFFFFu)
      lm_emulated_fail("wgmma: accumulator %d was written before it was waited for", i);
  if (wrong()) s->sums[0] += 1;
  memcpy(s->registers, s->sums, (size_t)s->n * sizeof *s->sums);
  s->registers = NULL;
  s->fenced = false;
}

/* ---- lanes begin and end ---- */

void lm_emulated_wgmma_begin(unsigned lane) {
  accumulators *s = &lanes[lane];
  s->registers = NULL;
  s->pending = s->group = 0;
  s->fenced = false;
  s->issued = 0;
  warps[lane / 32].number = warps[lane / 32].seen = 0;
  if (lane == 0) memset(issued, 0, sizeof issued);
}

void lm_emulated_wgmma_end(void) {
  if (mine()->registers) lm_emulated_fail("wgmma: the thread has ended before it was done");
}
