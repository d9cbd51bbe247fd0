/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg bitmap: see nbdimg-bitmap(1).  Layer: tool.  No locking: one thread.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

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

enum {
  OPT_ADD = TOOL_OPT_OWN, OPT_REMOVE, OPT_CLEAR, OPT_ENABLE, OPT_DISABLE,
  OPT_MERGE,
};

static const struct option options[] = {
  TOOL_LONG_OPTIONS,
  { "add", no_argument, NULL, OPT_ADD },
  { "remove", no_argument, NULL, OPT_REMOVE },
  { "clear", no_argument, NULL, OPT_CLEAR },
  { "enable", no_argument, NULL, OPT_ENABLE },
  { "disable", no_argument, NULL, OPT_DISABLE },
  { "merge", required_argument, NULL, OPT_MERGE },
  { "source-file", required_argument, NULL, 'b' },
  { "source-format", required_argument, NULL, 'F' },
  { "granularity", required_argument, NULL, 'g' },
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { NULL, 0, NULL, 0 },
};

struct request {
  struct tool_image image, source;
  struct bitmap_opts opts;
  struct bitmap_action *actions;        /* owned; room for one an argument */
  bool adds, merges, has_granularity;
};

static int
add_action (struct request *rq, enum format_bitmap_verb verb)
{
  rq->actions[rq->opts.nr_actions++] = (struct bitmap_action) {
    .verb = verb, .merge = verb == BITMAP_SET ? optarg : NULL,
  };
  rq->adds |= verb == BITMAP_ADD;
  rq->merges |= verb == BITMAP_SET;
  return 0;
}

static int
set_option (struct request *rq, int option)
{
  switch (option) {
  case OPT_ADD: return add_action (rq, BITMAP_ADD);
  case OPT_REMOVE: return add_action (rq, BITMAP_REMOVE);
  case OPT_CLEAR: return add_action (rq, BITMAP_CLEAR);
  case OPT_ENABLE: return add_action (rq, BITMAP_ENABLE);
  case OPT_DISABLE: return add_action (rq, BITMAP_DISABLE);
  case OPT_MERGE: return add_action (rq, BITMAP_SET);
  case 'b': rq->source.name = optarg; return 0;
  case 'F': rq->source.format = optarg; return 0;
  case 'f': rq->image.format = optarg; return 0;
  case 'g':
    rq->has_granularity = true;
    return tool_size ("granularity", optarg, &rq->opts.granularity);
  case TOOL_OPT_IMAGE_OPTS: rq->image.image_opts = true; return 0;
  }
  return -1;
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
parse (struct tool_args *args, struct request *rq)
{
  const char *why;
  int option;

  while ((option = tool_getopt (args)) != -1) {
    if (option == TOOL_STOP)
      return -1;
    args->status = 1;
    if (set_option (rq, option) == -1)
      return -1;
  }
  args->status = 1;
  why = rq->opts.nr_actions ? conflict (rq, args->argc - optind)
    : "Need at least one of --add, --remove, --clear, --enable, --disable, or"
      " --merge";
  if (why) {
    tool_error ("%s", why);
    return -1;
  }
  rq->image.name = args->argv[optind];
  rq->opts.name = args->argv[optind + 1];
  rq->opts.actions = rq->actions;
  return tool_check_image (&rq->image);
}

/* ---- */

static const char *
verb_name (enum format_bitmap_verb verb)
{
  switch (verb) {
  case BITMAP_ADD: return "add";
  case BITMAP_REMOVE: return "remove";
  case BITMAP_CLEAR: return "clear";
  case BITMAP_ENABLE: return "enable";
  case BITMAP_DISABLE: return "disable";
  case BITMAP_SET: return "merge";
  }
  return "?";
}

static int
change (const struct request *rq, struct image *im)
{
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct bitmap_result result;
  struct error e = ERROR_INIT;

  if (op_bitmap (im, &rq->opts, &result, &ctx, &e) == 0)
    return 0;
  tool_error ("Operation %s on bitmap %s failed: %s",
              verb_name (rq->actions[result.done].verb), rq->opts.name,
              tool_without_name (rq->image.name, &e));
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
    .argc = argc, .argv = argv, .letters = "b:F:f:g:", .options = options,
    .usage = usage,
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
