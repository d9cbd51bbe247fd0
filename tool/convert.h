/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The parts of nbdimg convert, which dd uses too; internal to tool/.
 *
 *   cmd_convert.c      the options and the order of things
 *   cmd_dd.c           the same for dd
 *   convert_source.c   the sources are opened
 *   convert_target.c   the target is made, or opened, and removed again
 */

#ifndef NBDIMG_TOOL_CONVERT_H
#define NBDIMG_TOOL_CONVERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "tool/tool.h"

/* What the user asked for. */
struct convert_request {
  struct tool_image source;     /* all but the name */
  char **names;                 /* of the sources, borrowed */
  size_t nr_names;
  const char *snapshot;         /* -l as it was given, or NULL */

  struct tool_image target;
  const char *doing;            /* "error while ..." when it cannot be made;
                                   NULL = converting to its format */
  const char *format;           /* -O, or NULL */
  char *options;                /* -o, all of them; owned, or NULL */
  const char *backing_file;     /* -B, or NULL */
  const char *backing_format;   /* -F, or NULL */
  bool no_create;               /* -n */
  bool target_image_opts;
  bool target_is_zero;

  bool has_sparse_size, copy_offload, out_of_order, bitmaps,
    skip_broken_bitmaps;
  uint64_t rate_limit;          /* bytes a second */
  struct convert_opts opts;     /* its sources are owned images */
  struct tool_progress progress;
};

/* ---- cmd_convert.c ---- */

/* Open, check, make and copy.  -1 = a message was printed. */
extern int convert_run (struct convert_request *rq, struct op_ctx *ctx);

/* ---- convert_source.c ---- */

/* Open the sources into opts.sources.  -1 = a message was printed. */
extern int convert_open_sources (struct convert_request *rq);

/* Close them.  -1 = a message was printed. */
extern int convert_close_sources (struct convert_request *rq);

/* Bytes of all sources, as far as they are copied, each rounded up to sectors.
 */
extern uint64_t convert_total (const struct convert_request *rq);

/* ---- convert_target.c ---- */

struct convert_target {
  const struct format_ops *format;
  json_t *options;              /* -o as an object; owned */
  const char *backing_file;     /* borrowed from options or the request */
  char *path;                   /* of a local file; owned, or NULL */
  bool existed;                 /* it was there before */
  char *data_path;              /* the same for -o data_file */
  bool data_existed;
  bool created;                 /* image_create has succeeded */
  struct image *im;             /* owned, or NULL */
};

/* Check all that can be checked before the target is touched; the sources are
 * open.  -1 = a message was printed.
 */
extern int convert_check_target (struct convert_request *rq,
                                 struct convert_target *t);

/* Create the target, or not (-n), and open it. */
extern int convert_open_target (struct convert_request *rq,
                                struct convert_target *t,
                                struct op_ctx *ctx);

/* Close it.  FAILED: what we made is removed, and what became of another file
 * is said.  -1 = a message was printed.
 */
extern int convert_close_target (struct convert_request *rq,
                                 struct convert_target *t, bool failed);

#endif /* NBDIMG_TOOL_CONVERT_H */
