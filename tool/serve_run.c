/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The processes of nbdimg serve.  Layer: tool.  No locking: one thread.
 *
 *   nbdimg serve            waits for nbdkit, hands signals on, removes the
 *     \_ nbdkit             socket when it ends
 *
 * nbdkit writes its process id into its pid file once it takes connections.
 * That file is here a pipe, /dev/fd/N: a number in it means ready, an end of
 * file without a number that nbdkit gave up.  The URI is printed when the
 * number came, so a client that reads it can connect.
 *
 * With --fork nbdkit makes itself a daemon (and logs to syslog from then on).
 * A process stays behind as its "subreaper", to remove the socket when it
 * ends; should that process be killed, only the socket file remains.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/error.h"
#include "common/text.h"
#include "tool/serve.h"
#include "tool/tool.h"

/* ---- the socket ---- */

static int
make_private_dir (struct serve *s, struct error *e)
{
  const char *tmp = getenv ("TMPDIR");

  s->private_dir = format_text ("%s/nbdimg-XXXXXX", tmp && tmp[0] == '/' ? tmp
                                : "/tmp");
  if (!s->private_dir)
    return error_nomem (e, "a name", 64);
  if (!mkdtemp (s->private_dir)) {
    error_errno (e, errno, "%s: cannot make a folder for the socket",
                 s->private_dir);
    free (s->private_dir);
    s->private_dir = NULL;
    return -1;
  }
  return 0;
}

/* Does a server listen on ADDRESS?  1 = yes, 0 = no, the socket was left over,
 * -1 = it cannot be told.
 */
static int
is_listening (const struct sockaddr_un *address)
{
  CLEANUP_CLOSE int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (fd == -1)
    return -1;
  if (connect (fd, (const struct sockaddr *) address, sizeof *address) == 0)
    return 1;
  return errno == ECONNREFUSED ? 0 : -1;
}

static int
remove_stale (const char *path, const struct sockaddr_un *address,
              struct error *e)
{
  struct stat st;

  if (lstat (path, &st) == -1)
    return errno == ENOENT ? 0 : error_errno (e, errno, "%s", path);
  if (!S_ISSOCK (st.st_mode))
    return error_set (e, EEXIST, "%s: exists and is not a socket", path);
  switch (is_listening (address)) {
  case 0:
    if (unlink (path) == -1 && errno != ENOENT)
      return error_errno (e, errno, "%s: cannot remove the old socket", path);
    return 0;
  case 1:
    return error_set (e, EADDRINUSE, "%s: another server listens there", path);
  }
  return error_set (e, EADDRINUSE, "%s: exists", path);
}

/* Absolute, since the process may change folder before it removes it. */
static char *
absolute (const char *path)
{
  CLEANUP_FREE char *cwd = NULL;

  if (path[0] == '/')
    return strdup (path);
  cwd = getcwd (NULL, 0);
  return cwd ? format_text ("%s/%s", cwd, path) : NULL;
}

int
serve_prepare_socket (struct serve *s, const char *path, struct error *e)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };

  if (path)
    s->socket = absolute (path);
  else if (make_private_dir (s, e) == -1)
    return -1;
  else
    s->socket = format_text ("%s/nbd.sock", s->private_dir);
  if (!s->socket)
    return error_nomem (e, "the socket's name", 256);
  if (strlen (s->socket) >= sizeof address.sun_path)
    return error_set (e, ENAMETOOLONG, "%s: the name of a socket has at most "
                      "%zu characters", s->socket,
                      sizeof address.sun_path - 1);
  strcpy (address.sun_path, s->socket);
  return remove_stale (s->socket, &address, e);
}

void
serve_remove_socket (const struct serve *s)
{
  if (s->socket)
    unlink (s->socket);
  if (s->private_dir)
    rmdir (s->private_dir);
}

/* ---- start, and wait until it is ready ---- */

/* The signals that end the program or tell that nbdkit ended. */
static void
handled_signals (sigset_t *set)
{
  sigemptyset (set);
  sigaddset (set, SIGINT);
  sigaddset (set, SIGTERM);
  sigaddset (set, SIGHUP);
  sigaddset (set, SIGQUIT);
  sigaddset (set, SIGCHLD);
}

static void __attribute__ ((noreturn))
become (const struct arguments *a)
{
  sigset_t none;

  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  execvp (a->argv[0], a->argv);
  tool_error ("cannot run %s: %s", a->argv[0], strerror (errno));
  _exit (errno == ENOENT ? 127 : 126);
}

/* Start nbdkit.  READY gets the end of the pipe to read its process id from.
 * Returns the process that was started, or -1.
 */
static pid_t
start (const struct serve *s, int *ready, struct error *e)
{
  CLEANUP_FREE char *pidfile = NULL;
  struct arguments a;
  int fds[2];
  pid_t pid;

  if (pipe2 (fds, O_CLOEXEC) == -1)
    return error_errno (e, errno, "pipe");
  pidfile = format_text ("/dev/fd/%d", fds[1]);
  if (!pidfile || serve_command (s, pidfile, &a, e) == -1) {
    error_nomem (e, "the command line", 32);
    pid = -1;
  }
  else {
    pid = fork ();
    if (pid == 0) {
      fcntl (fds[1], F_SETFD, 0);
      become (&a);
    }
    if (pid == -1)
      error_errno (e, errno, "fork");
    arguments_free (&a);
  }
  close (fds[1]);
  if (pid == -1)
    close (fds[0]);
  else
    *ready = fds[0];
  return pid;
}

/* Wait for the number that says ready.  Returns it, or 0 when nbdkit ended, or
 * when something happened to ENOUGH: an image behind a server that does not
 * answer may take for ever.
 */
static pid_t
wait_ready (int fd, int enough)
{
  struct pollfd fds[] = {
    { .fd = fd, .events = POLLIN }, { .fd = enough, .events = POLLIN },
  };
  char text[32];
  size_t n = 0;
  ssize_t r;

  while (n < sizeof text - 1 && !memchr (text, '\n', n)) {
    if (poll (fds, 2, -1) == -1)
      continue;
    if (!fds[0].revents)
      return 0;
    r = read (fd, text + n, sizeof text - 1 - n);
    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0)
      return 0;
    n += (size_t) r;
  }
  text[n] = '\0';
  return (pid_t) strtol (text, NULL, 10);
}

static int
write_pid_file (const char *path, pid_t pid, struct error *e)
{
  FILE *fp = fopen (path, "we");

  if (!fp)
    return error_errno (e, errno, "%s", path);
  fprintf (fp, "%ld\n", (long) pid);
  if (fclose (fp) != 0)
    return error_errno (e, errno, "%s", path);
  return 0;
}

/* nbdkit is ready: say so. */
static int
announce (const struct serve *s, pid_t pid, struct error *e)
{
  CLEANUP_FREE char *uri = serve_uri (s);

  if (!uri)
    return error_nomem (e, "the URI", 256);
  if (s->pid_file && write_pid_file (s->pid_file, pid, e) == -1)
    return -1;
  if (printf ("%s\n", uri) < 0 || fflush (stdout) != 0)
    return error_errno (e, errno, "standard output");
  return 0;
}

/* ---- until it ends ---- */

/* STATUS as waitpid gave it. */
static int
exit_status (int status)
{
  if (WIFSIGNALED (status))
    tool_error ("nbdkit was ended by signal %d (%s)", WTERMSIG (status),
                strsignal (WTERMSIG (status)));
  return WIFEXITED (status) && WEXITSTATUS (status) == 0 ? 0 : 1;
}

/* Wait for PID; hand on the signals of SET, which are blocked. */
static int
supervise (pid_t pid, const sigset_t *set)
{
  int status, sig;
  pid_t r;

  for (;;) {
    while ((r = waitpid (-1, &status, WNOHANG)) > 0)
      if (r == pid)
        return exit_status (status);
    if (r == -1 && errno == ECHILD)
      return 1;
    if (sigwait (set, &sig) == 0 && sig != SIGCHLD)
      kill (pid, sig == SIGHUP ? SIGTERM : sig);
  }
}

static int
serve_foreground (const struct serve *s, struct error *e)
{
  CLEANUP_CLOSE int signals = -1;
  sigset_t set, ending;
  pid_t pid;
  int ready, status;

  handled_signals (&set);
  sigprocmask (SIG_BLOCK, &set, NULL);
  /* SIGCHLD may be of a child that this process had before it became nbdimg;
   * that nbdkit ended is seen by the pipe.
   */
  ending = set;
  sigdelset (&ending, SIGCHLD);
  signals = signalfd (-1, &ending, SFD_CLOEXEC);
  if (signals == -1)
    return error_errno (e, errno, "signalfd");
  pid = start (s, &ready, e);
  if (pid == -1)
    return -1;
  /* A signal that ends the wait is still there for supervise. */
  if (wait_ready (ready, signals) != 0 && announce (s, pid, e) == -1)
    kill (pid, SIGTERM);
  status = supervise (pid, &set);
  close (ready);
  return e->err ? -1 : status;
}

/* The daemon PID runs: nobody looks at this process any more. */
static void
stay_behind (const struct serve *s, pid_t pid)
{
  int null = open ("/dev/null", O_RDWR | O_CLOEXEC);
  pid_t r;

  if (null != -1)
    for (int fd = 0; fd <= 2; ++fd)
      dup2 (null, fd);
  if (chdir ("/") == -1)
    return;
  do
    r = waitpid (-1, NULL, 0);
  while (r != pid && !(r == -1 && errno == ECHILD));
  serve_remove_socket (s);
}

/* The process between: it becomes the daemon's parent.  TELL gets one byte
 * when the daemon is ready.  When nobody is there any more who waits for it
 * (Ctrl-C), there is to be no daemon.
 */
static int
serve_between (const struct serve *s, int tell, struct error *e)
{
  int ready, status = 0;
  pid_t child, pid;

  setsid ();
  prctl (PR_SET_CHILD_SUBREAPER, 1);
  child = start (s, &ready, e);
  if (child == -1)
    return -1;
  pid = wait_ready (ready, tell);
  close (ready);
  if (pid == 0) {
    kill (child, SIGTERM);
    waitpid (child, &status, 0);
    return 1;
  }
  signal (SIGPIPE, SIG_IGN);
  if (announce (s, pid, e) == -1 || write (tell, "", 1) != 1) {
    kill (pid, SIGTERM);
    return e->err ? -1 : 1;
  }
  close (tell);
  stay_behind (s, pid);
  return 0;
}

static int
serve_daemon (const struct serve *s, struct error *e)
{
  int fds[2], status = 1;
  char byte;
  pid_t pid;
  ssize_t r;

  if (pipe2 (fds, O_CLOEXEC) == -1)
    return error_errno (e, errno, "pipe");
  fflush (NULL);
  pid = fork ();
  if (pid == -1)
    return error_errno (e, errno, "fork");
  if (pid == 0) {
    close (fds[0]);
    status = serve_between (s, fds[1], e);
    if (e->err)
      tool_fail (e);
    if (status != 0)
      serve_remove_socket (s);
    _exit (status == 0 ? 0 : 1);
  }
  close (fds[1]);
  do
    r = read (fds[0], &byte, 1);
  while (r == -1 && errno == EINTR);
  close (fds[0]);
  if (r == 1)
    return 0;
  waitpid (pid, &status, 0);
  return 1;
}

int
serve_run (const struct serve *s, struct error *e)
{
  int r;

  if (s->run) {
    struct arguments a;

    if (serve_command (s, NULL, &a, e) == -1)
      return -1;
    become (&a);
  }
  if (s->fork)
    return serve_daemon (s, e);
  r = serve_foreground (s, e);
  serve_remove_socket (s);
  return r;
}
