/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: aio_read, aio_write, aio_flush.
 *
 * Layer: tool.  Locking: each request has a thread of its own, which touches
 * only its struct io_job; the main thread looks at that again after it has
 * joined the thread.  So results are printed by the main thread alone, in the
 * order in which the requests were given: before the next command, by
 * aio_flush, and before the image is closed.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool/io.h"
#include "tool/tool.h"

/* More at a time wait for the oldest. */
enum { MAX_JOBS = 64, DEFAULT_PATTERN = 0xcd };

struct io_job {
  pthread_t thread;
  struct io_job *next;
  struct io_shell *sh;
  struct image *image;
  bool write, zero, unmap, fua, machine, quiet, dump, has_pattern;
  uint8_t pattern;
  uint8_t *buf;                 /* owned; NULL for -z */
  uint64_t offset, bytes;
  /* set by the thread: */
  struct io_timer timer;
  struct error error;
};

/* ---- the request ---- */

static int
carry_out (struct io_job *j)
{
  unsigned flags = (j->fua ? IMAGE_FUA : 0)
    | (j->unmap ? IMAGE_MAY_UNMAP : 0);
  size_t len = (size_t) j->bytes;

  if (io_check_range (j->image, j->offset, j->bytes, &j->error) == -1)
    return -1;
  if (j->zero)
    return image_zero (j->image, j->offset, j->bytes, flags, &j->error);
  if (j->write)
    return image_write (j->image, j->buf, len, j->offset, flags, &j->error);
  if (j->sh->how.copy_on_read
      && image_copy_up (j->image, j->offset, j->bytes, &j->error) == -1)
    return -1;
  return image_read (j->image, j->buf, len, j->offset, &j->error);
}

static void *
job_thread (void *opaque)
{
  struct io_job *j = opaque;

  carry_out (j);
  io_stop (&j->timer);
  return NULL;
}

/* ---- results ---- */

static void
show (struct io_job *j)
{
  if (j->error.err) {
    io_failed (j->write ? "aio_write" : "readv", &j->error);
    return;
  }
  if (!j->write && j->has_pattern)
    io_verify (j->buf, (size_t) j->bytes, j->offset, j->pattern);
  if (j->quiet)
    return;
  if (!j->write && j->dump)
    io_dump (j->buf, (size_t) j->bytes, j->offset);
  io_report (j->write ? "wrote" : "read", &j->timer, j->offset, j->bytes,
             j->machine);
}

static void
free_job (struct io_job *j)
{
  io_free (j->sh, j->buf);
  free (j);
}

/* Print the oldest, if it is done or WAIT.  Returns whether it was. */
static bool
reap_one (struct io_shell *sh, bool wait)
{
  struct io_job *j = sh->first;

  if (!j)
    return false;
  if (wait)
    pthread_join (j->thread, NULL);
  else if (pthread_tryjoin_np (j->thread, NULL) != 0)
    return false;
  sh->first = j->next;
  if (!sh->first)
    sh->last = NULL;
  sh->nr_jobs--;
  show (j);
  free_job (j);
  return true;
}

void
io_reap (struct io_shell *sh, bool wait)
{
  while (reap_one (sh, wait))
    ;
}

/* Takes J. */
static int
submit (struct io_shell *sh, struct io_job *j)
{
  int err;

  if (sh->nr_jobs == MAX_JOBS)
    reap_one (sh, true);
  io_start (&j->timer);
  err = pthread_create (&j->thread, NULL, job_thread, j);
  if (err != 0) {
    tool_error ("a thread for the request cannot be made: %s", strerror (err));
    free_job (j);
    return -1;
  }
  if (sh->last)
    sh->last->next = j;
  else
    sh->first = j;
  sh->last = j;
  sh->nr_jobs++;
  return 0;
}

/* ---- the commands ---- */

static int
set_option (struct io_job *j, int option, const char *arg, bool *invalid)
{
  switch (option) {
  case 'C': j->machine = true; return 0;
  case 'f': j->fua = true; return 0;
  case 'i': *invalid = true; return 0;
  case 'q': j->quiet = true; return 0;
  case 'u': j->unmap = true; return 0;
  case 'v': j->dump = true; return 0;
  case 'z': j->zero = true; return 0;
  case 'P':
    j->has_pattern = true;
    return io_pattern (arg, &j->pattern);
  }
  return -1;
}

static int
parse_numbers (struct io_job *j, int argc, char **argv)
{
  int nr = argc - optind;
  size_t bytes;

  if (nr < 2)
    return io_usage (argv[0]);
  if (j->zero && nr != 2) {
    puts ("-z supports only a single length parameter");
    return -1;
  }
  if (j->unmap && !j->zero) {
    puts ("-u requires -z to be specified");
    return -1;
  }
  if (io_number (argv[optind], &j->offset) == -1
      || io_vector (argv + optind + 1, nr - 1, &bytes) == -1)
    return -1;
  j->bytes = bytes;
  return 0;
}

static int
make_buffer (struct io_job *j)
{
  if (j->zero)
    return 0;
  j->buf = io_alloc (j->sh, (size_t) j->bytes);
  if (!j->buf)
    return -1;
  if (j->write)
    memset (j->buf, j->has_pattern ? j->pattern : DEFAULT_PATTERN,
            (size_t) j->bytes);
  return 0;
}

static int
prepare (struct io_job *j, int argc, char **argv, const char *letters,
         bool *invalid)
{
  int option;

  while ((option = io_getopt (argc, argv, letters)) != -1)
    if (set_option (j, option, optarg, invalid) == -1)
      return -1;
  if (*invalid) {
    printf ("injecting invalid %s request\n", j->write ? "write" : "read");
    return 0;
  }
  return parse_numbers (j, argc, argv) == -1 ? -1 : make_buffer (j);
}

static int
run (struct io_shell *sh, int argc, char **argv, bool write,
     const char *letters)
{
  struct io_job *j = calloc (1, sizeof *j);
  bool invalid = false;
  int r;

  if (!j) {
    tool_error ("out of memory");
    return -1;
  }
  j->sh = sh;
  j->image = sh->image;
  j->write = write;
  r = prepare (j, argc, argv, letters, &invalid);
  if (r == 0 && !invalid)
    return submit (sh, j);
  free_job (j);
  return r;
}

static int
run_aio_read (struct io_shell *sh, int argc, char **argv)
{
  return run (sh, argc, argv, false, "CiqvP:");
}

static int
run_aio_write (struct io_shell *sh, int argc, char **argv)
{
  return run (sh, argc, argv, true, "CfiquzP:");
}

static int
run_aio_flush (struct io_shell *sh, int argc, char **argv)
{
  (void) argc;
  (void) argv;
  io_reap (sh, true);
  return 0;
}

const struct io_command io_aio_commands[] = {
  { "aio_read", NULL, run_aio_read, 2, -1, IO_FILE,
    "[-Ciqv] [-P pattern] off len [len..]",
    "starts to read; aio_flush waits for it",
    " -C  -P  -q  -v  as for read\n"
    " -i  a request that is not made\n"
    "\n"
    " The command itself does not fail when the request does." },
  { "aio_write", NULL, run_aio_write, 2, -1, IO_WRITABLE,
    "[-Cfiquz] [-P pattern] off len [len..]",
    "starts to write; aio_flush waits for it",
    " -C  -f  -P  -q  -u  -z  as for write; -z with one length\n"
    " -i  a request that is not made\n"
    "\n"
    " The command itself does not fail when the request does." },
  { "aio_flush", NULL, run_aio_flush, 0, 0, IO_FILE, "",
    "waits for all aio_read and aio_write", NULL },
  { NULL, NULL, NULL, 0, 0, IO_NOTHING, NULL, NULL, NULL },
};
