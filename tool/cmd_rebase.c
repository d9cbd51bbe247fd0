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

struct request {
  struct tool_image image;
  struct tool_progress progress;
  const char *backing, *backing_format; /* -b, -F; or NULL */
  bool unsafe, compressed, force_share;
  enum cache_mode source_cache;
};

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
parse_options (struct tool_args *args, struct request *rq)
{
  struct image_open_options *open = &rq->image.open;
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (&rq->image),
    { "backing", 'b', .text = &rq->backing },
    { "backing-format", 'F', .text = &rq->backing_format },
    { "backing-unsafe", 'u', .flag = &rq->unsafe },
    { "compress", 'c', .flag = &rq->compressed },
    { "cache", 't', .cache = &open->cache, .what = "cache option" },
    { "source-cache", 'T', .cache = &rq->source_cache,
      .what = "source cache option" },
    { "force-share", 'U', .flag = &rq->force_share },
    TOOL_PROGRESS_OPTIONS (&rq->progress),
    TOOL_LAST_OPTION,
  };

  return tool_parse (args, options, rq);
}

static int
parse (struct tool_args *args, struct request *rq)
{
  if (parse_options (args, rq) == -1
      || tool_one_name (args, &rq->image) == -1)
    return -1;
  if (!rq->unsafe && !rq->backing) {
    tool_misuse ("Must specify backing file (-b) or use unsafe mode (-u)");
    return -1;
  }
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
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
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
