/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg resize: see nbdimg-resize(1).  Layer: tool.  No locking: one thread.
 */

#include <config.h>

#include <errno.h>

#include "common/text.h"
#include "tool/tool.h"

static const char usage[] =
"resize [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink]\n"
"       filename [+ | -]size\n"
"Change the size of the disk; with + or - by so many bytes.\n"
"\n"
"      --shrink          a smaller size is meant: what is behind it is lost\n"
"      --preallocation=MODE   reserve the space of what is new: off (the\n"
"                        default), metadata, falloc, full\n"
"  -f, --format=FMT      the image's format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n"
"\n"
"A size is a number of bytes, or one with the suffix k, M, G, T, P or E.\n";

enum { OPT_SHRINK = TOOL_OPT_OWN, OPT_PREALLOCATION };

static const struct option options[] = {
  TOOL_LONG_OPTIONS,
  { "shrink", no_argument, NULL, OPT_SHRINK },
  { "preallocation", required_argument, NULL, OPT_PREALLOCATION },
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { "quiet", no_argument, NULL, 'q' },
  { NULL, 0, NULL, 0 },
};

struct request {
  struct tool_image image;
  struct resize_opts opts;
  bool quiet;
};

static int
set_preallocation (struct request *rq, const char *text)
{
  int mode = preallocation_parse (text);

  if (mode == -1) {
    tool_error ("Invalid preallocation mode '%s'", text);
    return -1;
  }
  rq->opts.preallocation = (enum preallocation) mode;
  return 0;
}

static int
set_option (struct request *rq, int option)
{
  switch (option) {
  case 'f': rq->image.format = optarg; return 0;
  case 'q': rq->quiet = true; return 0;
  case OPT_SHRINK: rq->opts.shrink = true; return 0;
  case OPT_PREALLOCATION: return set_preallocation (rq, optarg);
  case TOOL_OPT_IMAGE_OPTS: rq->image.image_opts = true; return 0;
  }
  return -1;
}

static int
parse_new_size (struct request *rq, const char *text)
{
  struct error e = ERROR_INIT;

  rq->opts.relative = *text == '+' ? 1 : *text == '-' ? -1 : 0;
  if (rq->opts.relative)
    text++;
  if (parse_size ("size", text, &rq->opts.size, &e) == 0)
    return 0;
  if (e.err == ERANGE)
    tool_error ("Value '%s' is out of range for parameter 'size'", text);
  else {
    tool_error ("Parameter 'size' expects a non-negative number below 2^64");
    fputs ("Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, "
           "tera-, peta-\nand exabytes, respectively.\n", stderr);
  }
  return -1;
}

/* The size is the last argument, whatever it begins with: "-1G" is no option.
 * Options that end the command stand alone.
 */
static const char *
take_size (struct tool_args *args)
{
  const char *last = args->argv[args->argc - 1];

  if (args->argc < 3)
    return NULL;
  args->argc--;
  args->argv[args->argc] = NULL;
  return last;
}

static int
parse (struct tool_args *args, struct request *rq)
{
  const char *size = take_size (args);
  int option;

  while ((option = tool_getopt (args)) != -1) {
    if (option == TOOL_STOP)
      return -1;
    args->status = 1;
    if (set_option (rq, option) == -1)
      return -1;
  }
  args->status = 1;
  if (!size) {
    tool_misuse ("Not enough arguments");
    return -1;
  }
  if (optind + 1 != args->argc) {
    tool_misuse ("Expecting image file name and size");
    return -1;
  }
  rq->image.name = args->argv[optind];
  if (parse_new_size (rq, size) == -1)
    return -1;
  return tool_check_image (&rq->image);
}

static int
resize (const struct request *rq, struct image *im)
{
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct resize_result result;
  struct error e = ERROR_INIT;

  if (op_resize (im, &rq->opts, &result, &ctx, &e) == 0)
    return 0;
  tool_error ("%s", tool_without_name (rq->image.name, &e));
  if (result.needs_shrink)
    log_warning ("Shrinking an image will delete all data beyond the shrunken "
                 "image's end. Before performing such an operation, make sure "
                 "there is no important data there.");
  return 1;
}

int
cmd_resize (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .letters = "f:q", .options = options,
    .usage = usage,
  };
  struct request rq = { .quiet = false };
  struct image *im;
  int status;

  if (parse (&args, &rq) == -1)
    return args.status;
  rq.image.open.writable = true;
  rq.image.open.discard = true;
  im = tool_open (&rq.image);
  if (!im)
    return 1;
  status = resize (&rq, im);
  if (tool_close (im) == -1)
    status = 1;
  if (status == 0 && !rq.quiet)
    puts ("Image resized.");
  return status;
}
