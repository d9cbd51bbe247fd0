/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* From what a user writes (json:, --image-opts) to a tree: see tree.h.
 *
 * Layer: image.  No locking, no state.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/text.h"
#include "image/name.h"
#include "image/tree.h"

static int
nomem (struct error *e)
{
  return error_nomem (e, "image options", 0);
}

static int
set_new (json_t *object, const char *key, json_t *value, struct error *e)
{
  return json_object_set_new (object, key, value) == 0 ? 0 : nomem (e);
}

/* ---- "file.driver": "file" -> "file": {"driver": "file"} ---- */

static json_t *unfold (const json_t *in, unsigned depth, struct error *e);

static int unfold_into (json_t *out, const char *key, json_t *value,
                        struct error *e);

/* KEY is there already: two objects ("file" and "file.x") become one. */
static int
join (json_t *old, const char *key, json_t *value, struct error *e)
{
  const char *name;
  json_t *v;

  if (!json_is_object (old) || !json_is_object (value))
    return error_set (e, EINVAL, "the option '%s' is given twice", key);
  json_object_foreach (value, name, v)
    if (unfold_into (old, name, v, e) == -1)
      return -1;
  return 0;
}

/* Put VALUE (borrowed, unfolded) at the place that the dotted KEY means. */
static int
unfold_into (json_t *out, const char *key, json_t *value, struct error *e)
{
  for (;;) {
    size_t len = strcspn (key, ".");
    char part[64];
    json_t *next;

    if (len == 0 || len >= sizeof part)
      return error_set (e, EINVAL, "'%s' is not the name of an option", key);
    memcpy (part, key, len);
    part[len] = '\0';
    next = json_object_get (out, part);
    if (key[len] == '\0') {
      if (next)
        return join (next, part, value, e);
      return json_object_set (out, part, value) == 0 ? 0 : nomem (e);
    }
    if (!next) {
      if (set_new (out, part, json_object (), e) == -1)
        return -1;
      next = json_object_get (out, part);
    }
    else if (!json_is_object (next))
      return error_set (e, EINVAL, "the option '%s' is given twice", part);
    out = next;
    key += len + 1;
  }
}

static int
unfold_member (json_t *out, const char *key, json_t *value, unsigned depth,
               struct error *e)
{
  json_t *inner = NULL;
  int r;

  if (json_is_object (value)) {
    inner = unfold (value, depth + 1, e);
    if (!inner)
      return -1;
  }
  r = unfold_into (out, key, inner ? inner : value, e);
  json_decref (inner);
  return r;
}

static json_t *
unfold (const json_t *in, unsigned depth, struct error *e)
{
  json_t *out = json_object (), *value;
  const char *key;

  if (!out) {
    nomem (e);
    return NULL;
  }
  if (depth > TREE_MAX_DEPTH)
    error_set (e, ELOOP, "image options are nested deeper than %d",
               TREE_MAX_DEPTH);
  json_object_foreach ((json_t *) in, key, value)
    if (e->err || unfold_member (out, key, value, depth, e) == -1)
      break;
  if (!e->err)
    return out;
  json_decref (out);
  return NULL;
}

/* ---- what is meant, but not said ---- */

static int storage_node (json_t *parent, const char *key, struct error *e);

/* QEMU takes a text here as the name of a node that exists: none does. */
static int
refuse_reference (const json_t *value, struct error *e)
{
  const char *name = json_string_value (value);

  return error_set (e, ENOENT, "Cannot find device='%s' nor node-name='%s'",
                    name ? name : "", name ? name : "");
}

/* {"command": {"0": "nbdkit", ...}} comes of --image-opts command.0=... */
static int
resolve_command (json_t *node, struct error *e)
{
  json_t *command = json_object_get (node, "command");
  json_t *argv = json_array ();
  int bad = !argv;

  for (size_t i = 0; !bad && i < json_object_size (command); ++i) {
    char index[24];
    json_t *arg;

    snprintf (index, sizeof index, "%zu", i);
    arg = json_object_get (command, index);
    if (!arg) {
      json_decref (argv);
      return error_set (e, EINVAL, "command: argument %zu is missing", i);
    }
    bad = json_array_append (argv, arg);
  }
  if (bad) {
    json_decref (argv);
    return nomem (e);
  }
  return set_new (node, "command", argv, e);
}

static int
storage_node (json_t *parent, const char *key, struct error *e)
{
  json_t *node = json_object_get (parent, key);

  if (!json_is_object (node))
    return refuse_reference (node, e);
  if (json_is_object (json_object_get (node, "command"))
      && resolve_command (node, e) == -1)
    return -1;
  if (!tree_text (node, "driver")) {
    if (tree_text (node, "filename"))   /* a path, whatever it looks like */
      return set_new (node, "driver", json_string ("file"), e);
    if (!json_object_get (node, "file"))
      return error_set (e, EINVAL, "%s: Must specify either driver or file",
                        key);
    if (set_new (node, "driver", json_string ("raw"), e) == -1)
      return -1;
  }
  return json_object_get (node, "file") ? storage_node (node, "file", e) : 0;
}

/* The bytes of a protocol are what is asked for.  Takes NODE. */
static json_t *
wrap_protocol (json_t *node, const char *format, struct error *e)
{
  json_t *outer = json_object ();

  if (!outer || json_object_set (outer, "file", node) == -1
      || json_object_set_new (outer, "driver",
                              json_string (format ? format : "raw")) == -1) {
    nomem (e);
    json_decref (outer);
    outer = NULL;
  }
  json_decref (node);
  return outer;
}

static json_t *layer_node (json_t *node, const char *format, bool backing,
                           struct error *e);

static int
backing_node (json_t *node, struct error *e)
{
  json_t *backing = json_object_get (node, "backing");
  const char *text = json_string_value (backing);

  if (!backing || json_is_null (backing))
    return 0;
  if (text && *text == '\0') {
    log_warning ("Use of \"backing\": \"\" is deprecated; use \"backing\": "
                 "null instead");
    return set_new (node, "backing", json_null (), e);
  }
  if (!json_is_object (backing)) {
    refuse_reference (backing, e);
    return error_prefix (e, "Could not open backing file");
  }
  backing = layer_node (json_incref (backing), NULL, true, e);
  if (!backing)
    return error_prefix (e, "Could not open backing file");
  return set_new (node, "backing", backing, e);
}

/* null, or nothing in it: as if it were not there. */
static void
drop_empty (json_t *node, const char *key)
{
  const json_t *value = json_object_get (node, key);

  if (json_is_null (value)
      || (json_is_object (value) && json_object_size (value) == 0))
    json_object_del (node, key);
}

static int
layer_children (json_t *node, bool backing, struct error *e)
{
  const json_t *file;

  drop_empty (node, "file");
  drop_empty (node, "data-file");
  file = json_object_get (node, "file");
  if (file) {
    if ((!backing || !json_is_object (file) || tree_says_where (file))
        && storage_node (node, "file", e) == -1)
      return -1;
  }
  else if (!backing)            /* a backing file may be named by the image */
    return error_set (e, EINVAL, "A block device must be specified for "
                      "\"file\"");
  if (backing_node (node, e) == -1
      || (json_object_get (node, "header")
          && storage_node (node, "header", e) == -1))
    return -1;
  return json_object_get (node, "data-file")
    ? storage_node (node, "data-file", e) : 0;
}

static int
set_format (json_t *node, const char *format, struct error *e)
{
  const char *driver = tree_text (node, "driver");

  if (!format)
    return 0;
  if (driver && strcmp (driver, format) != 0)
    return error_set (e, EINVAL, "the format '%s' contradicts the driver '%s' "
                      "of the image options", format, driver);
  return set_new (node, "driver", json_string (format), e);
}

/* Takes NODE, returns owned.  BACKING: in place of an image's backing file,
 * where "file" and "driver" may be left to what the image says.
 */
static json_t *
layer_node (json_t *node, const char *format, bool backing, struct error *e)
{
  enum tree_driver driver;

  if (tree_driver (node, &driver, NULL, e) == -1)
    goto bad;
  if (driver != DRIVER_NONE && !tree_driver_is_format (driver)) {
    node = wrap_protocol (node, format, e);
    if (node && storage_node (node, "file", e) == 0)
      return node;
    goto bad;
  }
  if (driver == DRIVER_NONE && !backing && !json_object_get (node, "file")) {
    error_set (e, EINVAL, "Must specify either driver or file");
    goto bad;
  }
  if (set_format (node, format, e) == 0
      && layer_children (node, backing, e) == 0)
    return node;
 bad:
  json_decref (node);
  return NULL;
}

json_t *
tree_from_user (const json_t *options, const char *format, struct error *e)
{
  json_t *tree;

  if (!json_is_object (options)) {
    error_set (e, EINVAL, "Invalid JSON object given");
    return NULL;
  }
  tree = unfold (options, 0, e);
  if (tree)
    tree = layer_node (tree, format, false, e);
  if (tree && tree_check (tree, e) == -1) {
    json_decref (tree);
    tree = NULL;
  }
  return tree;
}

json_t *
tree_with_format (json_t *storage, const char *format, struct error *e)
{
  if (!format)
    return storage;
  if (!format_lookup (format, e)) {
    json_decref (storage);
    return NULL;
  }
  return wrap_protocol (storage, format, e);
}
