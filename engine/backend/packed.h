/* How Muon's products are done on the CPU: kernels there are, the path asked for, what was done. */
#ifndef LM_BACKEND_PACKED_H
#define LM_BACKEND_PACKED_H

#include "cpu/packed.h"
#include "lumuon.h"

void lm__muon_done(const lm_muon_report *report);

#endif
