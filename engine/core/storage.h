/* Storages: counted blocks of device memory, accounted and kept for reuse when freed. */
#ifndef LM_CORE_STORAGE_H
#define LM_CORE_STORAGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lm__storage {
  void *data;
  size_t bytes;    /* asked for */
  size_t capacity; /* of the block: bytes rounded up to its size class */
  int device;
  int references; /* atomic */
} lm__storage;

/* A storage of its own with one reference. LM_ENOMEM names asked, live and limit. */
int lm__storage_new(lm__storage **out, size_t bytes, int device);
void lm__storage_retain(lm__storage *s);
void lm__storage_release(lm__storage *s);

#ifdef __cplusplus
}
#endif

#endif
