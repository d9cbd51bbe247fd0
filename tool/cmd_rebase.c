/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg rebase: see nbdimg-rebase(1).  Layer: tool.  No locking here. */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "tool/tool.h"

static const char usage[] =
"rebase [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] "
"[-c]\n"
"       -b backing_file [-F backing_fmt] filename\n"
"Give an image another backing file; its disk stays the same.\n"
"\n"
"  -f, --format=FMT      its format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"  -b, --backing=FILE    the new backing file; a relative name is taken from\n"
"                        the image's folder.  \"\": none\n"
"  -F, --backing-format=FMT\n"
"                        its format; to be said where there is a file\n"
"  -u, --backing-unsafe  change nothing but the name: the new file holds what\n"
"                        the old one does\n"
"  -c, --compress        compress what has to be copied into the image\n"
"  -t, --cache=MODE      none, writeback (default), writethrough, directsync,\n"
"                        unsafe\n"
"  -T, --source-cache=MODE\n"
"                        the same for the backing files\n"
"  -U, --force-share     also while another program writes to the new backing\n"
"                        file\n"
"  -p                    show progress\n"
"      --progress=json   the same for programs\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n";

static const struct option options[] = {
  TOOL_LONG_OPTIONS,
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { "backing", required_argument, NULL, 'b' },
  { "backing-format", required_argument, NULL, 'F' },
  { "backing-unsafe", no_argument, NULL, 'u' },
  { "compress", no_argument, NULL, 'c' },
  { "cache", required_argument, NULL, 't' },
  { "source-cache", required_argument, NULL, 'T' },
  { "force-share", no_argument, NULL, 'U' },
  { "progress", required_argument, NULL, TOOL_OPT_PROGRESS },
  { "quiet", no_argument, NULL, 'q' },
  { NULL, 0, NULL, 0 },
};

struct request {
  struct tool_image image;
  struct tool_progress progress;
  const char *backing, *backing_format; /* -b, -F; or NULL */
  bool unsafe, compressed, force_share;
  enum cache_mode source_cache;
};

static int
set_option (struct request *rq, int option)
{
  struct image_open_options *open = &rq->image.open;

  switch (option) {
  case 'f': rq->image.format = optarg; return 0;
  case 'b': rq->backing = optarg; return 0;
  case 'F': rq->backing_format = optarg; return 0;
  case 'u': rq->unsafe = true; return 0;
  case 'c': rq->compressed = true; return 0;
  case 'U': rq->force_share = true; return 0;
  case 'p': rq->progress.bar = true; return 0;
  case 'q': rq->progress.quiet = true; return 0;
  case 't': return tool_cache ("cache option", optarg, &open->cache);
  case 'T':
    return tool_cache ("source cache option", optarg, &rq->source_cache);
  case TOOL_OPT_IMAGE_OPTS: rq->image.image_opts = true; return 0;
  case TOOL_OPT_PROGRESS: return tool_progress_option (&rq->progress, optarg);
  }
  return -1;
}

static int
check_formats (const struct request *rq)
{
  if (tool_check_image (&rq->image) == -1)
    return -1;
  if (!rq->backing_format || format_by_name (rq->backing_format))
    return 0;
  tool_error ("Invalid format name: '%s'", rq->backing_format);
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
  if (!rq->unsafe && !rq->backing) {
    args->status = tool_misuse ("Must specify backing file (-b) or use unsafe "
                                "mode (-u)");
    return -1;
  }
  args->status = 1;
  rq->image.name = args->argv[optind];
  if (rq->backing && !*rq->backing)
    rq->backing = NULL;
  return check_formats (rq);
}

/* The new backing file of IM, which is NULL where there is to be none, or where
 * nobody is going to look at it.
 */
static int
open_backing (const struct request *rq, const struct image *im,
              struct image **backing)
{
  const struct image_open_options open = {
    .cache = rq->source_cache, .backing_cache = rq->source_cache,
    .force_share = rq->force_share,
  };
  struct error e = ERROR_INIT;
  CLEANUP_FREE char *name = NULL;

  *backing = NULL;
  if (!rq->backing || rq->unsafe)
    return 0;
  name = image_name_resolve (im->name, rq->backing);
  if (!name)
    error_nomem (&e, "a name", strlen (rq->backing));
  else
    *backing = image_open_name (name, rq->backing_format, &open, &e);
  if (*backing)
    return 0;
  tool_error ("Could not open new backing file '%s': %s", rq->backing,
              name ? tool_without_name (name, &e) : e.text);
  return -1;
}

static int
rebase (const struct request *rq, struct image *im, struct image *backing)
{
  const struct rebase_opts opts = {
    .name = rq->backing, .format = rq->backing ? rq->backing_format : NULL,
    .backing = backing, .unsafe = rq->unsafe, .compressed = rq->compressed,
  };
  struct rebase_result result;
  struct error e = ERROR_INIT;
  struct op_ctx ctx;
  int r;

  tool_progress_start (&rq->progress, "rebase", &ctx);
  tool_progress (NULL, 0, 1);
  r = op_rebase (im, &opts, &result, &ctx, &e);
  tool_progress_end ();
  return r == -1 ? tool_fail (&e) : 0;
}

int
cmd_rebase (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .letters = "f:b:F:uct:T:Upq",
    .options = options, .usage = usage,
  };
  struct request rq = { .unsafe = false };
  struct image *im, *backing;
  int status = 1;

  if (parse (&args, &rq) == -1)
    return args.status;
  rq.image.open.writable = true;
  rq.image.open.discard = true;
  rq.image.open.backing_cache = rq.source_cache;
  rq.image.open.no_backing = rq.unsafe;
  im = tool_open (&rq.image);
  if (!im)
    return 1;
  if (open_backing (&rq, im, &backing) == 0)
    status = rebase (&rq, im, backing);
  if (tool_close (im) == -1)
    status = 1;
  tool_close (backing);
  return status;
}
