/* Errors: a status code and a thread-local message. */
#ifndef LM_CORE_ERROR_H
#define LM_CORE_ERROR_H

#include "lumuon.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Set the message and return status: `return lm__fail(LM_ESHAPE, "matmul: ...", ...)`. */
int lm__fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Return from the calling function if the expression is an error. */
#define LM__TRY(expression)                                                                        \
  do {                                                                                             \
    int lm__status_ = (expression);                                                                \
    if (lm__status_ != LM_OK) return lm__status_;                                                  \
  } while (0)

#ifdef __cplusplus
}
#endif

#endif
