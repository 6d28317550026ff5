/* The communication thread and its queue of works.
 *
 * A work has two owners, the caller's handle and the queue; the last one frees it. The queue's
 * share ends when the collective is done, and with it the hold on the storages: a handle that is
 * dropped early, waited for twice or never leaves nothing dangling.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "comm/comm.h"
#include "core/error.h"

enum { EXIT_TIMED_OUT = 75, MESSAGE = 512 };

struct lm_work {
  lm__collective c;
  lm__storage *held[2];
  void *mark; /* see lm__staged_mark */
  struct lm_work *next;
  int owners;     /* under lock */
  bool done;      /* under lock */
  int status;     /* once done */
  double seconds; /* once done: from begin to end, without the time in the queue */
  char message[MESSAGE];
};

enum state { IDLE, STARTING, RUNNING, STOPPING };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t issued = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static pthread_t thread;
static const lm__comm_table *table = &lm__comm_self;
static enum state state = IDLE;
static struct lm_work *first, *last;
static double timeout = 600, start_timeout = 300, delay; /* delay: seconds a byte */
static int started_status, started_rank, started_size;
static double current_limit;  /* of the collective that runs */
static char failure[MESSAGE]; /* of the first failed collective: later ones cannot succeed */
static int failure_status;
static bool urgent; /* the communication thread's own */

static const double REST = 0.2; /* seconds between two calls of the table's idle */

double lm__wire_bytes;

double lm__clock(void) {
  struct timespec t;
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *lm__collective_name(int kind) {
  static const char *const names[LM__COLLECTIVES] = {
      "barrier", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "gather", "scatter"};
  return kind >= 0 && kind < LM__COLLECTIVES ? names[kind] : "?";
}

static void list_ranks(char *text, size_t size, const bool *arrived, int world_size, bool wanted) {
  size_t used = 0;
  text[0] = 0;
  for (int r = 0; r < world_size && used + 16 < size; r++)
    if (arrived[r] == wanted)
      used += (size_t)snprintf(text + used, size - used, used ? ", %d" : "%d", r);
  if (used == 0) (void)snprintf(text, size, "none");
}

static _Noreturn void end_job(const char *text, int n) {
  if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0) _exit(EXIT_TIMED_OUT);
  /* aborting may itself wait for the rank that does not answer */
  (void)signal(SIGALRM, SIG_DFL);
  (void)alarm(3);
  table->abort(EXIT_TIMED_OUT);
  _exit(EXIT_TIMED_OUT);
}

_Noreturn void lm__comm_told(int rank, int from, const char *which, const char *why) {
  char text[640];
  end_job(text, snprintf(text, sizeof text,
                         "lumuon: rank %d: %s has not finished on rank %d. %sThe job ends.\n", rank,
                         which, from, why));
}

_Noreturn void lm__comm_timed_out(const lm__collective *c, const bool *arrived, int rank,
                                  int world_size, const char *why) {
  char here[160], missing[160], text[960];
  list_ranks(here, sizeof here, arrived, world_size, true);
  list_ranks(missing, sizeof missing, arrived, world_size, false);
  const int n =
      snprintf(text, sizeof text,
               "lumuon: rank %d: %s of '%s' has not finished within %g s. Ranks that "
               "arrived: %s; missing: %s. %sThe job ends.\n",
               rank, lm__collective_name(c->kind), c->label, current_limit, here, missing, why);
  end_job(text, n);
}

static struct timespec after(double seconds) {
  struct timespec t;
  (void)clock_gettime(CLOCK_REALTIME, &t);
  const double whole = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec + seconds;
  t.tv_sec = (time_t)whole;
  t.tv_nsec = (long)((whole - (double)t.tv_sec) * 1e9);
  return t;
}

static void drop(struct lm_work *w) { /* lock held */
  w->owners -= 1;
  if (w->owners == 0) free(w);
}

static void sleep_for(double seconds) {
  struct timespec t = {.tv_sec = (time_t)seconds};
  t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {
  }
}

/* Run w; the lock is not held. */
static void run(struct lm_work *w, double limit, double per_byte) {
  const double begun = lm__clock(), wire = lm__wire_bytes;
  if (failure_status) {
    w->status = failure_status;
    (void)snprintf(w->message, sizeof w->message, "%s '%s': an earlier collective failed: %.300s",
                   lm__collective_name(w->c.kind), w->c.label, failure);
  } else {
    current_limit = limit;
    w->status =
        lm__staged_run(table, &w->c, w->mark, lm_dist_rank(), lm_dist_world_size(), begun + limit);
    if (w->status) {
      (void)snprintf(w->message, sizeof w->message, "%s", lm_last_error());
      (void)snprintf(failure, sizeof failure, "%s", w->message);
      failure_status = w->status;
    }
  }
  lm__staged_forget(&w->c, w->mark);
  if (per_byte > 0) sleep_for((lm__wire_bytes - wire) * per_byte);
  w->seconds = lm__clock() - begun;
}

static void complete(struct lm_work *w) { /* lock held */
  for (int i = 0; i < 2; i++)
    if (w->held[i]) lm__storage_release(w->held[i]);
  w->done = true;
  (void)pthread_cond_broadcast(&finished);
  drop(w);
}

/* This thread wakes often and works little, the arithmetic's threads never sleep: where they share
 * cores it must be let in at once, or a message waits for the end of somebody's time slice, a few
 * milliseconds. Real-time priority does that (it takes root, or `ulimit -r 1`); nice -20 nearly
 * (root, or `ulimit -e 40`); without the right to either, short slices help a little on Linux 6.12
 * and later. */
static void hurry(void) {
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period; /* ns; runtime is the slice */
  } attributes = {.size = 48, .nice = -20, .runtime = 100000};
  if (syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) {
    attributes.nice = 0;
    (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
  }
  (void)prctl(PR_SET_TIMERSLACK, 1000UL); /* ns: naps are as long as was asked */
}

/* Between the transport's start and stop, which may wait without a pause for processes that need
 * this core. */
static void set_urgent(bool on) {
  const struct sched_param priority = {.sched_priority = on ? 1 : 0};
  const int policy = on ? SCHED_FIFO : SCHED_OTHER;
  if (on || urgent)
    urgent = sched_setscheduler(0, policy | SCHED_RESET_ON_FORK, &priority) == 0 && on;
}

bool lm__queue_urgent(void) { return urgent; }

static void *main_loop(void *wanted) {
  const lm__comm_table *const own = wanted; /* `table` is self again where start took too long */
  int rank = 0, size = 1;
  hurry();
  current_limit = start_timeout;
  const int status = own->start(&rank, &size, lm__clock() + start_timeout);
  if (!status) set_urgent(true);
  (void)pthread_mutex_lock(&lock);
  started_status = status;
  started_rank = rank;
  started_size = size;
  if (status) (void)snprintf(failure, sizeof failure, "%s", lm_last_error());
  state = status ? STOPPING : RUNNING;
  (void)pthread_cond_broadcast(&finished);
  while (state == RUNNING || first) {
    struct lm_work *w = first;
    if (!w) { /* the others may ask where this rank is */
      const struct timespec soon = after(REST);
      const int woken = pthread_cond_timedwait(&issued, &lock, &soon);
      if (woken == ETIMEDOUT && !first) {
        (void)pthread_mutex_unlock(&lock);
        own->idle();
        (void)pthread_mutex_lock(&lock);
      }
      continue;
    }
    first = w->next;
    if (!first) last = NULL;
    const double limit = timeout, per_byte = delay;
    (void)pthread_mutex_unlock(&lock);
    run(w, limit, per_byte);
    (void)pthread_mutex_lock(&lock);
    complete(w);
  }
  (void)pthread_mutex_unlock(&lock);
  set_urgent(false);
  if (!status) own->stop();
  lm__staged_stop();
  return NULL;
}

int lm__queue_start(const lm__comm_table *wanted, double limit, double start_limit, int *rank,
                    int *world_size) {
  int status = LM_OK;
  (void)pthread_mutex_lock(&lock);
  if (state != IDLE) {
    (void)pthread_mutex_unlock(&lock);
    return lm__fail(LM_EDIST,
                    "dist: an earlier start was given up but is still under way; end this "
                    "process and start the job again");
  }
  table = wanted;
  timeout = limit;
  start_timeout = start_limit;
  failure_status = 0;
  if (table == &lm__comm_self) {
    (void)pthread_mutex_unlock(&lock);
    return table->start(rank, world_size, 0);
  }
  state = STARTING;
  sigset_t all, before; /* signals are the main thread's */
  (void)sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&thread, NULL, main_loop, (void *)(uintptr_t)wanted);
  (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error) {
    state = IDLE;
    table = &lm__comm_self;
    (void)pthread_mutex_unlock(&lock);
    return lm__fail(LM_EDIST, "dist: cannot start the communication thread: %s", strerror(error));
  }
  const double until = lm__clock() + start_limit + 0.5; /* the transport may have more to say */
  while (state == STARTING && status == LM_OK) {
    const struct timespec soon = after(0.1); /* to look at Ctrl-C */
    (void)pthread_cond_timedwait(&finished, &lock, &soon);
    if (state == STARTING && lm_interrupted())
      status = lm__fail(LM_EINTERRUPT, "dist: interrupted while waiting for the other ranks");
    else if (state == STARTING && lm__clock() > until)
      status = lm__fail(LM_EDIST,
                        "dist: %s has not started within %g s; is every rank of the job running?",
                        table->name, start_limit);
  }
  const bool ended = status == LM_OK && started_status;
  if (ended) status = lm__fail(started_status, "%s", failure);
  if (status == LM_OK) {
    *rank = started_rank;
    *world_size = started_size;
  } else {
    table = &lm__comm_self; /* this process stays a world of one */
  }
  (void)pthread_mutex_unlock(&lock);
  if (ended) {
    (void)pthread_join(thread, NULL);
    state = IDLE;
  }
  return status;
}

void lm__queue_stop(void) {
  (void)pthread_mutex_lock(&lock);
  const bool running = state == RUNNING;
  if (running) {
    state = STOPPING;
    (void)pthread_cond_broadcast(&issued);
  }
  (void)pthread_mutex_unlock(&lock);
  if (running) (void)pthread_join(thread, NULL);
  if (table == &lm__comm_self) lm__staged_stop(); /* else the thread has */
  table = &lm__comm_self;
  state = IDLE;
}

int lm__queue_issue(struct lm_work **out, const lm__collective *c, lm__storage *a, lm__storage *b) {
  struct lm_work *w = calloc(1, sizeof *w);
  *out = NULL;
  if (!w)
    return lm__fail(LM_ENOMEM, "%s: out of memory for a handle", lm__collective_name(c->kind));
  const int status = lm__staged_mark(c, &w->mark);
  if (status) {
    free(w);
    return status;
  }
  w->c = *c;
  w->held[0] = a;
  w->held[1] = b;
  for (int i = 0; i < 2; i++)
    if (w->held[i]) lm__storage_retain(w->held[i]);
  w->owners = 2;
  (void)pthread_mutex_lock(&lock);
  if (table == &lm__comm_self) {
    run(w, timeout, 0);
    complete(w);
  } else {
    if (last)
      last->next = w;
    else
      first = w;
    last = w;
    (void)pthread_cond_signal(&issued);
  }
  (void)pthread_mutex_unlock(&lock);
  *out = w;
  return LM_OK;
}

void lm__queue_set_timeout(double seconds) {
  (void)pthread_mutex_lock(&lock);
  timeout = seconds;
  (void)pthread_mutex_unlock(&lock);
}

void lm__queue_set_delay(double seconds_per_byte) {
  (void)pthread_mutex_lock(&lock);
  delay = seconds_per_byte;
  (void)pthread_mutex_unlock(&lock);
}

const lm__comm_table *lm__queue_table(void) { return table; }

int lm_work_wait(lm_work *w) {
  if (!w) return lm__fail(LM_EINVAL, "wait: no such handle (it was freed)");
  (void)pthread_mutex_lock(&lock);
  while (!w->done && !lm_interrupted()) {
    const struct timespec until = after(0.1); /* to look at Ctrl-C */
    (void)pthread_cond_timedwait(&finished, &lock, &until);
  }
  const bool done = w->done;
  (void)pthread_mutex_unlock(&lock);
  if (!done)
    return lm__fail(LM_EINTERRUPT, "wait for %s '%s': interrupted", lm__collective_name(w->c.kind),
                    w->c.label);
  return w->status ? lm__fail(w->status, "%s", w->message) : LM_OK;
}

int lm_work_done(const lm_work *w) {
  if (!w) return 1;
  (void)pthread_mutex_lock(&lock);
  const bool done = w->done;
  (void)pthread_mutex_unlock(&lock);
  return done;
}

double lm_work_seconds(const lm_work *w) { return lm_work_done(w) && w ? w->seconds : -1; }

void lm_work_free(lm_work *w) {
  if (!w) return;
  (void)pthread_mutex_lock(&lock);
  drop(w);
  (void)pthread_mutex_unlock(&lock);
}
