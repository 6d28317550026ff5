/* Check i32 indices before anything is written. */
#ifndef LM_KERNELS_CPU_INDEX_H
#define LM_KERNELS_CPU_INDEX_H

#include "cpu/kernel.h"

/* Every element of idx (contiguous) in low..high, or LM_EINDEX naming the first that is not. `what`
 * is "index of idx"; hint follows the vocabulary's range in the message. */
static inline int lm__check_index(const char *op, const char *what, const lm_tensor *idx, int low,
                                  int64_t vocabulary, const char *hint) {
  const int32_t *p = lm__data(idx);
  const int64_t n = lm__numel(idx);
  int64_t bad = 0;
  LM_SIMD
  for (int64_t i = 0; i < n; i++) bad |= p[i] < low || p[i] >= vocabulary;
  if (!bad) return LM_OK;
  int64_t at = 0, position[LM_MAX_DIMS];
  while (p[at] >= low && p[at] < vocabulary) at++;
  int64_t rest = at;
  for (int d = idx->ndim - 1; d >= 0; d--) { /* counted from 1, as Lua does */
    position[d] = rest % idx->shape[d] + 1;
    rest /= idx->shape[d];
  }
  return lm__fail(LM_EINDEX,
                  "%s: %s %d at position %s of %s is outside the vocabulary of %lld (0 to %lld%s)",
                  op, what, (int)p[at], lm__shape_string(idx->ndim, position), lm__describe(idx),
                  (long long)vocabulary, (long long)vocabulary - 1, hint);
}

#endif
