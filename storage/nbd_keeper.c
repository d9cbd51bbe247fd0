/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The process between us and a command that serves ("[ command args ]").
 *
 *   we ---- keeper ---- command
 *
 * Layer: storage.
 *
 * nbdkit 1.32 asks to be ended when the thread that started it ends, option or
 * not (tried).  The process that opens an image may well end: the nbdkit that
 * our plugin lives in does when it becomes a daemon.  So the command's parent
 * is a process that lives as long as the command, and does nothing else.  It
 * also ends the command when we are gone, however we went: we hold one end of a
 * pipe, and so do our forks, and it sees when nobody holds it any more.
 *
 * The keeper is a fork of a program that may have threads: only what is safe in
 * a signal handler is called here.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/nbd.h"

/* Descriptors FIRST to LAST, on any kernel. */
static void
close_descriptors (unsigned first, unsigned last)
{
  const unsigned many = 65536;

  if (first > last || syscall (SYS_close_range, first, last, 0) == 0)
    return;
  for (unsigned fd = first; fd <= last && fd < many; fd++)
    close ((int) fd);
}

/* Whatever is open keeps locks, sockets and pipes alive. */
static void
let_go_of_all_but (int life)
{
  int null = open ("/dev/null", O_RDWR);

  for (int fd = 0; fd <= 2; fd++)
    if (null != -1)
      dup2 (null, fd);
  close_descriptors (3, (unsigned) life - 1);
  close_descriptors ((unsigned) life + 1, ~0U);
}

/* End as the command did, so that our parent can tell how. */
static void __attribute__ ((noreturn))
end_like (int status)
{
  struct rlimit no_core = { 0, 0 };
  sigset_t none;

  if (!WIFSIGNALED (status))
    _exit (WEXITSTATUS (status));
  setrlimit (RLIMIT_CORE, &no_core);
  signal (WTERMSIG (status), SIG_DFL);
  raise (WTERMSIG (status));
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  _exit (128 + WTERMSIG (status));
}

/* Wait until the command has ended or a signal for it came. */
static void
wait_and_hand_on (int signals, pid_t command)
{
  struct signalfd_siginfo si;

  if (read (signals, &si, sizeof si) == sizeof si
      && si.ssi_signo == (unsigned) SIGTERM)
    kill (command, SIGTERM);
}

void
nbdx_keep (pid_t command, int life)
{
  struct pollfd p[2] = { { .events = POLLIN }, { .events = POLLIN } };
  sigset_t set;
  int status;

  prctl (PR_SET_NAME, "nbdimg-keeper");
  signal (SIGCHLD, SIG_DFL);
  let_go_of_all_but (life);
  sigfillset (&set);
  sigprocmask (SIG_SETMASK, &set, NULL);
  p[0].fd = signalfd (-1, &set, SFD_CLOEXEC);
  p[1].fd = life;
  while (waitpid (command, &status, WNOHANG) == 0) {
    if (p[0].fd == -1 || poll (p, 2, -1) == -1) {
      kill (command, SIGTERM);
      waitpid (command, &status, 0);
      break;
    }
    if (p[1].revents) {
      kill (command, SIGTERM);
      p[1].fd = -1;
    }
    if (p[0].revents)
      wait_and_hand_on (p[0].fd, command);
  }
  end_like (status);
}
