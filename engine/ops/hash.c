/* A 64-bit hash of a tensor's bytes, to compare what different processes hold: not for secrets.
 * Four lanes of multiply-and-rotate over words of 8 bytes (the inner loop of xxHash64, Collet
 * 2012), with dtype and size mixed in. */
#include <string.h>

#include "backend/backend.h"
#include "core/error.h"

static uint64_t rotate(uint64_t x, int n) { return x << n | x >> (64 - n); }

static uint64_t mix(uint64_t lane, uint64_t word) {
  return rotate(lane + word * 0xC2B2AE3D27D4EB4FULL, 31) * 0x9E3779B185EBCA87ULL;
}

static uint64_t hash_bytes(const unsigned char *p, size_t n, uint64_t seed) {
  uint64_t lanes[4] = {seed, seed + 1, seed + 2, seed + 3}, words[4];
  for (; n >= sizeof words; n -= sizeof words, p += sizeof words) {
    memcpy(words, p, sizeof words);
    for (int i = 0; i < 4; i++) lanes[i] = mix(lanes[i], words[i]);
  }
  memset(words, 0, sizeof words);
  memcpy(words, p, n);
  for (int i = 0; i < 4; i++) lanes[i] = mix(lanes[i], words[i]);
  uint64_t h = seed;
  for (int i = 0; i < 4; i++) h = mix(h, lanes[i]);
  h = (h ^ h >> 33) * 0xC2B2AE3D27D4EB4FULL;
  h = (h ^ h >> 29) * 0x9E3779B185EBCA87ULL;
  return h ^ h >> 32;
}

int lm_hash(uint64_t *out, const lm_tensor *t) {
  LM__TRY(lm__begin("hash", 1, t));
  if (t->device != LM_CPU)
    return lm__fail(LM_EDEVICE, "hash: the tensor lies on %s; use :to(\"cpu\")",
                    lm_device_name(t->device));
  LM__TRY(lm__need_contiguous("hash", "the tensor", t));
  const size_t bytes = (size_t)lm__numel(t) * (size_t)lm_dtype_size(t->dtype);
  *out = hash_bytes(lm__data(t), bytes, (uint64_t)t->dtype << 56 ^ (uint64_t)bytes);
  return LM_OK;
}
