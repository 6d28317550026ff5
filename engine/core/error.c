#include "core/error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[1024] = "no error";

int lm__fail(int status, const char *format, ...) {
  char fresh[sizeof message]; /* the arguments may point into the old message */
  va_list args;
  va_start(args, format);
  (void)vsnprintf(fresh, sizeof fresh, format, args);
  va_end(args);
  (void)snprintf(message, sizeof message, "%s", fresh);
  return status;
}

const char *lm_last_error(void) { return message; }

const char *lm_status_name(int status) {
  switch (status) {
#define NAME(code)                                                                                 \
  case code:                                                                                       \
    return #code;
    NAME(LM_OK)
    NAME(LM_EINVAL)
    NAME(LM_ESHAPE)
    NAME(LM_EDTYPE)
    NAME(LM_EDEVICE)
    NAME(LM_EINDEX)
    NAME(LM_ENOMEM)
    NAME(LM_EIO)
    NAME(LM_EFORMAT)
    NAME(LM_ENONFINITE)
    NAME(LM_EINTERRUPT)
    NAME(LM_ENOTSUP)
    NAME(LM_EDIST)
#undef NAME
    default:
      return "unknown";
  }
}
