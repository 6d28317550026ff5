/* The `lumuon` executable: LuaJIT with the Lua modules inside; lua/lumuon/cli.lua does the rest. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/host.h"

static int load_embedded(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  for (const lm__embedded *m = lm__modules; m->name; m++)
    if (strcmp(m->name, name) == 0) {
      char chunk[128];
      (void)snprintf(chunk, sizeof chunk, "@lumuon:%s", name);
      if (luaL_loadbuffer(L, m->begin, (size_t)(m->end - m->begin), chunk) != 0)
        return lua_error(L);
      return 1;
    }
  lua_pushfstring(L, "\n\tno module '%s' inside the executable", name);
  return 1;
}

/* Modules inside come first, right after package.preload: the executable means what it was built
 * from, whatever LUA_PATH says. */
static void add_searcher(lua_State *L) {
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "loaders");
  for (int i = (int)lua_objlen(L, -1); i >= 2; i--) {
    lua_rawgeti(L, -1, i);
    lua_rawseti(L, -2, i + 1);
  }
  lua_pushcfunction(L, load_embedded);
  lua_rawseti(L, -2, 2);
  lua_getfield(L, -2, "preload");
  lua_pushcfunction(L, lm__open_host);
  lua_setfield(L, -2, "lumuon.host");
  lua_pushcfunction(L, lm__open_line);
  lua_setfield(L, -2, "lumuon.line");
  lua_pop(L, 3);
}

static int protected_main(lua_State *L) {
  luaL_openlibs(L);
  add_searcher(L);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "lumuon.cli");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "main");
  lua_pushvalue(L, 1);
  lua_call(L, 1, 1);
  return 1;
}

/* With OMP_PROC_BIND or the like libgomp has bound this thread to the first of its places by now.
 * Take all of them again, or the program that is started next would believe in that one alone. */
static void unbind(void) {
  cpu_set_t all;
  CPU_ZERO(&all);
  for (int place = 0; place < omp_get_num_places(); place++) {
    int ids[CPU_SETSIZE];
    const int n = omp_get_place_num_procs(place);
    if (n > CPU_SETSIZE) return;
    omp_get_place_proc_ids(place, ids);
    for (int i = 0; i < n; i++) CPU_SET((size_t)ids[i], &all);
  }
  if (CPU_COUNT(&all) > 0) (void)sched_setaffinity(0, sizeof all, &all);
}

/* OpenMP's threads spin between parallel loops. Left to its default, libgomp spins so long that on
 * a machine with anything else to do the spinning thread takes the core from the one it waits for:
 * a 76 ms training step took over a second beside two busy processes. It reads its settings before
 * main(), so this starts the program once more with a short spin, unless the user chose one. */
static void spin_less(char **argv) {
  char path[4096];
  if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length <= 0 || setenv("GOMP_SPINCOUNT", "300", 1) != 0) return;
  path[length] = '\0';
  unbind();
  (void)execv(path, argv); /* comes back only if it failed: go on as we are */
}

/* Output that could not be written is an error: the disk was full, say. */
static void close_output(void) {
  if (fflush(stdout) == 0 && !ferror(stdout)) return;
  static const char message[] = "lumuon: writing the output failed\n";
  if (write(STDERR_FILENO, message, sizeof message - 1) < 0) _exit(1);
  _exit(1);
}

int main(int argc, char **argv) {
  spin_less(argv);
  (void)atexit(close_output);
  lua_State *L = luaL_newstate();
  if (!L) {
    (void)fprintf(stderr, "lumuon: no memory for LuaJIT\n");
    return 1;
  }
  lm__signals_install(L);
  lua_pushcfunction(L, protected_main);
  lua_createtable(L, argc, 0);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  int code = 1;
  if (lua_pcall(L, 1, 1, 0) == 0) {
    code = (int)lua_tointeger(L, -1);
  } else {
    const char *message = lua_tostring(L, -1);
    (void)fprintf(stderr, "lumuon: %s\n", message ? message : "error without a message");
  }
  lua_close(L); /* finalizers run: files are flushed, tensors and their memory given back */
  return code;
}
