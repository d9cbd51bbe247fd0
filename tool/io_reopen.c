/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: reopen.
 *
 * Layer: tool.  No locking: the main thread.
 *
 * The image is closed and opened again; -o is laid over the tree of options
 * that it was opened with, and stays for later reopens.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "tool/io.h"
#include "tool/tool.h"

/* ---- options ---- */

/* The image stays the same one: what says where it is does not change. */
static bool
may_change (const char *key)
{
  static const char *const fixed[] = {
    "driver", "node-name", "file", "backing", "data-file", "header",
    "filename", "offset", "size", "uri", "server", "host", "port", "path",
    "export", "command", "url",
  };
  size_t len = strcspn (key, ".");

  for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; ++i)
    if (strlen (fixed[i]) == len && strncmp (fixed[i], key, len) == 0)
      return false;
  return true;
}

static int
nomem (struct error *e)
{
  return error_nomem (e, "image options", 0);
}

/* One "key=value" into CHANGES; read-only is what -r and -w say. */
static int
add_change (struct io_how *how, bool mode_given, bool cache_given, char *item)
{
  char *value = strchr (item, '=');
  struct error e = ERROR_INIT;

  if (!value || value == item) {
    tool_error ("reopen -o: %s: key=value is wanted", item);
    return -1;
  }
  *value++ = '\0';
  if (!may_change (item)) {
    tool_error ("Cannot change the option '%s'", item);
    return -1;
  }
  if (strcmp (item, "read-only") == 0 && !mode_given) {
    if (parse_bool (item, value, &how->readonly, &e) == 0)
      return 0;
    tool_fail (&e);
    return -1;
  }
  if (strcmp (item, "read-only") == 0
      || (cache_given && strncmp (item, "cache.", 6) == 0)) {
    tool_error ("Cannot set both %s",
                *item == 'r' ? "-r/-w and 'read-only'"
                : "-c and the cache options");
    return -1;
  }
  if (json_object_set_new (how->changes, item, json_string (value)) == 0)
    return 0;
  tool_error ("reopen -o: %s: out of memory, or no UTF-8", item);
  return -1;
}

/* "key=value,..." with "," doubled inside a value. */
static int
add_changes (struct io_how *how, bool mode_given, bool cache_given,
             const char *text)
{
  CLEANUP_FREE char *item = malloc (strlen (text) + 1);

  if (!item) {
    tool_error ("out of memory");
    return -1;
  }
  while (*text) {
    char *to = item;

    for (; *text; ++text) {
      if (*text == ',' && *++text != ',')
        break;
      *to++ = *text;
    }
    *to = '\0';
    if (add_change (how, mode_given, cache_given, item) == -1)
      return -1;
  }
  return 0;
}

/* NODE.a.b = VALUE for the key "a.b". */
static int
set_path (json_t *node, const char *key, json_t *value)
{
  const char *dot = strchr (key, '.');
  CLEANUP_FREE char *name = dot ? strndup (key, (size_t) (dot - key)) : NULL;
  json_t *below;

  if (!dot)
    return json_object_set (node, key, value);
  if (!name)
    return -1;
  below = json_object_get (node, name);
  if (!json_is_object (below)) {
    below = json_object ();
    if (json_object_set_new (node, name, below) == -1)
      return -1;
  }
  return set_path (below, dot + 1, value);
}

int
io_apply_changes (json_t *tree, const json_t *changes, struct error *e)
{
  const char *key;
  json_t *value;

  json_object_foreach ((json_t *) changes, key, value)
    if (set_path (tree, key, value) == -1)
      return nomem (e);
  return 0;
}

/* ---- the command ---- */

struct request {
  bool r, w, cache;
  enum cache_mode mode;
  const char *options;
};

static int
parse (struct request *rq, int argc, char **argv)
{
  int option;

  while ((option = io_getopt (argc, argv, "rwc:o:")) != -1) {
    switch (option) {
    case 'r': rq->r = true; break;
    case 'w': rq->w = true; break;
    case 'o': rq->options = optarg; break;
    case 'c':
      rq->cache = true;
      if (tool_cache ("cache option", optarg, &rq->mode) == -1)
        return -1;
      break;
    default:
      return -1;
    }
  }
  if (rq->r && rq->w) {
    tool_error ("Only one -r/-w option may be given");
    return -1;
  }
  return argc == optind ? 0 : io_usage (argv[0]);
}

/* What -c says holds, not what -o cache.* said before. */
static void
forget_cache (json_t *changes)
{
  const char *key;
  json_t *value;
  void *next;

  json_object_foreach_safe (changes, next, key, value)
    if (strncmp (key, "cache.", 6) == 0)
      json_object_del (changes, key);
}

/* Options need the format's node.  An image that looked like raw stays one that
 * was probed: its first sectors are guarded.
 */
static int
name_format (struct io_how *how, const struct image *im)
{
  if (how->format || how->image_opts || how->options)
    return 0;
  if (im->probed && im->format->info.identity) {
    tool_error ("reopen -o: no format was named for %s; open it with -f raw",
                im->name);
    return -1;
  }
  how->format = strdup (im->format->ops->name);
  return how->format ? 0 : -1;
}

static int
change (struct io_how *how, const struct image *im, const struct request *rq)
{
  json_t *changes = how->changes ? json_copy (how->changes) : json_object ();

  json_decref (how->changes);
  how->changes = changes;
  if (!changes) {
    tool_error ("out of memory");
    return -1;
  }
  if (rq->r || rq->w)
    how->readonly = rq->r;
  if (rq->cache) {
    how->cache = rq->mode;
    forget_cache (changes);
  }
  if (!rq->options)
    return 0;
  if (name_format (how, im) == -1)
    return -1;
  return add_changes (how, rq->r || rq->w, rq->cache, rq->options);
}

/* Closed and opened again, and as before when that fails. */
static int
reopen (struct io_shell *sh, const struct io_how *how,
        const struct io_how *before)
{
  if (io_close (sh) == -1)
    return -1;
  if (io_open (sh, how) == 0)
    return 0;
  io_open (sh, before);
  return -1;
}

static int
run_reopen (struct io_shell *sh, int argc, char **argv)
{
  struct request rq = { .r = false };
  struct io_how before, how;
  int r = -1;

  if (parse (&rq, argc, argv) == -1)
    return -1;
  if (sh->how.snapshot) {
    tool_error ("reopen would lose what was written with -s");
    return -1;
  }
  if (io_how_copy (&before, &sh->how) == -1)
    return -1;
  if (io_how_copy (&how, &sh->how) == 0) {
    if (change (&how, sh->image, &rq) == 0)
      r = reopen (sh, &how, &before);
    io_how_free (&how);
  }
  io_how_free (&before);
  return r;
}

const struct io_command io_reopen_commands[] = {
  { "reopen", NULL, run_reopen, 0, -1, IO_FILE,
    "[(-r|-w)] [-c cache] [-o options]", "opens the image in another way",
    " -r  read-only\n"
    " -w  for writing\n"
    " -c  cache mode\n"
    " -o  key=value,... : other options, but not another image\n"
    "\n"
    " reopen -o discard=ignore,cache-size=4M" },
  { NULL, NULL, NULL, 0, 0, IO_NOTHING, NULL, NULL, NULL },
};
