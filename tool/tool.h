/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The command line: arguments in, text and exit codes out; the contract of
 * this folder.
 *
 * A command is a function cmd_x (argc, argv), argv[0] being its name, that
 * returns the exit code of the program; main.c has the table.  It parses its
 * options, fills the struct of an operation (ops/ops.h), runs it, and prints.
 * It decides nothing.  What it prints is what qemu-img prints.
 *
 * Standard output is for results and the text of -p, standard error for
 * messages.  No locking: the main thread prints, but for progress.c.
 */

#ifndef NBDIMG_TOOL_H
#define NBDIMG_TOOL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "common/error.h"
#include "common/log.h"
#include "image/image.h"
#include "ops/ops.h"

/* ---- the commands ---- */

extern int cmd_amend (int argc, char **argv);
extern int cmd_bench (int argc, char **argv);
extern int cmd_bitmap (int argc, char **argv);
extern int cmd_check (int argc, char **argv);
extern int cmd_commit (int argc, char **argv);
extern int cmd_compare (int argc, char **argv);
extern int cmd_convert (int argc, char **argv);
extern int cmd_create (int argc, char **argv);
extern int cmd_dd (int argc, char **argv);
extern int cmd_info (int argc, char **argv);
extern int cmd_io (int argc, char **argv);
extern int cmd_lock (int argc, char **argv);
extern int cmd_map (int argc, char **argv);
extern int cmd_measure (int argc, char **argv);
extern int cmd_rebase (int argc, char **argv);
extern int cmd_resize (int argc, char **argv);
extern int cmd_serve (int argc, char **argv);
extern int cmd_snapshot (int argc, char **argv);

/* ---- main.c ---- */

/* The name in front of every message: "nbdimg", or "qemu-img" and "qemu-io"
 * when it was started under one of these names.
 */
extern const char *program;

/* The name and version lines that -V prints. */
extern void tool_print_version (void);

/* ---- message.c: messages on standard error ---- */

/* "program: ..." */
extern void tool_error (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));

/* Print what is in E.  Returns 1, the exit code. */
extern int tool_fail (const struct error *e);

/* The same for one image: what is refused is said without the name, as qemu-img
 * says it, but where something failed the message names its file.
 */
extern int tool_fail_image (const char *name, const struct error *e);

/* The text of E without "NAME: " in front, for a message that says the name
 * itself.  Borrowed from E.
 */
extern const char *tool_without_name (const char *name,
                                      const struct error *e);

/* The same as tool_error, and a hint to --help.  Returns 1. */
extern int tool_misuse (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));

/* "program: warning: ..."; the sink of common/log.h. */
extern void tool_log (enum log_level level, const char *text);

/* --trace [enable=]PATTERN,events=FILE,file=FILE: print the library's debug
 * messages.  Returns 0, -1 after a message, or 1 when it was a question
 * ("help") that has been answered.
 */
extern int tool_trace (const char *arg);

/* TEXT with what could drive a terminal escaped, on FP. */
extern void tool_put_name (FILE *fp, const char *text);

/* ---- parse.c: the options of a command ---- */

struct tool_args {
  int argc;
  char **argv;
  const char *usage;            /* what -h prints after "usage: nbdimg " */
  int status;                   /* exit code when the command is over; at first
                                   that of a bad value */

  char **names;                 /* what follows the options */
  int nr_names;
};

/* How the user named an image. */
struct tool_image {
  const char *name;
  const char *format;           /* -f, or NULL */
  bool image_opts;              /* --image-opts */
  struct image_open_options open;
};

struct tool_progress {
  bool bar;                     /* -p */
  bool json;                    /* --progress json */
  bool quiet;                   /* -q: neither */
};

/* An option: its names, and the place that it sets, one of the pointers.  It
 * takes an argument, unless the place is a flag or the row has the value.
 */
struct tool_option {
  const char *name;             /* the long one, or NULL */
  int letter;                   /* or 0 */

  bool *flag;                   /* becomes true; goes with the others too */
  const char **text;            /* borrowed from argv */
  char **list;                  /* of -o: all of them joined; owned */
  uint64_t *size;
  unsigned *number;
  enum cache_mode *cache;
  bool *json;                   /* of --output */
  struct tool_progress *progress;       /* of --progress */
  int (*set) (void *request, const char *arg);  /* prints, and returns -1,
                                                   when ARG is bad; 1: was a
                                                   question, the command ends */
  const char *refused;          /* not supported, and what to do instead */

  const char *what;             /* "Invalid WHAT", for size, number, cache */
  uint64_t min, max;            /* of size, number; max 0 = of its type */
  const char *value;            /* stands for the argument */
};

/* Rows that many commands have. */
#define TOOL_IMAGE_OPTIONS(ti)                                          \
  { "format", 'f', .text = &(ti)->format },                             \
  { "image-opts", .flag = &(ti)->image_opts }
#define TOOL_PROGRESS_OPTIONS(p)                                        \
  { NULL, 'p', .flag = &(p)->bar },                                     \
  { "progress", .progress = (p) },                                      \
  { "quiet", 'q', .flag = &(p)->quiet }
#define TOOL_LAST_OPTION { .name = NULL }

/* Parse the options of ARGS by ROWS, which end with TOOL_LAST_OPTION; -h, -V,
 * --trace and --object are there without a row.  REQUEST is for row.set.  -1:
 * the command is over with the exit code args->status, and a message was
 * printed if that is one of failure.
 */
extern int tool_parse (struct tool_args *args, const struct tool_option *rows,
                       void *request);

/* What is left is to be the name of TI; a message and -1 when it is not. */
extern int tool_one_name (struct tool_args *args, struct tool_image *ti);

/* ---- options.c ---- */

/* The argument of --object, which is overwritten, since it may hold a secret; a
 * message and -1 when it is bad.
 */
extern int tool_object (char *arg);

/* Each prints a message and returns -1 when TEXT is bad.  WHAT as in "Invalid
 * image size specified", "Invalid source cache option".
 */
extern int tool_size (const char *what, const char *text, uint64_t *size);
extern int tool_size_within (const char *what, const char *text, uint64_t min,
                             uint64_t max, uint64_t *size);

/* Up to UINT_MAX, written as in C: 0x is hexadecimal. */
extern int tool_number (const char *what, const char *text, uint64_t min,
                        uint64_t max, unsigned *r);

extern int tool_cache (const char *what, const char *text,
                       enum cache_mode *mode);
extern int tool_output (const char *text, bool *json);

/* The argument of --aio.  Requests are made by threads whatever it says, which
 * is told.
 */
extern int tool_aio (const char *text, bool *native);

/* Why QEMU's native engine, if it is asked for, does not go with the cache
 * mode; NULL = it does.
 */
extern const char *tool_native_conflict (bool native, enum cache_mode cache);

/* Add the argument of one -o to *ALL (owned by the caller, NULL at first). */
extern int tool_add_options (char **all, const char *text);

/* TEXT as it stands in an option list.  Returns owned, NULL when memory is
 * out.
 */
extern char *tool_double_commas (const char *text);

/* Does an option list ask for "help" or "?"? */
extern bool tool_options_want_help (const char *options);

/* Print what -o help prints.  FOR_FILE: the file is known too. */
extern void tool_print_format_options (const struct format_ops *format,
                                       bool for_file);

/* A table of options, sorted, one on a line. */
extern void tool_print_options (const struct format_option *table,
                                bool for_file);

/* -f does not go with --image-opts; a message and -1. */
extern int tool_check_image (const struct tool_image *ti);

/* Open it.  NULL = a message was printed. */
extern struct image *tool_open (const struct tool_image *ti);

/* Nobody named the format of IM, which is to be written to, and it looks like
 * raw: say what that means.
 */
extern void tool_warn_of_probing (const struct image *im);

/* Say why it could not be opened.  Returns 1, the exit code. */
extern int tool_cannot_open (const char *name, const struct error *e);

/* Close it; an error is printed.  NULL is allowed. */
extern int tool_close (struct image *im);

/* ---- snapshot_param.c ---- */

/* The id of the snapshot of the image TI that PARAM, the argument of -l, is
 * about, so that a name that is another's id does not lead astray.  Returns
 * owned; NULL = a message was printed.
 */
extern char *tool_find_snapshot (const struct tool_image *ti,
                                 const char *param);

/* ---- brackets.c ---- */

/* Arguments in which each "[ command args ]" has become one, the JSON array
 * that image_name_parse knows.
 */
struct tool_arguments {
  int argc;
  char **argv;                  /* owned array, NULL at its end; the strings are
                                   those of the caller, or in made */
  char **made;                  /* owned, NULL at its end */
};
extern int tool_cut_brackets (int argc, char **argv,
                              struct tool_arguments *a, struct error *e);
extern void tool_free_arguments (struct tool_arguments *a);

/* ---- progress.c: -p, --progress json, SIGUSR1, Ctrl-C ---- */

/* The argument of --progress; a message and -1 when it is bad. */
extern int tool_progress_option (struct tool_progress *p, const char *text);

/* Start to show progress of the COMMAND, and fill CTX: its progress, message
 * and cancel.  From here on SIGINT and SIGTERM make the operation end.
 */
extern void tool_progress_start (const struct tool_progress *p,
                                 const char *command, struct op_ctx *ctx);

/* DONE of TOTAL (op_ctx.progress; any thread). */
extern void tool_progress (void *opaque, uint64_t done, uint64_t total);

/* The newline after the bar.  Safe to call when nothing was started. */
extern void tool_progress_end (void);

/* Let SIGINT and SIGTERM set a flag.  Returns the flag (atomic), and in *FD,
 * unless FD is NULL, a descriptor that then becomes readable.
 */
extern const bool *tool_catch_signals (int *fd);

/* Die from the signal that was caught, so that the parent sees it; returns
 * when none was.
 */
extern void tool_reraise_signal (void);

/* ---- print.c ---- */

/* qemu-img info for the objects of INFO (an array, as op_info makes it). */
extern void print_info (const json_t *info);

/* "Format specific information:" of an object { type, data }. */
extern void print_format_specific (const json_t *specific);

/* The table of snapshot -l, for an array "snapshots". */
extern void print_snapshots (const json_t *snapshots);

/* Put TEXT, which may be any bytes, into OBJECT. */
extern void tool_put_json_name (json_t *object, const char *key,
                                const char *text);

/* JSON, indented by 4, and a newline. */
extern int print_json (const json_t *value);

#endif /* NBDIMG_TOOL_H */
