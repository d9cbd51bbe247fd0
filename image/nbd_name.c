/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Names of NBD servers in QEMU's older and structured forms, as URIs.
 *
 * Layer: image.  No locking, no state.  NBD URI specification: doc/uri.md of
 * the NBD project.  The storage checks the URI itself; here it is composed.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "image/name.h"
#include "image/tree.h"

static const char *const schemes[] = {
  "nbd://", "nbds://", "nbd+unix://", "nbds+unix://",
};

bool
nbd_is_uri (const char *name)
{
  for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; ++i)
    if (strncmp (name, schemes[i], strlen (schemes[i])) == 0)
      return true;
  return false;
}

static char *
nomem (struct error *e)
{
  error_nomem (e, "an NBD URI", 0);
  return NULL;
}

/* Percent-encode all but unreserved characters and those of KEEP.  Owned, or
 * NULL.
 */
static char *
encode (const char *text, const char *keep)
{
  static const char hex[] = "0123456789ABCDEF";
  char *r = malloc (3 * strlen (text) + 1), *d = r;

  if (!r)
    return NULL;
  for (; *text; ++text) {
    unsigned char c = (unsigned char) *text;

    if (isalnum (c) || strchr ("-._~", c) || strchr (keep, c))
      *d++ = (char) c;
    else {
      *d++ = '%';
      *d++ = hex[c >> 4];
      *d++ = hex[c & 15];
    }
  }
  *d = '\0';
  return r;
}

/* nbd+unix:///EXPORT?socket=PATH */
static char *
unix_uri (const char *path, const char *export, struct error *e)
{
  CLEANUP_FREE char *p = encode (path, "/"), *x = encode (export, "/");
  char *r = p && x ? format_text ("nbd+unix:///%s?socket=%s", x, p) : NULL;

  return r ? r : nomem (e);
}

/* nbd://HOST:PORT[/EXPORT]; a host with ":" in it is an IPv6 address. */
static char *
inet_uri (const char *host, const char *port, const char *export,
          struct error *e)
{
  const char *v6 = strchr (host, ':');
  CLEANUP_FREE char *h = encode (host, v6 ? ":" : "");
  CLEANUP_FREE char *p = encode (port, ""), *x = encode (export, "/");
  char *r = NULL;

  if (h && p && x)
    r = format_text ("nbd://%s%s%s:%s%s%s", v6 ? "[" : "", h, v6 ? "]" : "", p,
                     *x ? "/" : "", x);
  return r ? r : nomem (e);
}

/* ---- nbd:... ---- */

static char *
old_inet_uri (char *address, const char *export, struct error *e)
{
  char *host = address, *port = strrchr (address, ':');
  size_t len;

  if (!port || port == address) {
    error_set (e, EINVAL, "error parsing address '%s': write "
               "nbd:HOST:PORT or nbd:unix:PATH", address);
    return NULL;
  }
  *port++ = '\0';
  len = strlen (host);
  if (host[0] == '[' && host[len - 1] == ']') {
    host[len - 1] = '\0';
    ++host;
  }
  return inet_uri (host, port, export, e);
}

char *
nbd_name_to_uri (const char *name, struct error *e)
{
  static const char marker[] = ":exportname=";
  CLEANUP_FREE char *copy = strdup (name + strlen ("nbd:"));
  const char *export = "";
  char *m;

  if (!copy)
    return nomem (e);
  m = strstr (copy, marker);
  if (m) {
    *m = '\0';
    export = m + strlen (marker);
  }
  if (*copy == '\0') {
    error_set (e, EINVAL, "%s: NBD server address missing", name);
    return NULL;
  }
  if (strncmp (copy, "unix:", 5) != 0)
    return old_inet_uri (copy, export, e);
  if (copy[5] == '\0') {
    error_set (e, EINVAL, "%s: the path of the Unix socket is missing", name);
    return NULL;
  }
  return unix_uri (copy + 5, export, e);
}

/* ---- {"driver": "nbd", "server": {...}} ---- */

/* "host", "port" and "path" may stand in "server" or, the older way, in the
 * node itself.
 */
static char *
address_uri (const json_t *address, const char *export, struct error *e)
{
  const char *path = tree_text (address, "path");
  const char *host = tree_text (address, "host");
  const char *port = tree_text (address, "port");
  const json_t *number = json_object_get (address, "port");
  char text[24];

  if (path && host) {
    error_set (e, EINVAL, "nbd: path and host may not be used at the same "
               "time");
    return NULL;
  }
  if (path)
    return unix_uri (path, export, e);
  if (!host) {
    error_set (e, EINVAL, "NBD server address missing: give server.path, or "
               "server.host and server.port");
    return NULL;
  }
  if (json_is_integer (number)) {
    snprintf (text, sizeof text, "%" JSON_INTEGER_FORMAT,
              json_integer_value (number));
    port = text;
  }
  return inet_uri (host, port ? port : "10809", export, e);
}

char *
nbd_node_uri (const json_t *node, struct error *e)
{
  const char *uri = tree_text (node, "uri");
  const char *export = tree_text (node, "export");
  const json_t *server = json_object_get (node, "server");
  char *r;

  if (!uri)
    return address_uri (server ? server : node, export ? export : "", e);
  r = strdup (uri);
  return r ? r : nomem (e);
}

/* ---- names in images ---- */

/* May PARAMETER (key=value, percent-encoded) stand in an image?  Only the
 * socket's path; a key that is written with % is not it.
 */
static int
check_parameter (const char *uri, const char *parameter, struct error *e)
{
  if (strncmp (parameter, "socket=", 7) == 0)
    return 0;
  return error_set (e, EPERM, "%s: the parameter %.*s of a URI in an image is "
                    "not followed", uri, (int) strcspn (parameter, "="),
                    parameter);
}

int
nbd_check_untrusted_uri (const char *uri, struct error *e)
{
  CLEANUP_FREE char *query = NULL;
  const char *mark = strchr (uri, '?');
  char *save = NULL;

  if (!nbd_is_uri (uri))
    return error_set (e, EPERM, "%s: only nbd, nbds, nbd+unix and nbds+unix "
                      "URIs are followed", uri);
  if (!mark)
    return 0;
  query = strdup (mark + 1);
  if (!query)
    return error_nomem (e, "an NBD URI", strlen (mark));
  for (char *p = strtok_r (query, "&;", &save); p;
       p = strtok_r (NULL, "&;", &save))
    if (check_parameter (uri, p, e) == -1)
      return -1;
  return 0;
}
