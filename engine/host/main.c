/* The `lumuon` executable: LuaJIT with the Lua modules inside; lua/lumuon/cli.lua does the rest. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <string.h>

#include "host/embedded.h"

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

int main(int argc, char **argv) {
  lua_State *L = luaL_newstate();
  if (!L) {
    (void)fprintf(stderr, "lumuon: no memory for LuaJIT\n");
    return 1;
  }
  luaL_openlibs(L);
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "loaders");
  for (int i = (int)lua_objlen(L, -1); i >= 2; i--) { /* second place, after package.preload */
    lua_rawgeti(L, -1, i);
    lua_rawseti(L, -2, i + 1);
  }
  lua_pushcfunction(L, load_embedded);
  lua_rawseti(L, -2, 2);
  lua_settop(L, 0);
  lua_createtable(L, argc, 0);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  lua_setglobal(L, "arg");
  if (luaL_dostring(L, "dofile(arg[1])") != 0) {
    (void)fprintf(stderr, "%s\n", lua_tostring(L, -1));
    return 1;
  }
  lua_close(L);
  return 0;
}
