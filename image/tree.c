/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Reading a tree of options: see tree.h.
 *
 * Layer: image.  No locking: a tree belongs to one thread.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "image/name.h"
#include "image/tree.h"

static const struct {
  const char *name;
  enum tree_driver driver;
} protocols[] = {
  { "file", DRIVER_FILE },
  { "host_device", DRIVER_DEVICE },
  { "nbd", DRIVER_NBD },
  { "null-co", DRIVER_NULL },
};

int
tree_driver (const json_t *node, enum tree_driver *driver,
             const struct format_ops **format, struct error *e)
{
  const char *name = tree_text (node, "driver");
  const struct format_ops *f;

  if (format)
    *format = NULL;
  *driver = DRIVER_NONE;
  if (!name)
    return 0;
  for (size_t i = 0; i < sizeof protocols / sizeof protocols[0]; ++i) {
    if (strcmp (name, protocols[i].name) == 0) {
      *driver = protocols[i].driver;
      return 0;
    }
  }
  f = format_lookup (name, e);
  if (!f)
    return -1;
  *driver = f == &format_raw ? DRIVER_RAW : DRIVER_FORMAT;
  if (format)
    *format = f;
  return 0;
}

/* ---- values ---- */

const char *
tree_text (const json_t *node, const char *key)
{
  return json_string_value (json_object_get (node, key));
}

bool
tree_bool (const json_t *node, const char *key, bool otherwise)
{
  const json_t *value = json_object_get (node, key);
  struct error e = ERROR_INIT;
  bool r;

  if (json_is_boolean (value))
    return json_is_true (value);
  if (!json_is_string (value)
      || parse_bool (key, json_string_value (value), &r, &e) == -1)
    return otherwise;
  return r;
}

uint64_t
tree_size (const json_t *node, const char *key, uint64_t otherwise)
{
  const json_t *value = json_object_get (node, key);
  struct error e = ERROR_INIT;
  uint64_t r;

  if (json_is_integer (value) && json_integer_value (value) >= 0)
    return (uint64_t) json_integer_value (value);
  if (!json_is_string (value)
      || parse_size (key, json_string_value (value), &r, &e) == -1)
    return otherwise;
  return r;
}

/* The five modes are three switches.  no-flush beside direct=on or
 * writeback=off allows what we then do not make use of: flushes are made.
 */
static enum cache_mode
mode_of_switches (bool direct, bool no_flush, bool writeback)
{
  if (direct)
    return writeback ? CACHE_NONE : CACHE_DIRECTSYNC;
  if (!writeback)
    return CACHE_WRITETHROUGH;
  return no_flush ? CACHE_UNSAFE : CACHE_WRITEBACK;
}

void
tree_cache_mode (const json_t *node, enum cache_mode *mode)
{
  const json_t *cache = json_object_get (node, "cache");
  bool direct = *mode == CACHE_NONE || *mode == CACHE_DIRECTSYNC;
  bool no_flush = *mode == CACHE_UNSAFE;
  bool writeback = *mode != CACHE_WRITETHROUGH && *mode != CACHE_DIRECTSYNC;

  *mode = mode_of_switches (tree_bool (cache, "direct", direct),
                            tree_bool (cache, "no-flush", no_flush),
                            tree_bool (cache, "writeback", writeback));
}

bool
tree_discard (const json_t *node, bool inherited)
{
  const char *text = tree_text (node, "discard");

  if (!text)
    return inherited;
  return strcmp (text, "unmap") == 0 || strcmp (text, "on") == 0;
}

bool
tree_says_where (const json_t *node)
{
  static const char *const places[] = {
    "filename", "file", "uri", "server", "host", "path", "command"
  };
  const char *driver = tree_text (node, "driver");

  for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i)
    if (json_object_get (node, places[i]))
      return true;
  return driver && strcmp (driver, "null-co") == 0;
}

const char *
tree_filename (const json_t *node)
{
  enum tree_driver driver;
  struct error e = ERROR_INIT;

  for (unsigned depth = 0; node && depth < TREE_MAX_DEPTH; ++depth) {
    if (tree_driver (node, &driver, NULL, &e) == -1)
      return NULL;
    if (driver == DRIVER_FILE || driver == DRIVER_DEVICE)
      return tree_text (node, "filename");
    node = json_object_get (node, "file");
  }
  return NULL;
}

/* ---- names to show ---- */

/* "[ nbdkit -r curl url=... ]" */
static char *
command_name (const json_t *argv)
{
  char *r = strdup ("[");
  size_t i;
  json_t *arg;

  json_array_foreach (argv, i, arg) {
    char *longer = r ? format_text ("%s %s", r, json_string_value (arg)) : NULL;

    free (r);
    r = longer;
  }
  if (r) {
    char *whole = format_text ("%s ]", r);

    free (r);
    r = whole;
  }
  return r;
}

/* The name that says all of NODE, a storage; *PLAIN false when there is none.
 * Returns owned, or NULL (also when memory is out).
 */
static char *
plain_name (const json_t *node, bool *plain)
{
  const char *url = tree_text (node, "url");
  const json_t *argv = json_object_get (node, "command");
  enum tree_driver driver;
  struct error e = ERROR_INIT;

  *plain = tree_driver (node, &driver, NULL, &e) == 0;
  if (driver == DRIVER_FILE || driver == DRIVER_DEVICE)
    return strdup (tree_text (node, "filename"));
  if (driver == DRIVER_NBD && url)
    return strdup (url);
  if (driver == DRIVER_NBD)
    return argv ? command_name (argv) : nbd_node_uri (node, &e);
  if (driver == DRIVER_NULL && !json_object_get (node, "size"))
    return strdup ("null-co://");
  *plain = false;
  return NULL;
}

static int
copy_key (json_t *to, const json_t *from, const char *key)
{
  json_t *value = json_object_get (from, key);

  return value ? json_object_set (to, key, value) : 0;
}

/* Only the keys that decide which bytes are seen, in QEMU's order. */
static json_t *
essence (const json_t *node, const char *format)
{
  static const char *const keys[] = {
    "size", "filename", "server", "host", "port", "path", "export", "uri",
    "tls-creds", "tls-hostname", "command", NULL,
  };
  json_t *file = json_object_get (node, "file");
  json_t *r = json_object ();
  int bad = copy_key (r, node, "offset");

  if (format)
    bad |= json_object_set_new (r, "driver", json_string (format));
  else
    bad |= copy_key (r, node, "driver");
  for (size_t i = 0; keys[i]; ++i)
    bad |= copy_key (r, node, keys[i]);
  if (file)
    bad |= json_object_set_new (r, "file", essence (file, NULL));
  bad |= copy_key (r, node, "backing") | copy_key (r, node, "data-file");
  if (!bad)
    return r;
  json_decref (r);
  return NULL;
}

static char *
json_name (const json_t *tree, const char *format)
{
  json_t *r = essence (tree, format);
  CLEANUP_FREE char *text = r ? json_dumps (r, 0) : NULL;
  const char *filename = tree_filename (tree);

  json_decref (r);
  if (text)
    return format_text ("json:%s", text);
  /* A file name that is not UTF-8 cannot stand in JSON. */
  return strdup (filename ? filename : "(image)");
}

/* Do the options of this layer change what the name alone would give? */
static bool
changes_image (const json_t *layer)
{
  return json_object_get (layer, "offset") || json_object_get (layer, "size")
    || json_is_object (json_object_get (layer, "backing"))
    || json_object_get (layer, "data-file");
}

char *
tree_display_name (const json_t *tree, const char *format)
{
  const json_t *file = json_object_get (tree, "file");
  bool plain = !file || !changes_image (tree);
  char *name = NULL;

  if (plain)
    name = plain_name (file ? file : tree, &plain);
  if (plain)
    return name;
  return json_name (tree, tree_text (tree, "driver") ? NULL : format);
}
