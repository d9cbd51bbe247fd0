/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* From the name that a user gives to a tree of options: see image.h.
 *
 * Layer: image.  No locking, no state.  Which names mean what follows qemu-img
 * (tried), with the URLs of nbdkit's plugins and [ command ] added.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "image/image.h"
#include "image/name.h"
#include "image/tree.h"
#include "image/url.h"

static bool
begins (const char *name, const char *prefix)
{
  return strncmp (name, prefix, strlen (prefix)) == 0;
}

bool
name_has_protocol (const char *name)
{
  return name[strcspn (name, ":/")] == ':';
}

/* ---- nodes ---- */

json_t *
name_string (const char *text, struct error *e)
{
  /* A path may be any bytes: no check for UTF-8. */
  json_t *r = json_string_nocheck (text);

  if (!r)
    error_nomem (e, "a name", strlen (text));
  return r;
}

/* {"driver": DRIVER, KEY: VALUE} */
static json_t *
storage_node (const char *driver, const char *key, const char *value,
              struct error *e)
{
  json_t *node = json_object ();
  json_t *text = name_string (value, e);

  if (node && text
      && json_object_set_new (node, "driver", json_string (driver)) == 0
      && json_object_set (node, key, text) == 0) {
    json_decref (text);
    return node;
  }
  error_nomem (e, "a name", strlen (value));
  json_decref (node);
  json_decref (text);
  return NULL;
}

static json_t *
file_node (const char *driver, const char *path, struct error *e)
{
  if (*path == '\0') {
    error_set (e, EINVAL, "The '%s' block driver requires a file name",
               driver);
    return NULL;
  }
  return storage_node (driver, "filename", path, e);
}

static json_t *
old_nbd_node (const char *name, struct error *e)
{
  CLEANUP_FREE char *uri = nbd_name_to_uri (name, e);

  return uri ? storage_node ("nbd", "uri", uri, e) : NULL;
}

/* "c:d" may be a file of that name, or a slip in the name of a protocol. */
static json_t *
unknown_protocol (const char *name, bool strict, struct error *e)
{
  int len = (int) strcspn (name, ":");
  struct stat st;

  if (!strict && lstat (name, &st) == 0)
    return file_node ("file", name, e);
  error_set (e, EINVAL, "Unknown protocol '%.*s' (a file of this name is "
             "./%s)", len, name, name);
  return NULL;
}

json_t *
name_to_storage (const char *name, bool strict, struct error *e)
{
  if (nbd_is_uri (name))
    return storage_node ("nbd", "uri", name, e);
  if (begins (name, "nbd:"))
    return old_nbd_node (name, e);
  if (url_is_known (name))
    return url_to_storage (name, e);
  if (begins (name, "file:"))
    return file_node ("file", name + strlen ("file:"), e);
  if (begins (name, "host_device:"))
    return file_node ("host_device", name + strlen ("host_device:"), e);
  if (begins (name, "null-co://"))
    return json_pack ("{ss}", "driver", "null-co");
  if (name_has_protocol (name))
    return unknown_protocol (name, strict, e);
  return file_node ("file", name, e);
}

/* ---- json: ---- */

/* Copy the string at P, up to its closing quote, to OUT, with double quotes.
 * Sets *END to what is behind it in OUT; returns that in P.
 */
static const char *
requote_string (const char *p, char *out, char **end)
{
  char quote = *p++;

  *out++ = '"';
  for (; *p && *p != quote; ++p) {
    bool escape = *p == '\\' && p[1];

    p += escape;
    /* JSON has no escape for a single quote. */
    if (escape ? *p != '\'' : *p == '"')
      *out++ = '\\';
    *out++ = *p;
  }
  if (*p)
    *out++ = '"';
  *end = out;
  return *p ? p + 1 : p;
}

/* As QEMU does, take 'text' for "text".  Returns owned, NULL = no memory. */
static char *
requote (const char *json)
{
  char *copy = malloc (2 * strlen (json) + 1), *out = copy;

  if (!copy)
    return NULL;
  while (*json) {
    if (*json == '"' || *json == '\'')
      json = requote_string (json, out, &out);
    else
      *out++ = *json++;
  }
  *out = '\0';
  return copy;
}

json_t *
name_json_to_tree (const char *name, const char *format, struct error *e)
{
  CLEANUP_FREE char *text = requote (name + strlen ("json:"));
  json_error_t bad = { .position = 0 };
  json_t *options = text ? json_loads (text, JSON_REJECT_DUPLICATES, &bad)
    : NULL;
  json_t *tree;

  if (!text) {
    error_nomem (e, "a name", strlen (name));
    return NULL;
  }
  if (!options) {
    error_set (e, EINVAL, "Could not parse the JSON options: %s (at byte %d)",
               bad.text, bad.position);
    return NULL;
  }
  tree = tree_from_user (options, format, e);
  json_decref (options);
  return tree;
}

/* A JSON array of texts, or NULL: then NAME is something else. */
static json_t *
command_of (const char *name)
{
  json_t *argv = *name == '[' ? json_loads (name, 0, NULL) : NULL;
  size_t i;
  json_t *arg;
  bool texts = json_array_size (argv) > 0;

  json_array_foreach (argv, i, arg)
    texts = texts && json_is_string (arg);
  if (texts)
    return argv;
  json_decref (argv);
  return NULL;
}

/* ---- the calls of image.h ---- */

json_t *
image_name_parse (const char *name, const char *format, struct error *e)
{
  json_t *argv, *node, *tree;

  if (begins (name, "json:"))
    return name_json_to_tree (name, format, e);
  argv = command_of (name);
  node = argv ? json_pack ("{ssso}", "driver", "nbd", "command", argv)
    : name_to_storage (name, false, e);
  if (!node) {
    if (!e->err)
      error_nomem (e, "a name", strlen (name));
    return NULL;
  }
  tree = tree_with_format (node, format, e);
  if (tree && tree_check (tree, e) == -1) {
    json_decref (tree);
    return NULL;
  }
  return tree;
}

/* Cut "key=value" off *TEXT; a doubled comma is one comma of the value.  The
 * two parts are written into the string itself.
 */
static int
next_option (char **text, char **key, char **value, struct error *e)
{
  char *p = *text, *d;

  *key = p;
  p += strcspn (p, "=,");
  if (*p != '=')
    return error_set (e, EINVAL, "image options: '%.*s' is not key=value",
                      (int) (p - *key), *key);
  *p++ = '\0';
  *value = d = p;
  for (; *p && (*p != ',' || p[1] == ','); ++p) {
    p += *p == ',';
    *d++ = *p;
  }
  *text = *p ? p + 1 : p;
  *d = '\0';
  return 0;
}

static int
add_option (json_t *options, const char *key, const char *value,
            struct error *e)
{
  json_t *text;

  if (json_object_get (options, key))
    return error_set (e, EINVAL, "the option '%s' is given twice", key);
  text = name_string (value, e);
  if (!text)
    return -1;
  return json_object_set_new (options, key, text) == 0 ? 0
    : error_set (e, EINVAL, "'%s' is not the name of an option", key);
}

json_t *
image_opts_parse (const char *opts, struct error *e)
{
  CLEANUP_FREE char *copy = strdup (opts);
  json_t *options = json_object (), *tree = NULL;
  char *p = copy, *key = NULL, *value = NULL;
  int r = 0;

  if (!copy || !options)
    r = error_nomem (e, "image options", strlen (opts));
  while (r == 0 && *p) {
    r = next_option (&p, &key, &value, e);
    if (r == 0)
      r = add_option (options, key, value, e);
  }
  if (r == 0)
    tree = tree_from_user (options, NULL, e);
  json_decref (options);
  return tree;
}

/* ---- relative names ---- */

/* The path that PARENT is, NULL when it is none.  *TREE (owned) holds it when
 * PARENT is json:.
 */
static const char *
parent_path (const char *parent, json_t **tree)
{
  struct error e = ERROR_INIT;

  *tree = NULL;
  if (begins (parent, "json:")) {
    *tree = name_json_to_tree (parent, NULL, &e);
    return *tree ? tree_filename (*tree) : NULL;
  }
  if (nbd_is_uri (parent) || begins (parent, "nbd:") || url_is_known (parent)
      || begins (parent, "null-co:") || begins (parent, "[ "))
    return NULL;
  if (begins (parent, "file:"))
    return parent + strlen ("file:");
  return parent;
}

bool
image_name_is_resolvable (const char *parent, const char *name)
{
  json_t *tree = NULL;
  bool r = *name == '/' || name_has_protocol (name)
    || parent_path (parent, &tree);

  json_decref (tree);
  return r;
}

char *
image_name_resolve (const char *parent, const char *name)
{
  json_t *tree = NULL;
  const char *path, *slash;
  char *r;

  if (*name == '/' || name_has_protocol (name))
    return strdup (name);
  path = parent_path (parent, &tree);
  slash = path ? strrchr (path, '/') : NULL;
  r = slash ? format_text ("%.*s/%s", (int) (slash - path), path, name)
    : strdup (name);
  json_decref (tree);
  return r;
}

struct image *
image_open_name (const char *name, const char *format,
                 const struct image_open_options *options, struct error *e)
{
  json_t *tree = image_name_parse (name, format, e);
  struct image *im = tree ? image_open (tree, options, e) : NULL;

  json_decref (tree);
  return im;
}
