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

static int
parse (struct tool_args *args, struct info_opts *opts, bool *json)
{
  struct tool_image ti = { .name = NULL };
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (&ti),
    { "output", .json = json },
    { "backing-chain", .flag = &opts->backing_chain },
    { "force-share", 'U', .flag = &opts->force_share },
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, opts) == -1
      || tool_one_name (args, &ti) == -1)
    return -1;
  opts->name = ti.name;
  opts->format = ti.format;
  opts->image_opts = ti.image_opts;
  return tool_check_image (&ti);
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
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct info_opts opts = { .name = NULL };
  struct error e = ERROR_INIT;
  json_t *info;
  bool json = false;

  if (parse (&args, &opts, &json) == -1)
    return args.status;
  if (op_info (&opts, &info, &ctx, &e) == -1)
    return tool_cannot_open (opts.name, &e);
  print (info, &opts, json);
  json_decref (info);
  return 0;
}
