/* Writing safetensors files: the format is described in safetensors.c.
 *
 * Tensors lie in the file in the order of their dtype's size, the widest first, then by name, and
 * the header is padded with spaces to a multiple of 8: so each tensor is aligned to its dtype. The
 * same tensors and metadata give the same bytes.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/tensor.h"
#include "io/new_file.h"
#include "io/safetensors.h"
#include "io/text.h"

typedef struct item {
  char *name;
  int dtype, ndim;
  int64_t shape[LM_MAX_DIMS];
  uint64_t begin, bytes; /* in the file */
  bool put;
} item;

struct lm_safetensors_writer {
  lm__new_file file;
  char *path;
  item *items; /* in the caller's order */
  int n;
};

static int compare_items(const void *left, const void *right) {
  const item *a = *(const item *const *)left, *b = *(const item *const *)right;
  const int wide_a = lm_dtype_size(a->dtype), wide_b = lm_dtype_size(b->dtype);
  if (wide_a != wide_b) return wide_a > wide_b ? -1 : 1;
  return strcmp(a->name, b->name);
}

#define REFUSE(status, what)                                                                       \
  lm__fail(status, "safetensors: cannot write '%s': tensor '%s' %s", lm__shown(path),              \
           lm__shown(name), what)

static int check_tensor(const char *path, const char *name, const lm_tensor *t) {
  if (!t) return REFUSE(LM_EINVAL, "is missing or was freed");
  if (t->device != LM_CPU) return REFUSE(LM_EDEVICE, "is not on the cpu; use :to(\"cpu\")");
  if (!lm__is_contiguous(t)) return REFUSE(LM_ESHAPE, "is not contiguous; use :contiguous()");
  return LM_OK;
}

static int take_item(const char *path, item *it, const char *name, int dtype, int ndim,
                     const int64_t *shape) {
  if (strcmp(name, "__metadata__") == 0) return REFUSE(LM_EINVAL, "has a name the format reserves");
  if (!lm_dtype_name(dtype) || ndim < 0 || ndim > LM_MAX_DIMS)
    return REFUSE(LM_EINVAL, "has a dtype or a number of dims that there is not");
  it->bytes = (uint64_t)lm_dtype_size(dtype);
  for (int d = 0; d < ndim; d++)
    if (shape[d] < 0 || __builtin_mul_overflow(it->bytes, (uint64_t)shape[d], &it->bytes) ||
        it->bytes > INT64_MAX)
      return REFUSE(LM_ESHAPE, "has sizes that are negative or too large");
  it->dtype = dtype;
  it->ndim = ndim;
  if (ndim > 0) memcpy(it->shape, shape, (size_t)ndim * sizeof *shape);
  it->name = strdup(name);
  return it->name ? LM_OK : LM_ENOMEM;
}

#undef REFUSE

/* Set key to value in object and drop value. json_string and its kin give NULL for bytes that are
 * not UTF-8, and setting refuses a key that is not. */
static int set(const char *path, json_t *object, const char *kind, const char *key, json_t *value) {
  if (json_object_get(object, key)) {
    json_decref(value);
    return lm__fail(LM_EINVAL, "safetensors: cannot write '%s': %s '%s' is given twice",
                    lm__shown(path), kind, lm__shown(key));
  }
  if (json_object_set_new(object, key, value) != 0)
    return lm__fail(LM_EINVAL, "safetensors: cannot write '%s': %s '%s' is not valid UTF-8",
                    lm__shown(path), kind, lm__shown(key));
  return LM_OK;
}

/* {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}; NULL without memory. */
static json_t *make_entry(const item *it, uint64_t begin) {
  json_t *shape = json_array();
  for (int d = 0; d < it->ndim; d++)
    if (json_array_append_new(shape, json_integer(it->shape[d])) != 0) {
      json_decref(shape);
      return NULL;
    }
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", lm__st_dtype_name(it->dtype), "shape", shape,
                   "data_offsets", (json_int_t)begin, (json_int_t)(begin + it->bytes));
}

/* The JSON object, and where each tensor begins behind it. */
static int make_header(json_t *header, lm_safetensors_writer *w, int m, const char *const *keys,
                       const char *const *values) {
  uint64_t at = 0;
  int status = LM_OK;
  if (m > 0) {
    json_t *metadata = json_object();
    LM__TRY(set(w->path, header, "tensor", "__metadata__", metadata));
    for (int i = 0; i < m; i++)
      LM__TRY(set(w->path, metadata, "metadata", keys[i], json_string(values[i])));
  }
  item **order = malloc(((size_t)w->n + 1) * sizeof *order);
  if (!order) return LM_ENOMEM;
  for (int i = 0; i < w->n; i++) order[i] = &w->items[i];
  qsort(order, (size_t)w->n, sizeof *order, compare_items);
  for (int i = 0; i < w->n && status == LM_OK; i++) {
    json_t *e = make_entry(order[i], at);
    status = e ? set(w->path, header, "tensor", order[i]->name, e) : LM_ENOMEM;
    order[i]->begin = at;
    if (__builtin_add_overflow(at, order[i]->bytes, &at) || at > INT64_MAX / 2)
      status = lm__fail(LM_EINVAL, "safetensors: cannot write '%s': too many bytes to count",
                        lm__shown(w->path));
  }
  free(order);
  return status;
}

/* The file's first bytes; the tensors come at their offsets. */
static int begin_file(lm_safetensors_writer *w, const char *header) {
  static const char spaces[] = "       ";
  const size_t text = strlen(header), padding = (8 - text % 8) % 8;
  const uint64_t length = text + padding;
  uint64_t bytes = LM__ST_PREFIX + length;
  if (length > LM__ST_MAX_HEADER)
    return lm__fail(LM_EINVAL,
                    "safetensors: cannot write '%s': %" PRIu64
                    " bytes of names and metadata; the format allows %d",
                    lm__shown(w->path), length, LM__ST_MAX_HEADER);
  for (int i = 0; i < w->n; i++) {
    w->items[i].begin += LM__ST_PREFIX + length;
    bytes += w->items[i].bytes;
  }
  LM__TRY(lm__new_file_begin(&w->file, "safetensors", w->path, bytes));
  LM__TRY(lm__new_file_write(&w->file, &length, sizeof length));
  LM__TRY(lm__new_file_write(&w->file, header, text));
  return lm__new_file_write(&w->file, spaces, padding);
}

static int create(lm_safetensors_writer *w, int m, const char *const *keys,
                  const char *const *values) {
  json_t *header = json_object();
  int status = header ? make_header(header, w, m, keys, values) : LM_ENOMEM;
  char *text = status == LM_OK ? json_dumps(header, JSON_COMPACT) : NULL;
  json_decref(header);
  if (status == LM_OK) status = text ? begin_file(w, text) : LM_ENOMEM;
  free(text);
  return status;
}

int lm_safetensors_create(lm_safetensors_writer **out, const char *path, int n,
                          const char *const *names, const int *dtypes, const int *ndims,
                          const int64_t *shapes, int m, const char *const *keys,
                          const char *const *values) {
  *out = NULL;
  LM__TRY(lm__begin("safetensors", 0));
  if (!path || n < 0 || m < 0 || (n > 0 && (!names || !dtypes || !ndims || !shapes)) ||
      (m > 0 && (!keys || !values)))
    return lm__fail(LM_EINVAL, "safetensors: a new file needs a path, tensors with names, dtypes "
                               "and shapes, and metadata keys with values");
  for (int i = 0; i < m; i++)
    if (!keys[i] || !values[i])
      return lm__fail(LM_EINVAL, "safetensors: metadata %d has no key or no value", i + 1);
  lm_safetensors_writer *w = calloc(1, sizeof *w);
  if (w) {
    w->file.fd = -1;
    w->path = strdup(path);
    w->items = calloc((size_t)n + 1, sizeof *w->items);
  }
  int status = w && w->path && w->items ? LM_OK : LM_ENOMEM;
  for (int i = 0; i < n && status == LM_OK; i++) {
    w->n = i + 1;
    status = names[i] ? take_item(path, &w->items[i], names[i], dtypes[i], ndims[i], shapes)
                      : lm__fail(LM_EINVAL, "safetensors: tensor %d has no name", i + 1);
    shapes += ndims[i];
  }
  if (status == LM_OK) status = create(w, m, keys, values);
  if (status == LM_ENOMEM)
    status = lm__fail(LM_ENOMEM, "safetensors: cannot write '%s': out of memory", lm__shown(path));
  if (status == LM_OK)
    *out = w;
  else
    lm_safetensors_abandon(w);
  return status;
}

int lm_safetensors_put(lm_safetensors_writer *w, int i, const lm_tensor *t) {
  if (!w) return lm__fail(LM_EINVAL, "safetensors: the file is closed");
  if (i < 0 || i >= w->n)
    return lm__fail(LM_EINDEX, "safetensors: '%s' has %d tensors, counted from 0; there is no %d",
                    lm__shown(w->path), w->n, i);
  item *it = &w->items[i];
  LM__TRY(check_tensor(w->path, it->name, t));
  bool same = t->dtype == it->dtype && t->ndim == it->ndim;
  for (int d = 0; d < it->ndim && same; d++) same = t->shape[d] == it->shape[d];
  if (!same || it->put)
    return lm__fail(LM_ESHAPE, "safetensors: '%s': tensor '%s' %s, got %s", lm__shown(w->path),
                    lm__shown(it->name), same ? "was written before" : "was said to be another",
                    lm__describe(t));
  LM__TRY(lm__new_file_write_at(&w->file, it->begin, lm__data(t), (size_t)it->bytes));
  it->put = true;
  return LM_OK;
}

int lm_safetensors_commit(lm_safetensors_writer *w) {
  if (!w) return lm__fail(LM_EINVAL, "safetensors: the file is closed");
  int status = LM_OK;
  for (int i = 0; i < w->n && status == LM_OK; i++)
    if (!w->items[i].put)
      status = lm__fail(LM_EINVAL, "safetensors: cannot write '%s': tensor '%s' was not given",
                        lm__shown(w->path), lm__shown(w->items[i].name));
  if (status == LM_OK) status = lm__new_file_commit(&w->file);
  lm_safetensors_abandon(w);
  return status;
}

void lm_safetensors_abandon(lm_safetensors_writer *w) {
  if (!w) return;
  lm__new_file_abandon(&w->file);
  for (int i = 0; i < w->n; i++) free(w->items[i].name);
  free(w->items);
  free(w->path);
  free(w);
}

int lm_safetensors_save(const char *path, int n, const char *const *names,
                        const lm_tensor *const *tensors, int m, const char *const *keys,
                        const char *const *values) {
  LM__TRY(lm__begin("safetensors", 0));
  if (!path || n < 0 || m < 0 || (n > 0 && (!names || !tensors)) || (m > 0 && (!keys || !values)))
    return lm__fail(LM_EINVAL, "safetensors: save needs a path, tensors with names and metadata "
                               "keys with values");
  for (int i = 0; i < n; i++) {
    if (!names[i]) return lm__fail(LM_EINVAL, "safetensors: tensor %d has no name", i + 1);
    LM__TRY(check_tensor(path, names[i], tensors[i]));
  }
  int *numbers = malloc(((size_t)n + 1) * 2 * sizeof *numbers); /* dtypes, then ndims */
  int64_t *shapes = malloc(((size_t)n + 1) * LM_MAX_DIMS * sizeof *shapes), *end = shapes;
  lm_safetensors_writer *w = NULL;
  int status = LM_OK;
  if (!numbers || !shapes)
    status = lm__fail(LM_ENOMEM, "safetensors: cannot write '%s': out of memory", lm__shown(path));
  for (int i = 0; i < n && status == LM_OK; i++) {
    numbers[i] = tensors[i]->dtype;
    numbers[n + i] = tensors[i]->ndim;
    for (int d = 0; d < tensors[i]->ndim; d++) *end++ = tensors[i]->shape[d];
  }
  if (status == LM_OK)
    status =
        lm_safetensors_create(&w, path, n, names, numbers, numbers + n, shapes, m, keys, values);
  free(numbers);
  free(shapes);
  for (int i = 0; i < n && status == LM_OK; i++) status = lm_safetensors_put(w, i, tensors[i]);
  if (status == LM_OK) return lm_safetensors_commit(w);
  lm_safetensors_abandon(w);
  return status;
}
