/* The module lumuon.host: the few things of the operating system the command line needs. */
#include <errno.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/host.h"

static int fail(lua_State *L, const char *path) {
  const int e = errno;
  lua_pushnil(L);
  lua_pushfstring(L, "%s: %s", path, strerror(e));
  return 2;
}

/* host.executable() -> path of this program */
static int executable(lua_State *L) {
  char path[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  if (n < 0) return fail(L, "/proc/self/exe");
  lua_pushlstring(L, path, (size_t)n);
  return 1;
}

/* host.kind(path) -> "file", "directory", "other", or nil and why not */
static int kind(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  struct stat st;
  if (stat(path, &st) != 0) return fail(L, path);
  lua_pushstring(L, S_ISREG(st.st_mode) ? "file" : S_ISDIR(st.st_mode) ? "directory" : "other");
  return 1;
}

/* host.make_directory(path): and its parents; true, or nil and why not */
static int make_directory(lua_State *L) {
  size_t n = 0;
  const char *text = luaL_checklstring(L, 1, &n);
  char path[PATH_MAX];
  if (n == 0 || n >= sizeof path) {
    errno = n ? ENAMETOOLONG : ENOENT;
    return fail(L, text);
  }
  memcpy(path, text, n + 1);
  for (char *p = path + 1; *p; p++)
    if (*p == '/') {
      *p = 0;
      if (mkdir(path, 0777) != 0 && errno != EEXIST) return fail(L, path);
      *p = '/';
    }
  if (mkdir(path, 0777) != 0 && errno != EEXIST) return fail(L, path);
  struct stat st;
  if (stat(path, &st) != 0) return fail(L, path);
  if (!S_ISDIR(st.st_mode)) {
    errno = ENOTDIR;
    return fail(L, path);
  }
  lua_pushboolean(L, 1);
  return 1;
}

/* host.change_directory(path): true, or nil and why not */
static int change_directory(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  if (chdir(path) != 0) return fail(L, path);
  lua_pushboolean(L, 1);
  return 1;
}

/* host.is_terminal(fd) */
static int is_terminal(lua_State *L) {
  lua_pushboolean(L, isatty(luaL_checkint(L, 1)));
  return 1;
}

/* host.width() -> columns of the terminal, 80 where there is none */
static int width(lua_State *L) {
  struct winsize size;
  const int known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  lua_pushinteger(L, known ? size.ws_col : 80);
  return 1;
}

int lm__open_host(lua_State *L) {
  static const luaL_Reg functions[] = {{"executable", executable},
                                       {"kind", kind},
                                       {"make_directory", make_directory},
                                       {"change_directory", change_directory},
                                       {"is_terminal", is_terminal},
                                       {"width", width},
                                       {NULL, NULL}};
  lua_newtable(L);
  luaL_register(L, NULL, functions);
  lm__add_signals(L);
  return 1;
}
