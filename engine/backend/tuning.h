/* Which path Muon's products take (enum lm_muon_path), and what the last step did. */
#ifndef LM_BACKEND_TUNING_H
#define LM_BACKEND_TUNING_H

#include <stdint.h>

#include "lumuon.h"

/* The path for matrices (rows, cols). measure: seconds of `steps` steps on the given path, a matrix
 * of random numbers; negative where it failed; NULL: what is not known goes by the rule. */
typedef double (*lm__measure_fn)(int64_t rows, int64_t cols, int precision, int path, int steps);
int lm__muon_path_for(int64_t rows, int64_t cols, int precision, lm__measure_fn measure);

/* Forget what was measured. */
void lm__muon_forget(void);

void lm__muon_done(const lm_muon_report *report);

#endif
