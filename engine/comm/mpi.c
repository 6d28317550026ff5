/* Messages by MPI. MPI 3.1 counts in int, which LM__MESSAGE fits. All calls, MPI_Init's too, come
 * from one thread (FUNNELED); nothing moves unless one of them is made. */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm/transport.h"
#include "core/error.h"

enum { TAG = 1, WORDS = 2, ASIDES = 4 };

static MPI_Comm comm = MPI_COMM_NULL;
static int rank;
typedef struct aside { /* words to a rank that may still be on their way */
  MPI_Request request;
  char words[LM__WORDS];
} aside;
static aside *asides; /* ASIDES for each rank */

static int check(const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (code == MPI_SUCCESS) return LM_OK;
  (void)MPI_Error_string(code, text, &length);
  return lm__fail(LM_EDIST, "dist: %s on rank %d: %s", what, rank, text);
}

static int post_send(int to, const void *data, int bytes, void *request) {
  return check("sending", MPI_Isend(data, bytes, MPI_BYTE, to, TAG, comm, request));
}

static int post_receive(int from, void *data, int bytes, void *request) {
  return check("receiving", MPI_Irecv(data, bytes, MPI_BYTE, from, TAG, comm, request));
}

static int test(int n, void *requests, int *finished, int *count) {
  LM__TRY(check("waiting", MPI_Testsome(n, requests, count, finished, MPI_STATUSES_IGNORE)));
  if (*count == MPI_UNDEFINED) *count = -1;
  return LM_OK;
}

static void say(int to, const void *words) {
  for (int i = 0; i < ASIDES; i++) {
    aside *own = &asides[to * ASIDES + i];
    int done = 0;
    if (MPI_Test(&own->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done) continue;
    memcpy(own->words, words, LM__WORDS);
    (void)MPI_Isend(own->words, LM__WORDS, MPI_BYTE, to, WORDS, comm, &own->request);
    return;
  }
}

static bool hear(int *from, void *words) {
  MPI_Status status;
  int there = 0;
  if (MPI_Iprobe(MPI_ANY_SOURCE, WORDS, comm, &there, &status) != MPI_SUCCESS || !there)
    return false;
  *from = status.MPI_SOURCE;
  return MPI_Recv(words, LM__WORDS, MPI_BYTE, *from, WORDS, comm, MPI_STATUS_IGNORE) == MPI_SUCCESS;
}

static void nap(long ns) { (void)nanosleep(&(struct timespec){.tv_nsec = ns}, NULL); }

static int start(int *own_rank, int *world_size, double deadline) {
  int before = 0, level = 0;
  (void)deadline; /* MPI has no such thing: the main thread gives up waiting */
  LM__TRY(check("MPI_Initialized", MPI_Initialized(&before)));
  if (before) return lm__fail(LM_EDIST, "dist: MPI can be started once a process, and was");
  LM__TRY(check("MPI_Init", MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level)));
  if (level < MPI_THREAD_FUNNELED)
    return lm__fail(LM_EDIST, "dist: this MPI was built without support for threads");
  (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  LM__TRY(check("MPI_Comm_dup", MPI_Comm_dup(MPI_COMM_WORLD, &comm)));
  LM__TRY(check("MPI_Comm_rank", MPI_Comm_rank(comm, &rank)));
  LM__TRY(check("MPI_Comm_size", MPI_Comm_size(comm, world_size)));
  asides = calloc((size_t)*world_size * ASIDES, sizeof *asides);
  if (!asides) return lm__fail(LM_ENOMEM, "dist: out of memory for %d ranks", *world_size);
  for (int i = 0; i < *world_size * ASIDES; i++) asides[i].request = MPI_REQUEST_NULL;
  *own_rank = rank;
  return LM_OK;
}

static void stop(void) {
  (void)MPI_Comm_free(&comm);
  (void)MPI_Finalize();
  free(asides);
  asides = NULL;
}

static void abort_job(int code) { (void)MPI_Abort(MPI_COMM_WORLD, code); }

static const lm__transport transport = {
    .name = "mpi",
    .request_bytes = sizeof(MPI_Request),
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

const lm__transport *lm__transport_mpi(void) { return &transport; }
