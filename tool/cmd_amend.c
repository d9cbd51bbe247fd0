/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg amend: see nbdimg-amend(1).  Layer: tool.  No locking: one thread. */

#include <config.h>

#include <stdlib.h>

#include "tool/tool.h"

static const char usage[] =
"amend [--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache]\n"
"      [--force] -o options filename\n"
"Change options of an image that is there, or the key slots of LUKS.\n"
"\n"
"  -o, --options=OPTIONS key=value,...; -o help lists them\n"
"  -f, --format=FMT      the image's format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"      --force           erase the last key slot, or overwrite one in use\n"
"      --object=secret,id=ID,file=PATH\n"
"                        a passphrase for key-secret, new-secret, old-secret\n"
"  -t, --cache=MODE      none, writeback (default), writethrough, directsync,\n"
"                        unsafe\n"
"  -p                    show progress\n"
"      --progress=json   the same for programs\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n";

struct request {
  struct tool_image image;
  struct tool_progress progress;
  char *options;                /* owned; -o */
  bool force;
};

/* ---- -o help ---- */

static int
no_amendment (const struct format_ops *format)
{
  tool_error ("Format driver '%s' does not support option amendment",
              format->name);
  return 1;
}

/* Those of the format that -f names, or of the image. */
static int
print_help (const struct request *rq)
{
  const struct format_ops *format = NULL;
  struct image *im = NULL;
  int status = 0;

  if (rq->image.format)
    format = format_by_name (rq->image.format);
  else if (rq->image.name) {
    im = tool_open (&rq->image);
    if (!im)
      return 1;
    format = im->format->ops;
  }
  if (!format && rq->image.format) {
    tool_error ("Unknown file format '%s'", rq->image.format);
    status = 1;
  }
  else if (!format)
    status = tool_misuse ("Expecting one image file name");
  else if (!format->amend_options)
    status = no_amendment (format);
  else {
    printf ("Amend options for '%s':\n", format->name);
    tool_print_options (format->amend_options, true);
  }
  return tool_close (im) == -1 ? 1 : status;
}

/* ---- */

static int
parse_options (struct tool_args *args, struct request *rq)
{
  const struct tool_option options[] = {
    { "options", 'o', .list = &rq->options },
    TOOL_IMAGE_OPTIONS (&rq->image),
    { "force", .flag = &rq->force },
    { "cache", 't', .cache = &rq->image.open.cache, .what = "cache option" },
    TOOL_PROGRESS_OPTIONS (&rq->progress),
    TOOL_LAST_OPTION,
  };

  return tool_parse (args, options, rq);
}

static int
parse (struct tool_args *args, struct request *rq)
{
  if (parse_options (args, rq) == -1)
    return -1;
  if (!rq->options) {
    tool_misuse ("Must specify options (-o)");
    return -1;
  }
  if (args->nr_names == 1)
    rq->image.name = args->names[0];
  if (tool_options_want_help (rq->options)) {
    args->status = print_help (rq);
    return -1;
  }
  if (!rq->image.name) {
    tool_error ("Expecting one image file name");
    return -1;
  }
  return tool_check_image (&rq->image);
}

static int
fail (const struct request *rq, const struct amend_result *result,
      const struct error *e)
{
  tool_fail_image (rq->image.name, e);
  if (result->only_for_creation)
    fputs ("This option is only supported for image creation\n", stderr);
  if (result->only_by_rebase)
    fprintf (stderr, "You can use '%s rebase' instead.\n", program);
  return 1;
}

static int
amend (const struct request *rq, struct image *im)
{
  const struct amend_opts opts = {
    .options = rq->options, .force = rq->force,
  };
  struct amend_result result;
  struct error e = ERROR_INIT;
  struct op_ctx ctx;
  int r;

  tool_progress_start (&rq->progress, "amend", &ctx);
  r = op_amend (im, &opts, &result, &ctx, &e);
  tool_progress_end ();
  return r == 0 ? 0 : fail (rq, &result, &e);
}

static int
run (const struct request *rq)
{
  struct image *im = tool_open (&rq->image);
  int status;

  if (!im)
    return 1;
  status = amend (rq, im);
  return tool_close (im) == -1 ? 1 : status;
}

int
cmd_amend (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .options = NULL };
  int status;

  if (parse (&args, &rq) == -1)
    status = args.status;
  else {
    rq.image.open.writable = true;
    rq.image.open.discard = true;
    status = run (&rq);
  }
  free (rq.options);
  return status;
}
