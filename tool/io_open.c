/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: open, close.
 *
 * Layer: tool.  No locking: the main thread; all requests are waited for
 * before an image is closed.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "tool/io.h"
#include "tool/tool.h"

void
io_how_free (struct io_how *how)
{
  free (how->name);
  free (how->format);
  free (how->options);
  json_decref (how->changes);
  *how = (struct io_how) { .name = NULL };
}

/* ---- from a name and options to a tree ---- */

static int
nomem (struct error *e)
{
  return error_nomem (e, "image options", 0);
}

/* Append ",PREFIX.key=value" for each member of NODE to *TEXT, "," doubled. */
static int
flatten (char **text, const char *prefix, const json_t *node, struct error *e)
{
  const char *key;
  json_t *value;

  json_object_foreach ((json_t *) node, key, value) {
    CLEANUP_FREE char *name = format_text ("%s.%s", prefix, key);
    CLEANUP_FREE char *item = json_is_string (value)
      ? tool_double_commas (json_string_value (value))
      : json_dumps (value, JSON_ENCODE_ANY);
    char *longer;

    if (!name || !item)
      return nomem (e);
    if (json_is_object (value)) {
      if (flatten (text, name, value, e) == -1)
        return -1;
      continue;
    }
    longer = format_text ("%s,%s=%s", *text, name, item);
    if (!longer)
      return nomem (e);
    free (*text);
    *text = longer;
  }
  return 0;
}

/* open -o OPTIONS NAME: the options are the layer's, the name its file. */
static json_t *
parse_with_options (const struct io_how *how, struct error *e)
{
  CLEANUP_FREE char *text = strdup (how->options);
  json_t *file = NULL, *tree = NULL;

  if (!text) {
    nomem (e);
    return NULL;
  }
  if (how->name) {
    file = image_name_parse (how->name, NULL, e);
    if (!file || flatten (&text, "file", file, e) == -1) {
      json_decref (file);
      return NULL;
    }
  }
  tree = image_opts_parse (text, e);
  json_decref (file);
  return tree;
}

static json_t *
parse_how (const struct io_how *how, struct error *e)
{
  json_t *tree;

  if (how->options)
    tree = parse_with_options (how, e);
  else if (how->image_opts)
    tree = image_opts_parse (how->name, e);
  else
    tree = image_name_parse (how->name, how->format, e);
  if (!tree || !how->changes
      || io_apply_changes (tree, how->changes, e) == 0)
    return tree;
  json_decref (tree);
  return NULL;
}

/* ---- -s: a temporary overlay ---- */

static uint64_t
size_of (json_t *tree, const struct image_open_options *o,
         const struct format_ops **format, struct error *e)
{
  struct image *im = image_open (tree, o, e);
  struct error ignored = ERROR_INIT;
  uint64_t size;

  if (!im)
    return UINT64_MAX;
  size = image_size (im);
  *format = im->format->ops;
  image_close (im, &ignored);
  return size;
}

/* {"driver": "qcow2", "file": {"filename": PATH}, "backing": TREE} */
static json_t *
overlay_tree (const char *path, json_t *tree, const char *format,
              struct error *e)
{
  json_t *backing = json_object_get (tree, "file")
    ? json_incref (tree)
    : json_pack ("{s:s, s:O}", "driver", format, "file", tree);
  json_t *r = json_pack ("{s:s, s:{s:s, s:s}, s:o}", "driver", "qcow2",
                         "file", "driver", "file", "filename", path,
                         "backing", backing);

  if (!r)
    nomem (e);
  return r;
}

static json_t *
make_overlay (const char *path, json_t *tree,
              const struct image_open_options *o, struct error *e)
{
  struct image_open_options readonly = *o;
  const struct format_ops *format;
  struct format_create_options create = { .options = json_object () };
  int r = -1;

  readonly.writable = false;
  create.size = size_of (tree, &readonly, &format, e);
  if (create.size != UINT64_MAX && create.options)
    r = image_create (path, format_by_name ("qcow2"), &create,
                      CACHE_UNSAFE, e);
  json_decref (create.options);
  return r == 0 ? overlay_tree (path, tree, format->name, e) : NULL;
}

/* Writes go to a file that is unlinked as soon as it is open. */
static struct image *
open_over (json_t *tree, const struct image_open_options *o, struct error *e)
{
  const char *dir = getenv ("TMPDIR");
  CLEANUP_FREE char *path = format_text ("%s/nbdimg-io-XXXXXX",
                                         dir && *dir ? dir : "/var/tmp");
  struct image *im = NULL;
  json_t *overlay;
  int fd = path ? mkstemp (path) : -1;

  if (fd == -1) {
    error_errno (e, errno, "%s: a temporary file", path ? path : "");
    return NULL;
  }
  close (fd);
  overlay = make_overlay (path, tree, o, e);
  if (overlay)
    im = image_open (overlay, o, e);
  json_decref (overlay);
  unlink (path);
  return im;
}

/* ---- open and close ---- */

static struct image *
open_image (const struct io_how *how, struct error *e)
{
  struct image_open_options o = {
    .writable = !how->readonly,
    .force_share = how->force_share,
    .discard = !how->no_discard,
    .cache = how->cache,
    .backing_cache = how->cache,
  };
  json_t *tree;
  struct image *im;

  if (how->copy_on_read && how->readonly) {
    error_set (e, EINVAL, "Can't use copy-on-read on read-only device");
    return NULL;
  }
  if (how->force_share && !how->readonly) {
    error_set (e, EINVAL, "force-share=on can only be used with read-only "
               "images");
    return NULL;
  }
  tree = parse_how (how, e);
  if (!tree)
    return NULL;
  im = how->snapshot && !how->readonly ? open_over (tree, &o, e)
    : image_open (tree, &o, e);
  json_decref (tree);
  return im;
}

static int
copy_string (char **to, const char *from)
{
  *to = from ? strdup (from) : NULL;
  return from && !*to ? -1 : 0;
}

int
io_how_copy (struct io_how *to, const struct io_how *from)
{
  *to = *from;
  to->name = to->format = to->options = NULL;
  json_incref (to->changes);
  if (copy_string (&to->name, from->name) == 0
      && copy_string (&to->format, from->format) == 0
      && copy_string (&to->options, from->options) == 0)
    return 0;
  io_how_free (to);
  tool_error ("out of memory");
  return -1;
}

int
io_open (struct io_shell *sh, const struct io_how *how)
{
  const char *conflict = tool_native_conflict (how->native, how->cache);
  struct error e = ERROR_INIT;

  if (sh->image) {
    tool_error ("file open already, try 'help close'");
    return -1;
  }
  if (how->name && !how->image_opts && conflict) {
    tool_error ("can't open device %s: %s", how->name, conflict);
    return -1;
  }
  if (io_how_copy (&sh->how, how) == -1)
    return -1;
  sh->image = open_image (how, &e);
  if (sh->image) {
    tool_warn_of_probing (sh->image);
    return 0;
  }
  if (how->name && !how->image_opts)
    tool_error ("can't open device %s: %s", how->name,
                tool_without_name (how->name, &e));
  else
    tool_error ("can't open: %s", e.text);
  io_how_free (&sh->how);
  return -1;
}

int
io_close (struct io_shell *sh)
{
  struct image *im = sh->image;
  struct error e = ERROR_INIT;

  io_reap (sh, true);
  sh->image = NULL;
  io_how_free (&sh->how);
  if (image_close (im, &e) == 0)
    return 0;
  tool_fail (&e);
  return -1;
}

/* ---- options ---- */

int
io_set_discard (struct io_how *how, const char *text)
{
  how->no_discard = strcmp (text, "ignore") == 0 || strcmp (text, "off") == 0;
  if (how->no_discard || strcmp (text, "unmap") == 0
      || strcmp (text, "on") == 0)
    return 0;
  tool_error ("Invalid discard option: %s", text);
  return -1;
}

static int
set_option (struct io_how *how, int option, char *arg)
{
  switch (option) {
  case 'r': how->readonly = true; return 0;
  case 's': how->snapshot = true; return 0;
  case 'U': how->force_share = true; return 0;
  case 'n': how->cache = CACHE_NONE; return 0;
  case 'd': return io_set_discard (how, arg);
  case 't': return tool_cache ("cache option", arg, &how->cache);
  case 'i': return tool_aio (arg, &how->native);
  case 'k': return tool_aio ("native", &how->native);
  case 'o': how->options = arg; return 0;
  case 'C': how->copy_on_read = true; return 0;
  }
  return -1;
}

/* Strings of HOW are ARGV's here, and copied by io_open. */
static int
run_open (struct io_shell *sh, int argc, char **argv)
{
  struct io_how how = { .cache = CACHE_WRITEBACK };
  int option;

  while ((option = io_getopt (argc, argv, "rsCnkUi:t:d:o:")) != -1)
    if (set_option (&how, option, optarg) == -1)
      return -1;
  if (!sh->image && (argc - optind > 1 || (argc == optind && !how.options)))
    return io_usage (argv[0]);
  how.name = argv[optind];
  return io_open (sh, &how);
}

static int
run_close (struct io_shell *sh, int argc, char **argv)
{
  (void) argc;
  (void) argv;
  return io_close (sh);
}

const struct io_command io_open_commands[] = {
  { "open", "o", run_open, 1, -1, IO_NOTHING,
    "[-rsCnkU] [-t cache] [-d discard] [-i aio] [-o options] [path]",
    "opens an image",
    " -r  read-only\n"
    " -s  what is written is thrown away at the end\n"
    " -U  also while another program writes to it; needs -r\n"
    " -t  cache mode: none, writeback, writethrough, directsync, unsafe\n"
    " -n  -t none\n"
    " -d  discard: unmap (default) or ignore\n"
    " -o  key=value,... for the image\n"
    " -C  what is read from the backing file is kept in the image\n"
    " -i  threads, native, io_uring: threads make the requests in any case\n"
    " -k  -i native\n"
    "\n"
    " open -n -o driver=raw /tmp/data" },
  { "close", "c", run_close, 0, 0, IO_FILE, "", "closes the image", NULL },
  { NULL, NULL, NULL, 0, 0, IO_NOTHING, NULL, NULL, NULL },
};
