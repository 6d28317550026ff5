/* Messages by MPI. MPI 3.1 counts in int, which LM__MESSAGE fits. All calls, MPI_Init's too, come
 * from one thread (FUNNELED); nothing moves unless one of them is made. */
#include <mpi.h>
#include <time.h>

#include "comm/transport.h"
#include "core/error.h"

enum { TAG = 1 };

static MPI_Comm comm = MPI_COMM_NULL;
static int rank;

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
  *own_rank = rank;
  return LM_OK;
}

static void stop(void) {
  (void)MPI_Comm_free(&comm);
  (void)MPI_Finalize();
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
};

const lm__transport *lm__transport_mpi(void) { return &transport; }
