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

struct request {
  struct tool_image image;
  struct resize_opts opts;
  bool quiet;
};

static int
set_preallocation (void *opaque, const char *text)
{
  struct request *rq = opaque;
  int mode = preallocation_parse (text);

  if (mode == -1) {
    tool_error ("Invalid preallocation mode '%s'", text);
    return -1;
  }
  rq->opts.preallocation = (enum preallocation) mode;
  return 0;
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
parse_options (struct tool_args *args, struct request *rq)
{
  const struct tool_option options[] = {
    { "shrink", .flag = &rq->opts.shrink },
    { "preallocation", .set = set_preallocation },
    TOOL_IMAGE_OPTIONS (&rq->image),
    { "quiet", 'q', .flag = &rq->quiet },
    TOOL_LAST_OPTION,
  };

  return tool_parse (args, options, rq);
}

static int
parse (struct tool_args *args, struct request *rq)
{
  const char *size = take_size (args);

  if (parse_options (args, rq) == -1)
    return -1;
  if (!size) {
    tool_misuse ("Not enough arguments");
    return -1;
  }
  if (args->nr_names != 1) {
    tool_misuse ("Expecting image file name and size");
    return -1;
  }
  rq->image.name = args->names[0];
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
  tool_fail_image (rq->image.name, &e);
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
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
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
