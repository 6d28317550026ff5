/* Sockets with deadlines. See net.h. */
#include "comm/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/comm.h"

static const double PATIENCE = 5; /* seconds for one address: packets may fall into the void */

int lm__net_milliseconds(double deadline, int most) {
  const double left = 1e3 * (deadline - lm__clock());
  return left <= 0 ? 0 : left < most ? (int)left + 1 : most;
}

int lm__net_listen(int *port) {
  const int one = 1, zero = 0;
  struct sockaddr_in6 six = {
      .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)*port), .sin6_addr = in6addr_any};
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
  socklen_t length = sizeof six;
  int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0) { /* takes both kinds of address */
    (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&six, sizeof six) != 0) {
      const int problem = errno;
      (void)close(fd);
      fd = -1;
      errno = problem;
      if (problem != EADDRNOTAVAIL && problem != EAFNOSUPPORT) return -1;
    }
  }
  if (fd < 0) { /* a machine without IPv6 */
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&four, sizeof four) != 0) goto failed;
  }
  if (listen(fd, SOMAXCONN) != 0) goto failed;
  if (getsockname(fd, (struct sockaddr *)&six, &length) != 0) goto failed;
  *port = ntohs(six.sin6_port); /* where sin_port lies, too */
  return fd;
failed:;
  const int problem = errno;
  (void)close(fd);
  errno = problem;
  return -1;
}

static int wait_for(int fd, short events, double deadline) {
  for (;;) {
    struct pollfd p = {.fd = fd, .events = events};
    const int n = poll(&p, 1, lm__net_milliseconds(deadline, 1000));
    if (n > 0) return 0;
    if (n < 0 && errno != EINTR) return errno;
    if (lm__clock() >= deadline) return ETIMEDOUT;
  }
}

/* Nobody listens on a port that this machine also gives to those who call: the system may give a
 * caller that very port, who then talks to itself and keeps others from listening there. */
static bool is_itself(int fd) {
  struct sockaddr_storage own = {0}, peer = {0};
  socklen_t own_length = sizeof own, peer_length = sizeof peer;
  return getsockname(fd, (struct sockaddr *)&own, &own_length) == 0 &&
         getpeername(fd, (struct sockaddr *)&peer, &peer_length) == 0 &&
         own_length == peer_length && memcmp(&own, &peer, own_length) == 0;
}

static int connect_to(const struct addrinfo *to, double deadline, int *error) {
  const int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) {
    *error = errno;
    return -1;
  }
  *error = connect(fd, to->ai_addr, to->ai_addrlen) == 0 ? 0 : errno;
  if (*error == EINPROGRESS) {
    socklen_t length = sizeof *error;
    const double patience = lm__clock() + PATIENCE;
    *error = wait_for(fd, POLLOUT, deadline < patience ? deadline : patience);
    if (*error == 0) (void)getsockopt(fd, SOL_SOCKET, SO_ERROR, error, &length);
  }
  if (*error == 0 && is_itself(fd)) {
    const struct linger at_once = {.l_onoff = 1};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    *error = ECONNREFUSED;
  }
  if (*error == 0) return fd;
  (void)close(fd);
  return -1;
}

int lm__net_connect(const char *host, int port, double deadline, char *why, size_t size) {
  const struct addrinfo wanted = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  struct addrinfo *list = NULL;
  char service[16];
  int fd = -1, error = 0;
  (void)snprintf(service, sizeof service, "%d", port);
  const int problem = getaddrinfo(host, service, &wanted, &list);
  if (problem) {
    (void)snprintf(why, size, "the name '%s' is not known: %s", host, gai_strerror(problem));
    return -1;
  }
  for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
    fd = connect_to(a, deadline, &error);
  freeaddrinfo(list);
  if (fd < 0) (void)snprintf(why, size, "%s port %d: %s", host, port, strerror(error));
  return fd;
}

int lm__net_send(int fd, const void *data, size_t bytes, double deadline) {
  for (size_t at = 0; at < bytes;) {
    const ssize_t n = send(fd, (const char *)data + at, bytes - at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      at += (size_t)n;
    } else if (errno == EAGAIN || errno == EINTR) {
      const int error = wait_for(fd, POLLOUT, deadline);
      if (error) return error;
    } else {
      return errno;
    }
  }
  return 0;
}

int lm__net_receive(int fd, void *data, size_t bytes, double deadline) {
  for (size_t at = 0; at < bytes;) {
    const ssize_t n = recv(fd, (char *)data + at, bytes - at, MSG_DONTWAIT);
    if (n > 0) {
      at += (size_t)n;
    } else if (n == 0) {
      return ECONNRESET;
    } else if (errno == EAGAIN || errno == EINTR) {
      const int error = wait_for(fd, POLLIN, deadline);
      if (error) return error;
    } else {
      return errno;
    }
  }
  return 0;
}

void lm__net_peer(int fd, char address[LM__ADDRESS]) {
  struct sockaddr_storage peer;
  socklen_t length = sizeof peer;
  address[0] = 0;
  if (getpeername(fd, (struct sockaddr *)&peer, &length) != 0 ||
      getnameinfo((struct sockaddr *)&peer, length, address, LM__ADDRESS, NULL, 0,
                  NI_NUMERICHOST) != 0) {
    (void)snprintf(address, LM__ADDRESS, "?");
    return;
  }
  static const char mapped[] = "::ffff:"; /* an IPv4 address, on a socket that takes both */
  if (strncmp(address, mapped, sizeof mapped - 1) == 0)
    memmove(address, address + sizeof mapped - 1, strlen(address) - (sizeof mapped - 1) + 1);
}

bool lm__net_is_loopback(const char *address) {
  return strncmp(address, "127.", 4) == 0 || strcmp(address, "::1") == 0;
}

void lm__net_random(unsigned char key[LM__KEY]) {
  for (size_t got = 0; got < LM__KEY;) {
    const ssize_t n = getrandom(key + got, LM__KEY - got, 0);
    if (n > 0) got += (size_t)n;
  }
}
