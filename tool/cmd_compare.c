/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg compare: see nbdimg-compare(1).  Layer: tool.  No locking here. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "tool/tool.h"

static const char usage[] =
"compare [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] "
"filename1 filename2\n"
"Find where the contents of two images begin to differ.\n"
"\n"
"  -f, --a-format=FMT    format of the first image\n"
"  -F, --b-format=FMT    format of the second image\n"
"      --image-opts      both names are key=value,...\n"
"  -s, --strict          sizes and allocation must be the same too\n"
"  -T, --cache=MODE      none, writeback (default), writethrough, directsync,\n"
"                        unsafe\n"
"  -U, --force-share     also while another program writes to them\n"
"  -p                    show progress\n"
"      --progress=json   the same for programs\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n"
"\n"
"Exit status: 0 the same, 1 different, 2 an image cannot be opened, 3 its\n"
"allocation or 4 its data cannot be read.\n";

/* The exit codes of qemu-img compare. */
enum {
  EXIT_SAME = 0, EXIT_DIFFERENT = 1, EXIT_OPEN = 2, EXIT_EXTENTS = 3,
  EXIT_READ = 4,
};

struct request {
  struct tool_image a, b;
  struct compare_opts opts;
  struct tool_progress progress;
};

static int
parse_options (struct tool_args *args, struct request *rq)
{
  struct image_open_options *open = &rq->a.open;
  const struct tool_option options[] = {
    { "a-format", 'f', .text = &rq->a.format },
    { "b-format", 'F', .text = &rq->b.format },
    { "image-opts", .flag = &rq->a.image_opts },
    { "strict", 's', .flag = &rq->opts.strict },
    { "cache", 'T', .cache = &open->cache, .what = "source cache option" },
    { "force-share", 'U', .flag = &open->force_share },
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
  if (args->nr_names != 2) {
    args->status = tool_misuse ("Expecting two image file names");
    return -1;
  }
  rq->a.name = args->names[0];
  rq->b.name = args->names[1];
  rq->a.open.backing_cache = rq->a.open.cache;
  rq->b.open = rq->a.open;
  rq->b.image_opts = rq->a.image_opts;
  return tool_check_image (&rq->a) == -1 ? -1 : tool_check_image (&rq->b);
}

/* The sector, as qemu-img says it, where the first byte differs. */
static void
print_verdict (const struct compare_result *result)
{
  switch (result->verdict) {
  case COMPARE_SAME:
    puts ("Images are identical.");
    break;
  case COMPARE_CONTENT:
    printf ("Content mismatch at offset %" PRIu64 "!\n",
            round_down (result->offset, SECTOR_SIZE));
    break;
  case COMPARE_SIZE:
    puts ("Strict mode: Image size mismatch!");
    break;
  case COMPARE_ALLOCATION:
    printf ("Strict mode: Offset %" PRIu64 " block status mismatch!\n",
            result->offset);
    break;
  }
}

static int
tell_failure (const struct request *rq, const struct compare_result *result,
              const struct error *e)
{
  const char *name = result->failed_image == 1 ? rq->a.name : rq->b.name;

  if (!result->failed_image) {
    tool_fail (e);
    return EXIT_READ;
  }
  if (result->failed_extents)
    tool_error ("Sector allocation test failed for %s: %s", name,
                tool_without_name (name, e));
  else
    tool_error ("Error while reading offset %" PRIu64 " of %s: %s",
                result->failed_offset, name, tool_without_name (name, e));
  return result->failed_extents ? EXIT_EXTENTS : EXIT_READ;
}

static int
compare (const struct request *rq, struct image *a, struct image *b,
         struct op_ctx *ctx)
{
  struct compare_result result;
  struct error e = ERROR_INIT;
  bool quiet = rq->progress.quiet;

  tool_progress (NULL, 0, 1);
  if (op_compare (a, b, &rq->opts, &result, ctx, &e) == -1)
    return tell_failure (rq, &result, &e);
  if (!quiet && !rq->opts.strict && result.size_differs
      && (result.verdict == COMPARE_SAME
          || result.offset >= min_u64 (image_size (a), image_size (b))))
    puts ("Warning: Image size mismatch!");
  if (!quiet)
    print_verdict (&result);
  return result.verdict == COMPARE_SAME ? EXIT_SAME : EXIT_DIFFERENT;
}

static int
open_and_compare (const struct request *rq, struct op_ctx *ctx)
{
  struct image *a = tool_open (&rq->a);
  struct image *b = a ? tool_open (&rq->b) : NULL;
  int status = EXIT_OPEN;

  if (b)
    status = compare (rq, a, b, ctx);
  tool_close (b);
  tool_close (a);
  return status;
}

int
cmd_compare (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = EXIT_OPEN,
  };
  struct request rq = { .opts = { .strict = false } };
  struct op_ctx ctx;
  int status;

  if (parse (&args, &rq) == -1)
    return args.status;
  tool_progress_start (&rq.progress, "compare", &ctx);
  status = open_and_compare (&rq, &ctx);
  tool_progress_end ();
  return status;
}
