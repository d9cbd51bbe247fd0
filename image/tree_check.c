/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Which option may stand in which node, and what it may say.
 *
 * Layer: image.  No locking: the table is constant.
 *
 * No option is taken and then ignored: what QEMU knows and we have not built
 * is in the table with the reason, and refused by name.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "common/text.h"
#include "image/name.h"
#include "image/tree.h"

/* Nodes by driver, as bits. */
enum {
  IN_PROBED = 1 << DRIVER_NONE,
  IN_RAW = 1 << DRIVER_RAW,
  IN_FORMAT = 1 << DRIVER_FORMAT,
  IN_FILE = 1 << DRIVER_FILE,
  IN_DEVICE = 1 << DRIVER_DEVICE,
  IN_NBD = 1 << DRIVER_NBD,
  IN_NULL = 1 << DRIVER_NULL,
  IN_LAYER = IN_PROBED | IN_RAW | IN_FORMAT,
  IN_LOCAL = IN_FILE | IN_DEVICE,
  IN_STORAGE = IN_LOCAL | IN_NBD | IN_NULL,
  IN_ALL = IN_LAYER | IN_STORAGE,
};

enum kind {
  KIND_TEXT,
  KIND_LABEL,                   /* the name of a node */
  KIND_BOOL,
  KIND_SIZE,
  KIND_CHOICE,                  /* one of CHOICES */
  KIND_STORAGE, KIND_LAYER,     /* a node below */
  KIND_NULL,                    /* none */
  KIND_CACHE, KIND_SERVER, KIND_ARGV, KIND_ENCRYPT,
  KIND_REFUSED,                 /* CHOICES says why */
};

struct key {
  const char *name;
  enum kind kind;
  unsigned where;
  const char *choices;          /* "a|b", see enum kind */
};

static const char not_built[] = "is not built yet";

static const struct key keys[] = {
  { "driver", KIND_TEXT, IN_ALL, NULL },
  { "node-name", KIND_LABEL, IN_ALL, NULL },
  { "read-only", KIND_BOOL, IN_ALL, NULL },
  /* Says what is so anyway: see docs/compatibility.md. */
  { "auto-read-only", KIND_BOOL, IN_ALL, NULL },
  { "force-share", KIND_BOOL, IN_LAYER, NULL },
  { "discard", KIND_CHOICE, IN_ALL, "ignore|off|unmap|on" },
  { "detect-zeroes", KIND_CHOICE, IN_LAYER, "off|on|unmap" },
  { "cache", KIND_CACHE, IN_ALL, NULL },
  { "file", KIND_STORAGE, IN_LAYER, NULL },
  { "backing", KIND_LAYER, IN_PROBED | IN_FORMAT, NULL },
  { "backing", KIND_NULL, IN_RAW, NULL },
  { "data-file", KIND_STORAGE, IN_PROBED | IN_FORMAT, NULL },
  { "offset", KIND_SIZE, IN_RAW, NULL },
  { "size", KIND_SIZE, IN_RAW | IN_NULL, NULL },
  { "cache-size", KIND_SIZE, IN_FORMAT, NULL },
  { "l2-cache-size", KIND_SIZE, IN_FORMAT, NULL },
  { "refcount-cache-size", KIND_SIZE, IN_FORMAT, NULL },
  /* Both allow less care than there is: what QEMU's "cached" looks at is always
   * looked at, and refcounts are always written before what needs them.
   */
  { "overlap-check", KIND_CHOICE, IN_FORMAT, "none|constant|cached" },
  { "lazy-refcounts", KIND_BOOL, IN_FORMAT, NULL },
  { "encrypt", KIND_ENCRYPT, IN_FORMAT, NULL },
  { "key-secret", KIND_TEXT, IN_FORMAT, NULL },
  { "header", KIND_STORAGE, IN_FORMAT, NULL },
  { "max-iterations", KIND_SIZE, IN_FORMAT, NULL },
  { "filename", KIND_TEXT, IN_LOCAL, NULL },
  { "locking", KIND_CHOICE, IN_LOCAL, "auto|on|off" },
  { "aio", KIND_CHOICE, IN_LOCAL, "threads" },
  { "uri", KIND_TEXT, IN_NBD, NULL },
  { "server", KIND_SERVER, IN_NBD, NULL },
  { "host", KIND_TEXT, IN_NBD, NULL },
  { "port", KIND_SIZE, IN_NBD, NULL },
  { "path", KIND_TEXT, IN_NBD, NULL },
  { "export", KIND_TEXT, IN_NBD, NULL },
  { "tls-creds", KIND_TEXT, IN_NBD, NULL },
  { "tls-hostname", KIND_TEXT, IN_NBD, NULL },
  { "command", KIND_ARGV, IN_NBD, NULL },
  { "url", KIND_TEXT, IN_NBD, NULL },
  { "read-zeroes", KIND_BOOL, IN_NULL, NULL },

  { "cache-clean-interval", KIND_REFUSED, IN_FORMAT, not_built },
  { "l2-cache-entry-size", KIND_REFUSED, IN_FORMAT, not_built },
  { "pass-discard-request", KIND_REFUSED, IN_FORMAT, not_built },
  { "pass-discard-snapshot", KIND_REFUSED, IN_FORMAT, not_built },
  { "pass-discard-other", KIND_REFUSED, IN_FORMAT, not_built },
  { "force-share", KIND_REFUSED, IN_STORAGE,
    "is not built for a file by itself: set it for the format above" },
  { "reconnect-delay", KIND_REFUSED, IN_NBD, not_built },
  { "open-timeout", KIND_REFUSED, IN_NBD, not_built },
  { "latency-ns", KIND_REFUSED, IN_NULL, not_built },
};

enum { NR_KEYS = sizeof keys / sizeof keys[0] };

static const struct key *
find_key (const char *name, unsigned where)
{
  for (size_t i = 0; i < NR_KEYS; ++i)
    if ((keys[i].where & where) && strcmp (keys[i].name, name) == 0)
      return &keys[i];
  return NULL;
}

/* In QEMU's words. */
static int
unknown_key (const json_t *node, enum tree_driver driver, const char *key,
             struct error *e)
{
  const char *name = tree_text (node, "driver");

  return error_set (e, EINVAL, tree_driver_is_format (driver)
                    ? "Block format '%s' does not support the option '%s'"
                    : "Block protocol '%s' doesn't support the option '%s'",
                    name ? name : "file", key);
}

/* ---- values ---- */

static int
check_text (const char *key, const json_t *value, struct error *e)
{
  bool is_empty = json_is_string (value) && json_string_length (value) == 0;

  if (is_empty && strcmp (key, "filename") == 0)
    return error_set (e, EINVAL, "The 'file' block driver requires a file "
                      "name");
  if (is_empty || !json_is_string (value))
    return error_set (e, EINVAL, "the option '%s' must be a text", key);
  return 0;
}

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* A label for nodes, which nothing else here refers to. */
static int
check_label (const char *key, const json_t *value, struct error *e)
{
  const char *text = json_string_value (value);

  if (!text || !*text || !strchr (LETTERS, *text)
      || text[strspn (text, LETTERS "0123456789-._")] != '\0')
    return error_set (e, EINVAL, "Invalid %s: '%s'", key, text ? text : "");
  if (strlen (text) > 31)
    return error_set (e, EINVAL, "Node name too long");
  return 0;
}

static int
check_bool (const char *key, const json_t *value, struct error *e)
{
  bool r;

  if (json_is_boolean (value))
    return 0;
  if (!json_is_string (value))
    return error_set (e, EINVAL, "the option '%s' must be on or off", key);
  return parse_bool (key, json_string_value (value), &r, e);
}

static int
check_size (const char *key, const json_t *value, struct error *e)
{
  uint64_t r;

  if (json_is_integer (value) && json_integer_value (value) >= 0)
    return 0;
  if (!json_is_string (value))
    return error_set (e, EINVAL, "the option '%s' must be a size", key);
  return parse_size (key, json_string_value (value), &r, e);
}

static bool
is_choice (const char *text, const char *choices)
{
  size_t len = strlen (text);

  for (const char *p = choices; *p; p += strcspn (p, "|")) {
    p += *p == '|';
    if (strcspn (p, "|") == len && strncmp (p, text, len) == 0)
      return true;
  }
  return false;
}

static int
check_choice (const struct key *key, const json_t *value, struct error *e)
{
  const char *text = json_string_value (value);

  if (!text)
    return error_set (e, EINVAL, "the option '%s' must be one of: %s",
                      key->name, key->choices);
  if (is_choice (text, key->choices))
    return 0;
  return error_set (e, EINVAL, "the option %s=%s is invalid or not built; it "
                    "can be: %s", key->name, text, key->choices);
}

static int
check_cache (const json_t *value, struct error *e)
{
  static const char *const switches[] = { "direct", "no-flush", "writeback" };
  const json_t *v;
  size_t found = 0;

  for (size_t i = 0; i < 3; ++i) {
    v = json_object_get (value, switches[i]);
    if (v && check_bool (switches[i], v, e) == -1)
      return error_prefix (e, "cache");
    found += v != NULL;
  }
  if (json_is_object (value) && found == json_object_size (value))
    return 0;
  return error_set (e, EINVAL, "the option 'cache' takes cache.direct, "
                    "cache.no-flush and cache.writeback");
}

/* {"type": "inet", "host", "port"} or {"type": "unix", "path"} */
static int
check_server (const json_t *server, struct error *e)
{
  const char *type = tree_text (server, "type"), *key;
  bool path = type && strcmp (type, "unix") == 0, known;
  json_t *value;

  if (!type || (!path && strcmp (type, "inet") != 0))
    return error_set (e, EINVAL, "nbd: server.type must be inet or unix");
  json_object_foreach ((json_t *) server, key, value) {
    known = strcmp (key, "type") == 0
      || (path ? strcmp (key, "path") == 0
          : strcmp (key, "host") == 0 || strcmp (key, "port") == 0);
    if (!known)
      return error_set (e, EINVAL, "nbd: the option server.%s is unknown for "
                        "server.type=%s, or not built yet", key, type);
    if (strcmp (key, "port") == 0 ? check_size (key, value, e) == -1
        : check_text (key, value, e) == -1)
      return error_prefix (e, "nbd: server");
  }
  if (path ? !tree_text (server, "path") : !tree_text (server, "host")
      || !json_object_get (server, "port"))
    return error_set (e, EINVAL, "nbd: server.type=%s needs %s", type,
                      path ? "server.path" : "server.host and server.port");
  return 0;
}

static int
check_argv (const json_t *argv, struct error *e)
{
  size_t i;
  json_t *arg;

  if (json_array_size (argv) == 0)
    return error_set (e, EINVAL, "command: a list of texts is wanted");
  json_array_foreach ((json_t *) argv, i, arg)
    if (!json_is_string (arg))
      return error_set (e, EINVAL, "command: argument %zu is not a text", i);
  return *json_string_value (json_array_get (argv, 0)) ? 0
    : error_set (e, EINVAL, "command: the name of the program is empty");
}

/* {"format": "aes"|"luks", "key-secret", "max-iterations"} */
static int
check_encrypt (const json_t *encrypt, struct error *e)
{
  static const struct key format = {
    "encrypt.format", KIND_CHOICE, IN_FORMAT, "aes|luks"
  };
  const char *key;
  json_t *value;
  int r = 0;

  if (!json_is_object (encrypt))
    return error_set (e, EINVAL, "the option 'encrypt' takes encrypt.format, "
                      "encrypt.key-secret and encrypt.max-iterations");
  json_object_foreach ((json_t *) encrypt, key, value) {
    if (strcmp (key, "format") == 0)
      r = check_choice (&format, value, e);
    else if (strcmp (key, "key-secret") == 0)
      r = check_text ("encrypt.key-secret", value, e);
    else if (strcmp (key, "max-iterations") == 0)
      r = check_size ("encrypt.max-iterations", value, e);
    else
      r = error_set (e, EINVAL, "Parameter 'encrypt.%s' is unexpected", key);
    if (r == -1)
      break;
  }
  return r;
}

/* Each format has its own way to name the key. */
static int
check_key_options (const json_t *node, enum tree_driver driver,
                   struct error *e)
{
  static const char *const names[] = {
    "encrypt", "key-secret", "max-iterations", "header"
  };
  const struct format_ops *format = NULL;
  bool nested;

  if (driver != DRIVER_FORMAT
      || tree_driver (node, &driver, &format, e) == -1)
    return e->err ? -1 : 0;
  nested = format->key_option && strchr (format->key_option, '.');
  for (int i = 0; i < 4; ++i)
    if (json_object_get (node, names[i])
        && (!format->key_option || nested != (i == 0)))
      return unknown_key (node, driver, names[i], e);
  return 0;
}

/* ---- nodes ---- */

enum place {
  PLACE_TOP, PLACE_BACKING, PLACE_STORAGE,
  PLACE_OPTIONS,                /* of a storage that the image names */
};

static int check_node (const json_t *node, enum place place, unsigned depth,
                       struct error *e);

/* Where a backing file has its "file" from is for the image to say. */
static enum place
place_of_storage (const char *key, const json_t *value, enum place parent)
{
  bool named = parent != PLACE_BACKING || strcmp (key, "file") != 0
    || tree_says_where (value);

  return named ? PLACE_STORAGE : PLACE_OPTIONS;
}

static int
check_key (const struct key *key, const json_t *value, enum place place,
           unsigned depth, struct error *e)
{
  switch (key->kind) {
  case KIND_TEXT: return check_text (key->name, value, e);
  case KIND_LABEL: return check_label (key->name, value, e);
  case KIND_BOOL: return check_bool (key->name, value, e);
  case KIND_SIZE: return check_size (key->name, value, e);
  case KIND_CHOICE: return check_choice (key, value, e);
  case KIND_CACHE: return check_cache (value, e);
  case KIND_SERVER: return check_server (value, e);
  case KIND_ARGV: return check_argv (value, e);
  case KIND_ENCRYPT: return check_encrypt (value, e);
  case KIND_STORAGE:
    return check_node (value, place_of_storage (key->name, value, place),
                       depth + 1, e);
  case KIND_LAYER:
    if (json_is_null (value)
        || check_node (value, PLACE_BACKING, depth + 1, e) == 0)
      return 0;
    return error_prefix (e, "Could not open backing file");
  case KIND_NULL:
    return json_is_null (value) ? 0
      : error_set (e, EINVAL, "Driver doesn't support backing files");
  case KIND_REFUSED:
    break;
  }
  return error_set (e, ENOTSUP, "the option '%s' %s", key->name, key->choices);
}

/* Exactly one way to say which server. */
static int
check_nbd (const json_t *node, struct error *e)
{
  bool address = json_object_get (node, "host")
    || json_object_get (node, "path");
  int ways = address + (json_object_get (node, "server") != NULL)
    + (json_object_get (node, "uri") != NULL)
    + (json_object_get (node, "command") != NULL);

  if (ways != 1)
    return error_set (e, EINVAL, ways ? "nbd: the server is given twice"
                      : "NBD server address missing");
  if (json_object_get (node, "port") && !json_object_get (node, "host"))
    return error_set (e, EINVAL, "nbd: port needs host");
  if (json_object_get (node, "export")
      && (json_object_get (node, "uri") || json_object_get (node, "command")))
    return error_set (e, EINVAL, "nbd: export cannot be given together with "
                      "uri or command");
  if (json_object_get (node, "tls-creds") && json_object_get (node, "command"))
    return error_set (e, EINVAL, "nbd: tls-creds cannot be given together with "
                      "command, whose server nobody else can reach");
  if (json_object_get (node, "tls-hostname")
      && !json_object_get (node, "tls-creds"))
    return error_set (e, EINVAL, "nbd: tls-hostname needs tls-creds");
  if (json_object_get (node, "url") && !json_object_get (node, "command"))
    return error_set (e, EINVAL, "nbd: url needs command");
  return 0;
}

/* What must be there. */
static int
check_whole (const json_t *node, enum tree_driver driver, enum place place,
             struct error *e)
{
  switch (driver) {
  case DRIVER_FILE:
  case DRIVER_DEVICE:
    if (!json_object_get (node, "filename"))
      return error_set (e, EINVAL, "The '%s' block driver requires a file "
                        "name", tree_text (node, "driver"));
    return 0;
  case DRIVER_NBD:
    return check_nbd (node, e);
  case DRIVER_NULL:
    return 0;
  case DRIVER_NONE:
  case DRIVER_RAW:
  case DRIVER_FORMAT:
    break;
  }
  if (place == PLACE_STORAGE && driver != DRIVER_RAW)
    return error_set (e, ENOTSUP, "a format over another format is not built; "
                      "serve the inner image and name its NBD URI");
  if (place == PLACE_STORAGE && json_object_get (node, "detect-zeroes"))
    return error_set (e, ENOTSUP, "detect-zeroes below a format is not built; "
                      "set it for the format itself");
  if (place != PLACE_BACKING && !json_object_get (node, "file"))
    return error_set (e, EINVAL, "A block device must be specified for "
                      "\"file\"");
  return 0;
}

/* What a node will be whose driver is not said is not known yet: it may have
 * the options of any.  Those of another one are found when it is (layer.c).
 */
static unsigned
kinds_of_node (enum tree_driver driver, enum place place)
{
  if (driver != DRIVER_NONE)
    return 1u << driver;
  return place == PLACE_OPTIONS ? IN_STORAGE : IN_LAYER;
}

static int
check_node (const json_t *node, enum place place, unsigned depth,
            struct error *e)
{
  enum tree_driver driver;
  const char *name;
  json_t *value;

  if (!json_is_object (node))
    return error_set (e, EINVAL, "image options: an object is wanted");
  if (depth > TREE_MAX_DEPTH)
    return error_set (e, ELOOP, "image options are nested deeper than %d",
                      TREE_MAX_DEPTH);
  if (tree_driver (node, &driver, NULL, e) == -1)
    return -1;
  json_object_foreach ((json_t *) node, name, value) {
    const struct key *key = find_key (name, kinds_of_node (driver, place));

    if (!key && driver == DRIVER_NONE && place != PLACE_OPTIONS)
      continue;
    if (!key)
      return unknown_key (node, driver, name, e);
    if (check_key (key, value, place, depth, e) == -1)
      return -1;
  }
  if (place == PLACE_OPTIONS)
    return 0;
  if (check_key_options (node, driver, e) == -1)
    return -1;
  return check_whole (node, driver, place, e);
}

/* No two nodes have one name.  NAMES has those that were seen. */
static int
check_names (const json_t *node, json_t *names, struct error *e)
{
  static const char *const children[] = {
    "file", "header", "data-file", "backing"
  };
  const char *name = tree_text (node, "node-name");

  if (!json_is_object (node))
    return 0;
  if (name && json_object_get (names, name))
    return error_set (e, EINVAL, "Duplicate nodes with node-name='%s'", name);
  if (name && json_object_set_new (names, name, json_true ()) == -1)
    return error_nomem (e, "image options", 0);
  for (int i = 0; i < 4; ++i)
    if (check_names (json_object_get (node, children[i]), names, e) == -1)
      return -1;
  return 0;
}

int
tree_check (const json_t *tree, struct error *e)
{
  json_t *names;
  int r;

  if (check_node (tree, PLACE_TOP, 0, e) == -1)
    return -1;
  names = json_object ();
  r = names ? check_names (tree, names, e)
    : error_nomem (e, "image options", 0);
  json_decref (names);
  return r;
}
