/* Shared libraries that are loaded when they are first needed, from where NVIDIA's may lie: a
 * binary built with CUDA starts where they are not. */
#ifndef LM_BACKEND_LIBRARY_H
#define LM_BACKEND_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

typedef struct lm__library {
  const char *file;            /* "libnccl.so.2" */
  const char *variable;        /* of the environment: names the file, and then no other is tried */
  const char *const *packages; /* folders of Python's nvidia packages that may have it; NULL ends */
} lm__library;

/* Load the first one that take(library) accepts: it looks its functions up. In turn: the file that
 * the variable names; what the loader finds; CUDA_HOME, CUDA_PATH, VIRTUAL_ENV, CONDA_PREFIX;
 * the environments of PATH's python3; /usr/local/cuda; Python's packages of the user and the
 * system. */
bool lm__library_load(const lm__library *library, bool (*take)(void *library));

/* *pointer, a pointer to a function, = the library's function; false where it has none. */
bool lm__library_function(void *library, const char *name, void *pointer);

#endif
