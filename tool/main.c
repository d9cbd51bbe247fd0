/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg: which command it is, and how the program ends.
 *
 * Layer: tool.  No locking: one thread.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/secret.h"
#include "common/tls_creds.h"
#include "tool/tool.h"

const char *program = "nbdimg";

struct command {
  const char *name;
  int (*run) (int argc, char **argv);
  const char *summary;
};

static const struct command commands[] = {
  { "amend", cmd_amend, "change the options of an image" },
  { "bench", cmd_bench, "time reads or writes" },
  { "bitmap", cmd_bitmap, "manage persistent bitmaps" },
  { "check", cmd_check, "look for errors in the tables of an image" },
  { "commit", cmd_commit, "write an image's changes into its backing file" },
  { "compare", cmd_compare, "find where two images begin to differ" },
  { "convert", cmd_convert, "copy an image into another format" },
  { "create", cmd_create, "make an empty image" },
  { "dd", cmd_dd, "copy blocks" },
  { "info", cmd_info, "tell what an image is" },
  { "io", cmd_io, "a shell of reads and writes" },
  { "lock", cmd_lock, "tell which programs use an image" },
  { "map", cmd_map, "tell where in its files the data of an image lie" },
  { "measure", cmd_measure, "tell how large an image will be" },
  { "rebase", cmd_rebase, "change the backing file of an image" },
  { "resize", cmd_resize, "change the size of an image" },
  { "serve", cmd_serve, "serve an image over NBD" },
  { "snapshot", cmd_snapshot, "manage internal snapshots" },
};

enum { NR_COMMANDS = sizeof commands / sizeof commands[0] };

/* Programs that run qemu-img look at its version to know what it can do: under
 * that name we say the one whose behaviour we have.
 */
void
tool_print_version (void)
{
  if (strcmp (program, "nbdimg") == 0)
    printf ("nbdimg version %s\n", PACKAGE_VERSION);
  else
    printf ("%s version 7.2.0 (nbdimg %s)\n", program, PACKAGE_VERSION);
  puts ("Copyright the nbdimg developers");
}

static void
print_help (void)
{
  printf ("usage: %s [standard options] command [command options]\n"
          "Disk image utility\n\n"
          "  -h, --help       display this help and exit; with a command, its "
          "own\n"
          "  -V, --version    output version information and exit\n"
          "  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]\n"
          "                   print the debug messages of the library\n\n"
          "Commands:\n", program);
  for (size_t i = 0; i < NR_COMMANDS; ++i)
    printf ("  %-10s %s\n", commands[i].name, commands[i].summary);
  fputs ("\nSupported formats:", stdout);
  for (size_t i = 0; formats[i]; ++i)
    printf (" %s", formats[i]->name);
  puts ("\n\nAn image is a path, an NBD URI, json:{...}, or [ command args ], "
        "an NBD server\nthat is started for the purpose.\n\n"
        "Each command takes --object=secret,id=ID,file=PATH, and "
        "--object=tls-creds-x509\nor tls-creds-psk,id=ID,dir=FOLDER: what "
        "images are opened with.");
}

/* ---- start and end ---- */

/* A handler, since a signal that is ignored stays so in the programs that we
 * run.
 */
static void
on_sigpipe (int sig)
{
  (void) sig;
}

static void
set_program_name (const char *path)
{
  const char *slash = strrchr (path, '/');
  const char *name = slash ? slash + 1 : path;

  if (strcmp (name, "qemu-img") == 0)
    program = "qemu-img";
  else if (strcmp (name, "qemu-io") == 0)
    program = "qemu-io";
}

/* Text that could not be written is a failure, but not one to tell when the
 * reader went away.
 */
static int
finish (int status)
{
  bool failed = ferror (stdout);

  errno = 0;
  if (fflush (stdout) == EOF && errno != EPIPE) {
    tool_error ("standard output: %s", strerror (errno));
    failed = true;
  }
  if (status == 0 && (failed || errno == EPIPE))
    status = 1;
  if (status != 0)
    tool_reraise_signal ();
  return status;
}

/* ---- the command ---- */

static int
run_command (int argc, char **argv)
{
  for (size_t i = 0; i < NR_COMMANDS; ++i)
    if (strcmp (commands[i].name, argv[0]) == 0)
      return commands[i].run (argc, argv);
  return tool_misuse ("Command not found: %s", argv[0]);
}

/* The options before the command.  Returns the index of the command, or -1
 * when the program is over with STATUS.
 */
static int
standard_options (int argc, char **argv, int *status)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "trace", required_argument, NULL, 'T' },
    { NULL, 0, NULL, 0 },
  };
  int option, r;

  while ((option = getopt_long (argc, argv, "+:hVT:", options, NULL)) != -1) {
    *status = 0;
    switch (option) {
    case 'h':
      print_help ();
      return -1;
    case 'V':
      tool_print_version ();
      return -1;
    case 'T':
      r = tool_trace (optarg);
      *status = r == -1;
      if (r != 0)
        return -1;
      break;
    case ':':
      *status = tool_misuse ("missing argument for option '%s'",
                             argv[optind - 1]);
      return -1;
    default:
      *status = tool_misuse ("unrecognized option '%s'", argv[optind - 1]);
      return -1;
    }
  }
  if (optind < argc)
    return optind;
  *status = tool_misuse ("Not enough arguments");
  return -1;
}

static int
run_program (int argc, char **argv)
{
  int status = 1, first;

  if (strcmp (program, "qemu-io") == 0)
    return cmd_io (argc, argv);
  first = standard_options (argc, argv, &status);
  return first == -1 ? status : run_command (argc - first, argv + first);
}

int
main (int argc, char **argv)
{
  const struct sigaction pipe = { .sa_handler = on_sigpipe };
  struct tool_arguments arguments;
  struct error e = ERROR_INIT;
  int status;

  if (argc < 1)
    return 1;
  set_program_name (argv[0]);
  sigaction (SIGPIPE, &pipe, NULL);
  log_set_sink (tool_log);
  if (tool_cut_brackets (argc, argv, &arguments, &e) == -1)
    return finish (tool_fail (&e));
  status = finish (run_program (arguments.argc, arguments.argv));
  tool_free_arguments (&arguments);
  secret_forget_all ();
  tls_creds_forget_all ();
  return status;
}
