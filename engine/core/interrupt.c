/* Ctrl-C: a flag that a signal handler sets and engine calls poll. */
#include <signal.h>

#include "lumuon.h"

static volatile sig_atomic_t interrupted;

void lm_interrupt(void) { interrupted = 1; }
void lm_interrupt_clear(void) { interrupted = 0; }
int lm_interrupted(void) { return interrupted; }
