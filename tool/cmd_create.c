/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg create: see nbdimg-create(1).  Layer: tool.  No locking. */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "tool/tool.h"

static const char usage[] =
"create [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] "
"filename [size]\n"
"Make an empty image.\n"
"\n"
"  -f, --format=FMT           raw by default; nbdimg --help lists them\n"
"  -o, --options=OPTIONS      key=value,...; -o help lists them\n"
"  -b, --backing=NAME         record only what differs from NAME\n"
"  -F, --backing-format=FMT   its format, which is needed\n"
"  -u, --backing-unsafe       do not open the backing file\n"
"  -q, --quiet                print nothing but errors\n"
"  -T in front of the command, or --trace=PATTERN: debug messages\n"
"  -h, --help   -V, --version\n"
"\n"
"The size is in bytes, or has a suffix k, M, G, T, P or E; without one it is\n"
"that of the backing file.\n";

struct request {
  struct create_opts opts;
  char *options;                /* all -o joined; owned */
  bool quiet;
};

/* -o help; a message when the format is unknown. */
static int
answer_help (const struct request *rq, bool for_file)
{
  const char *name = rq->opts.format ? rq->opts.format : "raw";
  struct error e = ERROR_INIT;
  const struct format_ops *format = op_create_format (name, &e);

  if (!format)
    return tool_fail (&e);
  tool_print_format_options (format, for_file);
  return 0;
}

static int
parse_names (struct tool_args *args, struct request *rq)
{
  char **names = args->names;

  if (args->nr_names < 1) {
    tool_misuse ("Expecting image file name");
    return -1;
  }
  if (args->nr_names > 2) {
    tool_misuse ("Unexpected argument: %s", names[2]);
    return -1;
  }
  rq->opts.name = names[0];
  rq->opts.has_size = args->nr_names == 2;
  return rq->opts.has_size
    ? tool_size ("image size", names[1], &rq->opts.size) : 0;
}

static int
parse (struct tool_args *args, struct request *rq)
{
  struct create_opts *opts = &rq->opts;
  const struct tool_option options[] = {
    { "format", 'f', .text = &opts->format },
    { "options", 'o', .list = &rq->options },
    { "backing", 'b', .text = &opts->backing_file },
    { "backing-format", 'F', .text = &opts->backing_format },
    { NULL, 'B', .text = &opts->backing_format },
    { "backing-unsafe", 'u', .flag = &opts->no_open_backing },
    { "quiet", 'q', .flag = &rq->quiet },
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, rq) == -1)
    return -1;
  if (rq->options && tool_options_want_help (rq->options)) {
    args->status = answer_help (rq, args->nr_names > 0);
    return -1;
  }
  opts->options = rq->options;
  return parse_names (args, rq);
}

static void
print_formatting (const struct create_opts *opts, const json_t *used)
{
  const char *key;
  json_t *value;

  fputs ("Formatting '", stdout);
  tool_put_name (stdout, opts->name);
  printf ("', fmt=%s", opts->format ? opts->format : "raw");
  json_object_foreach ((json_t *) used, key, value) {
    CLEANUP_FREE char *text = tool_double_commas (json_string_value (value));

    printf (" %s=", key);
    tool_put_name (stdout, text ? text : "?");
  }
  putchar ('\n');
}

static int
create (const struct request *rq)
{
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct create_result result = { .options = NULL };
  struct error e = ERROR_INIT;
  int r = op_create (&rq->opts, &result, &ctx, &e);

  if (result.options && !rq->quiet)
    print_formatting (&rq->opts, result.options);
  json_decref (result.options);
  if (r == -1)
    tool_error ("%s: %s", rq->opts.name,
                tool_without_name (rq->opts.name, &e));
  return r == 0 ? 0 : 1;
}

int
cmd_create (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .options = NULL };
  int status = parse (&args, &rq) == 0 ? create (&rq) : args.status;

  free (rq.options);
  return status;
}
