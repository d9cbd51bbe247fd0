/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io, and the program when it is called qemu-io: see nbdimg-io(1).
 *
 * Layer: tool.  No locking: the main thread, which reads lines and runs them.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool/io.h"
#include "tool/tool.h"

static const char usage[] =
"[OPTION]... [-c COMMAND]... [FILE]\n"
"A shell of reads and writes; \"help\" lists its commands.\n"
"\n"
"  -c, --cmd=COMMAND     run this command, and then the next; without -c they\n"
"                        are read from standard input\n"
"  -f, --format=FMT      its format; without it the content decides\n"
"      --image-opts      FILE is key=value,...\n"
"  -r, --read-only       for reading only\n"
"  -s, --snapshot        what is written is thrown away at the end\n"
"  -U, --force-share     also while another program writes to it; needs -r\n"
"  -t, --cache=MODE      none, writeback (default), writethrough, directsync,\n"
"                        unsafe\n"
"  -n, --nocache         --cache=none\n"
"  -d, --discard=MODE    unmap (default) or ignore\n"
"  -m, --misalign        buffers at odd addresses\n"
"  -C, --copy-on-read    what is read from the backing file is kept\n"
"  -i, --aio=AIO         threads, native, io_uring: with a warning, since\n"
"                        requests are made by threads in any case\n"
"  -k, --native-aio      --aio=native\n"
"  -T, --trace=PATTERN   debug messages\n"
"  -h, --help   -V, --version\n";

enum { OPT_IMAGE_OPTS = 256, OPT_OBJECT };

static const struct option options[] = {
  { "help", no_argument, NULL, 'h' },
  { "version", no_argument, NULL, 'V' },
  { "cmd", required_argument, NULL, 'c' },
  { "format", required_argument, NULL, 'f' },
  { "read-only", no_argument, NULL, 'r' },
  { "snapshot", no_argument, NULL, 's' },
  { "nocache", no_argument, NULL, 'n' },
  { "copy-on-read", no_argument, NULL, 'C' },
  { "misalign", no_argument, NULL, 'm' },
  { "native-aio", no_argument, NULL, 'k' },
  { "aio", required_argument, NULL, 'i' },
  { "cache", required_argument, NULL, 't' },
  { "discard", required_argument, NULL, 'd' },
  { "trace", required_argument, NULL, 'T' },
  { "force-share", no_argument, NULL, 'U' },
  { "image-opts", no_argument, NULL, OPT_IMAGE_OPTS },
  { "object", required_argument, NULL, OPT_OBJECT },
  { NULL, 0, NULL, 0 },
};

struct request {
  struct io_shell shell;
  struct io_how how;            /* strings are borrowed from argv */
  char **commands;              /* -c, in order; owned, the strings argv's */
  size_t nr_commands;
  int status;                   /* when the program is over */
};

/* ---- options ---- */

static void
print_usage (void)
{
  if (strcmp (program, "qemu-io") == 0)
    printf ("Usage: %s %s", program, usage);
  else
    printf ("usage: %s io %s", program, usage);
}

static int
set_trace (struct request *rq, const char *arg)
{
  int r = tool_trace (arg);

  if (r == 1)
    rq->status = 0;
  return r == 0 ? 0 : -1;
}

static int
answer (struct request *rq, int option)
{
  rq->status = option == '?';
  if (option == 'V')
    tool_print_version ();
  else
    print_usage ();
  return -1;
}

static int
set_image_option (struct request *rq, int option, char *arg)
{
  struct io_how *how = &rq->how;

  switch (option) {
  case 'f': how->format = arg; return 0;
  case 'r': how->readonly = true; return 0;
  case 's': how->snapshot = true; return 0;
  case 'n': how->cache = CACHE_NONE; return 0;
  case 'U': how->force_share = true; return 0;
  case 't': return tool_cache ("cache option", arg, &how->cache);
  case 'd': return io_set_discard (how, arg);
  case 'i': return tool_aio (arg, &how->native);
  case 'k': return tool_aio ("native", &how->native);
  case 'C': how->copy_on_read = true; return 0;
  case OPT_IMAGE_OPTS: how->image_opts = true; return 0;
  }
  return 1;
}

static int
set_option (struct request *rq, int option, char *arg)
{
  int r = set_image_option (rq, option, arg);

  if (r != 1)
    return r;
  switch (option) {
  case 'c': rq->commands[rq->nr_commands++] = arg; return 0;
  case 'm': rq->shell.misalign = true; return 0;
  case 'T': return set_trace (rq, arg);
  case OPT_OBJECT: return tool_object (arg);
  }
  return answer (rq, option);
}

static int
parse (int argc, char **argv, struct request *rq)
{
  int option;

  optind = 0;
  rq->status = 1;
  while ((option = getopt_long (argc, argv, "hVc:f:rsnCmki:t:d:T:U", options,
                                NULL)) != -1)
    if (set_option (rq, option, optarg) == -1)
      return -1;
  if (argc - optind > 1)
    return answer (rq, '?');
  if (rq->how.format && rq->how.image_opts) {
    tool_error ("--image-opts and -f are mutually exclusive");
    return -1;
  }
  rq->how.name = argv[optind];
  return 0;
}

/* ---- lines from standard input ---- */

struct input {
  char *buf;                    /* owned */
  size_t used, size, taken;     /* taken: up to here lines were given out */
  bool ended;
};

/* Wait for input or Ctrl-C; poll is never restarted after a signal. */
static bool
wait_for_input (int signal_fd)
{
  struct pollfd fds[] = {
    { .fd = STDIN_FILENO, .events = POLLIN },
    { .fd = signal_fd, .events = POLLIN },
  };

  while (poll (fds, 2, -1) == -1 && errno == EINTR)
    ;
  return !(fds[1].revents & POLLIN);
}

static int
read_more (struct input *in)
{
  ssize_t n;

  if (in->size - in->used < 4096) {
    char *p = realloc (in->buf, in->size + 8192);

    if (!p)
      return -1;
    in->buf = p;
    in->size += 8192;
  }
  n = read (STDIN_FILENO, in->buf + in->used, in->size - in->used - 1);
  if (n <= 0)
    in->ended = true;
  else
    in->used += (size_t) n;
  return 0;
}

/* The next line, or what is left at the end; NULL = no more. */
static char *
next_line (struct input *in, int signal_fd)
{
  for (;;) {
    char *start = in->buf + in->taken, *end = NULL;

    if (in->used > in->taken)
      end = memchr (start, '\n', in->used - in->taken);
    if (!end && in->ended && in->used > in->taken)
      end = in->buf + in->used;
    if (end) {
      *end = '\0';
      in->taken = (size_t) (end - in->buf) + 1;
      return start;
    }
    if (in->ended || !wait_for_input (signal_fd))
      return NULL;
    memmove (in->buf, start, in->used - in->taken);
    in->used -= in->taken;
    in->taken = 0;
    if (read_more (in) == -1)
      return NULL;
  }
}

static int
run_input (struct io_shell *sh, int signal_fd)
{
  struct input in = { .buf = malloc (1) };
  int status = 0;
  char *line;

  while (in.buf && !sh->quit) {
    printf ("%s> ", program);
    fflush (stdout);
    line = next_line (&in, signal_fd);
    if (!line)
      break;
    if (io_command_line (sh, line) == -1)
      status = 1;
  }
  free (in.buf);
  return status;
}

/* ---- */

static int
run_commands (const struct request *rq, struct io_shell *sh,
              const bool *cancel)
{
  int status = 0;

  for (size_t i = 0; i < rq->nr_commands && !sh->quit; ++i) {
    if (__atomic_load_n (cancel, __ATOMIC_RELAXED))
      return 1;
    if (io_command_line (sh, rq->commands[i]) == -1)
      status = 1;
  }
  return status;
}

static int
run (struct request *rq)
{
  struct io_shell *sh = &rq->shell;
  const bool *cancel;
  int fd, status;

  if (rq->how.name && io_open (sh, &rq->how) == -1)
    return 1;
  cancel = tool_catch_signals (&fd);
  if (rq->nr_commands)
    status = run_commands (rq, sh, cancel);
  else
    status = run_input (sh, fd);
  if (sh->image && io_close (sh) == -1)
    status = 1;
  if (__atomic_load_n (cancel, __ATOMIC_RELAXED))
    status = 1;
  return status;
}

int
cmd_io (int argc, char **argv)
{
  struct request rq = { .how = { .cache = CACHE_WRITEBACK } };
  int status;

  rq.commands = calloc ((size_t) argc, sizeof *rq.commands);
  if (!rq.commands) {
    tool_error ("out of memory");
    return 1;
  }
  argv[0] = (char *) program;   /* getopt says it */
  status = parse (argc, argv, &rq) == 0 ? run (&rq) : rq.status;
  free (rq.commands);
  return status;
}
