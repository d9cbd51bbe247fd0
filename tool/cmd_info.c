/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg info: see nbdimg-info(1).  Layer: tool.  No locking: one thread. */

#include <config.h>

#include "tool/tool.h"

static const char usage[] =
"info [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename\n"
"Tell what an image is; opens no other file, unless asked.\n"
"\n"
"  -f, --format=FMT      its format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"      --output=OFMT     human (default) or json\n"
"      --backing-chain   its backing files too\n"
"  -U, --force-share     also while another program writes to it\n"
"  -T in front of the command, or --trace=PATTERN: debug messages\n"
"  -h, --help   -V, --version\n";

enum { OPT_BACKING_CHAIN = TOOL_OPT_OWN };

static const struct option options[] = {
  TOOL_LONG_OPTIONS,
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { "output", required_argument, NULL, TOOL_OPT_OUTPUT },
  { "backing-chain", no_argument, NULL, OPT_BACKING_CHAIN },
  { "force-share", no_argument, NULL, 'U' },
  { NULL, 0, NULL, 0 },
};

static int
parse (struct tool_args *args, struct info_opts *opts, bool *json)
{
  int option;

  while ((option = tool_getopt (args)) != -1) {
    switch (option) {
    case TOOL_STOP: return -1;
    case 'f': opts->format = optarg; break;
    case 'U': opts->force_share = true; break;
    case OPT_BACKING_CHAIN: opts->backing_chain = true; break;
    case TOOL_OPT_IMAGE_OPTS: opts->image_opts = true; break;
    case TOOL_OPT_OUTPUT:
      args->status = 1;
      if (tool_output (optarg, json) == -1)
        return -1;
      break;
    }
  }
  if (optind + 1 == args->argc) {
    opts->name = args->argv[optind];
    return 0;
  }
  args->status = tool_misuse ("Expecting one image file name");
  return -1;
}

static void
print (const json_t *info, const struct info_opts *opts, bool json)
{
  if (!json)
    print_info (info);
  else if (opts->backing_chain)
    print_json (info);
  else
    print_json (json_array_get (info, 0));
}

int
cmd_info (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .letters = "f:U", .options = options,
    .usage = usage,
  };
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct info_opts opts = { .name = NULL };
  struct error e = ERROR_INIT;
  json_t *info;
  bool json = false;

  if (parse (&args, &opts, &json) == -1)
    return args.status;
  if (tool_check_image (&(struct tool_image) {
        .format = opts.format, .image_opts = opts.image_opts }) == -1)
    return 1;
  if (op_info (&opts, &info, &ctx, &e) == -1)
    return tool_cannot_open (opts.name, &e);
  print (info, &opts, json);
  json_decref (info);
  return 0;
}
