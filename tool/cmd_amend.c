/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg amend: see nbdimg-amend(1).  Layer: tool.  No locking: one thread. */

#include <config.h>

#include <stdlib.h>

#include "tool/tool.h"

static const char usage[] =
"amend [--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache]\n"
"      [--force] -o options filename\n"
"Change the options of an image: the key slots of LUKS (luks, and qcow2 with\n"
"encrypt.format=luks); others are not built yet.\n"
"\n"
"  -o, --options=OPTIONS  key=value,...; -o help lists them\n"
"      --force            erase the last key slot, or overwrite one in use\n"
"  -f, --format=FMT       the image's format; without it the content decides\n"
"      --image-opts       filename is key=value,..., with key-secret\n"
"      --object=secret,id=ID,file=PATH\n"
"                         a passphrase for key-secret, new-secret, old-secret\n"
"  -t, --cache=MODE       cache mode (writeback)\n"
"  -p                     a progress bar\n"
"  -q, --quiet            print nothing but errors\n"
"  -h, --help   -V, --version\n";

enum { OPT_FORCE = TOOL_OPT_OWN };

static const struct option options[] = {
  TOOL_LONG_OPTIONS,
  { "options", required_argument, NULL, 'o' },
  { "force", no_argument, NULL, OPT_FORCE },
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { "cache", required_argument, NULL, 't' },
  { "quiet", no_argument, NULL, 'q' },
  { NULL, 0, NULL, 0 },
};

struct request {
  struct tool_image image;
  struct amend_opts opts;
  struct tool_progress progress;
  char *options;                /* all -o joined; owned */
};

static int
set_option (struct request *rq, int option)
{
  switch (option) {
  case 'f': rq->image.format = optarg; return 0;
  case 'o': return tool_add_options (&rq->options, optarg);
  case 't': return tool_cache ("cache option", optarg, &rq->image.open.cache);
  case OPT_FORCE: rq->opts.force = true; return 0;
  case TOOL_OPT_IMAGE_OPTS: rq->image.image_opts = true; return 0;
  case 'p': rq->progress.bar = true; return 0;
  case 'q': rq->progress.quiet = true; return 0;
  }
  return -1;
}

/* -o help */
static int
answer_help (const struct request *rq)
{
  const struct format_ops *format;
  struct error e = ERROR_INIT;

  if (!rq->image.format) {
    tool_error ("-o help needs the format: -f");
    return 1;
  }
  format = format_lookup (rq->image.format, &e);
  if (!format)
    return tool_fail (&e);
  if (!format->amend_options) {
    tool_error ("Format driver '%s' does not support option amendment",
                format->name);
    return 1;
  }
  printf ("Amend options for '%s':\n", format->name);
  tool_print_options (format->amend_options, true);
  return 0;
}

static int
parse (struct tool_args *args, struct request *rq)
{
  int option;

  while ((option = tool_getopt (args)) != -1) {
    if (option == TOOL_STOP)
      return -1;
    args->status = 1;
    if (set_option (rq, option) == -1)
      return -1;
  }
  args->status = 1;
  if (!rq->options) {
    args->status = tool_misuse ("Must specify options (-o)");
    return -1;
  }
  if (tool_options_want_help (rq->options)) {
    args->status = answer_help (rq);
    return -1;
  }
  if (optind + 1 != args->argc) {
    args->status = tool_misuse ("Expecting one image file name");
    return -1;
  }
  rq->opts.options = rq->options;
  rq->image.name = args->argv[optind];
  return tool_check_image (&rq->image);
}

static int
amend (const struct request *rq)
{
  struct op_ctx ctx = { .cancel = NULL };
  struct error e = ERROR_INIT;
  struct image *im = tool_open (&rq->image);
  int status = 0;

  if (!im)
    return 1;
  tool_progress_start (&rq->progress, "amend", &ctx);
  if (op_amend (im, &rq->opts, &ctx, &e) == 0)
    tool_progress (NULL, 1, 1);
  tool_progress_end ();
  if (e.err) {
    tool_error ("%s", tool_without_name (rq->image.name, &e));
    status = 1;
  }
  return tool_close (im) == -1 ? 1 : status;
}

int
cmd_amend (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .letters = "o:f:t:pq", .options = options,
    .usage = usage,
  };
  struct request rq = { .options = NULL };
  int status;

  rq.image.open.writable = true;
  rq.image.open.cache = CACHE_WRITEBACK;
  status = parse (&args, &rq) == 0 ? amend (&rq) : args.status;
  free (rq.options);
  return status;
}
