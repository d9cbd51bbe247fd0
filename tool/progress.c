/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Progress on standard output (-p, --progress json) or once on standard error
 * (SIGUSR1), and Ctrl-C.
 *
 * Layer: tool.  Locking: workers report from any thread; the mutex guards what
 * was shown last.  A signal handler sets atomic flags and writes one byte to a
 * pipe, nothing else.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/interrupt.h"
#include "common/lock.h"
#include "tool/tool.h"

/* What is shown again when it changed by so many percent. */
static const double step = 0.25;

static struct {
  bool bar, json;               /* fixed after start */
  const char *command;

  struct mutex mutex;
  /* guarded by mutex: */
  bool shown;
  double percent;
} state = { .mutex = MUTEX_INIT };

static bool cancelled, asked;   /* atomic */
static int caught_signal;       /* atomic */
static int signal_pipe[2] = { -1, -1 };

int
tool_progress_option (struct tool_progress *p, const char *text)
{
  p->json = strcmp (text, "json") == 0;
  if (p->json)
    return 0;
  tool_error ("--progress=%s: it takes json; -p shows text", text);
  return -1;
}

/* ---- showing ---- */

static void
show_locked (double percent, uint64_t done, uint64_t total)
  REQUIRES (&state.mutex)
{
  if (state.shown && percent < 100
      && percent - state.percent < step)
    return;
  if (state.shown && percent <= state.percent)
    return;
  state.shown = true;
  state.percent = percent;
  if (state.json)
    printf ("{\"command\": \"%s\", \"done\": %" PRIu64 ", \"total\": %" PRIu64
            ", \"percent\": %.2f}\n", state.command, done, total, percent);
  else
    printf ("    (%.2f/100%%)\r", percent);
  fflush (stdout);
}

static void
report_locked (uint64_t done, uint64_t total)
  REQUIRES (&state.mutex)
{
  double percent = total ? 100.0 * (double) done / (double) total : 100;

  if (state.bar || state.json)
    show_locked (percent, done, total);
  if (__atomic_exchange_n (&asked, false, __ATOMIC_RELAXED) && !state.bar)
    fprintf (stderr, "    (%.2f/100%%)\n", percent);
}

void
tool_progress (void *opaque, uint64_t done, uint64_t total)
{
  (void) opaque;
  mutex_lock (&state.mutex);
  report_locked (done, total);
  mutex_unlock (&state.mutex);
}

/* A line about something that the operation went on without. */
static void
message (void *opaque, const char *text)
{
  (void) opaque;
  tool_log (LOG_WARNING, text);
}

static void
on_usr1 (int sig)
{
  (void) sig;
  __atomic_store_n (&asked, true, __ATOMIC_RELAXED);
}

void
tool_progress_start (const struct tool_progress *p, const char *command,
                     struct op_ctx *ctx)
{
  struct sigaction sa = { .sa_handler = on_usr1, .sa_flags = SA_RESTART };

  state.bar = p->bar && !p->quiet && !p->json;
  state.json = p->json && !p->quiet;
  state.command = command;
  sigaction (SIGUSR1, &sa, NULL);
  *ctx = (struct op_ctx) {
    .progress = tool_progress,
    .message = message,
    .cancel = tool_catch_signals (NULL),
  };
}

void
tool_progress_end (void)
{
  if (state.bar)
    putchar ('\n');
  state.bar = state.json = false;
}

/* ---- Ctrl-C ---- */

static void
on_signal (int sig)
{
  int saved = errno;

  __atomic_store_n (&caught_signal, sig, __ATOMIC_RELAXED);
  __atomic_store_n (&cancelled, true, __ATOMIC_RELAXED);
  interrupt_note ();
  if (write (signal_pipe[1], "", 1) == -1)
    errno = saved;              /* full: it is readable already */
  errno = saved;
}

/* SA_RESETHAND: who presses Ctrl-C twice wants to end at once. */
const bool *
tool_catch_signals (int *fd)
{
  struct sigaction sa = {
    .sa_handler = on_signal,
    .sa_flags = SA_RESTART | (int) SA_RESETHAND,
  };

  if (signal_pipe[0] == -1 && pipe2 (signal_pipe, O_CLOEXEC | O_NONBLOCK) == 0)
    for (size_t i = 0; i < 2; ++i) {
      static const int signals[] = { SIGINT, SIGTERM };
      struct sigaction old;

      /* A background job of a shell without job control ignores SIGINT. */
      if (sigaction (signals[i], NULL, &old) == 0
          && old.sa_handler != SIG_IGN)
        sigaction (signals[i], &sa, NULL);
    }
  if (fd)
    *fd = signal_pipe[0];
  return &cancelled;
}

void
tool_reraise_signal (void)
{
  int sig = __atomic_load_n (&caught_signal, __ATOMIC_RELAXED);

  if (!sig)
    return;
  signal (sig, SIG_DFL);
  raise (sig);
}
