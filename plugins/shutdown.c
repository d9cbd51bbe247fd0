/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Idle clients do not hold up a shutdown.  Layer: plugins.
 *
 * On SIGTERM nbdkit 1.32 waits until each connection has ended, and one that
 * waits for the client's next request, as that of an idle virtual machine
 * does, ends only when the client says something (tried: still there after 80
 * s).  Whoever stops the service then kills it, and the image is left as after
 * a crash.  So a thread here wakes up when one of nbdkit's signals comes, and
 * shuts the reading side of the clients' sockets down: nbdkit sees the end of
 * the connection, after the replies that are under way.
 *
 * nbdkit does not tell which descriptors are its clients'.  They are those
 * with the local address of a socket that listens, and nbdkit has no other
 * listening sockets than its own.
 *
 * Locking: none.  The handler touches the pipe and nbdkit's handlers, which are
 * set before it is installed and stay until the process ends.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/error.h"
#include "plugins/shutdown.h"

/* The signals that nbdkit ends at. */
static const int signals[] = { SIGINT, SIGQUIT, SIGTERM };
enum { NR_SIGNALS = sizeof signals / sizeof signals[0] };

static struct sigaction chained[NR_SIGNALS];
static int wakeup[2] = { -1, -1 };      /* 's' = a signal, 'e' = the end */
static pthread_t thread;
static bool watching;

static void
tell (char what)
{
  int saved = errno;
  ssize_t r = write (wakeup[1], &what, 1);

  (void) r;             /* full: what was told before is still to be read */
  errno = saved;
}

static void
handler (int sig, siginfo_t *info, void *context)
{
  for (size_t i = 0; i < NR_SIGNALS; ++i)
    if (signals[i] == sig) {
      if (chained[i].sa_flags & SA_SIGINFO)
        chained[i].sa_sigaction (sig, info, context);
      else
        chained[i].sa_handler (sig);
    }
  tell ('s');
}

/* ---- whose sockets ---- */

union address {
  struct sockaddr any;
  struct sockaddr_in in;
  struct sockaddr_in6 in6;
  struct sockaddr_un un;
  struct sockaddr_storage storage;
};

struct local {
  union address address;
  socklen_t length;
};

/* The local address of FD.  false = it is no socket. */
static bool
local_of (int fd, struct local *l)
{
  memset (l, 0, sizeof *l);
  l->length = sizeof l->address;
  return getsockname (fd, &l->address.any, &l->length) == 0
    && l->length <= sizeof l->address;
}

static bool
listens (int fd)
{
  int value = 0;
  socklen_t length = sizeof value;

  return getsockopt (fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &length) == 0
    && value;
}

/* Could A be of a connection that was accepted on B?  An address of the
 * machine is not compared: B may be all of them.
 */
static bool
same_place (const struct local *a, const struct local *b)
{
  if (a->address.any.sa_family != b->address.any.sa_family)
    return false;
  switch (a->address.any.sa_family) {
  case AF_INET:
    return a->address.in.sin_port == b->address.in.sin_port;
  case AF_INET6:
    return a->address.in6.sin6_port == b->address.in6.sin6_port;
  default:
    return a->length == b->length
      && memcmp (&a->address, &b->address, a->length) == 0;
  }
}

/* Call EACH for every descriptor of the process. */
static void
each_descriptor (void (*each) (int fd, void *opaque), void *opaque)
{
  DIR *dir = opendir ("/proc/self/fd");
  struct dirent *d;

  if (!dir)
    return;
  while ((d = readdir (dir)) != NULL)
    if (d->d_name[0] != '.')
      each (atoi (d->d_name), opaque);
  closedir (dir);
}

/* nbdkit listens on one address or on the addresses of one host name. */
enum { MAX_LISTENERS = 64 };
struct listeners {
  struct local places[MAX_LISTENERS];
  size_t nr;
};

static void
note_listener (int fd, void *opaque)
{
  struct listeners *ls = opaque;

  if (ls->nr < MAX_LISTENERS && listens (fd)
      && local_of (fd, &ls->places[ls->nr]))
    ls->nr++;
}

static void
end_client (int fd, void *opaque)
{
  const struct listeners *ls = opaque;
  struct local l;

  if (!local_of (fd, &l) || listens (fd))
    return;
  for (size_t i = 0; i < ls->nr; ++i)
    if (same_place (&l, &ls->places[i])) {
      shutdown (fd, SHUT_RD);
      return;
    }
}

/* ---- the thread ---- */

/* Until the end is told, again and again: a connection may have been accepted
 * just before the signal.
 */
static void *
watch (void *opaque)
{
  struct pollfd p = { .fd = wakeup[0], .events = POLLIN };
  struct listeners *ls = opaque;
  int timeout = -1;
  char what;

  for (;;) {
    if (poll (&p, 1, timeout) == 1) {
      if (read (wakeup[0], &what, 1) != 1 || what == 'e')
        break;
      each_descriptor (note_listener, ls);
      timeout = 200;
    }
    each_descriptor (end_client, ls);
  }
  free (ls);
  return NULL;
}

static void
chain_handlers (void)
{
  struct sigaction sa = { .sa_sigaction = handler };

  for (size_t i = 0; i < NR_SIGNALS; ++i) {
    sigaction (signals[i], NULL, &chained[i]);
    if (!(chained[i].sa_flags & SA_SIGINFO)
        && (chained[i].sa_handler == SIG_DFL
            || chained[i].sa_handler == SIG_IGN))
      continue;
    sa.sa_flags = chained[i].sa_flags | SA_SIGINFO;
    sa.sa_mask = chained[i].sa_mask;
    sigaction (signals[i], &sa, NULL);
  }
}

/* nbdkit unloads this code while it still has its handlers. */
static void
unchain_handlers (void)
{
  struct sigaction now;

  for (size_t i = 0; i < NR_SIGNALS; ++i)
    if (sigaction (signals[i], NULL, &now) == 0
        && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handler)
      sigaction (signals[i], &chained[i], NULL);
}

/* Signals are for nbdkit's own threads. */
static int
start_thread (struct listeners *ls)
{
  sigset_t all, old;
  int err;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  err = pthread_create (&thread, NULL, watch, ls);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return err;
}

int
shutdown_watch (struct error *e)
{
  struct listeners *ls = calloc (1, sizeof *ls);
  int err;

  if (!ls)
    return error_nomem (e, "shutdown", sizeof *ls);
  if (pipe2 (wakeup, O_CLOEXEC | O_NONBLOCK) == -1) {
    free (ls);
    return error_errno (e, errno, "shutdown: pipe");
  }
  err = start_thread (ls);
  if (err) {
    free (ls);
    return error_errno (e, err, "shutdown: thread");
  }
  watching = true;
  chain_handlers ();
  return 0;
}

void
shutdown_watched (void)
{
  if (!watching)
    return;
  watching = false;
  unchain_handlers ();
  tell ('e');
  pthread_join (thread, NULL);
}
