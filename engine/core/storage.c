/* Storages and the block cache under them.
 *
 * A training step asks for the same sizes over and over, so a freed block goes on the list of its
 * size class and the next request of that class takes it: after the first steps the system is not
 * asked again. Classes are eighths of powers of two, so a block wastes at most an eighth. Live and
 * cached bytes together stay under 1.5 times the largest live size seen (and 64 MiB): a request
 * that would pass that first gives back blocks of other classes.
 */
#include "core/storage.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/backend.h"
#include "core/error.h"

#if defined(__SANITIZE_ADDRESS__)
#define LM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LM_ASAN 1
#endif
#endif
#ifdef LM_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

enum { CLASSES = 8 * 64, ALIGNMENT = 64 };
static const size_t MMAP_FROM = (size_t)1 << 18;

typedef struct block {
  struct block *next;
  void *data;
} block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *cache[CLASSES];
static size_t class_bytes[CLASSES];
static size_t live, peak_live, cached;
static size_t elsewhere; /* live on devices with memory of their own; atomic */
static double system_allocs;
static double limit_set; /* 0: the machine's */

/* Class of a request, and the capacity of its blocks. */
static int size_class(size_t bytes, size_t *capacity) {
  if (bytes < ALIGNMENT) bytes = ALIGNMENT;
  int power = 63 - __builtin_clzll(bytes);
  size_t step = (size_t)1 << (power - 3);
  size_t eighths = (bytes + step - 1) / step; /* 8 to 16 */
  if (eighths == 16) {
    power++;
    step <<= 1;
    eighths = 8;
  }
  *capacity = eighths * step;
  return power * 8 + (int)(eighths - 8);
}

static void *system_alloc(size_t capacity) {
  if (capacity >= MMAP_FROM) {
    void *p = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (capacity >= ((size_t)4 << 20)) (void)madvise(p, capacity, MADV_HUGEPAGE);
    return p;
  }
  const size_t rounded = (capacity + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return aligned_alloc(ALIGNMENT, rounded);
}

static void system_free(void *data, size_t capacity) {
  UNPOISON(data, capacity);
  if (capacity >= MMAP_FROM)
    (void)munmap(data, capacity);
  else
    free(data);
}

/* Give back cached blocks, largest first, until at most `keep` bytes are cached. Lock held. */
static void trim(size_t keep) {
  for (int c = CLASSES - 1; c >= 0 && cached > keep; c--)
    while (cache[c] && cached > keep) {
      block *b = cache[c];
      cache[c] = b->next;
      cached -= class_bytes[c];
      system_free(b->data, class_bytes[c]);
      free(b);
    }
}

static double read_number(const char *path) {
  FILE *f = fopen(path, "r");
  double value = 0;
  if (!f) return 0;
  if (fscanf(f, "%lf", &value) != 1) value = 0; /* "max": no limit */
  (void)fclose(f);
  return value;
}

static double machine_memory(void) {
  static double known;
  if (known > 0) return known;
  known = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGE_SIZE);
  const double v2 = read_number("/sys/fs/cgroup/memory.max");
  const double v1 = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
  if (v2 > 0 && v2 < known) known = v2;
  if (v1 > 0 && v1 < known) known = v1;
  return known;
}

static const char *human(double bytes, char *buffer, size_t size) {
  if (bytes >= 1e9)
    (void)snprintf(buffer, size, "%.2f GB", bytes / 1e9);
  else
    (void)snprintf(buffer, size, "%.1f MB", bytes / 1e6);
  return buffer;
}

/* On a device that has memory of its own. */
static int device_storage(lm__storage **out, const lm__backend_table *backend, size_t bytes,
                          int device) {
  lm__storage *s = malloc(sizeof *s);
  void *data = NULL;
  int status = s ? LM_OK : lm__fail(LM_ENOMEM, "out of memory for a handle");
  if (status == LM_OK) status = backend->allocate(&data, bytes);
  if (status != LM_OK) {
    free(s);
    return status;
  }
  *s = (lm__storage){data, bytes, bytes, device, 1};
  *out = s;
  (void)__atomic_add_fetch(&elsewhere, bytes, __ATOMIC_RELAXED);
  return LM_OK;
}

int lm__storage_new(lm__storage **out, size_t bytes, int device) {
  const lm__backend_table *backend = device == LM_CPU ? NULL : lm__backend(device);
  if (backend && backend->allocate) return device_storage(out, backend, bytes, device);
  size_t capacity = 0;
  lm__storage *s = malloc(sizeof *s);
  block *spare = NULL;
  void *data = NULL;

  *out = NULL;
  if (bytes > (size_t)1 << 60) {
    free(s);
    return lm__fail(LM_ENOMEM, "out of memory: asked for %.3g bytes, no machine has that",
                    (double)bytes);
  }
  const int c = size_class(bytes, &capacity);
  (void)pthread_mutex_lock(&lock);
  class_bytes[c] = capacity;
  if (s && (double)live + (double)capacity <= lm_memory_limit()) {
    if (cache[c]) {
      spare = cache[c];
      cache[c] = spare->next;
      cached -= capacity;
      data = spare->data;
      UNPOISON(data, capacity);
    } else {
      size_t most = (peak_live > live + capacity ? peak_live : live + capacity);
      most += most / 2;
      if (most < (size_t)64 << 20) most = (size_t)64 << 20;
      if (live + capacity + cached > most)
        trim(most > live + capacity ? most - live - capacity : 0);
      data = system_alloc(capacity);
      if (!data) {
        trim(0);
        data = system_alloc(capacity);
      }
      if (data) system_allocs += 1;
    }
  }
  if (data) {
    live += capacity;
    if (live > peak_live) peak_live = live;
  }
  const double live_now = (double)live;
  (void)pthread_mutex_unlock(&lock);
  free(spare);
  if (!data) {
    char asked[32], used[32], most[32];
    free(s);
    return lm__fail(
        LM_ENOMEM,
        "out of memory: asked for %s with %s live and a limit of %s; make the batch, the "
        "sequence or the model smaller, or free tensors first",
        human((double)bytes, asked, sizeof asked), human(live_now, used, sizeof used),
        human(lm_memory_limit(), most, sizeof most));
  }
  POISON((char *)data + bytes, capacity - bytes);
  *s = (lm__storage){data, bytes, capacity, device, 1};
  *out = s;
  return LM_OK;
}

void lm__storage_retain(lm__storage *s) {
  (void)__atomic_add_fetch(&s->references, 1, __ATOMIC_RELAXED);
}

void lm__storage_release(lm__storage *s) {
  size_t capacity = 0;
  if (__atomic_sub_fetch(&s->references, 1, __ATOMIC_ACQ_REL) > 0) return;
  const lm__backend_table *backend = s->device == LM_CPU ? NULL : lm__backend(s->device);
  if (backend && backend->release) {
    backend->release(s->data, s->bytes);
    (void)__atomic_sub_fetch(&elsewhere, s->bytes, __ATOMIC_RELAXED);
    free(s);
    return;
  }
  block *b = malloc(sizeof *b);
  const int c = size_class(s->bytes, &capacity);
  (void)pthread_mutex_lock(&lock);
  live -= capacity;
  if (b) {
    *b = (block){cache[c], s->data};
    cache[c] = b;
    cached += capacity;
    POISON(s->data, capacity);
  } else {
    system_free(s->data, capacity);
  }
  (void)pthread_mutex_unlock(&lock);
  free(s);
}

double lm_memory_live(void) { return (double)live; }
double lm_memory_live_everywhere(void) { return (double)live + (double)elsewhere; }
double lm_memory_peak(void) { return (double)peak_live; }
double lm_memory_cached(void) { return (double)cached; }
double lm_memory_system_allocs(void) { return system_allocs; }

void lm_memory_reset_peak(void) {
  (void)pthread_mutex_lock(&lock);
  peak_live = live;
  (void)pthread_mutex_unlock(&lock);
}

void lm_memory_trim(void) {
  (void)pthread_mutex_lock(&lock);
  trim(0);
  (void)pthread_mutex_unlock(&lock);
}

int lm_set_memory_limit(double bytes) {
  if (!(bytes >= 0)) return lm__fail(LM_EINVAL, "set_memory_limit: %g is not >= 0", bytes);
  limit_set = bytes;
  return LM_OK;
}

double lm_memory_limit(void) { return limit_set > 0 ? limit_set : machine_memory(); }
