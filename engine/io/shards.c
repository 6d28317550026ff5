/* Token shards: the files of llm.c and modded-nanogpt.
 *
 *   256 little-endian i32: magic, version, count, then zeros | count tokens
 *   magic 20240520, version 1: u16 tokens       magic 20240801, version 7: u32 tokens
 *
 * A file is not trusted: opening one checks that it is a regular file, its magic and version, that
 * it has at least one token and is exactly as long as its count says. Tokens are read with pread
 * where they are asked for: a file that is cut short meanwhile is an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/tensor.h"
#include "io/new_file.h"
#include "io/text.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "token shards are little-endian and are read and written as they lie in memory"
#endif

enum { HEADER = 1024, CHUNK = 1 << 14 };
static const struct format {
  int32_t magic, version;
  int64_t width; /* bytes of a token */
} formats[] = {{20240520, 1, 2}, {20240801, 7, 4}};

struct lm_shard {
  char *path;
  int fd;
  int64_t width, count;
};

static int fail_io(const char *path, const char *what, int error) {
  return lm__fail(error == ENOMEM ? LM_ENOMEM : LM_EIO, "shard: cannot %s '%s': %s", what,
                  lm__shown(path), strerror(error));
}

/* All of n bytes at offset. */
static int read_at(const lm_shard *file, void *to, int64_t n, int64_t offset) {
  for (int64_t got = 0; got < n;) {
    const ssize_t more = pread(file->fd, (char *)to + got, (size_t)(n - got), offset + got);
    if (more < 0 && errno == EINTR) continue;
    if (more < 0) return fail_io(file->path, "read", errno);
    if (more == 0)
      return lm__fail(LM_EIO, "shard: '%s' was cut short while in use, to %" PRId64 " bytes",
                      lm__shown(file->path), offset + got);
    got += more;
  }
  return LM_OK;
}

static int check_header(lm_shard *file, int64_t size) {
  int32_t header[HEADER / 4];
  const struct format *f = formats, *end = formats + sizeof formats / sizeof *formats;
#define BAD(...) lm__fail(LM_EFORMAT, __VA_ARGS__)
  if (size < HEADER)
    return BAD("shard: '%s': %" PRId64 " bytes; a token shard starts with %d bytes of header",
               lm__shown(file->path), size, HEADER);
  LM__TRY(read_at(file, header, HEADER, 0));
  while (f < end && f->magic != header[0]) f++;
  if (f == end)
    return BAD("shard: '%s': magic number %" PRId32 " is not a token shard's (%" PRId32
               " or %" PRId32 ")",
               lm__shown(file->path), header[0], formats[0].magic, formats[1].magic);
  if (header[1] != f->version)
    return BAD("shard: '%s': version %" PRId32 " with magic %" PRId32 "; known is %" PRId32,
               lm__shown(file->path), header[1], f->magic, f->version);
  if (header[2] < 1)
    return BAD("shard: '%s': a count of %" PRId32 " tokens", lm__shown(file->path), header[2]);
  if (size != HEADER + header[2] * f->width)
    return BAD("shard: '%s': %" PRId64 " bytes; %" PRId32 " tokens of %" PRId64
               " bytes and the header make %" PRId64,
               lm__shown(file->path), size, header[2], f->width, HEADER + header[2] * f->width);
#undef BAD
  file->width = f->width;
  file->count = header[2];
  return LM_OK;
}

static int open_file(lm_shard *file) {
  struct stat st;
  /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
  file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file->fd < 0) return fail_io(file->path, "open", errno);
  if (fstat(file->fd, &st) != 0) return fail_io(file->path, "look at", errno);
  if (!S_ISREG(st.st_mode))
    return lm__fail(LM_EIO, "shard: '%s' is not a regular file", lm__shown(file->path));
  return check_header(file, (int64_t)st.st_size);
}

int lm_shard_open(lm_shard **out, const char *path) {
  LM__TRY(lm__begin("shard", 0));
  if (!out || !path) return lm__fail(LM_EINVAL, "shard: open needs a path");
  *out = NULL;
  lm_shard *file = calloc(1, sizeof *file);
  if (file) *file = (lm_shard){.path = strdup(path), .fd = -1};
  if (!file || !file->path) {
    free(file);
    return fail_io(path, "open", ENOMEM);
  }
  const int status = open_file(file);
  if (status == LM_OK)
    *out = file;
  else
    lm_shard_close(file);
  return status;
}

void lm_shard_close(lm_shard *file) {
  if (!file) return;
  if (file->fd >= 0) (void)close(file->fd);
  free(file->path);
  free(file);
}

double lm_shard_count(const lm_shard *file) { return file ? (double)file->count : 0; }

int lm_shard_read(lm_tensor *out, const lm_shard *file, double first) {
  LM__TRY(lm__begin("shard", 1, out));
  if (!file) return lm__fail(LM_EINVAL, "shard: the file was closed");
  if (out->device != LM_CPU) return lm__fail(LM_EDEVICE, "shard: tokens are read to the cpu");
  LM__TRY(lm__need_dtype("shard", "out", out, LM_I32));
  LM__TRY(lm__need_contiguous("shard", "out", out));
  const int64_t n = lm__numel(out);
  if (!(first >= 0) || first > 2147483647.0 || first != (double)(int64_t)first ||
      (int64_t)first + n > file->count)
    return lm__fail(LM_EINVAL,
                    "shard: '%s' has %" PRId64 " tokens; %" PRId64 " from %.17g on are not in it",
                    lm__shown(file->path), file->count, n, first);
  int32_t *to = lm__data(out);
  const int64_t from = HEADER + (int64_t)first * file->width;
  if (file->width == 4) {
    LM__TRY(read_at(file, to, n * 4, from));
    for (int64_t i = 0; i < n; i++)
      if (to[i] < 0)
        return lm__fail(LM_EFORMAT,
                        "shard: '%s': token %" PRId64 " is %" PRIu32 "; at most 2^31-1 can be used",
                        lm__shown(file->path), (int64_t)first + i, (uint32_t)to[i]);
    return LM_OK;
  }
  uint16_t narrow[CHUNK];
  for (int64_t done = 0; done < n; done += CHUNK) {
    const int64_t now = n - done < CHUNK ? n - done : CHUNK;
    LM__TRY(read_at(file, narrow, now * 2, from + done * 2));
    for (int64_t i = 0; i < now; i++) to[done + i] = narrow[i];
  }
  return LM_OK;
}

int lm_shard_save(const char *path, const lm_tensor *tokens) {
  LM__TRY(lm__begin("shard", 1, tokens));
  if (!path) return lm__fail(LM_EINVAL, "shard: save needs a path");
  if (tokens->device != LM_CPU)
    return lm__fail(LM_EDEVICE, "shard: tokens are not on the cpu; use :to(\"cpu\")");
  LM__TRY(lm__need_contiguous("shard", "tokens", tokens));
  if (tokens->dtype != LM_U16 && tokens->dtype != LM_I32)
    return lm__fail(LM_EDTYPE, "shard: tokens must be u16 or i32, got %s", lm__describe(tokens));
  const struct format *f = &formats[tokens->dtype == LM_U16 ? 0 : 1];
  const int64_t n = lm__numel(tokens);
  if (n < 1 || n > INT32_MAX)
    return lm__fail(LM_EINVAL, "shard: %" PRId64 " tokens; a shard holds 1 to 2^31-1", n);
  const int32_t *ids = lm__data(tokens);
  for (int64_t i = 0; tokens->dtype == LM_I32 && i < n; i++)
    if (ids[i] < 0)
      return lm__fail(LM_EINVAL, "shard: token %" PRId64 " is %" PRId32 "; tokens count from 0", i,
                      ids[i]);
  const int32_t header[HEADER / 4] = {f->magic, f->version, (int32_t)n};
  lm__new_file file;
  LM__TRY(lm__new_file_begin(&file, "shard", path, (uint64_t)(HEADER + n * f->width)));
  int status = lm__new_file_write(&file, header, HEADER);
  if (status == LM_OK) status = lm__new_file_write(&file, lm__data(tokens), (size_t)(n * f->width));
  if (status == LM_OK) return lm__new_file_commit(&file);
  lm__new_file_abandon(&file);
  return status;
}
