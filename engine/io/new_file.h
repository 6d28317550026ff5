/* Writing a file so that its path is always a whole file, the old one or the new one: into a
 * temporary file in the same folder, flushed to disk, then renamed over the path. */
#ifndef LM_IO_NEW_FILE_H
#define LM_IO_NEW_FILE_H

#include <stddef.h>
#include <stdint.h>

typedef struct lm__new_file {
  const char *op;  /* for messages */
  char *target;    /* what gets replaced: the path, or what it links to */
  char *temporary; /* beside it, ".lumuon-XXXXXXXXXXXXXXXX.tmp" */
  char *folder;    /* that both are in */
  int fd;
  uint64_t end; /* behind what lm__new_file_write wrote */
} lm__new_file;

/* Make the temporary file. bytes: how long the file will be. Refused where path is a folder, a
 * device or write-protected, and where the disk says now that it has not the room. The file gets
 * the mode of the one it replaces, or 0666 less the umask. Only after LM_OK is there anything to
 * commit or abandon. */
int lm__new_file_begin(lm__new_file *file, const char *op, const char *path, uint64_t bytes);
/* Behind what was written so far, or at an offset. Both poll lm_interrupted(). */
int lm__new_file_write(lm__new_file *file, const void *data, size_t bytes);
int lm__new_file_write_at(lm__new_file *file, uint64_t offset, const void *data, size_t bytes);
/* Flush, rename, flush the folder; ends with lm__new_file_abandon in any case. */
int lm__new_file_commit(lm__new_file *file);
/* Close and remove what is left of the temporary file; path is as it was. */
void lm__new_file_abandon(lm__new_file *file);

#endif
