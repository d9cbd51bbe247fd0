/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: from a line to a command, and help.  Layer: tool.  No locking:
 * the main thread.
 */

#include <config.h>

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "tool/io.h"
#include "tool/tool.h"

static const struct io_command *const tables[] = {
  io_rw_commands, io_aio_commands, io_open_commands, io_reopen_commands,
  io_misc_commands,
};

enum { NR_TABLES = sizeof tables / sizeof tables[0], MAX_COMMANDS = 64 };

static const struct io_command *
find_command (const char *name)
{
  for (size_t t = 0; t < NR_TABLES; ++t)
    for (const struct io_command *c = tables[t]; c->name; ++c)
      if (strcmp (c->name, name) == 0
          || (c->alias && strcmp (c->alias, name) == 0))
        return c;
  return NULL;
}

/* ---- help ---- */

static void
print_summary (const struct io_command *c)
{
  printf ("%s %s -- %s\n", c->name, c->arguments, c->summary);
}

int
io_usage (const char *name)
{
  const struct io_command *c = find_command (name);

  if (c)
    print_summary (c);
  return -1;
}

static int
by_name (const void *a, const void *b)
{
  const struct io_command *const *x = a, *const *y = b;

  return strcmp ((*x)->name, (*y)->name);
}

static void
print_all (void)
{
  const struct io_command *sorted[MAX_COMMANDS];
  size_t nr = 0;

  for (size_t t = 0; t < NR_TABLES; ++t)
    for (const struct io_command *c = tables[t]; c->name; ++c)
      if (nr < MAX_COMMANDS)
        sorted[nr++] = c;
  qsort (sorted, nr, sizeof sorted[0], by_name);
  for (size_t i = 0; i < nr; ++i)
    print_summary (sorted[i]);
  puts ("\nUse 'help commandname' for extended help.");
}

int
io_help (struct io_shell *sh, int argc, char **argv)
{
  const struct io_command *c;

  (void) sh;
  if (argc == 1) {
    print_all ();
    return 0;
  }
  c = find_command (argv[1]);
  if (!c) {
    printf ("command %s not found\n", argv[1]);
    return -1;
  }
  print_summary (c);
  if (c->help)
    printf ("\n%s\n", c->help);
  return 0;
}

/* ---- a command's options ---- */

int
io_getopt (int argc, char **argv, const char *letters)
{
  int option;

  opterr = 1;
  option = getopt (argc, argv, letters);
  opterr = 0;
  if (option == '?')
    io_usage (argv[0]);
  return option;
}

/* ---- a line ---- */

static int
wrong_count (const struct io_command *c, const char *name, int nr)
{
  fprintf (stderr, "bad argument count %d to %s, expected ", nr, name);
  if (c->max == -1)
    fprintf (stderr, "at least %d arguments\n", c->min);
  else if (c->min == c->max)
    fprintf (stderr, "%d arguments\n", c->min);
  else
    fprintf (stderr, "between %d and %d arguments\n", c->min, c->max);
  return -1;
}

static int
check_needs (const struct io_shell *sh, const struct io_command *c)
{
  if (c->needs == IO_NOTHING)
    return 0;
  if (!sh->image) {
    fputs ("no file open, try 'help open'\n", stderr);
    return -1;
  }
  if (c->needs == IO_WRITABLE && !sh->image->writing) {
    tool_error ("Block node is read-only");
    return -1;
  }
  return 0;
}

static int
run_command (struct io_shell *sh, int argc, char **argv)
{
  const struct io_command *c = find_command (argv[0]);

  if (!c) {
    fputs ("command \"", stderr);
    tool_put_name (stderr, argv[0]);
    fputs ("\" not found\n", stderr);
    return -1;
  }
  if (argc - 1 < c->min || (c->max != -1 && argc - 1 > c->max))
    return wrong_count (c, argv[0], argc - 1);
  if (check_needs (sh, c) == -1)
    return -1;
  argv[0] = (char *) c->name;
  optind = 0;
  return c->run (sh, argc, argv);
}

int
io_command_line (struct io_shell *sh, char *line)
{
  CLEANUP_FREE char **argv = calloc (strlen (line) / 2 + 2, sizeof *argv);
  struct error e = ERROR_INIT;
  struct tool_arguments words;
  char *save, *word;
  int argc = 0, r;

  if (!argv) {
    tool_error ("out of memory");
    return -1;
  }
  for (word = strtok_r (line, " \t", &save); word;
       word = strtok_r (NULL, " \t", &save))
    argv[argc++] = word;
  if (argc == 0)
    return 0;
  if (tool_cut_brackets (argc, argv, &words, &e) == -1) {
    tool_fail (&e);
    return -1;
  }
  io_reap (sh, false);
  fflush (stdout);
  r = run_command (sh, words.argc, words.argv);
  tool_free_arguments (&words);
  fflush (stdout);
  return r;
}
