/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg lock: see nbdimg-lock(1).  Layer: tool.  No locking: one thread. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tool/tool.h"

static const char usage[] =
"lock [--image-opts] [-f fmt] [--output=ofmt] filename\n"
"Tell which programs use an image.\n"
"\n"
"  -f, --format=FMT      its format; not needed\n"
"      --image-opts      filename is key=value,...\n"
"      --output=OFMT     human (default) or json\n"
"  -T in front of the command, or --trace=PATTERN: debug messages\n"
"  -h, --help   -V, --version\n";

static int
parse (struct tool_args *args, struct lock_opts *opts, bool *json)
{
  struct tool_image ti = { .name = NULL };
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (&ti),
    { "output", .json = json },
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, NULL) == -1
      || tool_one_name (args, &ti) == -1)
    return -1;
  opts->name = ti.name;
  opts->format = ti.format;
  opts->image_opts = ti.image_opts;
  return tool_check_image (&ti);
}

static bool
has (const json_t *list, const char *name)
{
  json_t *value;
  size_t i;

  json_array_foreach ((json_t *) list, i, value)
    if (strcmp (json_string_value (value), name) == 0)
      return true;
  return false;
}

static void
print_holder (const char *name, const json_t *h)
{
  const char *command = json_string_value (json_object_get (h, "command"));
  json_t *pid = json_object_get (h, "pid");
  bool alone = has (json_object_get (h, "unshared"), "write");

  tool_put_name (stdout, name);
  if (pid)
    printf (": process %" JSON_INTEGER_FORMAT " (%s)", json_integer_value (pid),
            command ? command : "unknown command");
  else
    fputs (": a process of another user, or of another machine,", stdout);
  printf (" %s it%s\n", json_is_true (json_object_get (h, "writes"))
          ? "writes to" : "reads",
          alone ? ", and lets nobody else write" : "");
}

static void
print_holders (const char *name, const json_t *holders)
{
  json_t *h;
  size_t i;

  json_array_foreach ((json_t *) holders, i, h)
    print_holder (name, h);
  if (json_array_size (holders) > 0)
    return;
  tool_put_name (stdout, name);
  puts (": no program holds it");
}

int
cmd_lock (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct lock_opts opts = { .name = NULL };
  struct error e = ERROR_INIT;
  json_t *holders;
  bool json = false;

  if (parse (&args, &opts, &json) == -1)
    return args.status;
  if (op_lock (&opts, &holders, &e) == -1)
    return tool_cannot_open (opts.name, &e);
  if (json)
    print_json (holders);
  else
    print_holders (opts.name, holders);
  json_decref (holders);
  return 0;
}
