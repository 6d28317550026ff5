/* Messages by TCP, where no MPI has started the ranks: a connection between each two, made after
 * the rendezvous. The bytes of messages follow each other with nothing between them: both sides
 * know how long each is, and the collectives' headers see to it that they mean the same. A second
 * connection takes the few words that are said beside them.
 *
 * A rank that ends, however it does, has its connections closed by its system. A thread watches for
 * that and ends this process too: no launcher need do it. The end of the program is told apart by a
 * last byte to everyone, after which each waits for everyone's. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/rendezvous.h"
#include "comm/transport.h"
#include "core/error.h"

enum { EXIT_LEFT_ALONE = 75, GRACE = 500 /* ms: for the lost rank's own words, and this one's */ };
static const char MAGIC[8] = "lumuonT";
static const double FAREWELL = 10; /* seconds for the others to come to their end */

typedef struct message {
  char *data;
  int bytes, moved;
  bool done;
  struct message *next;
} message;

typedef struct line { /* messages in one direction */
  message *first, *last;
} line;

typedef struct connection {
  int fd;
  line out, in;
  int aside; /* another connection, for words; -1 once it is of no use */
  size_t heard;
  char words[LM__WORDS];
} connection;

static lm__rendezvous meeting;
static char place[512], job[LM__JOB];
static connection *others; /* [rank], its own fd is -1 */
static message *spare;
static struct pollfd *polled;
static pthread_t watcher;
static bool watched;
static int stop_watching = -1; /* an eventfd */

int lm__tcp_configure(int rank, int world_size, const char *where, const char *which_job) {
  LM__TRY(lm__rendezvous_check(where));
  if (strlen(where) >= sizeof place)
    return lm__fail(LM_EINVAL, "rendezvous: '%s' is too long", where);
  (void)snprintf(place, sizeof place, "%s", where);
  (void)snprintf(job, sizeof job, "%s", which_job);
  meeting = (lm__rendezvous){rank, world_size, place, job};
  return LM_OK;
}

/* ---- messages ---- */

static int lost(int r, int error) {
  return lm__fail(LM_EDIST, "dist: rank %d: the connection to rank %d is gone (%s): has it ended?",
                  meeting.rank, r, error ? strerror(error) : "closed by it");
}

static int post(line *l, const void *data, int bytes, void *request) {
  message *m = spare;
  if (m)
    spare = m->next;
  else if (!(m = malloc(sizeof *m)))
    return lm__fail(LM_ENOMEM, "dist: out of memory for a message");
  *m = (message){.data = (char *)data, .bytes = bytes};
  *(l->first ? &l->last->next : &l->first) = m;
  l->last = m;
  memcpy(request, &m, sizeof m);
  return LM_OK;
}

static int post_send(int to, const void *data, int bytes, void *request) {
  return post(&others[to].out, data, bytes, request);
}

static int post_receive(int from, void *data, int bytes, void *request) {
  return post(&others[from].in, data, bytes, request);
}

/* Move what the connection takes or has. */
static int move(int r, line *l, bool out) {
  const int fd = others[r].fd;
  while (l->first) {
    message *m = l->first;
    char *at = m->data + m->moved;
    const size_t left = (size_t)(m->bytes - m->moved);
    const ssize_t n =
        out ? send(fd, at, left, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(fd, at, left, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return LM_OK;
    if (n <= 0) return lost(r, n < 0 ? errno : 0);
    m->moved += (int)n;
    if (m->moved < m->bytes) return LM_OK; /* the others' turn */
    m->done = true;
    l->first = m->next;
  }
  return LM_OK;
}

static int test(int n, void *requests, int *finished, int *count) {
  message **list = requests;
  int left = 0;
  *count = 0;
  for (int r = 0; r < meeting.world_size; r++) {
    if (r == meeting.rank) continue;
    LM__TRY(move(r, &others[r].out, true));
    LM__TRY(move(r, &others[r].in, false));
  }
  for (int i = 0; i < n; i++) {
    if (!list[i]) continue;
    left += 1;
    if (!list[i]->done) continue;
    list[i]->next = spare;
    spare = list[i];
    list[i] = NULL;
    finished[(*count)++] = i;
  }
  if (left == 0) *count = -1;
  return LM_OK;
}

/* The system wakes this thread when something can be moved: no need to look more often. */
static void nap(long ns) {
  nfds_t n = 0;
  (void)ns;
  for (int r = 0; r < meeting.world_size; r++) {
    const connection *c = &others[r];
    const int events = (c->in.first ? POLLIN : 0) | (c->out.first ? POLLOUT : 0);
    if (r != meeting.rank && events)
      polled[n++] = (struct pollfd){.fd = c->fd, .events = (short)events};
  }
  (void)poll(polled, n, 10);
}

/* ---- words ---- */

static void fall_silent(connection *c) {
  (void)close(c->aside);
  c->aside = -1;
}

static void say(int to, const void *words) {
  connection *c = &others[to];
  if (c->aside < 0) return;
  const ssize_t n = send(c->aside, words, LM__WORDS, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n != LM__WORDS && !(n < 0 && (errno == EAGAIN || errno == EINTR))) fall_silent(c);
}

static bool hear(int *from, void *words) {
  for (int r = 0; r < meeting.world_size; r++) {
    connection *c = &others[r];
    if (r == meeting.rank || c->aside < 0) continue;
    const ssize_t n = recv(c->aside, c->words + c->heard, LM__WORDS - c->heard, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) fall_silent(c);
    if (n > 0) c->heard += (size_t)n;
    if (c->heard < LM__WORDS) continue;
    memcpy(words, c->words, LM__WORDS);
    c->heard = 0;
    *from = r;
    return true;
  }
  return false;
}

/* ---- the watch ---- */

static void *watch(void *unused) {
  (void)unused;
  const int size = meeting.world_size;
  struct pollfd list[size];
  for (int r = 0; r < size; r++) /* the place of this rank is the order to stop */
    list[r] = (struct pollfd){.fd = others[r].fd, .events = POLLRDHUP};
  list[meeting.rank] = (struct pollfd){.fd = stop_watching, .events = POLLIN};
  for (;;) {
    if (poll(list, (nfds_t)size, -1) < 0) continue;
    if (list[meeting.rank].revents) return NULL;
    int gone = 0;
    while (gone < size && !list[gone].revents) gone += 1;
    if (gone == size) continue;
    if (poll(&list[meeting.rank], 1, GRACE) > 0) return NULL;
    char text[160];
    const int n = snprintf(text, sizeof text,
                           "lumuon: rank %d: rank %d has ended before the program's end. The job "
                           "ends.\n",
                           meeting.rank, gone);
    (void)!write(STDERR_FILENO, text, (size_t)n);
    _exit(EXIT_LEFT_ALONE);
  }
}

static int start_watch(void) {
  stop_watching = eventfd(0, EFD_CLOEXEC);
  const int error = stop_watching < 0 ? errno : pthread_create(&watcher, NULL, watch, NULL);
  watched = error == 0;
  return error ? lm__fail(LM_EDIST, "dist: cannot watch the other ranks: %s", strerror(error))
               : LM_OK;
}

static void end_watch(void) {
  const uint64_t one = 1;
  if (watched && write(stop_watching, &one, sizeof one) == (ssize_t)sizeof one)
    (void)pthread_join(watcher, NULL);
  if (stop_watching >= 0) (void)close(stop_watching);
  watched = false;
  stop_watching = -1;
}

/* ---- connections ---- */

typedef struct greeting { /* of who connects; the key is the job's, drawn by rank 0 */
  char magic[8];
  int32_t rank, aside;
  unsigned char key[LM__KEY];
} greeting;

typedef struct card { /* what a rank leaves at the rendezvous */
  int32_t port;
  unsigned char key[LM__KEY];
} card;

static void prepare(int fd) {
  const int one = 1, idle = 10, interval = 10, probes = 6;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one); /* a machine without power */
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

static int *place_of(int r, bool aside) { return aside ? &others[r].aside : &others[r].fd; }

static int call(int r, const lm__peer *peer, bool aside, const unsigned char *key,
                double deadline) {
  greeting mine = {.rank = meeting.rank, .aside = aside};
  char why[256];
  card theirs;
  memcpy(&theirs, peer->blob, sizeof theirs);
  const int fd = lm__net_connect(peer->address, theirs.port, deadline, why, sizeof why);
  if (fd < 0)
    return lm__fail(LM_EDIST, "dist: rank %d cannot reach rank %d: %s; is there a firewall?",
                    meeting.rank, r, why);
  memcpy(mine.magic, MAGIC, sizeof mine.magic);
  memcpy(mine.key, key, sizeof mine.key);
  *place_of(r, aside) = fd;
  prepare(fd);
  const int error = lm__net_send(fd, &mine, sizeof mine, deadline);
  return error ? lost(r, error) : LM_OK;
}

static bool has_ended(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLRDHUP};
  return fd >= 0 && poll(&p, 1, 0) > 0;
}

/* A rank that is connected already and has ended; or, to rank 0, one that has left the rendezvous
 * and not come here. -1: none. */
static int find_gone(const int *held) {
  for (int r = 0; r < meeting.world_size; r++)
    if (others[r].fd >= 0 ? has_ended(others[r].fd) : meeting.rank == 0 && has_ended(held[r]))
      return r;
  return -1;
}

static int answer_one(int listener, const unsigned char *key, const int *held, double deadline,
                      int *expected) {
  struct pollfd p = {.fd = listener, .events = POLLIN};
  greeting g;
  const int gone = find_gone(held); /* before accept(): who left after coming is found there */
  (void)poll(&p, 1, lm__net_milliseconds(deadline, gone < 0 ? 200 : 500));
  const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    if (gone >= 0) return lost(gone, 0);
    if (lm__clock() < deadline) return LM_OK;
    int missing = meeting.rank + 1;
    while (missing < meeting.world_size - 1 && others[missing].fd >= 0 &&
           others[missing].aside >= 0)
      missing += 1;
    return lm__fail(LM_EDIST, "dist: rank %d has not connected to rank %d; is there a firewall?",
                    missing, meeting.rank);
  }
  const double patience = lm__clock() + 2; /* a stranger may say nothing */
  if (lm__net_receive(fd, &g, sizeof g, deadline < patience ? deadline : patience) != 0 ||
      memcmp(g.magic, MAGIC, sizeof g.magic) != 0 || memcmp(g.key, key, sizeof g.key) != 0 ||
      g.rank <= meeting.rank || g.rank >= meeting.world_size || *place_of(g.rank, g.aside) >= 0) {
    (void)close(fd);
    return LM_OK;
  }
  *place_of(g.rank, g.aside) = fd;
  prepare(fd);
  *expected -= 1;
  return LM_OK;
}

/* Each rank calls those below it, and is called by those above. */
static int connect_all(int listener, const card *own, double deadline) {
  const int size = meeting.world_size;
  char blob[LM__BLOB] = {0};
  card first;
  int expected = 2 * (size - 1 - meeting.rank);
  lm__peer *all = calloc((size_t)size, sizeof *all);
  int *held = malloc((size_t)size * sizeof *held);
  if (!all || !held) {
    free(all);
    free(held);
    return lm__fail(LM_ENOMEM, "dist: out of memory for %d ranks", size);
  }
  memcpy(blob, own, sizeof *own);
  int status = lm__rendezvous_meet(&meeting, blob, all, held, deadline);
  memcpy(&first, all[0].blob, sizeof first);
  for (int i = 0; i < 2 * meeting.rank && status == LM_OK; i++)
    status = call(i / 2, &all[i / 2], i % 2, first.key, deadline);
  while (expected > 0 && status == LM_OK)
    status = answer_one(listener, first.key, held, deadline, &expected);
  for (int r = 0; r < size; r++)
    if (held[r] >= 0) (void)close(held[r]);
  free(held);
  free(all);
  return status;
}

/* A port that the system chooses, but not the one where rank 0 is to be met, which it may have to
 * give, too. */
static int listen_apart(int *port) {
  const int taken = lm__rendezvous_port(meeting.place);
  const int first = lm__net_listen(port);
  if (first < 0 || *port != taken) return first;
  *port = 0;
  const int second = lm__net_listen(port);
  const int problem = errno;
  (void)close(first);
  errno = problem;
  return second;
}

static void free_all(void) {
  for (int r = 0; others && r < meeting.world_size; r++)
    for (int i = 0; i < 2; i++)
      if (*place_of(r, i) >= 0) (void)close(*place_of(r, i));
  while (spare) {
    message *next = spare->next;
    free(spare);
    spare = next;
  }
  free(others);
  free(polled);
  others = NULL;
  polled = NULL;
}

/* Two connections a rank may be more files than are allowed at first. */
static void allow_files(size_t files) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= files) return;
  limit.rlim_cur = limit.rlim_max < files ? limit.rlim_max : files;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int start(int *rank, int *world_size, double deadline) {
  const size_t size = (size_t)meeting.world_size;
  card own = {0};
  others = calloc(size, sizeof *others);
  polled = calloc(size, sizeof *polled);
  if (!others || !polled) {
    free_all();
    return lm__fail(LM_ENOMEM, "dist: out of memory for %zu connections", size);
  }
  for (size_t r = 0; r < size; r++) others[r].fd = others[r].aside = -1;
  allow_files(3 * size + 256);
  lm__net_random(own.key);
  const int listener = listen_apart(&own.port);
  int status = LM_OK;
  if (listener < 0) status = lm__fail(LM_EDIST, "dist: cannot listen: %s", strerror(errno));
  if (status == LM_OK) status = connect_all(listener, &own, deadline);
  if (listener >= 0) (void)close(listener);
  if (status == LM_OK) status = start_watch();
  if (status) free_all();
  *rank = meeting.rank;
  *world_size = meeting.world_size;
  return status;
}

static void stop(void) {
  const double deadline = lm__clock() + FAREWELL;
  char byte = 0;
  end_watch();
  for (int r = 0; r < meeting.world_size; r++)
    if (others[r].fd >= 0) (void)lm__net_send(others[r].fd, &byte, 1, deadline);
  for (int r = 0; r < meeting.world_size; r++)
    if (others[r].fd >= 0) (void)lm__net_receive(others[r].fd, &byte, 1, deadline);
  free_all();
}

/* Nothing to be done: the others see the connections close. */
static void abort_job(int code) { (void)code; }

static const lm__transport transport = {
    .name = "tcp",
    .request_bytes = sizeof(message *),
    .start = start,
    .stop = stop,
    .abort = abort_job,
    .send = post_send,
    .receive = post_receive,
    .test = test,
    .nap = nap,
    .say = say,
    .hear = hear,
};

const lm__transport *lm__transport_tcp(void) { return &transport; }
