/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg commit: see nbdimg-commit(1).  Layer: tool.  No locking here. */

#include <config.h>

#include "tool/tool.h"

static const char usage[] =
"commit [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] "
"[-d] [-p] filename\n"
"Write the changes in an image into its backing file, and empty the image.\n"
"\n"
"  -f, --format=FMT      its format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"  -b, --base=BASE       write into this image of the chain, not into the\n"
"                        backing file itself; implies -d.  The images between\n"
"                        the two are of no use afterwards\n"
"  -d, --drop            the image is not emptied: it is to be removed\n"
"  -t, --cache=MODE      none, writeback (default), writethrough, directsync,\n"
"                        unsafe\n"
"  -r, --rate-limit=RATE at most so many bytes a second\n"
"  -p                    show progress\n"
"      --progress=json   the same for programs\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n";

struct request {
  struct tool_image image;
  struct tool_progress progress;
  const char *base;
  struct commit_opts opts;
  uint64_t rate_limit;
};

static int
parse (struct tool_args *args, struct request *rq)
{
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (&rq->image),
    { "base", 'b', .text = &rq->base, .flag = &rq->opts.keep },
    { "drop", 'd', .flag = &rq->opts.keep },
    { "cache", 't', .cache = &rq->image.open.cache, .what = "cache option" },
    { "rate-limit", 'r', .size = &rq->rate_limit, .what = "rate limit" },
    TOOL_PROGRESS_OPTIONS (&rq->progress),
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, rq) == -1
      || tool_one_name (args, &rq->image) == -1)
    return -1;
  return tool_check_image (&rq->image);
}

/* The chain says how deep the base lies, and only that one is opened to be
 * written to: so the chain is opened twice.
 */
static int
find_base (struct request *rq)
{
  struct tool_image ti = rq->image;
  struct image *im;

  rq->opts.depth = 1;
  if (!rq->base)
    return 0;
  im = tool_open (&ti);
  if (!im)
    return -1;
  rq->opts.depth = op_commit_depth (im, rq->base);
  if (!rq->opts.depth)
    tool_error ("Did not find '%s' in the backing chain of '%s'", rq->base,
                rq->image.name);
  if (tool_close (im) == -1)
    return -1;
  return rq->opts.depth ? 0 : -1;
}

static int
commit (const struct request *rq, struct image *im, struct op_ctx *ctx)
{
  struct commit_result result;
  struct error e = ERROR_INIT;

  tool_progress (NULL, 0, 1);
  if (op_commit (im, &rq->opts, &result, ctx, &e) == -1)
    return tool_fail (&e);
  return 0;
}

int
cmd_commit (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .base = NULL };
  struct op_ctx ctx;
  struct image *im;
  int status;

  if (parse (&args, &rq) == -1 || find_base (&rq) == -1)
    return args.status;
  rq.image.open.writable = true;
  rq.image.open.discard = true;
  rq.image.open.writable_depth = rq.opts.depth;
  im = tool_open (&rq.image);
  if (!im)
    return 1;
  tool_progress_start (&rq.progress, "commit", &ctx);
  ctx.rate_limit = rq.rate_limit;
  status = commit (&rq, im, &ctx);
  tool_progress_end ();
  if (tool_close (im) == -1)
    status = 1;
  if (status == 0 && !rq.progress.quiet)
    puts ("Image committed.");
  return status;
}
