/* Lua modules inside the executable; the list is written by scripts/embed-lua.cmake. */
#ifndef LM_HOST_EMBEDDED_H
#define LM_HOST_EMBEDDED_H

typedef struct lm__embedded {
  const char *name, *begin, *end;
} lm__embedded;

extern const lm__embedded lm__modules[]; /* ends with name 0 */

#endif
