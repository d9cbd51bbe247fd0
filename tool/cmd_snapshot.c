/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg snapshot: see nbdimg-snapshot(1).  Layer: tool.  No locking: one
 * thread.
 */

#include <config.h>

#include <errno.h>

#include "tool/tool.h"

static const char usage[] =
"snapshot [--image-opts] [-f fmt] [-U] [-q] [-l | -a snapshot | -c snapshot | "
"-d snapshot]\n         filename\n"
"List, make, go back to, or remove the internal snapshots of an image.\n"
"\n"
"  -l, --list            list them; what is done when nothing else is asked\n"
"  -c, --create=NAME     make one of the disk as it is now\n"
"  -a, --apply=NAME      make the disk what it was then; NAME or ID\n"
"  -d, --delete=NAME     remove one; NAME or ID\n"
"  -f, --format=FMT      the image's format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"  -U, --force-share     list also while another program writes to it\n"
"  -q, --quiet           print nothing but errors and the list\n"
"  -h, --help   -V, --version\n";

struct request {
  struct tool_image image;
  struct snapshot_opts opts;
  int action;                   /* its letter, 0 = none was given */
  bool quiet;                   /* there is nothing to leave out */
};

static int
set_action (struct request *rq, int letter)
{
  if (rq->action) {
    tool_misuse ("Cannot mix '-l', '-a', '-c', '-d'");
    return -1;
  }
  rq->action = letter;
  return 0;
}

static int
set_list (void *rq, const char *none)
{
  (void) none;
  return set_action (rq, 'l');
}

static int
set_verb (struct request *rq, int letter, enum snapshot_verb verb,
          const char *name)
{
  rq->opts.verb = verb;
  rq->opts.name = name;
  return set_action (rq, letter);
}

static int
set_create (void *rq, const char *name)
{
  return set_verb (rq, 'c', SNAPSHOT_CREATE, name);
}

static int
set_apply (void *rq, const char *name)
{
  return set_verb (rq, 'a', SNAPSHOT_APPLY, name);
}

static int
set_delete (void *rq, const char *name)
{
  return set_verb (rq, 'd', SNAPSHOT_DELETE, name);
}

static int
parse (struct tool_args *args, struct request *rq)
{
  const struct tool_option options[] = {
    { "list", 'l', .set = set_list, .value = "" },
    { "create", 'c', .set = set_create },
    { "apply", 'a', .set = set_apply },
    { "delete", 'd', .set = set_delete },
    TOOL_IMAGE_OPTIONS (&rq->image),
    { "force-share", 'U', .flag = &rq->image.open.force_share },
    { "quiet", 'q', .flag = &rq->quiet },
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, rq) == -1
      || tool_one_name (args, &rq->image) == -1)
    return -1;
  return tool_check_image (&rq->image);
}

/* ---- */

static int
list (struct image *im)
{
  struct error e = ERROR_INIT;
  json_t *snapshots;

  if (op_snapshot_list (im, &snapshots, &e) == -1)
    return tool_fail (&e);
  if (json_array_size (snapshots) > 0)
    print_snapshots (snapshots);
  json_decref (snapshots);
  return 0;
}

/* qemu-img's words, and then the reason, where it has a number or none. */
static int
fail (const struct request *rq, const struct error *e)
{
  const char *name = rq->opts.name;
  const char *why = e->text;

  switch (rq->opts.verb) {
  case SNAPSHOT_CREATE:
    tool_error ("Could not create snapshot '%s': %s", name, why);
    break;
  case SNAPSHOT_APPLY:
    tool_error ("Could not apply snapshot '%s': %s", name, e->err == ENOENT
                ? "Failed to load snapshot: No such file or directory" : why);
    break;
  case SNAPSHOT_DELETE:
    tool_error ("Could not delete snapshot '%s': %s", name,
                e->err == ENOENT ? "snapshot not found" : why);
    break;
  }
  return 1;
}

static int
run (const struct request *rq, struct image *im)
{
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct error e = ERROR_INIT;

  if (rq->action == 0 || rq->action == 'l')
    return list (im);
  return op_snapshot (im, &rq->opts, &ctx, &e) == 0 ? 0 : fail (rq, &e);
}

int
cmd_snapshot (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .action = 0 };
  struct image *im;
  int status;

  if (parse (&args, &rq) == -1)
    return args.status;
  rq.image.open.writable = rq.action != 0 && rq.action != 'l';
  rq.image.open.discard = true;
  rq.image.open.no_backing = true;
  im = tool_open (&rq.image);
  if (!im)
    return 1;
  status = run (&rq, im);
  return tool_close (im) == -1 ? 1 : status;
}
