/* Reading safetensors files (the format of Hugging Face's safetensors).
 *
 *   u64 little-endian n | n bytes of JSON | data
 *   {"__metadata__": {"key": "value"}, "name": {"dtype": "F32", "shape": [2, 3],
 *    "data_offsets": [begin, end]}, ...}, offsets counted from the first byte of the data
 *
 * A file is not trusted. Opening one checks, before anything is used:
 *  - it is a regular file that holds the length, n <= 100,000,000 and n bytes of header;
 *  - the header is UTF-8 and one JSON object, starting with '{', with no key twice (Jansson checks
 *    all of this, refuses NUL in strings and nests at most 2048 deep);
 *  - `__metadata__` maps strings to strings; every other value has exactly the three keys above,
 *    a dtype the format has, and sizes and offsets that are integers >= 0;
 *  - shape times dtype size, with overflow checked, is the range that the offsets give;
 *  - the ranges cover the data from its first byte to the end of the file: no hole, no overlap,
 *    nothing after the last tensor.
 *  - it has no more objects and lists than tensors' entries could need, which keeps memory for the
 *    parsed header to some twenty times its length (an attacker's could take seventy-five).
 *
 * What the format allows and Lumuon has no tensors for (I64, say, or nine dims) is refused when
 * that tensor is read, not on opening: the other tensors of the file can still be had.
 *
 * The file is mapped, and a tensor's bytes are copied from the map. While that goes on nobody may
 * shorten the file: touching a page behind its end is SIGBUS. The size is asked again before every
 * chunk, so a file cut short since it was opened is an error; what remains is a file cut short, or
 * a disk failing, within the milliseconds of one chunk. lm_safetensors_save never does that to a
 * reader: it renames a new file over the old one, whose bytes stay until the last map is gone.
 */
#include "io/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/tensor.h"
#include "io/text.h"

enum { COPY_CHUNK = 16 << 20 };

typedef struct entry {
  const char *name; /* inside the parsed header */
  const lm__st_dtype *dtype;
  size_t ndim; /* as in the file; shape holds the first LM_MAX_DIMS */
  int64_t shape[LM_MAX_DIMS];
  uint64_t begin, end; /* bytes, from the start of the data */
} entry;

struct lm_safetensors {
  char *path;
  int fd;
  const unsigned char *map;
  uint64_t size;       /* of the file */
  uint64_t data_start; /* first byte of the data */
  json_t *header;
  int count, meta_count;
  entry *entries;    /* in the order of their data */
  const char **meta; /* key, value, key, value, ... */
};

#define BAD(file, format, ...)                                                                     \
  lm__fail(LM_EFORMAT, "safetensors: '%s': " format, lm__shown((file)->path), __VA_ARGS__)
#define BAD_ENTRY(file, e, format, ...)                                                            \
  BAD(file, "tensor '%s': " format, lm__shown((e)->name), __VA_ARGS__)

/* ---- the file ---- */

static int fail_io(const lm_safetensors *file, const char *what, int error) {
  return lm__fail(error == ENOMEM ? LM_ENOMEM : LM_EIO, "safetensors: cannot %s '%s': %s", what,
                  lm__shown(file->path), strerror(error));
}

static int map_file(lm_safetensors *file) {
  struct stat st;
  /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
  file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file->fd < 0) return fail_io(file, "open", errno);
  if (fstat(file->fd, &st) != 0) return fail_io(file, "look at", errno);
  if (!S_ISREG(st.st_mode))
    return lm__fail(LM_EIO, "safetensors: '%s' is %s, not a file", lm__shown(file->path),
                    S_ISDIR(st.st_mode)    ? "a folder"
                    : S_ISFIFO(st.st_mode) ? "a pipe"
                                           : "a device");
  file->size = (uint64_t)st.st_size;
  if (file->size == 0) return BAD(file, "is empty%s", "");
  if (file->size < LM__ST_PREFIX)
    return BAD(file, "%" PRIu64 " bytes; a safetensors file starts with 8 bytes of header length",
               file->size);
  void *map = mmap(NULL, (size_t)file->size, PROT_READ, MAP_PRIVATE, file->fd, 0);
  if (map == MAP_FAILED) return fail_io(file, "map", errno);
  file->map = map;
  return LM_OK;
}

/* Is the file still as long as it was when it was opened and checked? */
static int check_size(const lm_safetensors *file) {
  struct stat st;
  if (fstat(file->fd, &st) != 0) return fail_io(file, "look at", errno);
  if ((uint64_t)st.st_size >= file->size) return LM_OK;
  return lm__fail(
      LM_EIO, "safetensors: '%s' was cut short while in use, from %" PRIu64 " to %" PRIu64 " bytes",
      lm__shown(file->path), file->size, (uint64_t)st.st_size);
}

/* ---- the header ---- */

/* An entry takes at least 51 bytes, {"dtype":"U8","shape":[],"data_offsets":[0,0]} with its name
 * and a comma, and opens three objects and lists; the header and its metadata open two more. */
static int check_openings(const lm_safetensors *file, const char *text, size_t length) {
  size_t openings = 0;
  bool quoted = false;
  for (size_t i = 0; i < length; i++) {
    if (quoted && text[i] == '\\')
      i++;
    else if (text[i] == '"')
      quoted = !quoted;
    else if (!quoted && (text[i] == '{' || text[i] == '['))
      openings++;
  }
  if (openings <= length / 16 + 2) return LM_OK;
  return BAD(file, "%zu objects and lists in a header of %zu bytes: more than tensors could need",
             openings, length);
}

static int parse_header(lm_safetensors *file) {
  json_error_t error;
  uint64_t length = 0;
  memcpy(&length, file->map, sizeof length);
  if (length > LM__ST_MAX_HEADER)
    return BAD(file, "claims a header of %" PRIu64 " bytes; the format allows at most %d", length,
               LM__ST_MAX_HEADER);
  if (length > file->size - LM__ST_PREFIX)
    return BAD(file, "claims a header of %" PRIu64 " bytes in a file of %" PRIu64 ": truncated?",
               length, file->size);
  file->data_start = LM__ST_PREFIX + length;
  const char *text = (const char *)file->map + LM__ST_PREFIX;
  if (length == 0 || text[0] != '{') return BAD(file, "the header does not start with '%c'", '{');
  LM__TRY(check_openings(file, text, (size_t)length));
  file->header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
  if (file->header) return LM_OK;
  if (json_error_code(&error) == json_error_out_of_memory)
    return lm__fail(LM_ENOMEM, "safetensors: '%s': out of memory for a header of %" PRIu64 " bytes",
                    lm__shown(file->path), length);
  return BAD(file, "the header is not valid JSON: %s (byte %d of it)", lm__shown(error.text),
             error.position);
}

static int take_metadata(lm_safetensors *file, json_t *metadata) {
  const char *key;
  json_t *value;
  if (!json_is_object(metadata)) return BAD(file, "%s is not an object", "__metadata__");
  file->meta = calloc(2 * json_object_size(metadata) + 1, sizeof *file->meta);
  if (!file->meta) return fail_io(file, "read", ENOMEM);
  json_object_foreach(metadata, key, value) {
    if (!json_is_string(value))
      return BAD(file, "__metadata__ '%s' is not a string", lm__shown(key));
    file->meta[2 * file->meta_count] = key;
    file->meta[2 * file->meta_count + 1] = json_string_value(value);
    file->meta_count++;
  }
  return LM_OK;
}

/* A JSON integer >= 0. */
static bool take_count(const json_t *value, uint64_t *out) {
  if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
  *out = (uint64_t)json_integer_value(value);
  return true;
}

/* Shape, with the bytes that it and the dtype come to. */
static int take_shape(const lm_safetensors *file, entry *e, const json_t *shape, uint64_t *bytes) {
  uint64_t product = e->dtype->bits; /* with sizes of 0 counted as 1 */
  bool empty = false;
  if (!json_is_array(shape)) return BAD_ENTRY(file, e, "%s is not a list", "shape");
  e->ndim = json_array_size(shape);
  for (size_t d = 0; d < e->ndim; d++) {
    uint64_t size = 0;
    if (!take_count(json_array_get(shape, d), &size))
      return BAD_ENTRY(file, e, "size %zu of its shape is not an integer >= 0", d + 1);
    if (__builtin_mul_overflow(product, size > 0 ? size : 1, &product) || product > INT64_MAX)
      return BAD_ENTRY(file, e, "its shape has more %s than can be counted", "bytes");
    if (size == 0) empty = true;
    if (d < LM_MAX_DIMS) e->shape[d] = (int64_t)size;
  }
  if (empty) product = 0;
  if (product % 8 != 0)
    return BAD_ENTRY(file, e, "its %s elements do not fill whole bytes", e->dtype->name);
  *bytes = product / 8;
  return LM_OK;
}

static int take_entry(const lm_safetensors *file, entry *e, const json_t *value) {
  uint64_t bytes = 0;
  if (!json_is_object(value)) return BAD_ENTRY(file, e, "its entry is not %s", "an object");
  const json_t *dtype = json_object_get(value, "dtype");
  const json_t *shape = json_object_get(value, "shape");
  const json_t *offsets = json_object_get(value, "data_offsets");
  if (!dtype || !shape || !offsets)
    return BAD_ENTRY(file, e, "has no %s", !dtype ? "dtype" : !shape ? "shape" : "data_offsets");
  if (json_object_size(value) != 3)
    return BAD_ENTRY(file, e, "has %zu keys; there are three, dtype, shape and data_offsets",
                     json_object_size(value));
  if (!json_is_string(dtype)) return BAD_ENTRY(file, e, "%s is not a string", "dtype");
  e->dtype = lm__st_dtype_named(json_string_value(dtype));
  if (!e->dtype)
    return BAD_ENTRY(file, e, "unknown dtype '%s'", lm__shown(json_string_value(dtype)));
  LM__TRY(take_shape(file, e, shape, &bytes));
  if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
      !take_count(json_array_get(offsets, 0), &e->begin) ||
      !take_count(json_array_get(offsets, 1), &e->end))
    return BAD_ENTRY(file, e, "%s is not two integers >= 0", "data_offsets");
  if (e->begin > e->end)
    return BAD_ENTRY(file, e, "ends at byte %" PRIu64 ", before its begin at %" PRIu64, e->end,
                     e->begin);
  if (e->end - e->begin != bytes)
    return BAD_ENTRY(
        file, e, "its shape and dtype %s come to %" PRIu64 " bytes, its data_offsets to %" PRIu64,
        e->dtype->name, bytes, e->end - e->begin);
  return LM_OK;
}

static int compare_entries(const void *left, const void *right) {
  const entry *a = left, *b = right;
  if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
  if (a->end != b->end) return a->end < b->end ? -1 : 1;
  return strcmp(a->name, b->name);
}

/* The ranges, sorted, must join from 0 to the end of the file. */
static int check_cover(const lm_safetensors *file) {
  const uint64_t data = file->size - file->data_start;
  uint64_t reached = 0;
  for (int i = 0; i < file->count; i++) {
    const entry *e = &file->entries[i];
    if (e->end > data)
      return BAD_ENTRY(file, e,
                       "ends at byte %" PRIu64 " of the data, which has %" PRIu64 ": truncated?",
                       e->end, data);
    if (e->begin < reached)
      return BAD_ENTRY(file, e, "begins at byte %" PRIu64 ", inside '%s', which ends at %" PRIu64,
                       e->begin, lm__shown(file->entries[i - 1].name), reached);
    if (e->begin > reached)
      return BAD_ENTRY(
          file, e, "begins at byte %" PRIu64 "; %" PRIu64 " bytes before it belong to no tensor",
          e->begin, e->begin - reached);
    reached = e->end;
  }
  if (reached != data)
    return BAD(file, "%" PRIu64 " bytes after the last tensor's end", data - reached);
  return LM_OK;
}

static int take_header(lm_safetensors *file) {
  const char *key;
  json_t *value;
  file->entries = calloc(json_object_size(file->header) + 1, sizeof *file->entries);
  if (!file->entries) return fail_io(file, "read", ENOMEM);
  json_object_foreach(file->header, key, value) {
    if (strcmp(key, "__metadata__") == 0) {
      LM__TRY(take_metadata(file, value));
    } else {
      entry *e = &file->entries[file->count];
      e->name = key;
      LM__TRY(take_entry(file, e, value));
      file->count++;
    }
  }
  qsort(file->entries, (size_t)file->count, sizeof *file->entries, compare_entries);
  return check_cover(file);
}

/* ---- what is exported ---- */

int lm_safetensors_open(lm_safetensors **out, const char *path) {
  *out = NULL;
  if (!path) return lm__fail(LM_EINVAL, "safetensors: no path to open");
  LM__TRY(lm__begin("safetensors", 0));
  lm_safetensors *file = calloc(1, sizeof *file);
  if (file) {
    file->fd = -1;
    file->path = strdup(path);
  }
  if (!file || !file->path) {
    free(file);
    return lm__fail(LM_ENOMEM, "safetensors: out of memory for a handle");
  }
  int status = map_file(file);
  if (status == LM_OK) status = parse_header(file);
  if (status == LM_OK) status = take_header(file);
  if (status != LM_OK) {
    lm_safetensors_close(file);
    return status;
  }
  *out = file;
  return LM_OK;
}

void lm_safetensors_close(lm_safetensors *file) {
  if (!file) return;
  if (file->map) (void)munmap((void *)(uintptr_t)file->map, (size_t)file->size);
  if (file->fd >= 0) (void)close(file->fd);
  json_decref(file->header);
  free(file->entries);
  free(file->meta);
  free(file->path);
  free(file);
}

int lm_safetensors_count(const lm_safetensors *file) { return file ? file->count : 0; }

const char *lm_safetensors_name(const lm_safetensors *file, int i) {
  return file && i >= 0 && i < file->count ? file->entries[i].name : NULL;
}

int lm_safetensors_meta_count(const lm_safetensors *file) { return file ? file->meta_count : 0; }

const char *lm_safetensors_meta_key(const lm_safetensors *file, int i) {
  return file && i >= 0 && i < file->meta_count ? file->meta[2 * i] : NULL;
}

const char *lm_safetensors_meta_value(const lm_safetensors *file, int i) {
  return file && i >= 0 && i < file->meta_count ? file->meta[2 * i + 1] : NULL;
}

static int copy_data(const lm_safetensors *file, const entry *e, char *to) {
  const unsigned char *from = file->map + file->data_start + e->begin;
  const size_t bytes = (size_t)(e->end - e->begin);
  for (size_t at = 0; at < bytes; at += COPY_CHUNK) {
    LM__TRY(lm__begin("safetensors", 0));
    LM__TRY(check_size(file));
    memcpy(to + at, from + at, bytes - at < COPY_CHUNK ? bytes - at : COPY_CHUNK);
  }
  return LM_OK;
}

/* Entry i, if there are tensors for such. */
static int readable(const entry **out, const lm_safetensors *file, int i) {
  if (!file) return lm__fail(LM_EINVAL, "safetensors: the file is closed");
  if (i < 0 || i >= file->count)
    return lm__fail(LM_EINDEX, "safetensors: '%s' has %d tensors, counted from 0; there is no %d",
                    lm__shown(file->path), file->count, i);
  const entry *e = &file->entries[i];
  if (e->dtype->dtype < 0)
    return lm__fail(
        LM_ENOTSUP,
        "safetensors: '%s': tensor '%s' is %s, not supported here; F32, BF16, F16, I32, "
        "U16 and U8 are",
        lm__shown(file->path), lm__shown(e->name), e->dtype->name);
  if (e->ndim > LM_MAX_DIMS)
    return lm__fail(LM_ENOTSUP,
                    "safetensors: '%s': tensor '%s' has %zu dims, not supported here; up to %d are",
                    lm__shown(file->path), lm__shown(e->name), e->ndim, LM_MAX_DIMS);
  *out = e;
  return LM_OK;
}

int lm_safetensors_shape(const lm_safetensors *file, int i, int *dtype, int *ndim, int64_t *shape) {
  const entry *e = NULL;
  LM__TRY(readable(&e, file, i));
  *dtype = e->dtype->dtype;
  *ndim = (int)e->ndim;
  memcpy(shape, e->shape, e->ndim * sizeof *shape);
  return LM_OK;
}

int lm_safetensors_read(lm_tensor **out, const lm_safetensors *file, int i) {
  const entry *e = NULL;
  bool fresh = false;
  LM__TRY(lm__begin("safetensors", 0));
  LM__TRY(readable(&e, file, i));
  LM__TRY(
      lm__prepare_out("safetensors", out, &fresh, e->dtype->dtype, LM_CPU, (int)e->ndim, e->shape));
  int status = lm__need_contiguous("safetensors", "the result", *out);
  if (status == LM_OK) status = copy_data(file, e, lm__data(*out));
  return lm__finish(out, fresh, status);
}
