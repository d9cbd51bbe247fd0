/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg bitmap: see nbdimg-bitmap(1).  Layer: tool.  No locking: one thread.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tool/tool.h"

static const char usage[] =
"bitmap (--merge SOURCE | --add | --remove | --clear | --enable | "
"--disable)...\n"
"       [-b source_file [-F source_fmt]] [-g granularity]\n"
"       [--image-opts | -f fmt] filename bitmap\n"
"Make, remove or change a persistent bitmap, which tells what was written.\n"
"\n"
"What is to be done, one after the other:\n"
"      --add             make it, enabled and clean\n"
"      --remove          remove it\n"
"      --clear           all is clean\n"
"      --enable          record writes from now on\n"
"      --disable         record no more\n"
"      --merge=SOURCE    what the bitmap SOURCE has dirty is dirty here too\n"
"\n"
"  -b, --source-file=FILE\n"
"                        the image that has SOURCE\n"
"  -F, --source-format=FMT\n"
"                        its format\n"
"  -g, --granularity=SIZE\n"
"                        of --add: bytes that a bit stands for\n"
"  -f, --format=FMT      the image's format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"  -h, --help   -V, --version\n";

struct request {
  struct tool_image image, source;
  struct bitmap_opts opts;
  struct bitmap_action *actions;        /* owned; room for one an argument */
  bool adds, merges, has_granularity;
};

/* The words of the command line, and of its messages. */
static const char *const verbs[] = {
  [BITMAP_ADD] = "add", [BITMAP_REMOVE] = "remove", [BITMAP_CLEAR] = "clear",
  [BITMAP_ENABLE] = "enable", [BITMAP_DISABLE] = "disable",
  [BITMAP_SET] = "merge",
};

static void
add_action (struct request *rq, enum format_bitmap_verb verb,
            const char *source)
{
  rq->actions[rq->opts.nr_actions++] = (struct bitmap_action) {
    .verb = verb, .merge = source,
  };
}

static int
set_verb (void *opaque, const char *word)
{
  enum format_bitmap_verb verb = 0;

  while (strcmp (verbs[verb], word) != 0)
    verb++;
  add_action (opaque, verb, NULL);
  return 0;
}

static int
set_merge (void *opaque, const char *source)
{
  add_action (opaque, BITMAP_SET, source);
  return 0;
}

/* Why these options cannot go together, or NULL. */
static const char *
conflict (const struct request *rq, int nr_names)
{
  if (nr_names != 2)
    return "Expecting filename and bitmap name";
  if (rq->has_granularity && !rq->adds)
    return "granularity only supported with --add";
  if (rq->source.format && !rq->source.name)
    return "-F only supported with -b";
  if (rq->source.name && !rq->merges)
    return "Merge bitmap source file only supported with --merge";
  return NULL;
}

static int
parse_options (struct tool_args *args, struct request *rq)
{
  const struct tool_option options[] = {
    { "add", .set = set_verb, .value = "add", .flag = &rq->adds },
    { "remove", .set = set_verb, .value = "remove" },
    { "clear", .set = set_verb, .value = "clear" },
    { "enable", .set = set_verb, .value = "enable" },
    { "disable", .set = set_verb, .value = "disable" },
    { "merge", .set = set_merge, .flag = &rq->merges },
    { "source-file", 'b', .text = &rq->source.name },
    { "source-format", 'F', .text = &rq->source.format },
    { "granularity", 'g', .size = &rq->opts.granularity,
      .what = "granularity", .flag = &rq->has_granularity },
    TOOL_IMAGE_OPTIONS (&rq->image),
    TOOL_LAST_OPTION,
  };

  return tool_parse (args, options, rq);
}

static int
parse (struct tool_args *args, struct request *rq)
{
  const char *why;

  if (parse_options (args, rq) == -1)
    return -1;
  why = rq->opts.nr_actions ? conflict (rq, args->nr_names)
    : "Need at least one of --add, --remove, --clear, --enable, --disable, or"
      " --merge";
  if (why) {
    tool_error ("%s", why);
    return -1;
  }
  rq->image.name = args->names[0];
  rq->opts.name = args->names[1];
  rq->opts.actions = rq->actions;
  return tool_check_image (&rq->image);
}

/* ---- */

static int
change (const struct request *rq, struct image *im)
{
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct bitmap_result result;
  struct error e = ERROR_INIT;

  if (op_bitmap (im, &rq->opts, &result, &ctx, &e) == 0)
    return 0;
  /* What an image cannot have is told in our words, so with its name. */
  tool_error ("Operation %s on bitmap %s failed: %s",
              verbs[rq->actions[result.done].verb], rq->opts.name,
              e.err == ENOTSUP ? e.text
              : tool_without_name (rq->image.name, &e));
  return 1;
}

static int
run (struct request *rq)
{
  struct image *im;
  int status = 1;

  rq->image.open.writable = true;
  rq->image.open.discard = true;
  rq->image.open.no_backing = rq->source.open.no_backing = true;
  im = tool_open (&rq->image);
  if (!im)
    return 1;
  if (rq->source.name)
    rq->opts.source = tool_open (&rq->source);
  if (!rq->source.name || rq->opts.source)
    status = change (rq, im);
  tool_close (rq->opts.source);
  return tool_close (im) == -1 ? 1 : status;
}

int
cmd_bitmap (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .adds = false };
  struct error e = ERROR_INIT;
  int status;

  rq.actions = calloc ((size_t) argc, sizeof rq.actions[0]);
  if (!rq.actions) {
    error_nomem (&e, "actions", (size_t) argc * sizeof rq.actions[0]);
    return tool_fail (&e);
  }
  status = parse (&args, &rq) == -1 ? args.status : run (&rq);
  free (rq.actions);
  return status;
}
