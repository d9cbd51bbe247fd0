/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The loop over the options of a command: getopt's tables are made from the
 * command's own, and what every command has is answered here.
 *
 * Layer: tool.  No locking: the main thread, before anything is started.
 */

#include <config.h>

#include <assert.h>
#include <getopt.h>
#include <limits.h>
#include <string.h>

#include "tool/tool.h"

enum {
  MAX_ROWS = 64,                /* of a command; serve has 43 */
  OPT_TRACE = 256, OPT_OBJECT,
  OPT_ROW,                      /* the first row, when it has no letter */
};

/* What getopt_long wants. */
struct getopt_tables {
  char letters[2 * MAX_ROWS + 4];
  struct option names[MAX_ROWS + 5];
};

/* Only a row with nothing but a flag takes no argument, or one with a value of
 * its own.
 */
static bool
takes_argument (const struct tool_option *o)
{
  return !o->value && (o->text || o->list || o->size || o->number || o->cache
                       || o->json || o->progress || o->set || o->refused);
}

static bool
is_last (const struct tool_option *o)
{
  return !o->name && !o->letter;
}

static void
make_tables (const struct tool_option *rows, struct getopt_tables *t)
{
  static const struct option common[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "trace", required_argument, NULL, OPT_TRACE },
    { "object", required_argument, NULL, OPT_OBJECT },
  };
  struct option *name = t->names + sizeof common / sizeof common[0];
  char *p = stpcpy (t->letters, ":hV");

  memcpy (t->names, common, sizeof common);
  for (int i = 0; !is_last (&rows[i]); ++i) {
    bool takes = takes_argument (&rows[i]);
    int letter = rows[i].letter;

    assert (i < MAX_ROWS);
    if (letter) {
      *p++ = (char) letter;
      if (takes)
        *p++ = ':';
    }
    if (rows[i].name)
      *name++ = (struct option) {
        .name = rows[i].name, .val = letter ? letter : OPT_ROW + i,
        .has_arg = takes ? required_argument : no_argument,
      };
  }
  *p = '\0';
  *name = (struct option) { .name = NULL };
}

/* The row that OPTION, what getopt returned, stands for. */
static const struct tool_option *
find_row (const struct tool_option *rows, int option)
{
  if (option >= OPT_ROW)
    return &rows[option - OPT_ROW];
  while (rows->letter != option)
    rows++;
  return rows;
}

/* ---- what an option does ---- */

static int
store (const struct tool_option *o, void *request, const char *arg)
{
  if (o->flag)
    *o->flag = true;
  if (o->text)
    *o->text = arg;
  if (o->list)
    return tool_add_options (o->list, arg);
  if (o->size)
    return tool_size_within (o->what, arg, o->min,
                             o->max ? o->max : INT64_MAX, o->size);
  if (o->number)
    return tool_number (o->what, arg, o->min, o->max ? o->max : UINT_MAX,
                        o->number);
  if (o->cache)
    return tool_cache (o->what, arg, o->cache);
  if (o->json)
    return tool_output (arg, o->json);
  if (o->progress)
    return tool_progress_option (o->progress, arg);
  if (o->refused) {
    tool_misuse ("--%s is not supported: %s", o->name, o->refused);
    return -1;
  }
  return o->set ? o->set (request, arg) : 0;
}

static int
stop (struct tool_args *args, int status)
{
  args->status = status;
  return -1;
}

/* The argument that a letter which nobody has stands in: getopt has stepped
 * over it only where that letter is its last.
 */
static const char *
argument_of (const struct tool_args *args, int letter)
{
  const char *last = args->argv[optind - 1];

  if (last[0] == '-' && strchr (last, letter))
    return last;
  return args->argv[optind];
}

/* A letter is unknown; or a name is (optopt is 0), or was given a value that it
 * does not take, and getopt has stepped over it.
 */
static int
bad_option (struct tool_args *args, const char *letters)
{
  bool letter = optopt > 0 && optopt < OPT_TRACE && !strchr (letters, optopt);

  return stop (args, tool_misuse ("unrecognized option '%s'",
                                  letter ? argument_of (args, optopt)
                                  : args->argv[optind - 1]));
}

static int
set_option (struct tool_args *args, const struct tool_option *rows,
            const char *letters, int option, void *request)
{
  const struct tool_option *o;
  int r;

  switch (option) {
  case 'h':
    printf ("usage: %s %s", program, args->usage);
    return stop (args, 0);
  case 'V':
    tool_print_version ();
    return stop (args, 0);
  case OPT_TRACE:
    r = tool_trace (optarg);
    return r == 0 ? 0 : stop (args, r == 1 ? 0 : 1);
  case OPT_OBJECT:
    return tool_object (optarg) == 0 ? 0 : stop (args, 1);
  case ':':
    return stop (args, tool_misuse ("missing argument for option '%s'",
                                    args->argv[optind - 1]));
  case '?':
    return bad_option (args, letters);
  }
  o = find_row (rows, option);
  r = store (o, request, o->value ? o->value : optarg);
  return r == 1 ? stop (args, 0) : r;
}

int
tool_parse (struct tool_args *args, const struct tool_option *rows,
            void *request)
{
  struct getopt_tables tables;
  int option;

  make_tables (rows, &tables);
  optind = 0;
  while ((option = getopt_long (args->argc, args->argv, tables.letters,
                                tables.names, NULL)) != -1)
    if (set_option (args, rows, tables.letters, option, request) == -1)
      return -1;
  args->names = args->argv + optind;
  args->nr_names = args->argc - optind;
  return 0;
}

int
tool_one_name (struct tool_args *args, struct tool_image *ti)
{
  if (args->nr_names == 1) {
    ti->name = args->names[0];
    return 0;
  }
  return stop (args, tool_misuse ("Expecting one image file name"));
}
