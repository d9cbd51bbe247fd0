/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: read, readv, write, writev, discard, flush.
 *
 * Layer: tool.  No locking: the main thread.  A vector is one request for the
 * sum of its lengths: here too nothing lies between its parts.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "tool/io.h"
#include "tool/tool.h"

int
io_vector (char **argv, int nr, size_t *total)
{
  uint64_t sum = 0;

  for (int i = 0; i < nr; ++i) {
    uint64_t n;

    if (io_number (argv[i], &n) == -1)
      return -1;
    if (n > IO_MAX_REQUEST || sum + n > IO_MAX_REQUEST) {
      printf ("length cannot exceed %" PRIu64 ", given %s\n", IO_MAX_REQUEST,
              argv[i]);
      return -1;
    }
    sum += n;
  }
  *total = (size_t) sum;
  return 0;
}

static int
check_sector (const char *text, uint64_t n, const char *what)
{
  if (is_aligned (n, SECTOR_SIZE))
    return 0;
  printf ("%s is not a sector-aligned value for '%s'\n", text, what);
  return -1;
}

/* ---- read, readv ---- */

struct reading {
  bool machine, quiet, dump, vm_state;
  bool has_pattern, has_start, has_length;
  uint8_t pattern;
  uint64_t start, length;       /* what to verify, from the offset */
  uint64_t offset;
  size_t bytes;
};

static int
reading_option (struct reading *r, int option, const char *arg)
{
  switch (option) {
  case 'b': r->vm_state = true; return 0;
  case 'C': r->machine = true; return 0;
  case 'p': return 0;           /* qemu-io: for backwards compatibility */
  case 'q': r->quiet = true; return 0;
  case 'v': r->dump = true; return 0;
  case 'P':
    r->has_pattern = true;
    return io_pattern (arg, &r->pattern);
  case 's':
    r->has_start = true;
    return io_number (arg, &r->start);
  case 'l':
    r->has_length = true;
    return io_number (arg, &r->length);
  }
  return -1;
}

static int
parse_reading (int argc, char **argv, const char *letters, struct reading *r)
{
  int option;

  while ((option = io_getopt (argc, argv, letters)) != -1)
    if (reading_option (r, option, optarg) == -1)
      return -1;
  return 0;
}

/* The part to verify lies within what is read. */
static int
check_part (const char *name, struct reading *r)
{
  if ((r->has_start || r->has_length) && !r->has_pattern)
    return io_usage (name);
  if (!r->has_length)
    r->length = r->bytes - min_u64 (r->start, r->bytes);
  if (r->start <= r->bytes && r->length <= r->bytes - r->start)
    return 0;
  puts ("pattern verification range exceeds end of read data");
  return -1;
}

static int
show_read (const struct reading *r, const uint8_t *buf,
           const struct io_timer *t)
{
  int bad = 0;

  if (r->has_pattern)
    bad = io_verify (buf + r->start, (size_t) r->length,
                     r->offset + r->start, r->pattern);
  if (r->quiet)
    return bad;
  if (r->dump)
    io_dump (buf, r->bytes, r->offset);
  io_report ("read", t, r->offset, r->bytes, r->machine);
  return bad;
}

static int
read_data (const struct io_shell *sh, const struct reading *r, uint8_t *buf,
           struct error *e)
{
  struct image *im = sh->image;

  if (r->vm_state)
    return image_vm_state_read (im, buf, r->bytes, r->offset, e);
  if (io_check_range (im, r->offset, r->bytes, e) == -1
      || (sh->how.copy_on_read
          && image_copy_up (im, r->offset, r->bytes, e) == -1))
    return -1;
  return image_read (im, buf, r->bytes, r->offset, e);
}

static int
read_and_show (const struct io_shell *sh, const char *name,
               const struct reading *r, uint8_t *buf)
{
  struct error e = ERROR_INIT;
  struct io_timer t;

  io_start (&t);
  if (read_data (sh, r, buf, &e) == -1)
    return io_failed (name, &e);
  io_stop (&t);
  return show_read (r, buf, &t);
}

static int
do_read (struct io_shell *sh, int argc, char **argv, bool vector,
         struct reading *r)
{
  uint8_t *buf;
  int status, nr = argc - optind;

  if (nr < 2 || (nr > 2 && !vector))
    return io_usage (argv[0]);
  if (io_number (argv[optind], &r->offset) == -1
      || io_vector (argv + optind + 1, nr - 1, &r->bytes) == -1
      || check_part (argv[0], r) == -1)
    return -1;
  if (r->vm_state
      && (check_sector (argv[optind], r->offset, "offset") == -1
          || check_sector (argv[optind + 1], r->bytes, "count") == -1))
    return -1;
  buf = io_alloc (sh, r->bytes);
  if (!buf)
    return -1;
  status = read_and_show (sh, argv[0], r, buf);
  io_free (sh, buf);
  return status;
}

static int
run_read (struct io_shell *sh, int argc, char **argv)
{
  struct reading r = { .machine = false };

  if (parse_reading (argc, argv, "bCpqvP:s:l:", &r) == -1)
    return -1;
  return do_read (sh, argc, argv, false, &r);
}

static int
run_readv (struct io_shell *sh, int argc, char **argv)
{
  struct reading r = { .machine = false };

  if (parse_reading (argc, argv, "CqvP:", &r) == -1)
    return -1;
  return do_read (sh, argc, argv, true, &r);
}

/* ---- write, writev ---- */

enum { DEFAULT_PATTERN = 0xcd };

struct writing {
  bool machine, quiet, compress, fua, fast, unmap, zero, vm_state;
  bool has_pattern;
  uint8_t pattern;
  const char *file;             /* -s */
  uint64_t offset, bytes;
};

static int
writing_option (struct writing *w, int option, const char *arg)
{
  switch (option) {
  case 'b': w->vm_state = true; return 0;
  case 'c': w->compress = true; return 0;
  case 'C': w->machine = true; return 0;
  case 'f': w->fua = true; return 0;
  case 'n': w->fast = true; return 0;
  case 'p': return 0;
  case 'q': w->quiet = true; return 0;
  case 'u': w->unmap = true; return 0;
  case 'z': w->zero = true; return 0;
  case 's': w->file = arg; return 0;
  case 'P':
    w->has_pattern = true;
    return io_pattern (arg, &w->pattern);
  }
  return -1;
}

static int
check_writing (const struct writing *w)
{
  const char *wrong = NULL;

  if (w->vm_state && w->zero)
    wrong = "-b and -z cannot be specified at the same time";
  else if (w->fua && (w->compress || w->vm_state))
    wrong = "-f and -b or -c cannot be specified at the same time";
  else if (w->fast && !w->zero)
    wrong = "-n requires -z to be specified";
  else if (w->unmap && !w->zero)
    wrong = "-u requires -z to be specified";
  else if (w->zero + w->has_pattern + (w->file != NULL) > 1)
    wrong = "Only one of -z, -P, and -s can be specified at the same time";
  if (!wrong)
    return 0;
  puts (wrong);
  return -1;
}

/* Fill BUF with the content of FILE, over and over. */
static int
fill_from_file (uint8_t *buf, size_t len, const char *file)
{
  CLEANUP_FCLOSE FILE *fp = fopen (file, "rb");
  size_t n = 0;

  if (fp)
    n = fread (buf, 1, len, fp);
  if (!fp || ferror (fp)) {
    tool_put_name (stderr, file);
    fprintf (stderr, ": %s\n", strerror (errno));
    return -1;
  }
  if (n == 0 && len > 0) {
    tool_put_name (stderr, file);
    fputs (": file is empty\n", stderr);
    return -1;
  }
  for (size_t i = n; i < len; ++i)
    buf[i] = buf[i - n];
  return 0;
}

/* One cluster after the other, as formats take them. */
static int
write_compressed (struct image *im, const struct writing *w,
                  const uint8_t *buf, struct error *e)
{
  uint64_t cluster = im->format->info.cluster_size;
  uint64_t end = w->offset + w->bytes;

  if (!is_aligned (w->offset, cluster)
      || (!is_aligned (end, cluster) && end != image_size (im)))
    return error_set (e, EINVAL, "%s: what is written compressed must be whole "
                      "clusters of %" PRIu64 " bytes", im->name, cluster);
  for (uint64_t at = w->offset; at < end; at += cluster)
    if (image_write_packed (im, buf + (at - w->offset),
                            (size_t) min_u64 (cluster, end - at), at,
                            e) == -1)
      return -1;
  return 0;
}

static int
write_data (struct image *im, const struct writing *w, const uint8_t *buf,
            struct error *e)
{
  unsigned flags = (w->fua ? IMAGE_FUA : 0) | (w->unmap ? IMAGE_MAY_UNMAP : 0)
    | (w->fast ? IMAGE_FAST : 0);

  if (w->vm_state)
    return image_vm_state_write (im, buf, (size_t) w->bytes, w->offset, e);
  if (io_check_range (im, w->offset, w->bytes, e) == -1)
    return -1;
  if (w->zero)
    return image_zero (im, w->offset, w->bytes, flags, e);
  if (w->compress)
    return write_compressed (im, w, buf, e);
  return image_write (im, buf, (size_t) w->bytes, w->offset, flags, e);
}

static int
write_and_show (const struct io_shell *sh, const char *name,
                const struct writing *w, const uint8_t *buf)
{
  struct error e = ERROR_INIT;
  struct io_timer t;

  io_start (&t);
  if (write_data (sh->image, w, buf, &e) == -1)
    return io_failed (name, &e);
  io_stop (&t);
  if (!w->quiet)
    io_report ("wrote", &t, w->offset, w->bytes, w->machine);
  return 0;
}

static int
do_write (struct io_shell *sh, const char *name, const struct writing *w)
{
  uint8_t *buf = NULL;
  int r = 0;

  if (!w->zero) {
    buf = io_alloc (sh, (size_t) w->bytes);
    if (!buf)
      return -1;
    if (w->file)
      r = fill_from_file (buf, (size_t) w->bytes, w->file);
    else
      memset (buf, w->has_pattern ? w->pattern : DEFAULT_PATTERN,
              (size_t) w->bytes);
  }
  if (r == 0)
    r = write_and_show (sh, name, w, buf);
  io_free (sh, buf);
  return r;
}

static int
parse_writing (int argc, char **argv, const char *letters, struct writing *w)
{
  int option;

  while ((option = io_getopt (argc, argv, letters)) != -1)
    if (writing_option (w, option, optarg) == -1)
      return -1;
  return 0;
}

static int
run_write (struct io_shell *sh, int argc, char **argv)
{
  struct writing w = { .machine = false };

  if (parse_writing (argc, argv, "bcCfnpP:qs:uz", &w) == -1)
    return -1;
  if (argc - optind != 2)
    return io_usage (argv[0]);
  if (check_writing (&w) == -1
      || io_number (argv[optind], &w.offset) == -1
      || io_number (argv[optind + 1], &w.bytes) == -1)
    return -1;
  if (w.bytes > IO_MAX_REQUEST && !w.fast) {
    printf ("length cannot exceed %" PRIu64 " without -n, given %s\n",
            IO_MAX_REQUEST, argv[optind + 1]);
    return -1;
  }
  if ((w.compress || w.vm_state)
      && (check_sector (argv[optind], w.offset, "offset") == -1
          || check_sector (argv[optind + 1], w.bytes, "count") == -1))
    return -1;
  return do_write (sh, argv[0], &w);
}

static int
run_writev (struct io_shell *sh, int argc, char **argv)
{
  struct writing w = { .machine = false };
  size_t bytes;

  if (parse_writing (argc, argv, "CfqP:", &w) == -1)
    return -1;
  if (argc - optind < 2)
    return io_usage (argv[0]);
  if (io_number (argv[optind], &w.offset) == -1
      || io_vector (argv + optind + 1, argc - optind - 1, &bytes) == -1)
    return -1;
  w.bytes = bytes;
  return do_write (sh, argv[0], &w);
}

/* ---- discard, flush ---- */

static int
run_discard (struct io_shell *sh, int argc, char **argv)
{
  struct writing w = { .machine = false };
  struct error e = ERROR_INIT;
  struct io_timer t;
  size_t bytes;

  if (parse_writing (argc, argv, "Cq", &w) == -1)
    return -1;
  if (argc - optind != 2)
    return io_usage (argv[0]);
  if (io_number (argv[optind], &w.offset) == -1
      || io_vector (argv + optind + 1, 1, &bytes) == -1)
    return -1;
  io_start (&t);
  if (io_check_range (sh->image, w.offset, bytes, &e) == -1
      || image_trim (sh->image, w.offset, bytes, 0, &e) == -1)
    return io_failed (argv[0], &e);
  io_stop (&t);
  if (!w.quiet)
    io_report ("discard", &t, w.offset, bytes, w.machine);
  return 0;
}

static int
run_flush (struct io_shell *sh, int argc, char **argv)
{
  struct error e = ERROR_INIT;

  (void) argc;
  (void) argv;
  if (image_flush (sh->image, &e) == 0)
    return 0;
  tool_fail (&e);
  return -1;
}

const struct io_command io_rw_commands[] = {
  { "read", "r", run_read, 2, -1, IO_FILE,
    "[-bCpqv] [-P pattern [-s off] [-l len]] off len",
    "reads bytes and, if told so, verifies them",
    " -b  the state of a virtual machine, which lies behind the disk\n"
    " -C  numbers for programs: bytes,ops,time,bytes/sec,ops/sec\n"
    " -P  the bytes must all be this one\n"
    " -s  -l  only these of them, counted from off\n"
    " -p  does nothing, as in qemu-io\n"
    " -q  say nothing, unless it fails\n"
    " -v  dump what was read\n"
    "\n"
    " read -v 512 1k     dumps 1 KiB from offset 512" },
  { "readv", NULL, run_readv, 2, -1, IO_FILE,
    "[-Cqv] [-P pattern] off len [len..]",
    "reads bytes that are given as several lengths",
    " -C  -P  -q  -v  as for read" },
  { "write", "w", run_write, 2, -1, IO_WRITABLE,
    "[-bcCfnpquz] [-P pattern | -s source_file] off len",
    "writes bytes, 0xcd if nothing else is told",
    " -b  the state of a virtual machine, which lies behind the disk\n"
    " -c  compressed; whole clusters\n"
    " -C  numbers for programs: bytes,ops,time,bytes/sec,ops/sec\n"
    " -f  is on the medium when it returns\n"
    " -P  this byte\n"
    " -s  the content of this file, again and again\n"
    " -z  zeroes\n"
    " -u  with -z: space may be given back\n"
    " -n  with -z: fail where it is not faster than writing zeroes\n"
    " -p  does nothing, as in qemu-io\n"
    " -q  say nothing, unless it fails" },
  { "writev", NULL, run_writev, 2, -1, IO_WRITABLE,
    "[-Cfq] [-P pattern] off len [len..]",
    "writes bytes that are given as several lengths",
    " -C  -f  -P  -q  as for write" },
  { "discard", "d", run_discard, 2, -1, IO_WRITABLE, "[-Cq] off len",
    "gives the space of bytes back; they may read as anything after",
    " -C  numbers for programs: bytes,ops,time,bytes/sec,ops/sec\n"
    " -q  say nothing, unless it fails" },
  { "flush", "f", run_flush, 0, 0, IO_FILE, "",
    "waits until all that was written is on the medium", NULL },
  { NULL, NULL, NULL, 0, 0, IO_NOTHING, NULL, NULL, NULL },
};
