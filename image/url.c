/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* http://, ftp:// and ssh:// as servers: nbdkit with its curl or ssh plugin.
 *
 * Layer: image.  No locking, no state.  See nbdkit-curl-plugin(1) and
 * nbdkit-ssh-plugin(1); ssh://[user@]host[:port]/path[?host_key_check=no] is
 * what QEMU takes.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "image/url.h"

static const struct {
  const char *prefix, *plugin;
} schemes[] = {
  { "http://", "curl" },
  { "https://", "curl" },
  { "ftp://", "curl" },
  { "ftps://", "curl" },
  { "ssh://", "ssh" },
};

enum { NR_SCHEMES = sizeof schemes / sizeof schemes[0] };

static size_t
find_scheme (const char *name)
{
  size_t i;

  for (i = 0; i < NR_SCHEMES; ++i)
    if (strncmp (name, schemes[i].prefix, strlen (schemes[i].prefix)) == 0)
      break;
  return i;
}

bool
url_is_known (const char *name)
{
  return find_scheme (name) < NR_SCHEMES;
}

static int
need_plugin (const char *name, const char *plugin, struct error *e)
{
  CLEANUP_FREE char *path = format_text ("%s/nbdkit-%s-plugin.so",
                                         NBDKIT_PLUGINDIR, plugin);

  if (!path)
    return error_nomem (e, "a URL", strlen (name));
  if (access (path, R_OK) == 0)
    return 0;
  return error_set (e, ENOTSUP, "%s: nbdkit's %s plugin reads such names, and "
                    "it is not installed (%s)", name, plugin, path);
}

/* Append "KEY=VALUE", or VALUE alone. */
static int
add (json_t *argv, const char *key, const char *value, struct error *e)
{
  CLEANUP_FREE char *text = key ? format_text ("%s=%s", key, value)
    : strdup (value);

  if (text && json_array_append_new (argv, json_string_nocheck (text)) == 0)
    return 0;
  return error_nomem (e, "a URL", strlen (value));
}

/* ---- ssh ---- */

static int
hex_value (char c)
{
  if (c >= '0' && c <= '9')
    return c - '0';
  c = (char) (c | 0x20);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decode %XX in place; %00 would cut the text. */
static int
decode (const char *url, char *s, struct error *e)
{
  char *d = s;

  for (; *s; ++s, ++d) {
    int value = (unsigned char) *s;

    if (*s == '%') {
      int hi = hex_value (s[1]), lo = hi == -1 ? -1 : hex_value (s[2]);

      value = lo == -1 ? 0 : hi << 4 | lo;
      if (value == 0)
        return error_set (e, EINVAL, "%s: %% must be followed by two "
                          "hexadecimal digits, and not by 00", url);
      s += 2;
    }
    *d = (char) value;
  }
  *d = '\0';
  return 0;
}

static int
add_query (json_t *argv, const char *url, const char *query, struct error *e)
{
  if (!query || strcmp (query, "host_key_check=yes") == 0)
    return 0;
  if (strcmp (query, "host_key_check=no") == 0)
    return add (argv, "verify-remote-host", "false", e);
  return error_set (e, ENOTSUP, "%s: the parameter '%s' is not built; "
                    "[ nbdkit ssh ... ] takes all parameters of the plugin",
                    url, query);
}

/* HOST[:PORT], where an IPv6 address stands in brackets. */
static int
add_host (json_t *argv, const char *url, char *host, struct error *e)
{
  char *end = host + strcspn (host, ":");

  if (*host == '[') {
    ++host;
    end = host + strcspn (host, "]");
    if (*end == ']')
      *end++ = '\0';
    else
      host = end;               /* "": wrong */
  }
  if (*host == '\0' || *host == '-' || (*end && *end != ':'))
    return error_set (e, EINVAL, "%s: the name of the host is missing or "
                      "wrong", url);
  if (*end == ':') {
    *end++ = '\0';
    if (add (argv, "port", end, e) == -1)
      return -1;
  }
  return add (argv, "host", host, e);
}

static int
add_ssh (json_t *argv, const char *url, struct error *e)
{
  CLEANUP_FREE char *copy = strdup (url + strlen ("ssh://"));
  char *host = copy, *path, *query, *at;

  if (!copy)
    return error_nomem (e, "a URL", strlen (url));
  query = strchr (copy, '?');
  if (query)
    *query++ = '\0';
  path = strchr (copy, '/');
  if (!path || path[1] == '\0')
    return error_set (e, EINVAL, "%s: write ssh://[USER@]HOST[:PORT]/PATH",
                      url);
  CLEANUP_FREE char *decoded = strdup (path);

  *path = '\0';
  if (!decoded)
    return error_nomem (e, "a URL", strlen (url));
  at = strrchr (copy, '@');
  if (at) {
    *at = '\0';
    host = at + 1;
    if (decode (url, copy, e) == -1 || add (argv, "user", copy, e) == -1)
      return -1;
  }
  if (add_host (argv, url, host, e) == -1 || decode (url, decoded, e) == -1
      || add (argv, "path", decoded, e) == -1)
    return -1;
  return add_query (argv, url, query, e);
}

/* ---- */

static int
fill_command (json_t *argv, const char *name, const char *plugin,
              struct error *e)
{
  bool ssh = strcmp (plugin, "ssh") == 0;

  if (add (argv, NULL, NBDKIT, e) == -1
      || (!ssh && add (argv, NULL, "-r", e) == -1)
      || add (argv, NULL, plugin, e) == -1)
    return -1;
  return ssh ? add_ssh (argv, name, e) : add (argv, "url", name, e);
}

json_t *
url_to_storage (const char *name, struct error *e)
{
  const char *plugin = schemes[find_scheme (name)].plugin;
  json_t *argv, *node;

  if (need_plugin (name, plugin, e) == -1)
    return NULL;
  argv = json_array ();
  if (!argv || fill_command (argv, name, plugin, e) == -1) {
    if (!e->err)
      error_nomem (e, "a URL", strlen (name));
    json_decref (argv);
    return NULL;
  }
  node = json_pack ("{ssso}", "driver", "nbd", "command", argv);
  if (!node
      || json_object_set_new (node, "url", json_string_nocheck (name)) == -1) {
    error_nomem (e, "a URL", strlen (name));
    json_decref (node);
    return NULL;
  }
  return node;
}

/* With "-r" nbdkit asks an ssh server for no more than it may give. */
char **
url_command (const json_t *node, bool writable)
{
  const json_t *argv = json_object_get (node, "command");
  const char *first = json_string_value (json_array_get (argv, 1));
  bool add_r = json_object_get (node, "url") && !writable
    && first && strcmp (first, "-r") != 0;
  char **r = calloc (json_array_size (argv) + 2, sizeof *r), **p = r;
  json_t *arg;
  size_t i;

  if (!r)
    return NULL;
  json_array_foreach (argv, i, arg) {
    *p++ = (char *) json_string_value (arg);
    if (i == 0 && add_r)
      *p++ = (char *) "-r";
  }
  return r;
}
