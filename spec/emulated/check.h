/* What the programs of checks have in common: a check is named on the command line. */
#ifndef LM_SPEC_EMULATED_CHECK_H
#define LM_SPEC_EMULATED_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                      \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

struct named_check {
  const char *name;
  void (*run)();
};

/* What main() returns. */
template <size_t n> int run_named(const named_check (&checks)[n], int argc, char **argv) {
  for (const named_check &check : checks)
    if (argc == 2 && strcmp(argv[1], check.name) == 0) {
      check.run();
      return 0;
    }
  fprintf(stderr, "usage: %s NAME\n", argv[0]);
  return 2;
}

#endif
