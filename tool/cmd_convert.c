/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg convert: see nbdimg-convert(1).  Layer: tool.  No locking here.
 *
 * The options are checked and the sources opened before the target is touched.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/text.h"
#include "tool/convert.h"

static const char usage[] =
"convert [options] filename [filename2 ...] output_filename\n"
"Copy a disk image, or several one behind the other, into a new image.\n"
"\n"
"  -f FMT                format of the sources\n"
"      --image-opts      the sources are key=value,...\n"
"  -l SNAPSHOT           the sources' internal snapshot: ID or NAME, or\n"
"                        snapshot.id=ID,snapshot.name=NAME\n"
"  -T CACHE              cache mode of the sources: none, writeback (the\n"
"                        default), writethrough, directsync, unsafe\n"
"  -U, --force-share     also while another program writes to the sources\n"
"      --salvage         what cannot be read becomes zeroes\n"
"  -O FMT                format of the target, raw by default\n"
"  -o KEY=VALUE,...      options of the target's format; -o help lists them\n"
"  -B, -b FILE           let the target be an overlay of this backing file\n"
"  -F FMT                format of the backing file\n"
"  -c                    compress\n"
"  -S SIZE               zeroes of this length become holes (default 4k);\n"
"                        0: all is written as data\n"
"      --bitmaps         copy the persistent bitmaps of the source too\n"
"      --skip-broken-bitmaps  but not those that are inconsistent\n"
"  -n                    the target is there already\n"
"      --target-image-opts  the target is key=value,...\n"
"      --target-is-zero  the target reads as zeroes\n"
"  -t CACHE              cache mode of the target, unsafe by default\n"
"  -C                    let the kernel copy, without looking for zeroes\n"
"  -m NUMBER             how many parts are copied at the same time, 1 to 16\n"
"  -W                    write in any order\n"
"  -r RATE               at most so many bytes a second\n"
"  -p                    show progress\n"
"      --progress=json   the same for programs\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n";

static const uint64_t max_sparse = 16 * MiB;

/* ---- options with a value ---- */

static int
set_sparse_size (void *opaque, const char *text)
{
  struct convert_request *rq = opaque;
  uint64_t size;

  if (tool_size ("buffer size for sparse output", text, &size) == -1)
    return -1;
  if (size % SECTOR_SIZE || size > max_sparse) {
    tool_error ("Invalid buffer size for sparse output specified. Valid sizes "
                "are multiples of %d up to %llu. Select 0 to disable sparse "
                "detection (fully allocates output).", SECTOR_SIZE,
                (unsigned long long) max_sparse);
    return -1;
  }
  rq->has_sparse_size = true;
  rq->opts.sparse_size = size;
  return 0;
}

static int
set_parallel (void *opaque, const char *text)
{
  struct convert_request *rq = opaque;
  struct error e = ERROR_INIT;
  uint64_t n;

  if (parse_number ("-m", text, 1, 16, &n, &e) == -1) {
    tool_error ("Invalid number of coroutines. Allowed number of coroutines "
                "is between 1 and 16");
    return -1;
  }
  rq->opts.parallel = (unsigned) n;
  return 0;
}

static int
set_cache (struct image_open_options *o, const char *what, const char *text)
{
  if (tool_cache (what, text, &o->cache) == -1)
    return -1;
  o->backing_cache = o->cache;
  return 0;
}

static int
set_source_cache (void *opaque, const char *text)
{
  struct convert_request *rq = opaque;

  return set_cache (&rq->source.open, "source cache option", text);
}

static int
set_target_cache (void *opaque, const char *text)
{
  struct convert_request *rq = opaque;

  return set_cache (&rq->target.open, "cache option", text);
}

static int
parse_options (struct tool_args *args, struct convert_request *rq)
{
  const struct tool_option options[] = {
    { NULL, 'f', .text = &rq->source.format },
    { "image-opts", .flag = &rq->source.image_opts },
    { NULL, 'l', .text = &rq->snapshot },
    { NULL, 'T', .set = set_source_cache },
    { "force-share", 'U', .flag = &rq->source.open.force_share },
    { "salvage", .flag = &rq->opts.salvage },
    { NULL, 'O', .text = &rq->format },
    { NULL, 'o', .list = &rq->options },
    { NULL, 'B', .text = &rq->backing_file },
    { NULL, 'b', .text = &rq->backing_file },
    { NULL, 'F', .text = &rq->backing_format },
    { NULL, 'c', .flag = &rq->opts.compressed },
    { NULL, 'S', .set = set_sparse_size },
    { "bitmaps", .flag = &rq->bitmaps },
    { "skip-broken-bitmaps", .flag = &rq->skip_broken_bitmaps },
    { NULL, 'n', .flag = &rq->no_create },
    { "target-image-opts", .flag = &rq->target_image_opts },
    { "target-is-zero", .flag = &rq->target_is_zero },
    { NULL, 't', .set = set_target_cache },
    { NULL, 'C', .flag = &rq->copy_offload },
    { NULL, 'm', .set = set_parallel },
    { NULL, 'W', .flag = &rq->out_of_order },
    { NULL, 'r', .size = &rq->rate_limit, .what = "rate limit" },
    TOOL_PROGRESS_OPTIONS (&rq->progress),
    TOOL_LAST_OPTION,
  };

  return tool_parse (args, options, rq);
}

/* ---- options together ---- */

/* Why these options cannot go together, or NULL. */
static const char *
conflict (const struct convert_request *rq)
{
  if (rq->skip_broken_bitmaps && !rq->bitmaps)
    return "Use of --skip-broken-bitmaps requires --bitmaps";
  if (rq->target_image_opts && !rq->no_create)
    return "--target-image-opts requires use of -n flag";
  if (rq->target_image_opts && rq->format)
    return "--image-opts and --format are mutually exclusive";
  if (rq->copy_offload && rq->has_sparse_size)
    return "Cannot enable copy offloading when -S is used";
  if (rq->copy_offload && rq->opts.compressed)
    return "Cannot enable copy offloading when -c is used";
  if (rq->copy_offload && rq->opts.salvage)
    return "Cannot use copy offloading in salvaging mode";
  if (rq->target_is_zero && !rq->no_create)
    return "--target-is-zero requires use of -n flag";
  if (rq->target_is_zero && rq->backing_file)
    return "Cannot use --target-is-zero when the destination image has a "
      "backing file";
  if (rq->no_create && rq->options)
    return "-o has no effect when skipping image creation";
  if (rq->backing_file && rq->nr_names > 1)
    return "Having a backing file for the target makes no sense when "
      "concatenating multiple input images";
  if (rq->snapshot && rq->nr_names > 1)
    return "No support for concatenating multiple snapshot";
  if (rq->bitmaps && rq->nr_names > 1)
    return "Copying bitmaps only possible with single source";
  return NULL;
}

static int
check (struct convert_request *rq)
{
  const char *why = conflict (rq);

  if (why) {
    tool_error ("%s", why);
    return -1;
  }
  return tool_check_image (&rq->source);
}

/* -o help needs no images. */
static int
print_options_help (const struct convert_request *rq, const char *target)
{
  const char *name = rq->format ? rq->format : "raw";
  const struct format_ops *format = format_by_name (name);

  if (!format) {
    tool_error ("Unknown file format '%s'", name);
    return 1;
  }
  tool_print_format_options (format, target != NULL);
  return 0;
}

static int
parse (struct tool_args *args, struct convert_request *rq)
{
  int nr;

  if (parse_options (args, rq) == -1)
    return -1;
  nr = args->nr_names;
  if (rq->options && tool_options_want_help (rq->options)) {
    args->status = print_options_help (rq, nr > 1 ? args->names[nr - 1]
                                       : NULL);
    return -1;
  }
  if (nr < 2) {
    tool_error ("Must specify image file name");
    return -1;
  }
  rq->names = args->names;
  rq->nr_names = (size_t) nr - 1;
  rq->target.name = args->names[nr - 1];
  return check (rq);
}

/* What the options mean for the operation. */
static void
fill_opts (struct convert_request *rq)
{
  rq->opts.in_order = !rq->out_of_order;
  rq->opts.copy_offload = rq->copy_offload
    || (!rq->has_sparse_size && !rq->opts.salvage);
  rq->opts.copy_in_kernel = rq->copy_offload;
  rq->target.image_opts = rq->target_image_opts;
  rq->target.format = rq->format || rq->target_image_opts ? rq->format : "raw";
  rq->target.open.writable = true;
  rq->target.open.discard = rq->opts.sparse_size != 0;
}

/* ---- run ---- */

static int
copy (struct convert_request *rq, struct convert_target *t,
      struct op_ctx *ctx)
{
  struct convert_result result;
  struct error e = ERROR_INIT;

  if (op_convert (t->im, &rq->opts, &result, ctx, &e) == 0)
    return 0;
  tool_progress_end ();
  tool_fail (&e);
  return -1;
}

/* An empty copy is what dd makes then, and no failure. */
static void
warn_of_skip (const struct convert_request *rq)
{
  if (rq->opts.skip <= INT64_MAX
      && rq->opts.skip > image_size (rq->opts.sources[0]))
    tool_error ("%s: cannot skip to specified offset", rq->names[0]);
}

/* Before anything is made: what cannot be copied. */
static int
check_bitmaps (const struct convert_request *rq)
{
  struct error e = ERROR_INIT;

  if (!rq->bitmaps
      || op_check_bitmaps (rq->opts.sources[0], rq->skip_broken_bitmaps,
                           &e) == 0)
    return 0;
  if (e.err == EINVAL && !rq->skip_broken_bitmaps)
    tool_error ("%s: try --skip-broken-bitmaps, or use '%s bitmap --remove' to "
                "delete it", tool_without_name (rq->names[0], &e), program);
  else
    tool_fail (&e);
  return -1;
}

static int
open_sources (struct convert_request *rq)
{
  if (convert_open_sources (rq) == -1)
    return -1;
  warn_of_skip (rq);
  return check_bitmaps (rq);
}

static int
copy_bitmaps (struct convert_request *rq, struct convert_target *t,
              struct op_ctx *ctx)
{
  struct error e = ERROR_INIT;

  if (!rq->bitmaps
      || op_copy_bitmaps (rq->opts.sources[0], t->im, ctx, &e) == 0)
    return 0;
  tool_progress_end ();
  tool_fail_image (t->im->name, &e);
  return -1;
}

int
convert_run (struct convert_request *rq, struct op_ctx *ctx)
{
  struct convert_target t = { .im = NULL };
  int r = -1;

  if (open_sources (rq) == 0
      && convert_check_target (rq, &t) == 0
      && convert_open_target (rq, &t, ctx) == 0)
    r = copy (rq, &t, ctx);
  if (r == 0)
    r = copy_bitmaps (rq, &t, ctx);
  if (convert_close_target (rq, &t, r == -1) == -1)
    r = -1;
  if (convert_close_sources (rq) == -1)
    r = -1;
  return r;
}

int
cmd_convert (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct convert_request rq = {
    .opts = { .sparse_size = 4 * KiB },
    .target = { .open = { .cache = CACHE_UNSAFE } },
  };
  struct op_ctx ctx;
  int r;

  if (parse (&args, &rq) == -1) {
    free (rq.options);
    return args.status;
  }
  fill_opts (&rq);
  tool_progress_start (&rq.progress, "convert", &ctx);
  tool_progress (NULL, 0, 1);
  ctx.rate_limit = rq.rate_limit;
  if (rq.progress.quiet)
    ctx.message = NULL;
  r = convert_run (&rq, &ctx);
  tool_progress_end ();
  free (rq.options);
  return r == -1;
}
