/* Copies between devices. */
#ifndef LM_OPS_TRANSFER_H
#define LM_OPS_TRANSFER_H

#include "core/tensor.h"

/* lm_copy for tensors on different devices: cast where the source lies, sent as contiguous bytes.
 */
int lm__transfer(lm_tensor *dst, const lm_tensor *src);

#endif
