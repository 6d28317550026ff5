/* The module lumuon.line: line editing with history and completion, by libedit.
 *   line.open(complete)   complete(text before the cursor) -> text to insert, text to show or nil
 *   line.read(prompt)     -> a line; nil, "interrupt" on Ctrl-C; nil, "end" on Ctrl-D
 *   line.remember(text)   one more line of history
 *   line.close() */
#include <errno.h>
#include <histedit.h>
#include <lauxlib.h>
#include <locale.h>
#include <lua.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#include "host/host.h"

enum { HISTORY_LINES = 2000 };

static EditLine *editor;
static History *history_list;
static lua_State *state;
static int complete_ref = LUA_NOREF;
static char prompt_text[64];
static int was_interrupted;
static sigset_t mask_outside; /* the signals that were blocked before line.read */

static char *prompt(EditLine *el) {
  (void)el;
  return prompt_text;
}

/* libedit's own reader retries after a signal; this one lets Ctrl-C through. SIGINT is blocked
 * while a line is edited, but for the wait here: a press between two keys is not lost. */
static int read_character(EditLine *el, wchar_t *out) {
  (void)el;
  mbstate_t shift;
  memset(&shift, 0, sizeof shift);
  for (;;) {
    char byte = 0;
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    if (ppoll(&input, 1, NULL, &mask_outside) < 0) {
      if (errno == EINTR && !lm__interrupt_seen()) continue; /* another signal: a resized window */
      was_interrupted = errno == EINTR;
      return -1;
    }
    const ssize_t n = read(STDIN_FILENO, &byte, 1);
    if (n == 0) return 0;
    if (n < 0) {
      was_interrupted = errno == EINTR;
      return -1;
    }
    const size_t used = mbrtowc(out, &byte, 1, &shift);
    if (used == (size_t)-2) continue; /* more bytes of this character to come */
    if (used == (size_t)-1) *out = L'?';
    if (used == 0) *out = L'\0';
    return 1;
  }
}

static unsigned char complete(EditLine *el, int key) {
  (void)key;
  const LineInfo *line = el_line(el);
  const int top = lua_gettop(state);
  unsigned char result = CC_REFRESH;
  lua_rawgeti(state, LUA_REGISTRYINDEX, complete_ref);
  lua_pushlstring(state, line->buffer, (size_t)(line->cursor - line->buffer));
  if (lua_pcall(state, 1, 2, 0) != 0) {
    lua_settop(state, top);
    return CC_ERROR;
  }
  const char *insert = lua_tostring(state, -2), *show = lua_tostring(state, -1);
  if (insert && *insert && el_insertstr(el, insert) != 0) result = CC_ERROR;
  if (show) {
    (void)fprintf(stdout, "\n%s\n", show);
    (void)fflush(stdout);
    result = CC_REDISPLAY;
  } else if (!insert || !*insert) {
    result = CC_REFRESH_BEEP;
  }
  lua_settop(state, top);
  return result;
}

static void close_editor(void) {
  if (editor) el_end(editor);
  if (history_list) history_end(history_list);
  editor = NULL;
  history_list = NULL;
}

static int line_open(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  HistEvent event;
  if (editor) return luaL_error(L, "line.open: already open");
  const char *locale = setlocale(LC_CTYPE, ""); /* characters as the terminal has them */
  if (!locale || strcmp(locale, "C") == 0) (void)setlocale(LC_CTYPE, "C.UTF-8");
  editor = el_init("lumuon", stdin, stdout, stderr);
  history_list = history_init();
  if (!editor || !history_list) {
    close_editor();
    lua_pushnil(L);
    lua_pushliteral(L, "the terminal cannot be set up");
    return 2;
  }
  static int registered;
  if (!registered) registered = atexit(close_editor) == 0; /* the terminal as it was, always */
  state = L;
  lua_settop(L, 1);
  complete_ref = luaL_ref(L, LUA_REGISTRYINDEX);
  (void)history(history_list, &event, H_SETSIZE, HISTORY_LINES);
  (void)history(history_list, &event, H_SETUNIQUE, 1);
  (void)el_set(editor, EL_PROMPT, prompt);
  (void)el_set(editor, EL_EDITOR, "emacs");
  (void)el_set(editor, EL_HIST, history, history_list);
  (void)el_set(editor, EL_GETCFN, read_character);
  (void)el_set(editor, EL_ADDFN, "lumuon-complete", "Complete the name before the cursor",
               complete);
  (void)el_set(editor, EL_BIND, "^I", "lumuon-complete", NULL);
  (void)el_set(editor, EL_BIND, "^R", "em-inc-search-prev", NULL);
  (void)el_set(editor, EL_BIND, "^L", "ed-clear-screen", NULL);
  (void)el_source(editor, NULL); /* the user's ~/.editrc */
  lua_pushboolean(L, 1);
  return 1;
}

static int line_read(lua_State *L) {
  (void)snprintf(prompt_text, sizeof prompt_text, "%s", luaL_checkstring(L, 1));
  if (!editor) return luaL_error(L, "line.read: not open");
  int count = 0;
  was_interrupted = 0;
  sigset_t interrupt;
  (void)sigemptyset(&interrupt);
  (void)sigaddset(&interrupt, SIGINT);
  (void)pthread_sigmask(SIG_BLOCK, &interrupt, &mask_outside);
  (void)lm__interrupt_seen();
  const char *text = el_gets(editor, &count);
  (void)pthread_sigmask(SIG_SETMASK, &mask_outside, NULL);
  if (text && count > 0) {
    if (text[count - 1] == '\n') count--;
    lua_pushlstring(L, text, (size_t)count);
    return 1;
  }
  (void)fputc('\n', stdout);
  (void)fflush(stdout);
  if (was_interrupted) el_reset(editor);
  lua_pushnil(L);
  lua_pushstring(L, was_interrupted ? "interrupt" : "end");
  return 2;
}

static int line_remember(lua_State *L) {
  HistEvent event;
  const char *text = luaL_checkstring(L, 1);
  if (history_list) (void)history(history_list, &event, H_ENTER, text);
  return 0;
}

static int line_close(lua_State *L) {
  if (complete_ref != LUA_NOREF) luaL_unref(L, LUA_REGISTRYINDEX, complete_ref);
  complete_ref = LUA_NOREF;
  close_editor();
  return 0;
}

int lm__open_line(lua_State *L) {
  static const luaL_Reg functions[] = {{"open", line_open},
                                       {"read", line_read},
                                       {"remember", line_remember},
                                       {"close", line_close},
                                       {NULL, NULL}};
  lua_newtable(L);
  luaL_register(L, NULL, functions);
  return 1;
}
