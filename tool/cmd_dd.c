/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg dd: convert with the words of dd; see nbdimg-dd(1).  Layer: tool.  No
 * locking here.
 */

#include <config.h>

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "tool/convert.h"

static const char usage[] =
"dd [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] "
"[count=blocks]\n"
"       [skip=blocks] if=input of=output\n"
"Copy blocks of an image into a new image.\n"
"\n"
"  if=FILE               the image that is read\n"
"  of=FILE               the image that is made\n"
"  bs=SIZE               bytes of a block, 512 by default\n"
"  count=N               copy N blocks; without it, up to the end\n"
"  skip=N                leave out N blocks at the beginning\n"
"  -f, --format=FMT      format of the input; without it the content decides\n"
"      --image-opts      the input is key=value,...\n"
"  -O, --output-format=FMT\n"
"                        format of the output, raw by default\n"
"  -U, --force-share     also while another program writes to the input\n"
"  -p                    show progress\n"
"      --progress=json   the same for programs\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n";

struct request {
  struct convert_request convert;
  char *input;                  /* if=; borrowed */
  const char *output;
  uint64_t block, skip, count;  /* bytes; blocks; blocks */
  bool has_count;
};

/* The value of the operand TEXT when it is called NAME. */
static char *
value (char *text, const char *name)
{
  size_t n = strlen (name);

  return strncmp (text, name, n) == 0 && text[n] == '=' ? text + n + 1 : NULL;
}

static int
set_operand (struct request *rq, char *text)
{
  char *v;

  if ((v = value (text, "if")))
    rq->input = v;
  else if ((v = value (text, "of")))
    rq->output = v;
  else if ((v = value (text, "bs")))
    return tool_size_within ("bs", v, 1, INT_MAX, &rq->block);
  else if ((v = value (text, "skip")))
    return tool_size ("skip", v, &rq->skip);
  else if ((v = value (text, "count"))) {
    rq->has_count = true;
    return tool_size ("count", v, &rq->count);
  }
  else {
    tool_error ("unrecognized operand %.*s", (int) strcspn (text, "="), text);
    return -1;
  }
  return 0;
}

static int
parse (struct tool_args *args, struct request *rq)
{
  struct convert_request *c = &rq->convert;
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (&c->source),
    { "output-format", 'O', .text = &c->format },
    { "force-share", 'U', .flag = &c->source.open.force_share },
    TOOL_PROGRESS_OPTIONS (&c->progress),
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, rq) == -1)
    return -1;
  for (int i = 0; i < args->nr_names; ++i)
    if (set_operand (rq, args->names[i]) == -1)
      return -1;
  if (!rq->input || !rq->output) {
    tool_error ("Must specify both input and output files");
    return -1;
  }
  return tool_check_image (&c->source);
}

/* The bytes of N blocks, or more than any disk has. */
static uint64_t
bytes (const struct request *rq, uint64_t n)
{
  uint64_t r;

  return mul_ok (n, rq->block, &r) && r < INT64_MAX ? r : INT64_MAX;
}

static void
fill (struct request *rq)
{
  struct convert_request *c = &rq->convert;

  c->names = &rq->input;
  c->nr_names = 1;
  c->doing = "creating output image";
  c->target.name = rq->output;
  c->target.format = c->format ? c->format : "raw";
  c->target.open.writable = true;
  c->target.open.discard = true;
  c->opts.sparse_size = 4 * KiB;
  c->opts.in_order = true;
  c->opts.skip = bytes (rq, rq->skip);
  c->opts.limit = bytes (rq, rq->count);
  if (rq->has_count && rq->count == 0)  /* no limit is what 0 means there */
    c->opts.skip = UINT64_MAX;
}

int
cmd_dd (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .block = SECTOR_SIZE };
  struct op_ctx ctx;
  int r;

  if (parse (&args, &rq) == -1)
    return args.status;
  fill (&rq);
  tool_progress_start (&rq.convert.progress, "dd", &ctx);
  tool_progress (NULL, 0, 1);
  r = convert_run (&rq.convert, &ctx);
  tool_progress_end ();
  return r == -1;
}
