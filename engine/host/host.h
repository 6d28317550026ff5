/* What the executable adds to LuaJIT: signals, the terminal, the Lua modules inside. */
#ifndef LM_HOST_H
#define LM_HOST_H

#include <lua.h>

typedef struct lm__embedded {
  const char *name, *begin, *end;
} lm__embedded;

extern const lm__embedded lm__modules[]; /* written by scripts/embed-lua.cmake; ends with name 0 */

void lm__signals_install(lua_State *L); /* signals.c */
int lm__interrupt_seen(void);           /* signals.c: Ctrl-C at the prompt since the last call? */
void lm__add_signals(lua_State *L);     /* signals.c: its functions, into the table on top */
int lm__open_host(lua_State *L);        /* host.c: the module lumuon.host */
int lm__open_line(lua_State *L);        /* line.c: the module lumuon.line */

#endif
