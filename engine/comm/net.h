/* Sockets with deadlines (lm__clock): what the rendezvous and the TCP transport share. Every socket
 * is closed on exec: a program that a recipe starts must not keep a dead rank's connections open.
 */
#ifndef LM_COMM_NET_H
#define LM_COMM_NET_H

#include <stdbool.h>
#include <stddef.h>

enum { LM__ADDRESS = 64, LM__KEY = 16 };

/* A socket that listens on all of this machine's addresses; *port 0: one that is free, told in
 * *port. -1 with errno. Not blocking. */
int lm__net_listen(int *port);

/* Connect to a host's port, whatever of the host's addresses answers first, each tried for a few
 * seconds at most. -1, and why (text of `size` bytes). */
int lm__net_connect(const char *host, int port, double deadline, char *why, size_t size);

/* All of it by the deadline: 0, else errno (ECONNRESET: the other side has closed it). */
int lm__net_send(int fd, const void *data, size_t bytes, double deadline);
int lm__net_receive(int fd, void *data, size_t bytes, double deadline);

/* The address of the other side, in figures. */
void lm__net_peer(int fd, char address[LM__ADDRESS]);
bool lm__net_is_loopback(const char *address);

/* poll(2)'s argument for the time that is left, at most `most` milliseconds. */
int lm__net_milliseconds(double deadline, int most);

/* A number that nobody guesses. */
void lm__net_random(unsigned char key[LM__KEY]);

#endif
