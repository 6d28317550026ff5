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
  const char *name;
  const lm_tensor *tensor;
  uint64_t bytes;
} item;

static int compare_items(const void *left, const void *right) {
  const item *a = left, *b = right;
  const int wide_a = lm_dtype_size(a->tensor->dtype), wide_b = lm_dtype_size(b->tensor->dtype);
  if (wide_a != wide_b) return wide_a > wide_b ? -1 : 1;
  return strcmp(a->name, b->name);
}

static int check_tensor(const char *path, const char *name, const lm_tensor *t) {
#define REFUSE(status, what)                                                                       \
  lm__fail(status, "safetensors: cannot write '%s': tensor '%s' %s", lm__shown(path),              \
           lm__shown(name), what)
  if (!t) return REFUSE(LM_EINVAL, "is missing or was freed");
  if (strcmp(name, "__metadata__") == 0) return REFUSE(LM_EINVAL, "has a name the format reserves");
  if (t->device != LM_CPU) return REFUSE(LM_EDEVICE, "is not on the cpu; use :to(\"cpu\")");
  if (!lm__is_contiguous(t)) return REFUSE(LM_ESHAPE, "is not contiguous; use :contiguous()");
  return LM_OK;
#undef REFUSE
}

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
  const lm_tensor *t = it->tensor;
  json_t *shape = json_array();
  for (int d = 0; d < t->ndim; d++)
    if (json_array_append_new(shape, json_integer(t->shape[d])) != 0) {
      json_decref(shape);
      return NULL;
    }
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", lm__st_dtype_name(t->dtype), "shape", shape,
                   "data_offsets", (json_int_t)begin, (json_int_t)(begin + it->bytes));
}

/* The JSON object, of tensors already in order. */
static int make_header(json_t *header, const char *path, int n, const item *items, int m,
                       const char *const *keys, const char *const *values) {
  uint64_t at = 0;
  if (m > 0) {
    json_t *metadata = json_object();
    LM__TRY(set(path, header, "tensor", "__metadata__", metadata));
    for (int i = 0; i < m; i++)
      LM__TRY(set(path, metadata, "metadata", keys[i], json_string(values[i])));
  }
  for (int i = 0; i < n; i++) {
    json_t *e = make_entry(&items[i], at);
    if (!e) return LM_ENOMEM;
    LM__TRY(set(path, header, "tensor", items[i].name, e));
    at += items[i].bytes;
  }
  return LM_OK;
}

static int write_all(const char *path, const char *header, int n, const item *items) {
  static const char spaces[] = "       ";
  lm__new_file file;
  const size_t text = strlen(header), padding = (8 - text % 8) % 8;
  const uint64_t length = text + padding;
  uint64_t bytes = LM__ST_PREFIX + length;
  if (length > LM__ST_MAX_HEADER)
    return lm__fail(LM_EINVAL,
                    "safetensors: cannot write '%s': %" PRIu64
                    " bytes of names and metadata; the format allows %d",
                    lm__shown(path), length, LM__ST_MAX_HEADER);
  for (int i = 0; i < n; i++) bytes += items[i].bytes;
  LM__TRY(lm__new_file_begin(&file, "safetensors", path, bytes));
  int status = lm__new_file_write(&file, &length, sizeof length);
  if (status == LM_OK) status = lm__new_file_write(&file, header, text);
  if (status == LM_OK) status = lm__new_file_write(&file, spaces, padding);
  for (int i = 0; i < n && status == LM_OK; i++)
    status = lm__new_file_write(&file, lm__data(items[i].tensor), (size_t)items[i].bytes);
  if (status == LM_OK) return lm__new_file_commit(&file);
  lm__new_file_abandon(&file);
  return status;
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
  for (int i = 0; i < m; i++)
    if (!keys[i] || !values[i])
      return lm__fail(LM_EINVAL, "safetensors: metadata %d has no key or no value", i + 1);
  item *items = calloc((size_t)n + 1, sizeof *items);
  json_t *header = json_object();
  char *text = NULL;
  int status = items && header ? LM_OK : LM_ENOMEM;
  if (status == LM_OK) {
    for (int i = 0; i < n; i++)
      items[i] =
          (item){names[i], tensors[i],
                 (uint64_t)lm__numel(tensors[i]) * (uint64_t)lm_dtype_size(tensors[i]->dtype)};
    qsort(items, (size_t)n, sizeof *items, compare_items);
    status = make_header(header, path, n, items, m, keys, values);
  }
  if (status == LM_OK) {
    text = json_dumps(header, JSON_COMPACT);
    status = text ? write_all(path, text, n, items) : LM_ENOMEM;
  }
  if (status == LM_ENOMEM)
    status = lm__fail(LM_ENOMEM, "safetensors: cannot write '%s': out of memory", lm__shown(path));
  free(text);
  json_decref(header);
  free(items);
  return status;
}
