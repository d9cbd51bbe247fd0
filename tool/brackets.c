/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* "[ command args ]" among the arguments, an NBD server that is started for
 * the purpose: each becomes one argument, a JSON array of strings, before
 * options are looked for.  Brackets inside count; a file that is called "["
 * is "./[".
 *
 * Layer: tool.  No locking: no state.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tool/tool.h"

/* The index of the "]" that belongs to the "[" at ARGV[I]; ARGC = none. */
static int
find_end (int argc, char **argv, int i)
{
  int depth = 0;

  for (; i < argc; ++i) {
    if (strcmp (argv[i], "[") == 0)
      depth++;
    else if (strcmp (argv[i], "]") == 0 && --depth == 0)
      break;
  }
  return i;
}

/* ARGV[FIRST] to ARGV[END - 1] as JSON.  Returns owned. */
static char *
to_json (char **argv, int first, int end, struct error *e)
{
  json_t *array = json_array ();
  char *text = NULL;

  for (int i = first; array && i < end; ++i)
    if (json_array_append_new (array, json_string (argv[i])) == -1)
      error_set (e, EINVAL, "%s: an argument between [ and ] is not valid "
                 "UTF-8", argv[first]);
  if (array && !e->err)
    text = json_dumps (array, JSON_COMPACT);
  if (!text)
    error_nomem (e, "a command", sizeof *argv);
  json_decref (array);
  return text;
}

static char *
cut (int argc, char **argv, int *i, struct error *e)
{
  int first = *i + 1, end = find_end (argc, argv, *i);

  if (end == argc) {
    error_set (e, EINVAL, "there is a [ without its ]: they stand around a "
               "command as arguments of their own");
    return NULL;
  }
  if (end == first) {
    error_set (e, EINVAL, "there is no command between [ and ]");
    return NULL;
  }
  *i = end;
  return to_json (argv, first, end, e);
}

static int
cut_all (int argc, char **argv, struct tool_arguments *a, struct error *e)
{
  size_t nr_made = 0;

  for (int i = 0; i < argc; ++i) {
    char *arg = argv[i];

    if (strcmp (arg, "[") == 0) {
      arg = cut (argc, argv, &i, e);
      if (!arg)
        return -1;
      a->made[nr_made++] = arg;
    }
    a->argv[a->argc++] = arg;
  }
  return 0;
}

int
tool_cut_brackets (int argc, char **argv, struct tool_arguments *a,
                   struct error *e)
{
  size_t size = (size_t) argc + 1;

  a->argc = 0;
  a->argv = calloc (size, sizeof *a->argv);
  a->made = calloc (size, sizeof *a->made);
  if (!a->argv || !a->made)
    error_nomem (e, "arguments", size * sizeof *a->made);
  else if (cut_all (argc, argv, a, e) == 0)
    return 0;
  tool_free_arguments (a);
  return -1;
}

void
tool_free_arguments (struct tool_arguments *a)
{
  for (size_t i = 0; a->made && a->made[i]; ++i)
    free (a->made[i]);
  free (a->made);
  free (a->argv);
  *a = (struct tool_arguments) { .argc = 0 };
}
