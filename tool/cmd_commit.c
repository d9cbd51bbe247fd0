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

static const struct option options[] = {
  TOOL_LONG_OPTIONS,
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { "base", required_argument, NULL, 'b' },
  { "drop", no_argument, NULL, 'd' },
  { "cache", required_argument, NULL, 't' },
  { "rate-limit", required_argument, NULL, 'r' },
  { "progress", required_argument, NULL, TOOL_OPT_PROGRESS },
  { "quiet", no_argument, NULL, 'q' },
  { NULL, 0, NULL, 0 },
};

struct request {
  struct tool_image image;
  struct tool_progress progress;
  const char *base;
  struct commit_opts opts;
  uint64_t rate_limit;
};

static int
set_cache (struct request *rq, const char *text)
{
  return tool_cache ("cache option", text, &rq->image.open.cache);
}

static int
set_option (struct request *rq, int option)
{
  switch (option) {
  case 'f': rq->image.format = optarg; return 0;
  case 'q': rq->progress.quiet = true; return 0;
  case 'p': rq->progress.bar = true; return 0;
  case 'b': rq->base = optarg; rq->opts.keep = true; return 0;
  case 'd': rq->opts.keep = true; return 0;
  case 't': return set_cache (rq, optarg);
  case 'r':
    return tool_size ("rate limit", optarg, &rq->rate_limit);
  case TOOL_OPT_IMAGE_OPTS: rq->image.image_opts = true; return 0;
  case TOOL_OPT_PROGRESS: return tool_progress_option (&rq->progress, optarg);
  }
  return -1;
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
  if (optind + 1 != args->argc) {
    args->status = tool_misuse ("Expecting one image file name");
    return -1;
  }
  args->status = 1;
  rq->image.name = args->argv[optind];
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
    .argc = argc, .argv = argv, .letters = "f:b:dt:r:pq", .options = options,
    .usage = usage,
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
