/* How the ranks of a job find each other. See rendezvous.h.
 *
 * A rank connects to rank 0 and sends a `hello`; rank 0 answers at once with a `verdict`, so that
 * nobody waits for a stranger, and with another once all have come, and everyone's lm__peer behind
 * it. Rank 0 sees from which address each came. A rank on rank
 * 0's own machine may have come by loopback: to the others it is where rank 0 is.
 *
 * The file holds a key that rank 0 draws anew: who comes with another has read an old file. */
#include "comm/rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <math.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "comm/comm.h"
#include "core/error.h"

enum { MESSAGE = 320, GUESTS = 256, ADDRESSES = 16, FILE_BYTES = 4096 };
static const char MAGIC[8] = "lumuon2";  /* the last figure: of this protocol */
static const double HELLO_PATIENCE = 10; /* seconds from connecting to the end of a hello */
static const double ANSWER_PATIENCE = 5; /* and from there to the first verdict */

typedef struct hello {
  char magic[8];
  int32_t rank, world_size;
  unsigned char key[LM__KEY]; /* from the file; else zeros */
  char job[LM__JOB];
  char blob[LM__BLOB];
} hello;

enum { READY, WRONG, STRANGER, WAIT };
typedef struct verdict {
  char magic[8];
  int32_t answer, world_size;
  char message[MESSAGE];
} verdict;

static double tenths(double seconds) { return floor(10 * seconds + 0.5) / 10; } /* for messages */

/* ---- the place ---- */

typedef struct meeting_point {
  char path[512]; /* of the file; else "" */
  char hosts[ADDRESSES][256];
  int n_hosts, port;
  unsigned char key[LM__KEY];
} meeting_point;

static int read_port(const char *text) {
  char *end = NULL;
  const long port = strtol(text, &end, 10);
  return *text && !*end && port > 0 && port < 65536 ? (int)port : -1;
}

static int parse(const char *place, meeting_point *p) {
  *p = (meeting_point){0};
  if (strncmp(place, "file://", 7) == 0) {
    if (place[7] != '/' || !place[8] || strlen(place + 7) + 32 > sizeof p->path)
      return lm__fail(LM_EINVAL, "rendezvous: '%s' has no absolute path: file:///shared/meet",
                      place);
    (void)snprintf(p->path, sizeof p->path, "%s", place + 7);
    return LM_OK;
  }
  const char *colon = strrchr(place, ':');
  if (strncmp(place, "tcp://", 6) != 0 || colon < place + 7 || read_port(colon + 1) < 0)
    return lm__fail(LM_EINVAL,
                    "rendezvous: '%s' is neither tcp://host:port (port 1..65535) nor "
                    "file:///shared/path",
                    place);
  const char *host = place + 6;
  size_t length = (size_t)(colon - host);
  if (host[0] == '[' && host[length - 1] == ']') { /* [::1]:29500 */
    host += 1;
    length -= 2;
  }
  if (length == 0 || length >= sizeof p->hosts[0])
    return lm__fail(LM_EINVAL, "rendezvous: '%s' names no host", place);
  memcpy(p->hosts[0], host, length);
  p->n_hosts = 1;
  p->port = read_port(colon + 1);
  return LM_OK;
}

int lm__rendezvous_check(const char *place) {
  meeting_point p;
  return parse(place, &p);
}

int lm__rendezvous_port(const char *place) {
  meeting_point p;
  return parse(place, &p) == LM_OK ? p.port : 0;
}

/* ---- the file ---- */

static void to_hex(const unsigned char key[LM__KEY], char text[2 * LM__KEY + 1]) {
  for (int i = 0; i < LM__KEY; i++) (void)snprintf(text + 2 * i, 3, "%02x", key[i]);
}

static bool add_host(meeting_point *p, const char *host) {
  if (p->n_hosts == ADDRESSES) return false;
  (void)snprintf(p->hosts[p->n_hosts++], sizeof p->hosts[0], "%s", host);
  return true;
}

/* Where rank 0 is: "lumuon1", its key, port and name, and its addresses, a line each. */
static int write_file(const meeting_point *p) {
  char text[FILE_BYTES], key[2 * LM__KEY + 1], host[256] = "", temporary[544];
  struct ifaddrs *list = NULL;
  to_hex(p->key, key);
  (void)gethostname(host, sizeof host - 1);
  size_t used = (size_t)snprintf(text, sizeof text, "%s\nkey %s\nport %d\nname %s\n", MAGIC, key,
                                 p->port, host);
  if (getifaddrs(&list) == 0) {
    for (const struct ifaddrs *a = list; a && used + 128 < sizeof text; a = a->ifa_next) {
      const int family = a->ifa_addr ? a->ifa_addr->sa_family : AF_UNSPEC;
      char address[LM__ADDRESS];
      if (family != AF_INET && family != AF_INET6) continue;
      const socklen_t length =
          family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
      if (getnameinfo(a->ifa_addr, length, address, sizeof address, NULL, 0, NI_NUMERICHOST) == 0 &&
          !lm__net_is_loopback(address) && !strchr(address, '%'))
        used += (size_t)snprintf(text + used, sizeof text - used, "address %s\n", address);
    }
    freeifaddrs(list);
  }
  used += (size_t)snprintf(text + used, sizeof text - used, "end\n");
  (void)snprintf(temporary, sizeof temporary, "%s.%ld.new", p->path, (long)getpid());
  const int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  bool fine = fd >= 0 && write(fd, text, used) == (ssize_t)used && fsync(fd) == 0;
  if (fd >= 0) fine = close(fd) == 0 && fine;
  if (fine && rename(temporary, p->path) == 0) return LM_OK;
  const int problem = errno;
  if (fd >= 0) (void)unlink(temporary);
  return lm__fail(LM_EDIST, "rendezvous: rank 0 cannot write %s: %s", p->path, strerror(problem));
}

/* What the file says, checked: it may be anything. False, and why. */
static bool read_file(meeting_point *p, char *why, size_t size) {
  char text[FILE_BYTES + 1], own[256] = "";
  meeting_point read_point = {0};
  const int fd = open(p->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  const ssize_t n = fd < 0 ? -1 : read(fd, text, FILE_BYTES);
  const int problem = errno;
  if (fd >= 0) (void)close(fd);
  if (n < 0) {
    (void)snprintf(why, size, "%.200s: %s", p->path, strerror(problem));
    return false;
  }
  text[n] = 0;
  (void)gethostname(own, sizeof own - 1);
  bool fine = false, keyed = false;
  char *rest = NULL;
  const char *line = strtok_r(text, "\n", &rest);
  if (line && strcmp(line, MAGIC) == 0)
    while ((line = strtok_r(NULL, "\n", &rest)) && !fine) {
      if (strncmp(line, "key ", 4) == 0 && strlen(line) == 4 + 2 * LM__KEY) {
        unsigned byte = 0;
        keyed = true;
        for (int i = 0; i < LM__KEY; i++) {
          keyed = keyed && sscanf(line + 4 + 2 * i, "%2x", &byte) == 1;
          read_point.key[i] = (unsigned char)byte;
        }
      } else if (strncmp(line, "port ", 5) == 0) {
        read_point.port = read_port(line + 5);
      } else if (strncmp(line, "name ", 5) == 0) {
        if (strcmp(line + 5, own) == 0) (void)add_host(&read_point, "localhost");
      } else if (strncmp(line, "address ", 8) == 0 && strlen(line) < 8 + LM__ADDRESS) {
        (void)add_host(&read_point, line + 8);
      } else if (strcmp(line, "end") == 0) {
        fine = true;
      }
    }
  if (!fine || !keyed || read_point.port <= 0 || read_point.n_hosts == 0) {
    (void)snprintf(why, size, "%.200s was not written by rank 0 of such a job", p->path);
    return false;
  }
  memcpy(read_point.path, p->path, sizeof read_point.path);
  *p = read_point;
  return true;
}

/* Unless it has become another job's. */
static void remove_file(const meeting_point *p) {
  meeting_point now = *p;
  char why[MESSAGE];
  if (p->path[0] && read_file(&now, why, sizeof why) && memcmp(now.key, p->key, LM__KEY) == 0)
    (void)unlink(p->path);
}

/* ---- rank 0 ---- */

typedef struct guest {
  int fd;
  size_t got; /* bytes of the hello */
  double since;
  hello said;
} guest;

typedef struct host {
  const lm__rendezvous *r;
  meeting_point at;
  int listener;
  guest *guests;   /* who has not been judged yet, [0..n) */
  int n, *members; /* members[rank]: its connection, or -1 */
  int came;        /* of the other ranks */
  lm__peer *all;
  char last_refusal[MESSAGE]; /* for the message at the deadline */
} host;

static void answer(int fd, int what, int world_size, const char *message) {
  verdict v = {.answer = what, .world_size = world_size};
  memcpy(v.magic, MAGIC, sizeof v.magic);
  (void)snprintf(v.message, sizeof v.message, "%s", message);
  (void)lm__net_send(fd, &v, sizeof v, lm__clock() + 1);
}

static void dismiss(host *h, int i) {
  (void)close(h->guests[i].fd);
  h->guests[i] = h->guests[--h->n];
}

static void __attribute__((format(printf, 4, 5)))
refuse(host *h, int i, int what, const char *format, ...) {
  va_list args;
  va_start(args, format);
  (void)vsnprintf(h->last_refusal, sizeof h->last_refusal, format, args);
  va_end(args);
  answer(h->guests[i].fd, what, h->r->world_size, h->last_refusal);
  dismiss(h, i);
}

static bool has_left(int fd) {
  char byte;
  const ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

/* A complete hello. An error is one that ends the job. */
static int judge(host *h, int i) {
  const lm__rendezvous *r = h->r;
  hello *said = &h->guests[i].said;
  char from[LM__ADDRESS];
  lm__net_peer(h->guests[i].fd, from);
  said->job[LM__JOB - 1] = 0;
  if (memcmp(said->key, h->at.key, LM__KEY) != 0) {
    refuse(h, i, STRANGER, "rank %d at %s came with the key of another file or an old one",
           said->rank, from);
    return LM_OK;
  }
  if (strcmp(said->job, r->job) != 0) {
    refuse(h, i, STRANGER, "rank %d at %s is of job '%s', this is job '%s'", said->rank, from,
           said->job, r->job);
    return LM_OK;
  }
  if (said->world_size != r->world_size || said->rank <= 0 || said->rank >= r->world_size) {
    refuse(h, i, WRONG, "rank %d at %s counts %d ranks, rank 0 counts %d", said->rank, from,
           said->world_size, r->world_size);
    return lm__fail(LM_EDIST, "rendezvous: %s", h->last_refusal);
  }
  int *member = &h->members[said->rank];
  if (*member >= 0 && has_left(*member)) { /* it died, and was started anew */
    (void)close(*member);
    *member = -1;
    h->came -= 1;
  }
  if (*member >= 0) {
    refuse(h, i, WRONG, "two processes say that they are rank %d of %d: at %s and at %s",
           said->rank, r->world_size, h->all[said->rank].address, from);
    return lm__fail(LM_EDIST, "rendezvous: %s", h->last_refusal);
  }
  answer(h->guests[i].fd, WAIT, r->world_size, "");
  *member = h->guests[i].fd;
  h->came += 1;
  memcpy(h->all[said->rank].address, from, sizeof from);
  memcpy(h->all[said->rank].blob, said->blob, LM__BLOB);
  h->guests[i] = h->guests[--h->n];
  return LM_OK;
}

/* Where there is no room the one who has been silent for longest leaves, after a second. */
static bool has_room(host *h) {
  int oldest = 0;
  if (h->n < GUESTS) return true;
  for (int i = 1; i < h->n; i++)
    if (h->guests[i].since < h->guests[oldest].since) oldest = i;
  if (lm__clock() < h->guests[oldest].since + 1) return false;
  dismiss(h, oldest);
  return true;
}

static void let_in(host *h) {
  while (has_room(h)) {
    const int fd = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    h->guests[h->n++] = (guest){.fd = fd, .since = lm__clock()};
  }
}

/* Hear what guest i has to say; true while it may go on. */
static bool hear(host *h, int i) {
  guest *g = &h->guests[i];
  const ssize_t n = recv(g->fd, (char *)&g->said + g->got, sizeof g->said - g->got, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n > 0) g->got += (size_t)n;
  const size_t known = g->got < sizeof MAGIC ? g->got : sizeof MAGIC;
  if (n <= 0 || memcmp(g->said.magic, MAGIC, known) != 0) {
    char from[LM__ADDRESS];
    lm__net_peer(g->fd, from);
    (void)snprintf(h->last_refusal, sizeof h->last_refusal,
                   "someone at %s who is no rank of Lumuon's, or of another version", from);
    dismiss(h, i);
    return false;
  }
  return true;
}

static void list_missing(const host *h, char *text, size_t size) {
  size_t used = 0;
  text[0] = 0;
  for (int i = 1; i < h->r->world_size && used + 16 < size; i++)
    if (h->members[i] < 0)
      used += (size_t)snprintf(text + used, size - used, used ? ", %d" : "%d", i);
}

static int wait_for_all(host *h, double deadline) {
  struct pollfd polled[GUESTS + 1];
  const double begun = lm__clock();
  for (;;) {
    polled[0] = (struct pollfd){.fd = h->listener, .events = POLLIN};
    for (int i = 0; i < h->n; i++)
      polled[i + 1] = (struct pollfd){.fd = h->guests[i].fd, .events = POLLIN};
    const nfds_t count = (nfds_t)h->n + 1;
    (void)poll(polled, count, lm__net_milliseconds(deadline, 200));
    for (int i = h->n - 1; i >= 0; i--) { /* downwards: the last takes a dismissed one's place */
      guest *g = &h->guests[i];
      if (polled[i + 1].revents && !hear(h, i)) continue;
      if (g->got == sizeof g->said)
        LM__TRY(judge(h, i));
      else if (lm__clock() > g->since + HELLO_PATIENCE)
        dismiss(h, i);
    }
    if (polled[0].revents) let_in(h);
    if (h->came == h->r->world_size - 1) {
      int left = 0; /* one may have died while the others were waited for */
      for (int i = 1; i < h->r->world_size; i++)
        if (has_left(h->members[i])) {
          (void)close(h->members[i]);
          h->members[i] = -1;
          left += 1;
        }
      h->came -= left;
      if (left == 0) return LM_OK;
    }
    if (lm__clock() >= deadline) {
      char missing[160];
      list_missing(h, missing, sizeof missing);
      return lm__fail(LM_EDIST,
                      "rendezvous: of %d ranks these have not come to %s within %g s: %s%s%s",
                      h->r->world_size, h->r->place, tenths(deadline - begun), missing,
                      h->last_refusal[0] ? "; turned away: " : "", h->last_refusal);
    }
  }
}

/* The last error's words without the name of what failed, which who hears them puts before them. */
static const char *unnamed_error(void) {
  const char *message = lm_last_error(), *name = "rendezvous: ";
  return strncmp(message, name, strlen(name)) == 0 ? message + strlen(name) : message;
}

static int serve(const lm__rendezvous *r, const meeting_point *at, const void *blob, lm__peer *all,
                 int *held, double deadline) {
  host h = {.r = r, .at = *at, .all = all};
  const double patience = lm__clock() + 5; /* an earlier job may be about to leave the port */
  do {
    h.listener = lm__net_listen(&h.at.port);
    if (h.listener < 0 && errno == EADDRINUSE)
      (void)nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
  } while (h.listener < 0 && errno == EADDRINUSE && lm__clock() < patience &&
           lm__clock() < deadline);
  if (h.listener < 0)
    return lm__fail(LM_EDIST, "rendezvous: rank 0 cannot listen on port %d: %s", h.at.port,
                    strerror(errno));
  int status = LM_OK;
  h.members = malloc((size_t)r->world_size * sizeof *h.members);
  h.guests = malloc(GUESTS * sizeof *h.guests);
  if (!h.members || !h.guests) status = lm__fail(LM_ENOMEM, "rendezvous: out of memory");
  for (int i = 0; status == LM_OK && i < r->world_size; i++) h.members[i] = -1;
  memset(&all[0], 0, sizeof all[0]);
  memcpy(all[0].blob, blob, LM__BLOB);
  if (status == LM_OK && h.at.path[0]) {
    lm__net_random(h.at.key);
    status = write_file(&h.at);
  }
  if (status == LM_OK) status = wait_for_all(&h, deadline);
  for (int i = 1; h.members && h.guests && i < r->world_size; i++) {
    if (h.members[i] < 0) continue;
    answer(h.members[i], status ? WRONG : READY, r->world_size, status ? unnamed_error() : "");
    if (status == LM_OK)
      (void)lm__net_send(h.members[i], all, (size_t)r->world_size * sizeof *all, deadline);
    if (status == LM_OK)
      held[i] = h.members[i];
    else
      (void)close(h.members[i]);
  }
  for (int i = 0; i < h.n; i++) (void)close(h.guests[i].fd);
  (void)close(h.listener);
  remove_file(&h.at);
  free(h.members);
  free(h.guests);
  return status;
}

/* ---- the other ranks ---- */

enum outcome { MET, LATER, REFUSED };

/* The file that named this place is not what it was: rank 0 may be elsewhere. */
static bool is_outdated(const meeting_point *at) {
  meeting_point now = *at;
  char why[MESSAGE];
  return at->path[0] && read_file(&now, why, sizeof why) && memcmp(now.key, at->key, LM__KEY) != 0;
}

/* The first verdict, which rank 0 gives at once: whoever is silent is not rank 0. */
static int hear_first(int fd, verdict *v, const meeting_point *at, double deadline) {
  const double patience = lm__clock() + ANSWER_PATIENCE;
  if (patience < deadline) deadline = patience;
  for (;;) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, lm__net_milliseconds(deadline, 200)) > 0)
      return lm__net_receive(fd, v, sizeof *v, deadline);
    if (lm__clock() >= deadline || is_outdated(at)) return ETIMEDOUT;
  }
}

/* One visit to rank 0; *held stays open where they have met. */
static enum outcome visit(const lm__rendezvous *r, const char *name, const meeting_point *at,
                          const void *blob, lm__peer *all, int *held, double deadline, char *why,
                          size_t size) {
  hello mine = {.rank = r->rank, .world_size = r->world_size};
  verdict v;
  char there[LM__ADDRESS];
  const int fd = lm__net_connect(name, at->port, deadline, why, size);
  if (fd < 0) return LATER;
  memcpy(mine.magic, MAGIC, sizeof mine.magic);
  memcpy(mine.key, at->key, sizeof mine.key);
  (void)snprintf(mine.job, sizeof mine.job, "%s", r->job);
  memcpy(mine.blob, blob, LM__BLOB);
  lm__net_peer(fd, there);
  enum outcome outcome = LATER;
  int error = lm__net_send(fd, &mine, sizeof mine, deadline);
  if (!error) error = hear_first(fd, &v, at, deadline);
  const bool known = error == 0 && memcmp(v.magic, MAGIC, sizeof v.magic) == 0;
  if (known && v.answer == WAIT) error = lm__net_receive(fd, &v, sizeof v, deadline);
  if (error == 0 && memcmp(v.magic, MAGIC, sizeof v.magic) != 0) {
    (void)snprintf(why, size, "%s port %d is not rank 0 of such a job", name, at->port);
  } else if (error == 0) {
    v.message[MESSAGE - 1] = 0;
    (void)snprintf(why, size, "%s", v.message);
    outcome = v.answer == STRANGER ? LATER : v.answer == READY ? MET : REFUSED;
    if (outcome == MET && v.world_size == r->world_size)
      error = lm__net_receive(fd, all, (size_t)r->world_size * sizeof *all, deadline);
  }
  if (error) {
    outcome = LATER;
    (void)snprintf(why, size, "%s port %d was reached, then: %s", name, at->port,
                   error != ETIMEDOUT ? strerror(error)
                   : known            ? "rank 0 waits for the others; are all ranks running?"
                                      : "no answer, as rank 0 would give at once");
  }
  if (outcome == MET)
    *held = fd;
  else
    (void)close(fd);
  for (int i = 0; outcome == MET && i < r->world_size; i++) {
    all[i].address[LM__ADDRESS - 1] = 0;
    if (i == 0 || lm__net_is_loopback(all[i].address)) memcpy(all[i].address, there, sizeof there);
  }
  return outcome;
}

static int go(const lm__rendezvous *r, const meeting_point *to, const void *blob, lm__peer *all,
              int *held, double deadline) {
  const double begun = lm__clock();
  long pause = 20000000; /* ns */
  char why[MESSAGE] = "";
  do {
    meeting_point at = *to;
    if (!at.path[0] || read_file(&at, why, sizeof why)) {
      for (int i = 0; i < at.n_hosts; i++) {
        const enum outcome outcome =
            visit(r, at.hosts[i], &at, blob, all, held, deadline, why, sizeof why);
        if (outcome == MET) return LM_OK;
        if (outcome == REFUSED) return lm__fail(LM_EDIST, "rendezvous: %s", why);
      }
    }
    (void)nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
    if (pause < 500000000) pause += pause / 2;
  } while (lm__clock() < deadline);
  return lm__fail(LM_EDIST,
                  "rendezvous: rank %d of %d has not met rank 0 at %s within %g s; at last: %s",
                  r->rank, r->world_size, r->place, tenths(deadline - begun), why);
}

int lm__rendezvous_meet(const lm__rendezvous *r, const void *blob, lm__peer *all, int *held,
                        double deadline) {
  meeting_point p;
  for (int i = 0; i < r->world_size; i++) held[i] = -1;
  LM__TRY(parse(r->place, &p));
  return r->rank == 0 ? serve(r, &p, blob, all, held, deadline)
                      : go(r, &p, blob, all, held, deadline);
}
