/* Mutations of safetensors files that know the format: see mutate.c. */
#ifndef SPEC_FUZZ_MUTATE_H
#define SPEC_FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

enum { FILE_MAX = 1 << 16 };

typedef struct bytes {
  size_t size;
  unsigned char data[FILE_MAX];
} bytes;

/* The next number of a stream (splitmix64). */
uint64_t draw(uint64_t *state);
/* A number in [0, n); 0 for n == 0. */
size_t below(uint64_t *state, size_t n);

/* Change one thing of a file; other: a second file to take parts from. */
void mutate(bytes *file, const bytes *other, uint64_t *state);

#endif
