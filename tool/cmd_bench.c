/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg bench: see nbdimg-bench(1).  Layer: tool.  No locking here. */

#include <config.h>

#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "common/bytes.h"
#include "tool/tool.h"

static const char usage[] =
"bench [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval]\n"
"       [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q]\n"
"       [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename\n"
"Time reads or writes.\n"
"\n"
"  -c, --count=N             so many requests, 75000 by default\n"
"  -d, --depth=N             so many at a time, 64 by default\n"
"  -f, --format=FMT          its format; without it the content decides\n"
"      --image-opts          filename is key=value,...\n"
"      --flush-interval=N    with -w: wait and flush after N requests each\n"
"      --no-drain            do not wait before the flush\n"
"  -i, --aio=AIO             threads, native, io_uring: with a warning, since\n"
"                            requests are made by threads in any case\n"
"  -n, --native              -i native\n"
"  -o, --offset=SIZE         of the first request\n"
"      --pattern=BYTE        with -w: write this, 0 by default\n"
"  -s, --buffer-size=SIZE    of each request, 4096 by default\n"
"  -S, --step-size=SIZE      from one request to the next, -s by default\n"
"  -t, --cache=MODE          none, writeback (default), writethrough,\n"
"                            directsync, unsafe\n"
"  -w, --write               write; what is in the image is lost\n"
"  -U, --force-share         read also while another program writes to it\n"
"  -q, --quiet               print nothing but errors\n"
"  -h, --help   -V, --version\n";

/* More threads than this say a typing error. */
enum { MAX_DEPTH = 4096 };

struct request {
  struct tool_image image;
  struct bench_opts opts;
  bool quiet, native;
};

static int
set_aio (void *opaque, const char *text)
{
  struct request *rq = opaque;

  return tool_aio (text, &rq->native);
}

static int
set_cache (void *opaque, const char *text)
{
  struct request *rq = opaque;
  struct error e = ERROR_INIT;

  if (cache_mode_parse ("cache", text, &rq->image.open.cache, &e) == -1) {
    tool_error ("Invalid cache mode");
    return -1;
  }
  rq->image.open.backing_cache = rq->image.open.cache;
  return 0;
}

static int
parse_options (struct tool_args *args, struct request *rq)
{
  struct bench_opts *o = &rq->opts;
  const struct tool_option options[] = {
    { "count", 'c', .number = &o->count, .what = "request count",
      .max = INT_MAX },
    { "depth", 'd', .number = &o->depth, .what = "queue depth",
      .min = 1, .max = MAX_DEPTH },
    TOOL_IMAGE_OPTIONS (&rq->image),
    { "flush-interval", .number = &o->flush_interval,
      .what = "flush interval", .max = INT_MAX },
    { "no-drain", .flag = &o->no_drain },
    { "aio", 'i', .set = set_aio },
    { "native", 'n', .set = set_aio, .value = "native" },
    { "offset", 'o', .size = &o->offset, .what = "offset" },
    { "pattern", .number = &o->pattern, .what = "pattern byte",
      .max = UINT8_MAX },
    { "buffer-size", 's', .size = &o->buffer_size, .what = "buffer size",
      .max = INT_MAX },
    { "step-size", 'S', .size = &o->step, .what = "step_size",
      .max = INT_MAX },
    { "cache", 't', .set = set_cache },
    { "write", 'w', .flag = &o->write },
    { "force-share", 'U', .flag = &rq->image.open.force_share },
    { "quiet", 'q', .flag = &rq->quiet },
    TOOL_LAST_OPTION,
  };

  return tool_parse (args, options, rq);
}

static int
check (const struct request *rq)
{
  const struct bench_opts *o = &rq->opts;
  const char *conflict = tool_native_conflict (rq->native,
                                               rq->image.open.cache);

  if (!o->write && o->flush_interval)
    tool_error ("--flush-interval is only available in write tests");
  else if (o->flush_interval && o->flush_interval < o->depth)
    tool_error ("Flush interval can't be smaller than depth");
  else if (o->write && rq->image.open.force_share)
    tool_error ("Could not open '%s': force-share=on can only be used with "
                "read-only images", rq->image.name);
  else if (!rq->image.image_opts && conflict)
    tool_error ("Could not open '%s': %s", rq->image.name, conflict);
  else
    return tool_check_image (&rq->image);
  return -1;
}

static int
parse (struct tool_args *args, struct request *rq)
{
  if (parse_options (args, rq) == -1
      || tool_one_name (args, &rq->image) == -1)
    return -1;
  rq->image.open.writable = rq->opts.write;
  if (rq->opts.step == 0)
    rq->opts.step = rq->opts.buffer_size;
  return check (rq);
}

static void
print_plan (const struct bench_opts *o)
{
  printf ("Sending %u %s requests, %" PRIu64 " bytes each, %u in parallel "
          "(starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
          o->count, o->write ? "write" : "read", o->buffer_size, o->depth,
          o->offset, o->step);
  if (o->flush_interval)
    printf ("Sending flush every %u requests\n", o->flush_interval);
  fflush (stdout);
}

static int
bench (const struct request *rq, struct image *im)
{
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct error e = ERROR_INIT;
  uint64_t nsec;

  if (!rq->quiet)
    print_plan (&rq->opts);
  if (op_bench (im, &rq->opts, &nsec, &ctx, &e) == -1) {
    tool_error ("Failed request: %s", e.text);
    return 1;
  }
  if (!rq->quiet)
    printf ("Run completed in %.3f seconds.\n", (double) nsec / 1e9);
  return 0;
}

int
cmd_bench (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = {
    .opts = { .count = 75000, .depth = 64, .buffer_size = 4 * KiB },
  };
  struct image *im;
  int status;

  if (parse (&args, &rq) == -1)
    return args.status;
  im = tool_open (&rq.image);
  if (!im)
    return 1;
  status = bench (&rq, im);
  if (tool_close (im) == -1)
    status = 1;
  return status;
}
