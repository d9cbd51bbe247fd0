/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: the shell of reads and writes (private to tool/).
 *
 *   cmd_io.c      options of the program, and where command lines come from
 *   io_shell.c    from a line to a command; help
 *   io_open.c     open, close
 *   io_reopen.c   reopen
 *   io_rw.c       read, readv, write, writev, discard, flush
 *   io_aio.c      aio_read, aio_write, aio_flush
 *   io_misc.c     the other commands
 *   io_report.c   numbers, patterns, and the lines about a request
 *
 * Results go to standard output, as qemu-io has it, its errors too.  What is
 * wrong with a command itself, or with a file, goes to standard error.
 */

#ifndef NBDIMG_IO_H
#define NBDIMG_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <jansson.h>

#include "image/image.h"

/* How an image is to be opened.  Strings are owned. */
struct io_how {
  char *name;                   /* or NULL: options say it all */
  char *format;                 /* -f, or NULL */
  char *options;                /* open -o, or NULL */
  bool image_opts;              /* the name is key=value,... */
  bool readonly, snapshot, force_share, no_discard, native, copy_on_read;
  enum cache_mode cache;
  json_t *changes;              /* reopen -o, all so far: keys with dots, and
                                   their values; NULL = none */
};

struct io_job;

struct io_shell {
  struct image *image;          /* owned; NULL = none is open */
  struct io_how how;            /* of the image */
  bool misalign;                /* -m: buffers at odd addresses */
  bool quit;
  struct io_job *first, *last;  /* requests under way, oldest first */
  unsigned nr_jobs;
};

/* Each returns 0, or -1 when it failed and has said so. */
typedef int (*io_run) (struct io_shell *, int argc, char **argv);

enum io_needs { IO_NOTHING, IO_FILE, IO_WRITABLE };

struct io_command {
  const char *name, *alias;     /* alias: NULL = none */
  io_run run;
  int min, max;                 /* number of arguments; max -1 = any */
  enum io_needs needs;
  const char *arguments, *summary;
  const char *help;             /* lines, or NULL */
};

extern const struct io_command io_rw_commands[];        /* end with a NULL */
extern const struct io_command io_aio_commands[];       /* name */
extern const struct io_command io_open_commands[];
extern const struct io_command io_reopen_commands[];
extern const struct io_command io_misc_commands[];

/* ---- io_shell.c ---- */

/* Carry out LINE (which is changed). */
extern int io_command_line (struct io_shell *sh, char *line);

/* Print how the command is used, because it was not used so.  Returns -1. */
extern int io_usage (const char *name);

/* getopt for a command; -1 = no more, '?' = bad (it was said). */
extern int io_getopt (int argc, char **argv, const char *letters);

extern int io_help (struct io_shell *sh, int argc, char **argv);

/* ---- io_open.c ---- */

extern int io_open (struct io_shell *sh, const struct io_how *how);
extern int io_close (struct io_shell *sh);
extern int io_how_copy (struct io_how *to, const struct io_how *from);
extern void io_how_free (struct io_how *how);

/* ---- io_reopen.c ---- */

/* Lay what reopen -o said over TREE. */
extern int io_apply_changes (json_t *tree, const json_t *changes,
                             struct error *e);

/* The argument of -d; a message and -1. */
extern int io_set_discard (struct io_how *how, const char *text);

/* ---- io_report.c ---- */

/* A size in bytes, or a pattern byte; a message and -1. */
extern int io_number (const char *text, uint64_t *r);
extern int io_pattern (const char *text, uint8_t *r);

/* "1.500 KiB", "512 bytes".  BUF has at least 64 bytes.  Returns BUF. */
extern const char *io_size_text (double bytes, char *buf, size_t size);

/* A buffer of LEN bytes for requests; free with io_free. */
extern uint8_t *io_alloc (const struct io_shell *sh, size_t len);
extern void io_free (const struct io_shell *sh, uint8_t *buf);

extern void io_dump (const uint8_t *buf, size_t len, uint64_t offset);

/* Is it PATTERN all over?  Says where it is not, and returns -1. */
extern int io_verify (const uint8_t *buf, size_t len, uint64_t offset,
                      uint8_t pattern);

/* "VERB failed: " and the error; details to standard error.  Returns -1. */
extern int io_failed (const char *verb, const struct error *e);

/* Is [offset, offset+len) within the disk?  If not, fills E. */
extern int io_check_range (const struct image *im, uint64_t offset,
                           uint64_t len, struct error *e);

struct io_timer {
  struct timespec start, end;
};
extern void io_start (struct io_timer *t);
extern void io_stop (struct io_timer *t);

/* The lines after a request: "wrote 512/512 bytes at offset 0" and the rates.
 * MACHINE: -C.
 */
extern void io_report (const char *verb, const struct io_timer *t,
                       uint64_t offset, uint64_t bytes, bool machine);

/* ---- io_rw.c ---- */

/* Lengths of a vector, ARGV[0] to ARGV[NR - 1], added up. */
extern int io_vector (char **argv, int nr, size_t *total);

/* The longest request, 2 GiB less a sector. */
#define IO_MAX_REQUEST ((UINT64_C (1) << 31) - 512)

/* ---- io_aio.c ---- */

/* Print the requests that are done; WAIT: wait for all. */
extern void io_reap (struct io_shell *sh, bool wait);

#endif /* NBDIMG_IO_H */
