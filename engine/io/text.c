#include "io/text.h"

#include <stdio.h>
#include <string.h>

const char *lm__shown(const char *text) {
  enum { HEAD = 60, TAIL = 180 };
  static _Thread_local char buffers[8][HEAD + TAIL + 8];
  static _Thread_local unsigned turn;
  char *s = buffers[turn++ % 8];
  const size_t n = strlen(text);
  if (n <= HEAD + TAIL)
    (void)snprintf(s, sizeof buffers[0], "%s", text);
  else
    (void)snprintf(s, sizeof buffers[0], "%.*s...%s", HEAD, text, text + n - TAIL);
  for (char *c = s; *c; c++)
    if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
  return s;
}
