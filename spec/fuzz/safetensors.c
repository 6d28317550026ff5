/* Fuzzing the safetensors reader and writer, in the sanitizer build:
 *
 *     cmake -S . -B build-asan -G Ninja -DLUMUON_SANITIZE=ON && ninja -C build-asan
 * fuzz_safetensors build-asan/fuzz_safetensors 1000000          # how many mutated files, then seed
 * and first
 *
 * Every file is a valid one changed in one to four places (mutate.c); number i of a seed is always
 * the same file, so `fuzz_safetensors 1 SEED I` repeats one. Each is opened and held to a second
 * reading of the rules below (which paints the bytes that tensors claim instead of sorting ranges):
 * the reader must accept exactly what this accepts. Accepted tensors are read and compared with the
 * bytes in the file, then saved, loaded again and compared. Nothing may leak.
 * A failure is written to fuzz-failure.safetensors, and the program ends with status 1.
 */
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "lumuon.h"
#include "mutate.h"

static bytes file;        /* the one being tried */
static uint64_t number;   /* which one it is */
static char in_path[64];  /* of the memory file it is opened through */
static char out_path[64]; /* where it is saved again */
static int in_fd;

static _Noreturn void die(const char *what) {
  FILE *f = fopen("fuzz-failure.safetensors", "wb");
  if (f) {
    (void)fwrite(file.data, 1, file.size, f);
    (void)fclose(f);
  }
  (void)fprintf(stderr, "file %llu: %s (last error: %s); it is in fuzz-failure.safetensors\n",
                (unsigned long long)number, what, lm_last_error());
  exit(1);
}
#define EXPECT(condition)                                                                          \
  do {                                                                                             \
    if (!(condition)) die("not so: " #condition);                                                  \
  } while (0)

/* ---- the rules, read a second time ---- */

static unsigned bits_of(const char *dtype) {
  static const struct {
    const char *name;
    unsigned bits;
  } all[] = {{"F64", 64},    {"I64", 64},    {"U64", 64},        {"C64", 64},        {"F32", 32},
             {"I32", 32},    {"U32", 32},    {"F16", 16},        {"BF16", 16},       {"I16", 16},
             {"U16", 16},    {"I8", 8},      {"U8", 8},          {"BOOL", 8},        {"F8_E4M3", 8},
             {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
             {"F6_E3M2", 6}, {"F4", 4}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (strcmp(all[i].name, dtype) == 0) return all[i].bits;
  return 0;
}

static bool entry_is_valid(json_t *e, unsigned char *painted, size_t data) {
  const char *dtype = NULL;
  json_t *shape = NULL, *size;
  json_int_t begin = -1, end = -1;
  size_t i;
  unsigned __int128 bits;
  bool empty = false;
  if (json_unpack_ex(e, NULL, JSON_STRICT, "{s:s, s:o, s:[I, I]}", "dtype", &dtype, "shape", &shape,
                     "data_offsets", &begin, &end) != 0)
    return false;
  if (!json_is_array(shape) || begin < 0 || end < begin || (uint64_t)end > data) return false;
  bits = bits_of(dtype);
  if (bits == 0) return false;
  json_array_foreach(shape, i, size) {
    if (!json_is_integer(size) || json_integer_value(size) < 0) return false;
    if (json_integer_value(size) == 0) empty = true;
    if (json_integer_value(size) > 0) bits *= (unsigned __int128)json_integer_value(size);
    if (bits > INT64_MAX) return false; /* also for empty ones: no such strides */
  }
  if (!empty && bits % 8 != 0) return false;
  if ((empty ? 0 : bits / 8) != (unsigned __int128)(end - begin)) return false;
  for (json_int_t b = begin; b < end; b++)
    if (painted[b]++) return false;
  return true;
}

/* An empty tensor covers no byte, but it may only stand where one range ends and the next begins.
 */
static bool stands_inside(json_t *header, json_int_t at) {
  const char *name;
  json_t *e;
  json_object_foreach(header, name, e) {
    json_t *offsets = json_object_get(e, "data_offsets");
    if (json_is_array(offsets) && json_integer_value(json_array_get(offsets, 0)) < at &&
        at < json_integer_value(json_array_get(offsets, 1)))
      return true;
  }
  return false;
}

static bool header_is_valid(json_t *header, size_t data) {
  static unsigned char painted[FILE_MAX];
  const char *name, *key;
  json_t *e, *value;
  memset(painted, 0, sizeof painted);
  json_object_foreach(header, name, e) {
    if (strcmp(name, "__metadata__") != 0) {
      if (!entry_is_valid(e, painted, data)) return false;
      continue;
    }
    if (!json_is_object(e)) return false;
    json_object_foreach(e, key, value) if (!json_is_string(value)) return false;
  }
  for (size_t b = 0; b < data; b++)
    if (!painted[b]) return false;
  json_object_foreach(header, name, e) {
    json_t *offsets = json_object_get(e, "data_offsets");
    if (json_is_array(offsets) &&
        stands_inside(header, json_integer_value(json_array_get(offsets, 0))))
      return false;
  }
  return true;
}

static bool is_valid(void) {
  uint64_t n = 0;
  if (file.size < 8) return false;
  memcpy(&n, file.data, 8);
  if (n > file.size - 8 || n == 0 || file.data[8] != '{') return false;
  json_t *header = json_loadb((char *)file.data + 8, (size_t)n, JSON_REJECT_DUPLICATES, NULL);
  const bool valid = header && header_is_valid(header, file.size - 8 - (size_t)n);
  json_decref(header);
  return valid;
}

/* ---- what is done with a file that opens ---- */

/* Where entry `name` has its data, from the file itself. */
static const unsigned char *data_of(const char *name) {
  uint64_t n = 0;
  memcpy(&n, file.data, 8);
  json_t *header = json_loadb((char *)file.data + 8, (size_t)n, 0, NULL);
  json_t *offsets = json_object_get(json_object_get(header, name), "data_offsets");
  const size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
  json_decref(header);
  return file.data + 8 + n + begin;
}

static size_t bytes_of(const lm_tensor *t) {
  return (size_t)lm_tensor_numel(t) * (size_t)lm_dtype_size(lm_tensor_dtype(t));
}

static bool same(const lm_tensor *a, const lm_tensor *b) {
  if (lm_tensor_dtype(a) != lm_tensor_dtype(b) || lm_tensor_ndim(a) != lm_tensor_ndim(b))
    return false;
  for (int d = 0; d < lm_tensor_ndim(a); d++)
    if ((int64_t)lm_tensor_size(a, d) != (int64_t)lm_tensor_size(b, d)) return false;
  return memcmp(lm_tensor_data(a), lm_tensor_data(b), bytes_of(a)) == 0;
}

enum { MOST = 64 }; /* tensors, or pairs of metadata; mutated files stay under it */

static void expect_saved(const lm_safetensors *st, int n, lm_tensor **tensors, const char **names) {
  const char *keys[MOST], *values[MOST];
  const int m = lm_safetensors_meta_count(st);
  lm_safetensors *again = NULL;
  EXPECT(m <= MOST);
  for (int i = 0; i < m; i++) {
    keys[i] = lm_safetensors_meta_key(st, i);
    values[i] = lm_safetensors_meta_value(st, i);
  }
  EXPECT(lm_safetensors_save(out_path, n, names, (const lm_tensor *const *)tensors, m, keys,
                             values) == LM_OK);
  EXPECT(lm_safetensors_open(&again, out_path) == LM_OK);
  EXPECT(lm_safetensors_count(again) == n && lm_safetensors_meta_count(again) == m);
  for (int i = 0; i < m; i++) {
    EXPECT(strcmp(lm_safetensors_meta_key(again, i), keys[i]) == 0);
    EXPECT(strcmp(lm_safetensors_meta_value(again, i), values[i]) == 0);
  }
  for (int i = 0; i < n; i++) {
    lm_tensor *t = NULL;
    int twin = 0;
    EXPECT(lm_safetensors_read(&t, again, i) == LM_OK);
    while (twin < n && strcmp(names[twin], lm_safetensors_name(again, i)) != 0) twin++;
    EXPECT(twin < n && same(t, tensors[twin]));
    lm_tensor_free(t);
  }
  lm_safetensors_close(again);
}

/* Returns whether every tensor could be read. */
static bool use(const lm_safetensors *st) {
  lm_tensor *tensors[MOST] = {NULL};
  const char *names[MOST] = {NULL};
  const int count = lm_safetensors_count(st);
  int n = 0;
  EXPECT(count <= MOST);
  for (int i = 0; i < count; i++) {
    const int status = lm_safetensors_read(&tensors[n], st, i);
    EXPECT(status == LM_OK || status == LM_ENOTSUP);
    EXPECT((status == LM_OK) == (tensors[n] != NULL));
    if (status != LM_OK) continue;
    names[n] = lm_safetensors_name(st, i);
    EXPECT(memcmp(lm_tensor_data(tensors[n]), data_of(names[n]), bytes_of(tensors[n])) == 0);
    n++;
  }
  expect_saved(st, n, tensors, names);
  for (int i = 0; i < n; i++) lm_tensor_free(tensors[i]);
  return n == count;
}

/* ---- files to begin with ---- */

static void take(bytes *seed, const char *header, size_t data) {
  const uint64_t n = strlen(header);
  memcpy(seed->data, &n, 8);
  memcpy(seed->data + 8, header, n);
  for (size_t i = 0; i < data; i++) seed->data[8 + n + i] = (unsigned char)(i * 37 + 200);
  seed->size = 8 + n + data;
}

static bytes seeds[] = {{0}, {0}, {0}, {0}, {0}};
enum { SEEDS = sizeof seeds / sizeof *seeds };

static void make_seeds(void) {
  take(&seeds[0], "{}", 0);
  take(&seeds[1], "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}   ", 24);
  take(&seeds[2],
       "{\"__metadata__\":{\"format\":\"pt\",\"\xc3\xa9\":\"\\u00e9\\n\"},"
       "\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
       "\"i\":{\"dtype\":\"I32\",\"shape\":[3],\"data_offsets\":[16,28]},"
       "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1,2],\"data_offsets\":[28,36]},"
       "\"h\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[36,38]},"
       "\"t\":{\"dtype\":\"U16\",\"shape\":[0,4],\"data_offsets\":[38,38]},"
       "\"u\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,5],\"data_offsets\":[38,43]}}",
       43);
  take(&seeds[3],
       "{\"d\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[0,16]},"
       "\"o\":{\"dtype\":\"BOOL\",\"shape\":[8],\"data_offsets\":[16,24]},"
       "\"q\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[24,27]},"
       "\"nine\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,3],\"data_offsets\":[27,30]},"
       "\"f\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[30,34]}}  ",
       34);
  take(&seeds[4],
       "{\"late\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[3,12]},\n"
       "  \"early\":{\"data_offsets\":[0,3],\"shape\":[3,1],\"dtype\":\"U8\"}}",
       12);
}

static void put_in_place(void) {
  EXPECT(ftruncate(in_fd, (off_t)file.size) == 0);
  EXPECT(pwrite(in_fd, file.data, file.size, 0) == (ssize_t)file.size);
}

int main(int argc, char **argv) {
  const uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  const uint64_t first = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
  uint64_t opened = 0, whole = 0;
  struct timespec from, to;
  in_fd = memfd_create("fuzzed", MFD_CLOEXEC);
  char folder[] = "/dev/shm/lumuon-fuzz-XXXXXX"; /* in memory: each save flushes its file */
  if (in_fd < 0 || !mkdtemp(folder)) {
    perror("fuzz_safetensors");
    return 1;
  }
  (void)snprintf(in_path, sizeof in_path, "/proc/self/fd/%d", in_fd);
  (void)snprintf(out_path, sizeof out_path, "%s/out", folder);
  make_seeds();
  (void)clock_gettime(CLOCK_MONOTONIC, &from);
  for (number = first; number < first + count; number++) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + number * 0xd1342543de82ef95u;
    lm_safetensors *st = NULL;
    file = seeds[below(&state, SEEDS)];
    for (size_t k = 1 + below(&state, 1 + below(&state, 4)); k > 0; k--)
      mutate(&file, &seeds[below(&state, SEEDS)], &state);
    put_in_place();
    const int status = lm_safetensors_open(&st, in_path);
    EXPECT((status == LM_OK) == (st != NULL));
    EXPECT(status == LM_OK || status == LM_EFORMAT);
    EXPECT((status == LM_OK) == is_valid());
    if (status == LM_OK) {
      opened++;
      whole += use(st);
    } else {
      EXPECT(strstr(lm_last_error(), in_path) != NULL);
    }
    lm_safetensors_close(st);
    EXPECT(lm_memory_live() == 0);
  }
  (void)clock_gettime(CLOCK_MONOTONIC, &to);
  (void)unlink(out_path);
  (void)rmdir(folder);
  (void)printf("fuzz_safetensors: %llu files, %llu valid (%llu of them read whole), no fault, "
               "%.1f s\n",
               (unsigned long long)count, (unsigned long long)opened, (unsigned long long)whole,
               (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
  return 0;
}
