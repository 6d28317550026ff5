/* Which path Muon's products take (enum lm_muon_path), and what the last step did. */
#ifndef LM_BACKEND_TUNING_H
#define LM_BACKEND_TUNING_H

#include <stdint.h>

#include "lumuon.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Seconds a matrix takes for `steps` steps on the given path, with random numbers; negative where
 * it failed, 0 where there is no such path for the shape. A GPU takes `count` matrices at once; the
 * CPU as many as a step of a group of `count` has in work at once, so that a measurement never
 * takes more memory than a step on that path would. */
typedef double (*lm__measure_fn)(int64_t count, int64_t rows, int64_t cols, int precision, int path,
                                 int steps);
/* The path for `count` matrices (rows, cols) on a device. measure: NULL: what is not known goes by
 * the rule. */
int lm__muon_path_for(int device, int64_t count, int64_t rows, int64_t cols, int precision,
                      lm__measure_fn measure);

/* Forget what was measured. */
void lm__muon_forget(void);

void lm__muon_done(const lm_muon_report *report);

#ifdef __cplusplus
}
#endif

#endif
