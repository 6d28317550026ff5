#include "backend/library.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef bool (*take_fn)(void *library);

static bool load_from(const char *file, take_fn take) {
  void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (!library) return false;
  if (take(library)) return true;
  (void)dlclose(library);
  return false;
}

/* The first good one of the files that root, folder and name match, as a pattern. */
static bool load_matching(const char *root, const char *folder, const char *file, take_fn take) {
  char pattern[2048];
  glob_t found;
  bool loaded = false;
  const int length = snprintf(pattern, sizeof pattern, "%s%s/%s", root, folder, file);
  if (length < 0 || (size_t)length >= sizeof pattern || glob(pattern, 0, NULL, &found) != 0)
    return false;
  for (size_t i = 0; i < found.gl_pathc && !loaded; i++)
    loaded = load_from(found.gl_pathv[i], take);
  globfree(&found);
  return loaded;
}

static bool in_toolkit(const char *root, const lm__library *l, take_fn take) {
  static const char *const folders[] = {"/lib64", "/lib", "/targets/*/lib"};
  if (!root || !*root) return false;
  for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
    if (load_matching(root, folders[i], l->file, take)) return true;
  return false;
}

/* site-packages, and Debian's dist-packages */
static bool in_python(const char *root, const lm__library *l, take_fn take) {
  char folder[128];
  if (!root || !*root) return false;
  for (const char *const *package = l->packages; *package; package++) {
    (void)snprintf(folder, sizeof folder, "/lib/python3*/*-packages/nvidia/%s/lib", *package);
    if (load_matching(root, folder, l->file, take)) return true;
  }
  return false;
}

/* Where a python3 of PATH leads to, link after link: an environment that is not activated. */
static bool in_pythons_of_path(const lm__library *l, take_fn take) {
  const char *path = getenv("PATH");
  char at[1024], to[1024];
  for (const char *end; path && *path; path = *end ? end + 1 : end) {
    end = strchrnul(path, ':');
    int length = snprintf(at, sizeof at, "%.*s/python3", (int)(end - path), path);
    for (int links = 0; links < 8 && length > 0 && (size_t)length < sizeof at; links++) {
      if (access(at, X_OK) != 0) break;
      char root[1024];
      (void)snprintf(root, sizeof root, "%s", at);
      for (int up = 0; up < 2 && strrchr(root, '/'); up++) *strrchr(root, '/') = 0;
      if (in_python(root, l, take)) return true;
      const ssize_t n = readlink(at, to, sizeof to - 1);
      if (n <= 0) break;
      to[n] = 0;
      if (*to != '/') { /* beside the link */
        *(strrchr(at, '/') + 1) = 0;
        (void)snprintf(root, sizeof root, "%s", at);
        length = snprintf(at, sizeof at, "%s%s", root, to);
      } else {
        length = snprintf(at, sizeof at, "%s", to);
      }
    }
  }
  return false;
}

bool lm__library_load(const lm__library *l, take_fn take) {
  const char *const own = getenv(l->variable), *const home = getenv("HOME");
  char user[1024] = "";
  if (own && *own) return load_from(own, take);
  if (home) (void)snprintf(user, sizeof user, "%s/.local", home);
  return load_from(l->file, take) || in_toolkit(getenv("CUDA_HOME"), l, take) ||
         in_toolkit(getenv("CUDA_PATH"), l, take) || in_python(getenv("VIRTUAL_ENV"), l, take) ||
         in_python(getenv("CONDA_PREFIX"), l, take) || in_pythons_of_path(l, take) ||
         in_toolkit("/usr/local/cuda", l, take) || in_toolkit("/usr/local/cuda-*", l, take) ||
         in_python(user, l, take) || in_python("/usr/local", l, take) || in_python("/usr", l, take);
}

bool lm__library_function(void *library, const char *name, void *pointer) {
  void *const address = dlsym(library, name);
  memcpy(pointer, &address, sizeof address);
  return address != NULL;
}
