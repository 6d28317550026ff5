/* Ctrl-C. The handler sets the engine's flag, which running engine calls poll, and a Lua hook,
 * which stops plain Lua; so whatever runs ends with an ordinary Lua error that host.call catches. A
 * recipe that asks for it (host.defer_interrupt) is told first and may finish its step.
 *
 * The handler has a stack of its own: oneDNN's kernels (2.6) keep data below the stack pointer,
 * beyond the 128 bytes that a signal leaves alone, so a handler on their stack made them write
 * anywhere. */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/host.h"
#include "lumuon.h"

static lua_State *state;
static volatile sig_atomic_t seen; /* a press while nothing ran: at the prompt */
static pthread_t main_thread;
static volatile sig_atomic_t running;      /* depth of host.call */
static volatile sig_atomic_t deferring;    /* the first Ctrl-C only asks */
static volatile sig_atomic_t asked;        /* ... and was pressed */
static volatile sig_atomic_t presses;      /* since the last host.call began */
static volatile sig_atomic_t patience = 1; /* presses after which the program is ended */

static volatile sig_atomic_t spared; /* instructions of the library let through since the press */
enum { SPARE_AT_MOST = 1000000 };

/* Raises in the user's code, not in the library's: an error between an engine call and what Lua
 * does with its result would lose a tensor or leave a step half done. */
static int in_library(lua_State *L) {
  lua_Debug at;
  for (int level = 0; lua_getstack(L, level, &at); level++)
    if (lua_getinfo(L, "S", &at) && strcmp(at.what, "C") != 0)
      return strncmp(at.source, "@lumuon:", 8) == 0;
  return 0;
}

static void stop_hook(lua_State *L, lua_Debug *ar) {
  (void)ar;
  if (spared < SPARE_AT_MOST && in_library(L)) {
    spared = spared + 1;
    return;
  }
  lua_sethook(L, NULL, 0, 0);
  luaL_error(L, "interrupted");
}

static void say(const char *text) {
  if (write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

/* SIGTERM, which mpirun and Slurm send before they kill: a recipe that defers Ctrl-C may finish its
 * step; otherwise, and the second time, the program ends as it would have. */
static void on_terminate(int sig) {
  if (deferring && !asked) {
    presses = presses + 1;
    asked = 1;
    return;
  }
  (void)signal(sig, SIG_DFL);
  (void)raise(sig);
}

static void on_interrupt(int sig) {
  const int saved = errno;
  if (!pthread_equal(pthread_self(), main_thread)) { /* hooks belong to Lua's own thread */
    (void)pthread_kill(main_thread, sig);
    errno = saved;
    return;
  }
  if (!running) {
    seen = 1;
  } else {
    presses = presses + 1;
    if (deferring && !asked) {
      asked = 1;
    } else if (presses > patience + asked) { /* stuck: a compiled loop without engine calls */
      say("\nlumuon: ended by Ctrl-C\n");
      _exit(130);
    } else {
      if (presses - asked > 1 && presses - asked == patience)
        say("\nstuck in compiled code that nothing can stop; Ctrl-C once more ends lumuon\n");
      spared = 0;
      lm_interrupt();
      (void)lua_sethook(state, stop_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
    }
  }
  errno = saved;
}

int lm__interrupt_seen(void) {
  const int was = seen;
  seen = 0;
  return was;
}

void lm__signals_install(lua_State *L) {
  static char stack[1 << 16];
  const stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
  /* no SA_RESTART: reads come back */
  struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_ONSTACK};
  state = L;
  main_thread = pthread_self();
  (void)lm_set_threads(lm_threads()); /* the workers begin here, with signals blocked */
  (void)sigaltstack(&own, NULL);
  (void)sigemptyset(&action.sa_mask);
  (void)sigaction(SIGINT, &action, NULL);
  action.sa_handler = on_terminate;
  (void)sigaction(SIGTERM, &action, NULL);
}

static void calm(lua_State *L) {
  (void)lua_sethook(L, NULL, 0, 0);
  lm_interrupt_clear();
}

/* The message handler: the hook is taken away first, or it would fire in here again. */
static int on_error(lua_State *L) {
  (void)lua_sethook(L, NULL, 0, 0);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, 1);
  return 1;
}

/* host.call(handler, f, ...) -> interrupted, ok, results of f or of handler(error).
 * Ctrl-C while f runs is an error in f; afterwards no trace of it is left. */
static int guarded_call(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_pushvalue(L, 1);
  lua_pushcclosure(L, on_error, 1);
  lua_replace(L, 1);
  if (!running) asked = presses = 0;
  running = running + 1;
  const int status = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 1);
  running = running - 1;
  const int interrupted = presses > 0;
  if (!running) {
    calm(L);
    deferring = 0;
  }
  lua_pushboolean(L, interrupted);
  lua_replace(L, 1);
  lua_pushboolean(L, status == 0);
  lua_insert(L, 2);
  return lua_gettop(L);
}

/* host.defer_interrupt(on): with on, the first Ctrl-C only makes host.interrupt_asked() true; the
 * second stops at once. Returns what it was. */
static int defer_interrupt(lua_State *L) {
  lua_pushboolean(L, deferring);
  deferring = lua_toboolean(L, 1);
  return 1;
}

/* host.interrupt_asked() -> has Ctrl-C been pressed since this run began? */
static int interrupt_asked(lua_State *L) {
  lua_pushboolean(L, asked || presses > 0);
  return 1;
}

/* host.set_patience(n): end the program at press n + 1 in one call. The prompt has more to lose. */
static int set_patience(lua_State *L) {
  patience = luaL_checkint(L, 1);
  return 0;
}

/* host.default_interrupt(): from now on Ctrl-C ends the program, as it does elsewhere. */
static int default_interrupt(lua_State *L) {
  (void)L;
  (void)signal(SIGINT, SIG_DFL);
  return 0;
}

void lm__add_signals(lua_State *L) {
  static const luaL_Reg functions[] = {{"call", guarded_call},
                                       {"default_interrupt", default_interrupt},
                                       {"defer_interrupt", defer_interrupt},
                                       {"set_patience", set_patience},
                                       {"interrupt_asked", interrupt_asked},
                                       {NULL, NULL}};
  luaL_register(L, NULL, functions);
}
