/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: commands that do not read or write data.
 *
 * Layer: tool.  No locking: the main thread.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
#include "tool/io.h"
#include "tool/tool.h"

/* ---- what is where ---- */

/* How many bytes from OFFSET the image itself has (or has not), without what
 * lies below it?
 */
static int
allocated_run (struct image *im, uint64_t offset, uint64_t end,
               uint64_t *length, bool *allocated, struct error *e)
{
  struct image_extent x;

  *length = 0;
  for (uint64_t at = offset; at < end; at += x.length) {
    if (image_extents (im, at, end - at, EXTENTS_TOP_ONLY | EXTENTS_METADATA,
                       &x, e) == -1)
      return -1;
    if (at == offset)
      *allocated = x.present;
    else if (*allocated != x.present)
      break;
    *length += x.length;
  }
  return 0;
}

static int
cannot_tell (const struct error *e)
{
  tool_error ("Failed to get allocation status: %s", e->text);
  return -1;
}

static int
run_map (struct io_shell *sh, int argc, char **argv)
{
  uint64_t size = image_size (sh->image), length;
  struct error e = ERROR_INIT;
  bool allocated;

  (void) argc;
  (void) argv;
  for (uint64_t at = 0; at < size; at += length) {
    char bytes[64], where[64];

    if (allocated_run (sh->image, at, size, &length, &allocated, &e) == -1)
      return cannot_tell (&e);
    printf ("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64
            ")\n", io_size_text ((double) length, bytes, sizeof bytes), length,
            allocated ? "   " : "not",
            io_size_text ((double) at, where, sizeof where), at);
  }
  return 0;
}

static int
run_alloc (struct io_shell *sh, int argc, char **argv)
{
  uint64_t size = image_size (sh->image), offset, count = SECTOR_SIZE;
  uint64_t end, length, sum = 0;
  struct error e = ERROR_INIT;
  char where[64];
  bool allocated;

  if (io_number (argv[1], &offset) == -1
      || (argc == 3 && io_number (argv[2], &count) == -1))
    return -1;
  count = offset < size ? min_u64 (count, size - offset) : 0;
  end = offset + count;
  for (uint64_t at = offset; at < end; at += length) {
    if (allocated_run (sh->image, at, end, &length, &allocated, &e) == -1) {
      printf ("is_allocated failed: %s\n", strerror (e.err));
      return cannot_tell (&e);
    }
    sum += allocated ? length : 0;
  }
  printf ("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, count,
          io_size_text ((double) offset, where, sizeof where));
  return 0;
}

/* ---- length, truncate, info ---- */

static int
run_length (struct io_shell *sh, int argc, char **argv)
{
  char text[64];

  (void) argc;
  (void) argv;
  puts (io_size_text ((double) image_size (sh->image), text, sizeof text));
  return 0;
}

static int
preallocation (const char *text, enum preallocation *mode)
{
  int found = preallocation_parse (text);

  if (found == -1) {
    tool_error ("Invalid preallocation mode '%s'", text);
    return -1;
  }
  *mode = (enum preallocation) found;
  return 0;
}

static int
run_truncate (struct io_shell *sh, int argc, char **argv)
{
  enum preallocation mode = PREALLOCATION_OFF;
  struct error e = ERROR_INIT;
  uint64_t size;
  int option;

  while ((option = io_getopt (argc, argv, "m:")) != -1)
    if (option == '?' || preallocation (optarg, &mode) == -1)
      return -1;
  if (argc - optind != 1)
    return io_usage (argv[0]);
  if (io_number (argv[optind], &size) == -1)
    return -1;
  io_reap (sh, true);
  if (image_resize_preallocated (sh->image, size, mode, &e) == 0)
    return 0;
  tool_fail (&e);
  return -1;
}

static int
print_specific (const struct image *im)
{
  struct error e = ERROR_INIT;
  json_t *data = json_object ();
  json_t *specific = json_pack ("{s:o}", "data", data);
  int r = 0;

  if (!specific || im->format->ops->info (im->format, data, &e) == -1) {
    tool_error ("%s", specific ? e.text : "out of memory");
    r = -1;
  }
  else
    print_format_specific (specific);
  json_decref (specific);
  return r;
}

static int
run_info (struct io_shell *sh, int argc, char **argv)
{
  const struct format *f = sh->image->format;
  bool none = f->info.identity || f->info.flat;
  uint64_t cluster = none ? 0 : f->info.cluster_size;
  char text[64];

  (void) argc;
  (void) argv;
  printf ("format name: %s\n", f->ops->name);
  printf ("cluster size: %s\n",
          io_size_text ((double) cluster, text, sizeof text));
  printf ("vm state offset: %s\n",
          io_size_text ((double) image_vm_state_offset (sh->image), text,
                        sizeof text));
  return f->ops->info ? print_specific (sh->image) : 0;
}

/* ---- the process ---- */

static int
run_sleep (struct io_shell *sh, int argc, char **argv)
{
  struct timespec ts;
  char *end;
  long ms;

  (void) argc;
  errno = 0;
  ms = strtol (argv[1], &end, 0);
  if (errno || end == argv[1] || *end || ms < 0) {
    printf ("%s is not a valid number\n", argv[1]);
    return -1;
  }
  io_reap (sh, false);
  ts.tv_sec = ms / 1000;
  ts.tv_nsec = ms % 1000 * 1000000;
  nanosleep (&ts, NULL);
  return 0;
}

static int
run_sigraise (struct io_shell *sh, int argc, char **argv)
{
  uint64_t sig;

  (void) sh;
  (void) argc;
  if (io_number (argv[1], &sig) == -1)
    return -1;
  fflush (stdout);
  if (sig <= INT_MAX)
    raise ((int) sig);
  return 0;
}

static int
run_abort (struct io_shell *sh, int argc, char **argv)
{
  (void) sh;
  (void) argc;
  (void) argv;
  abort ();
}

static int
run_quit (struct io_shell *sh, int argc, char **argv)
{
  (void) argc;
  (void) argv;
  sh->quit = true;
  return 0;
}

/* They stop requests inside of QEMU's driver blkdebug. */
static int
run_break (struct io_shell *sh, int argc, char **argv)
{
  (void) sh;
  (void) argc;
  tool_error ("%s is not supported: breakpoints belong to QEMU's driver "
              "blkdebug", argv[0]);
  return -1;
}

const struct io_command io_misc_commands[] = {
  { "map", NULL, run_map, 0, 0, IO_FILE, "",
    "tells what the image itself has, and what is below or nowhere", NULL },
  { "alloc", NULL, run_alloc, 1, 2, IO_FILE, "offset [count]",
    "tells how many of these bytes the image itself has", NULL },
  { "length", "l", run_length, 0, 0, IO_FILE, "",
    "tells the size of the disk", NULL },
  { "truncate", "t", run_truncate, 1, 3, IO_WRITABLE,
    "[-m prealloc_mode] off", "changes the size of the disk",
    " -m  off, metadata, falloc or full: the space of what is added" },
  { "info", "i", run_info, 0, 0, IO_FILE, "", "tells what the image is",
    NULL },
  { "sleep", NULL, run_sleep, 1, 1, IO_NOTHING, "milliseconds",
    "waits for some time", NULL },
  { "sigraise", NULL, run_sigraise, 1, 1, IO_NOTHING, "signal",
    "sends a signal to this program",
    " sigraise 9     ends it as a crash does" },
  { "abort", NULL, run_abort, 0, 0, IO_NOTHING, "",
    "ends this program as a crash does, by abort(3)", NULL },
  { "help", "?", io_help, 0, 1, IO_NOTHING, "[command]",
    "lists the commands, or explains one", NULL },
  { "quit", "q", run_quit, 0, -1, IO_NOTHING, "", "ends this program", NULL },
  { "break", NULL, run_break, 2, 2, IO_FILE, "event tag", "not supported",
    NULL },
  { "remove_break", NULL, run_break, 1, 1, IO_FILE, "tag", "not supported",
    NULL },
  { "resume", NULL, run_break, 1, 1, IO_FILE, "tag", "not supported", NULL },
  { "wait_break", NULL, run_break, 1, 1, IO_FILE, "tag", "not supported",
    NULL },
  { NULL, NULL, NULL, 0, 0, IO_NOTHING, NULL, NULL, NULL },
};
