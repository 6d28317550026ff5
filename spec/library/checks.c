/* library_checks FILE VARIABLE PACKAGES FUNCTION...: where engine/backend/library.c finds a library
 * with all of these functions, for spec/library_spec.lua. PACKAGES are divided by commas. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "backend/library.h"

static char **functions;
static void *last;

static bool take(void *library) {
  for (char **f = functions; *f; f++)
    if (!lm__library_function(library, *f, &last)) return false;
  return true;
}

int main(int argc, char **argv) {
  const char *packages[9] = {NULL};
  Dl_info info;
  if (argc < 5) return 2;
  char *package = strtok(argv[3], ",");
  for (int i = 0; i < 8 && package; i++, package = strtok(NULL, ",")) packages[i] = package;
  const lm__library library = {argv[1], argv[2], packages};
  functions = argv + 4;
  if (!lm__library_load(&library, take)) {
    (void)puts("none");
    return 1;
  }
  (void)puts(dladdr(last, &info) ? info.dli_fname : "?");
  return 0;
}
