/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* "[ command args ]": an NBD server that runs for us and takes a listening
 * socket as descriptor 3 (systemd's socket activation, see
 * sd_listen_fds(3); nbdkit, qemu-nbd and qemu-storage-daemon do).
 *
 * Layer: storage.
 *
 * libnbd can start a command too, but keeps the socket to itself, so that
 * there could be one connection only.  Ours has no name in the file system by
 * the time the server runs: it is reached through /proc/self/fd, so nobody
 * else can connect and nothing is left behind by a crash.
 *
 * Our child is not the server but the server's keeper (nbd_keeper.c), so that
 * the server lives longer than the thread that started it.  Both stand in our
 * process group: Ctrl-C reaches the server.  The keeper is known by a pidfd,
 * which still means the same process when nbdkit has forked and we are no
 * longer its parent.
 *
 * Locking: m guards what is known of the end of the process.
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/lock.h"
#include "common/text.h"
#include "storage/nbd.h"

/* After SIGTERM a server may have data to write. */
enum { TERM_MILLISECONDS = 30000 };

/* The first descriptor of socket activation. */
enum { LISTEN_FDS_START = 3 };

struct nbdx_command {
  /* fixed after start */
  pid_t pid, parent;            /* only PARENT can wait for PID */
  int pidfd;
  int socket;                   /* O_PATH */
  int life;                     /* a pipe: while it is open the server runs */

  struct mutex m;
  /* guarded by m */
  bool ended, status_known;
  int status;                   /* as of waitpid */
};

extern char **environ;

/* ---- the listening socket ---- */

/* Bind S to DIR/s, reach it by *PATH_FD, remove DIR. */
static int
bind_hidden (int s, const char *dir, int *path_fd, struct error *e)
{
  struct sockaddr_un a = { .sun_family = AF_UNIX };
  int r = -1;

  if (snprintf (a.sun_path, sizeof a.sun_path, "%s/s", dir)
      >= (int) sizeof a.sun_path)
    return error_set (e, ENAMETOOLONG, "%s: too long for a Unix socket", dir);
  if (bind (s, (struct sockaddr *) &a, sizeof a) == -1)
    return error_errno (e, errno, "%s: bind", a.sun_path);
  *path_fd = open (a.sun_path, O_PATH | O_CLOEXEC);
  if (*path_fd == -1)
    error_errno (e, errno, "%s", a.sun_path);
  else if (listen (s, SOMAXCONN) == -1)
    error_errno (e, errno, "%s: listen", a.sun_path);
  else
    r = 0;
  unlink (a.sun_path);
  return r;
}

/* Returns the listening socket. */
static int
make_socket (int *path_fd, struct error *e)
{
  const char *tmp = getenv ("TMPDIR");
  CLEANUP_FREE char *dir = NULL;
  int s, r;

  dir = format_text ("%s/nbdimgXXXXXX", tmp && tmp[0] == '/' ? tmp : "/tmp");
  if (!dir)
    return error_nomem (e, "a path", 32);
  if (!mkdtemp (dir))
    return error_errno (e, errno, "%s: mkdtemp", dir);
  s = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (s == -1) {
    error_errno (e, errno, "socket");
    rmdir (dir);
    return -1;
  }
  r = bind_hidden (s, dir, path_fd, e);
  rmdir (dir);
  if (r == -1) {
    close (s);
    return -1;
  }
  return s;
}

/* ---- the child ---- */

/* Made before the fork: in the child nothing may be allocated. */
struct child {
  char *const *argv;
  char **env;                   /* owned; the strings but PID_TEXT are not */
  char pid_text[32];            /* LISTEN_PID=... */
  int listen, report;           /* both above LISTEN_FDS_START, O_CLOEXEC */
  int life;                     /* the keeper's end of the pipe */
};

static bool
is_activation (const char *variable)
{
  return strncmp (variable, "LISTEN_PID=", 11) == 0
    || strncmp (variable, "LISTEN_FDS=", 11) == 0
    || strncmp (variable, "LISTEN_FDNAMES=", 15) == 0;
}

static int
make_environment (struct child *c, struct error *e)
{
  static char one[] = "LISTEN_FDS=1";
  size_t n = 0, used = 0;

  while (environ && environ[n])
    n++;
  c->env = calloc (n + 3, sizeof *c->env);
  if (!c->env)
    return error_nomem (e, "an environment", (n + 3) * sizeof *c->env);
  for (size_t i = 0; i < n; i++) {
    if (!is_activation (environ[i]))
      c->env[used++] = environ[i];
  }
  c->env[used++] = one;
  c->env[used] = c->pid_text;
  return 0;
}

/* snprintf is not safe after a fork of a program with threads. */
static void
put_pid (char *text, pid_t pid)
{
  char digits[16];
  size_t n = 0, len;

  do {
    digits[n++] = (char) ('0' + pid % 10);
    pid /= 10;
  } while (pid > 0);
  strcpy (text, "LISTEN_PID=");
  len = strlen (text);
  while (n > 0)
    text[len++] = digits[--n];
  text[len] = '\0';
}

/* The defaults of a program that a shell starts: caught and ignored SIGPIPE
 * and a mask of blocked signals (nbdkit's threads have one) are ours alone.
 */
static void
reset_signals (void)
{
  struct sigaction old, dfl = { .sa_handler = SIG_DFL };
  sigset_t none;

  for (int i = 1; i < NSIG; i++) {
    if (sigaction (i, NULL, &old) == 0
        && (old.sa_handler != SIG_IGN || i == SIGPIPE))
      sigaction (i, &dfl, NULL);
  }
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
}

static void __attribute__ ((noreturn))
run_child (struct child *c)
{
  int err;

  reset_signals ();
  prctl (PR_SET_PDEATHSIG, SIGKILL);    /* should the keeper be killed */
  put_pid (c->pid_text, getpid ());
  /* Standard output is for results, and a daemon must not keep it open. */
  dup2 (STDERR_FILENO, STDOUT_FILENO);
  if (dup2 (c->listen, LISTEN_FDS_START) != -1)
    execvpe (c->argv[0], c->argv, c->env);
  err = errno;
  if (write (c->report, &err, sizeof err) == -1)
    _exit (126);
  _exit (127);
}

static void __attribute__ ((noreturn))
run_keeper (struct child *c)
{
  pid_t pid = fork ();

  if (pid == 0)
    run_child (c);
  if (pid == -1) {
    int err = errno;

    if (write (c->report, &err, sizeof err) == -1)
      _exit (126);
    _exit (127);
  }
  nbdx_keep (pid, c->life);
}

/* Fork with all signals blocked: no handler of ours runs in the child. */
static pid_t
fork_child (struct child *c)
{
  sigset_t all, old;
  pid_t pid;
  int err;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  pid = fork ();
  if (pid == 0)
    run_keeper (c);
  err = errno;
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  errno = err;
  return pid;
}

/* ---- starting ---- */

static int
pidfd_of (pid_t pid)
{
  return (int) syscall (SYS_pidfd_open, pid, 0);
}

/* The pipe is closed by a successful exec, else it carries an errno. */
static int
wait_for_exec (int fd, const char *program, struct error *e)
{
  int err = 0;
  ssize_t r;

  do
    r = read (fd, &err, sizeof err);
  while (r == -1 && errno == EINTR);
  if (r == sizeof err)
    return error_errno (e, err, "%s", program);
  return 0;
}

/* Move FD above the descriptors that the child replaces. */
static int
move_up (int fd, struct error *e)
{
  int r = fcntl (fd, F_DUPFD_CLOEXEC, LISTEN_FDS_START + 1);

  if (r == -1)
    error_errno (e, errno, "fcntl: F_DUPFD_CLOEXEC");
  close (fd);
  return r;
}

/* The pidfd cannot miss: the child is not reaped before. */
static int
spawn (struct nbdx_command *c, struct child *child, int report_in,
       struct error *e)
{
  pid_t pid = fork_child (child);
  int r;

  close (child->report);
  child->report = -1;
  if (pid == -1)
    return error_errno (e, errno, "fork");
  c->parent = getpid ();
  c->pidfd = pidfd_of (pid);
  if (c->pidfd == -1)
    error_errno (e, errno, "pidfd_open");
  r = wait_for_exec (report_in, child->argv[0], e);
  if (c->pidfd == -1 || r == -1) {
    kill (pid, SIGKILL);
    waitpid (pid, NULL, 0);
    return -1;
  }
  c->pid = pid;
  return 0;
}

static int
start (struct nbdx_command *c, char *const *argv, struct error *e)
{
  struct child child = { .argv = argv, .listen = -1, .report = -1,
    .life = -1 };
  CLEANUP_CLOSE int life_out = -1;
  CLEANUP_CLOSE int report_in = -1;
  int fds[2], r = -1;

  child.listen = make_socket (&c->socket, e);
  if (child.listen == -1
      || (child.listen = move_up (child.listen, e)) == -1)
    return -1;
  if (pipe2 (fds, O_CLOEXEC) == 0) {
    child.life = life_out = move_up (fds[0], e);
    c->life = fds[1];
  }
  if (child.life == -1 || pipe2 (fds, O_CLOEXEC) == -1)
    error_errno (e, errno, "pipe");
  else {
    report_in = fds[0];
    child.report = move_up (fds[1], e);
    if (child.report != -1 && make_environment (&child, e) == 0)
      r = spawn (c, &child, report_in, e);
  }
  /* The server alone listens: when it ends, connections fail. */
  close (child.listen);
  if (child.report != -1)
    close (child.report);
  free (child.env);
  return r;
}

/* "[ nbdkit memory 1G ]", owned. */
static char *
join (char *const *argv)
{
  char *r = strdup ("["), *next;

  for (size_t i = 0; r && argv[i]; i++) {
    next = format_text ("%s %s", r, argv[i]);
    free (r);
    r = next;
  }
  if (!r)
    return NULL;
  next = format_text ("%s ]", r);
  free (r);
  return next;
}

static int
set_target (struct nbdx_command *c, struct nbdx_target *t, struct error *e)
{
  t->socket = format_text ("/proc/self/fd/%d", c->socket);
  t->export = strdup ("");
  return t->socket && t->export ? 0 : error_nomem (e, "a path", 32);
}

struct nbdx_command *
nbdx_command_start (char *const *argv, struct nbdx_target *t, struct error *e)
{
  struct nbdx_command *c;

  if (nbdx_target_name (t, join (argv), e) == -1)
    return NULL;
  if (!argv[0]) {
    error_set (e, EINVAL, "%s: no command stands between the brackets",
               t->label);
    return NULL;
  }
  c = calloc (1, sizeof *c);
  if (!c) {
    error_nomem (e, "a command", sizeof *c);
    return NULL;
  }
  c->socket = c->pidfd = c->life = -1;
  mutex_init (&c->m);
  if (start (c, argv, e) == -1 || set_target (c, t, e) == -1) {
    error_prefix (e, "%s", t->label);
    nbdx_command_close (c);
    return NULL;
  }
  return c;
}

/* ---- its end ---- */

/* Wait until the process has ended, at most TIMEOUT ms (-1 = for ever), and
 * reap it.
 */
static bool
await_end_locked (struct nbdx_command *c, int timeout) REQUIRES (c->m)
{
  struct pollfd p = { .fd = c->pidfd, .events = POLLIN };
  int r;

  if (c->ended)
    return true;
  do
    r = poll (&p, 1, timeout);
  while (r == -1 && errno == EINTR);
  if (r <= 0)
    return false;
  c->ended = true;
  if (c->parent == getpid ())
    c->status_known = waitpid (c->pid, &c->status, 0) == c->pid;
  return true;
}

void
nbdx_command_fate (struct nbdx_command *c, int timeout, char *text,
                   size_t size)
{
  text[0] = '\0';
  mutex_lock (&c->m);
  if (!await_end_locked (c, timeout))
    ;
  else if (!c->status_known)
    snprintf (text, size, " (the command has ended)");
  else if (WIFSIGNALED (c->status))
    snprintf (text, size, " (the command was killed by signal %d, %s)",
              WTERMSIG (c->status), strsignal (WTERMSIG (c->status)));
  else
    snprintf (text, size, " (the command exited with status %d)",
              WEXITSTATUS (c->status));
  mutex_unlock (&c->m);
}

static void
send_signal (struct nbdx_command *c, int sig)
{
  /* Fails only if the process has ended. */
  if (syscall (SYS_pidfd_send_signal, c->pidfd, sig, NULL, 0) == -1)
    return;
}

static void
end_process (struct nbdx_command *c)
{
  mutex_lock (&c->m);
  if (!await_end_locked (c, 0)) {
    send_signal (c, SIGTERM);
    if (!await_end_locked (c, TERM_MILLISECONDS)) {
      send_signal (c, SIGKILL);
      await_end_locked (c, -1);
    }
  }
  mutex_unlock (&c->m);
}

void
nbdx_command_close (struct nbdx_command *c)
{
  if (!c)
    return;
  if (c->pid > 0)
    end_process (c);
  if (c->pidfd != -1)
    close (c->pidfd);
  if (c->socket != -1)
    close (c->socket);
  if (c->life != -1)
    close (c->life);
  mutex_destroy (&c->m);
  free (c);
}
