#include "io/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/tensor.h"
#include "io/text.h"

enum { WRITE_CHUNK = 16 << 20, TRIES = 100 };

static int fail(const lm__new_file *file, const char *path, int error) {
  return lm__fail(error == ENOMEM ? LM_ENOMEM : LM_EIO, "%s: cannot write '%s': %s", file->op,
                  lm__shown(path), strerror(error));
}

/* The file that writing to path is to replace: what path links to, or path itself. */
static int find_target(lm__new_file *file, const char *path, mode_t *mode) {
  struct stat st;
  *mode = 0;
  if (lstat(path, &st) != 0) {
    if (errno != ENOENT) return fail(file, path, errno);
    file->target = strdup(path);
  } else {
    file->target = S_ISLNK(st.st_mode) ? realpath(path, NULL) : strdup(path);
    if (!file->target && errno == ENOENT)
      return lm__fail(LM_EIO, "%s: cannot write '%s': it is a link to nothing", file->op,
                      lm__shown(path));
  }
  if (!file->target) return fail(file, path, errno);
  if (stat(file->target, &st) != 0) return errno == ENOENT ? LM_OK : fail(file, path, errno);
  if (!S_ISREG(st.st_mode))
    return lm__fail(LM_EIO, "%s: cannot write '%s': it is %s", file->op, lm__shown(path),
                    S_ISDIR(st.st_mode) ? "a folder" : "not a regular file");
  if (eaccess(file->target, W_OK) != 0) return fail(file, path, errno);
  *mode = st.st_mode & 0777;
  return LM_OK;
}

/* Ask now what write() would answer with a signal that ends the process. */
static int check_size_limit(const lm__new_file *file, const char *path, uint64_t bytes) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
      bytes <= limit.rlim_cur)
    return LM_OK;
  return lm__fail(LM_EIO,
                  "%s: cannot write '%s': its %" PRIu64 " bytes are over this process's limit of "
                  "%" PRIu64 " for a file (ulimit -f)",
                  file->op, lm__shown(path), bytes, (uint64_t)limit.rlim_cur);
}

static int open_temporary(lm__new_file *file, const char *path, mode_t mode) {
  const char *slash = strrchr(file->target, '/');
  const size_t folder = slash ? (size_t)(slash - file->target) + 1 : 0;
  file->folder = folder ? strndup(file->target, folder) : strdup(".");
  file->temporary = malloc(folder + sizeof ".lumuon-0123456789abcdef.tmp");
  if (!file->folder || !file->temporary) return fail(file, path, ENOMEM);
  memcpy(file->temporary, file->target, folder);
  for (int i = 0; i < TRIES && file->fd < 0; i++) {
    uint64_t number = 0;
    if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
      return fail(file, path, EIO);
    (void)sprintf(file->temporary + folder, ".lumuon-%016" PRIx64 ".tmp", number);
    file->fd = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file->fd < 0 && errno != EEXIST) {
      const int error = errno;
      if (error == ENOENT || error == ENOTDIR)
        return lm__fail(LM_EIO, "%s: cannot write '%s': there is no folder '%s'", file->op,
                        lm__shown(path), lm__shown(file->folder));
      return lm__fail(LM_EIO, "%s: cannot write '%s': no new file in '%s': %s", file->op,
                      lm__shown(path), lm__shown(file->folder), strerror(error));
    }
  }
  if (file->fd < 0) return fail(file, path, EEXIST);
  if (mode != 0 && fchmod(file->fd, mode) != 0) return fail(file, path, errno);
  return LM_OK;
}

/* A disk that is too full says so before anything was computed or sent for this file; file systems
 * that cannot promise room (EOPNOTSUPP) say it when they are written to. */
static int reserve(const lm__new_file *file, const char *path, uint64_t bytes) {
  if (bytes == 0 || fallocate(file->fd, 0, 0, (off_t)bytes) == 0) return LM_OK;
  return errno == ENOSPC || errno == EDQUOT ? fail(file, path, errno) : LM_OK;
}

int lm__new_file_begin(lm__new_file *file, const char *op, const char *path, uint64_t bytes) {
  mode_t mode = 0;
  *file = (lm__new_file){.op = op, .fd = -1};
  int status = find_target(file, path, &mode);
  if (status == LM_OK) status = check_size_limit(file, path, bytes);
  if (status == LM_OK) status = open_temporary(file, path, mode);
  if (status == LM_OK) status = reserve(file, path, bytes);
  if (status != LM_OK) lm__new_file_abandon(file);
  return status;
}

int lm__new_file_write_at(lm__new_file *file, uint64_t offset, const void *data, size_t bytes) {
  const char *from = data;
  while (bytes > 0) {
    LM__TRY(lm__begin(file->op, 0));
    const ssize_t n =
        pwrite(file->fd, from, bytes < WRITE_CHUNK ? bytes : WRITE_CHUNK, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(file, file->target, errno);
    from += n;
    offset += (uint64_t)n;
    bytes -= (size_t)n;
  }
  return LM_OK;
}

int lm__new_file_write(lm__new_file *file, const void *data, size_t bytes) {
  LM__TRY(lm__new_file_write_at(file, file->end, data, bytes));
  file->end += bytes;
  return LM_OK;
}

/* A rename is on disk once its folder is. Some file systems have no such call (EINVAL), and a
 * folder may be one we can write but not open: nothing more can be done there. */
static int flush_folder(const lm__new_file *file) {
  const int fd = open(file->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return LM_OK;
  const int error = fsync(fd) == 0 ? 0 : errno;
  (void)close(fd);
  if (error == 0 || error == EINVAL || error == ENOTSUP) return LM_OK;
  return lm__fail(LM_EIO, "%s: '%s' is written, but its folder could not be flushed to disk: %s",
                  file->op, lm__shown(file->target), strerror(error));
}

int lm__new_file_commit(lm__new_file *file) {
  int status = LM_OK;
  if (fsync(file->fd) != 0) status = fail(file, file->target, errno);
  if (close(file->fd) != 0 && status == LM_OK) status = fail(file, file->target, errno);
  file->fd = -1;
  if (status == LM_OK && rename(file->temporary, file->target) != 0)
    status = fail(file, file->target, errno);
  if (status == LM_OK) {
    free(file->temporary); /* it is the target now: not to be removed */
    file->temporary = NULL;
    status = flush_folder(file);
  } else {
    (void)unlink(file->temporary);
  }
  lm__new_file_abandon(file);
  return status;
}

void lm__new_file_abandon(lm__new_file *file) {
  if (file->fd >= 0) {
    (void)close(file->fd);
    (void)unlink(file->temporary);
  }
  free(file->target);
  free(file->temporary);
  free(file->folder);
  *file = (lm__new_file){.fd = -1};
}
