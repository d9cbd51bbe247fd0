/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg bench: see nbdimg-bench(1).  Layer: tool.  No locking here. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
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

enum { OPT_FLUSH_INTERVAL = TOOL_OPT_OWN, OPT_NO_DRAIN, OPT_PATTERN };

/* More threads than this say a typing error. */
enum { MAX_DEPTH = 4096 };

static const struct option options[] = {
  TOOL_LONG_OPTIONS,
  { "count", required_argument, NULL, 'c' },
  { "depth", required_argument, NULL, 'd' },
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { "flush-interval", required_argument, NULL, OPT_FLUSH_INTERVAL },
  { "no-drain", no_argument, NULL, OPT_NO_DRAIN },
  { "aio", required_argument, NULL, 'i' },
  { "native", no_argument, NULL, 'n' },
  { "offset", required_argument, NULL, 'o' },
  { "pattern", required_argument, NULL, OPT_PATTERN },
  { "buffer-size", required_argument, NULL, 's' },
  { "step-size", required_argument, NULL, 'S' },
  { "cache", required_argument, NULL, 't' },
  { "write", no_argument, NULL, 'w' },
  { "force-share", no_argument, NULL, 'U' },
  { "quiet", no_argument, NULL, 'q' },
  { NULL, 0, NULL, 0 },
};

struct request {
  struct tool_image image;
  struct bench_opts opts;
  bool quiet, native;
};

/* A number as C writes it: 0x is hexadecimal. */
static int
number (const char *what, const char *text, unsigned long min,
        unsigned long max, unsigned *r)
{
  char *end;
  unsigned long n;

  errno = 0;
  n = strtoul (text, &end, 0);
  if (*text < '0' || *text > '9' || *end || errno || n < min || n > max) {
    tool_error ("Invalid %s specified", what);
    return -1;
  }
  *r = (unsigned) n;
  return 0;
}

static int
size_option (const char *what, const char *text, uint64_t *r)
{
  return tool_size_within (what, text, 0, INT_MAX, r);
}

static int
cache_option (struct image_open_options *open, const char *text)
{
  struct error e = ERROR_INIT;

  if (cache_mode_parse ("cache", text, &open->cache, &e) == -1) {
    tool_error ("Invalid cache mode");
    return -1;
  }
  open->backing_cache = open->cache;
  return 0;
}

static int
set_option (struct request *rq, int option)
{
  struct bench_opts *o = &rq->opts;

  switch (option) {
  case 'c': return number ("request count", optarg, 0, INT_MAX, &o->count);
  case 'd': return number ("queue depth", optarg, 1, MAX_DEPTH, &o->depth);
  case 'f': rq->image.format = optarg; return 0;
  case 'i': return tool_aio (optarg, &rq->native);
  case 'n': return tool_aio ("native", &rq->native);
  case 'o': return tool_size ("offset", optarg, &o->offset);
  case 'q': rq->quiet = true; return 0;
  case 's': return size_option ("buffer size", optarg, &o->buffer_size);
  case 'S': return size_option ("step_size", optarg, &o->step);
  case 't': return cache_option (&rq->image.open, optarg);
  case 'w': o->write = rq->image.open.writable = true; return 0;
  case 'U': rq->image.open.force_share = true; return 0;
  case TOOL_OPT_IMAGE_OPTS: rq->image.image_opts = true; return 0;
  case OPT_FLUSH_INTERVAL:
    return number ("flush interval", optarg, 0, INT_MAX, &o->flush_interval);
  case OPT_NO_DRAIN: o->no_drain = true; return 0;
  case OPT_PATTERN:
    return number ("pattern byte", optarg, 0, UINT8_MAX, &o->pattern);
  }
  return -1;
}

static int
check (const struct request *rq)
{
  const struct bench_opts *o = &rq->opts;

  if (!o->write && o->flush_interval)
    tool_error ("--flush-interval is only available in write tests");
  else if (o->flush_interval && o->flush_interval < o->depth)
    tool_error ("Flush interval can't be smaller than depth");
  else if (o->write && rq->image.open.force_share)
    tool_error ("Could not open '%s': force-share=on can only be used with "
                "read-only images", rq->image.name);
  else if (rq->image.image_opts
           || tool_check_native (rq->image.name, rq->native,
                                 rq->image.open.cache) == 0)
    return tool_check_image (&rq->image);
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
    .argc = argc, .argv = argv, .letters = "c:d:f:i:no:qs:S:t:wU",
    .options = options, .usage = usage,
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
