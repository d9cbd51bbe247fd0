/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Names of NBD servers: the NBD URI specification (doc/uri.md of the NBD
 * project), for four schemes and nothing else.
 *
 * Layer: storage.  No locking: pure functions.
 *
 * libnbd never sees a URI: we hand it a socket path, or a host and a port, so
 * there is no second parser that could understand a hostile name in another
 * way (nbd+ssh with a host "-oProxyCommand=..." starts a program in some
 * versions of libnbd).
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "storage/nbd.h"

/* The protocol's limit of strings (doc/proto.md, "Values"). */
enum { EXPORT_NAME_MAX = 4096 };

static const struct scheme {
  const char *name;
  bool unix_socket, tls;
} schemes[] = {
  { "nbd", false, false },
  { "nbds", false, true },
  { "nbd+unix", true, false },
  { "nbds+unix", true, true },
};

/* The components, still percent-encoded; slices of one writable copy. */
struct parts {
  const struct scheme *scheme;
  char *user, *host, *port, *path, *query;
};

static int
hex_digit (char c)
{
  if (c >= '0' && c <= '9')
    return c - '0';
  c = (char) tolower ((unsigned char) c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decode %XX in place.  A decoded NUL would cut the name, and no component
 * has a use for other control characters.
 */
static int
unescape (const char *what, char *s, struct error *e)
{
  char *d = s;

  for (; *s; s++, d++) {
    if (*s == '%') {
      int hi = hex_digit (s[1]);
      int lo = hi < 0 ? -1 : hex_digit (s[2]);

      if (lo < 0)
        return error_set (e, EINVAL, "%s: %% must be followed by two "
                          "hexadecimal digits", what);
      *d = (char) (hi << 4 | lo);
      s += 2;
    }
    else
      *d = *s;
    if ((unsigned char) *d < ' ' || *d == '\177')
      return error_set (e, EINVAL, "%s: control characters are not allowed",
                        what);
  }
  *d = '\0';
  return 0;
}

static int
check_characters (const char *uri, struct error *e)
{
  for (const char *p = uri; *p; p++) {
    if ((unsigned char) *p <= ' ' || *p == '\177')
      return error_set (e, EINVAL, "character 0x%02x at position %zu must be "
                        "written %%%02X", (unsigned char) *p,
                        (size_t) (p - uri), (unsigned char) *p);
    if (*p == '#')
      return error_set (e, EINVAL, "# must be written %%23");
  }
  return 0;
}

static int
find_scheme (const char *uri, const struct scheme **r, struct error *e)
{
  const char *end = strstr (uri, "://");
  size_t len;

  if (!end)
    return error_set (e, EINVAL, "not an NBD URI: expected nbd://HOST/EXPORT "
                      "or nbd+unix:///EXPORT?socket=PATH");
  len = (size_t) (end - uri);
  for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
    if (strlen (schemes[i].name) == len
        && strncmp (schemes[i].name, uri, len) == 0) {
      *r = &schemes[i];
      return 0;
    }
  }
  return error_set (e, ENOTSUP, "URI scheme '%.*s' is not supported: use nbd, "
                    "nbds, nbd+unix or nbds+unix", (int) len, uri);
}

/* [user@]host[:port] or [user@][v6][:port] */
static int
split_authority (char *s, struct parts *p, struct error *e)
{
  char *at = strrchr (s, '@');

  if (at) {
    *at = '\0';
    p->user = s;
    s = at + 1;
  }
  if (*s == '[') {
    char *end = strchr (s, ']');

    if (!end)
      return error_set (e, EINVAL, "host: ']' is missing");
    *end = '\0';
    p->host = s + 1;
    s = end + 1;
    if (*s != '\0' && *s != ':')
      return error_set (e, EINVAL, "host: unexpected text after ']'");
  }
  else {
    p->host = s;
    s += strcspn (s, ":");
  }
  if (*s == ':') {
    *s = '\0';
    p->port = s + 1;
  }
  return 0;
}

/* TEXT is everything after "://". */
static int
split (char *text, struct parts *p, struct error *e)
{
  char *authority = text;

  p->query = strchr (text, '?');
  if (p->query)
    *p->query++ = '\0';
  p->path = strchr (text, '/');
  if (p->path)
    *p->path++ = '\0';
  return split_authority (authority, p, e);
}

static char *
copy (const char *s, struct error *e)
{
  char *r = strdup (s);

  if (!r)
    error_nomem (e, "an NBD URI", strlen (s) + 1);
  return r;
}

static int
set_tcp (const struct parts *p, struct nbdx_target *t, struct error *e)
{
  uint64_t port = 10809;        /* IANA's number for NBD */
  char text[8];

  if (unescape ("host", p->host, e) == -1)
    return -1;
  /* An option for whatever program might ever be given the name. */
  if (p->host[0] == '-')
    return error_set (e, EINVAL, "host '%.100s': a host name cannot begin "
                      "with '-'", p->host);
  if (p->port && *p->port
      && parse_number ("port", p->port, 1, 65535, &port, e) == -1)
    return -1;
  snprintf (text, sizeof text, "%u", (unsigned) port);
  t->host = copy (p->host[0] ? p->host : "localhost", e);
  t->port = copy (text, e);
  return t->host && t->port ? 0 : -1;
}

static int
set_export (const struct parts *p, struct nbdx_target *t, struct error *e)
{
  if (p->path && unescape ("export name", p->path, e) == -1)
    return -1;
  if (p->path && strlen (p->path) > EXPORT_NAME_MAX)
    return error_set (e, ENAMETOOLONG, "the export name is longer than %d "
                      "bytes", EXPORT_NAME_MAX);
  t->export = copy (p->path ? p->path : "", e);
  return t->export ? 0 : -1;
}

/* Set *FIELD once. */
static int
set_once (const char *key, const char *value, char **field, struct error *e)
{
  if (*field)
    return error_set (e, EINVAL, "%s is given twice", key);
  if (*value == '\0')
    return error_set (e, EINVAL, "%s is empty", key);
  *field = copy (value, e);
  return *field ? 0 : -1;
}

static int
set_verify (const char *value, struct nbdx_target *t, struct error *e)
{
  bool on = strcmp (value, "1") == 0, off = strcmp (value, "0") == 0;

  if (!on && !off && parse_bool ("tls-verify-peer", value, &on, e) == -1)
    return -1;
  t->tls_verify = on;
  return 0;
}

static int
set_parameter (const struct scheme *s, const char *key, const char *value,
               struct nbdx_target *t, struct error *e)
{
  if (strcmp (key, "socket") == 0 && s->unix_socket)
    return set_once (key, value, &t->socket, e);
  if (strncmp (key, "tls-", 4) == 0 && !s->tls)
    return error_set (e, EINVAL, "%s needs the scheme nbds or nbds+unix", key);
  if (strcmp (key, "tls-certificates") == 0)
    return set_once (key, value, &t->tls_certificates, e);
  if (strcmp (key, "tls-psk-file") == 0)
    return set_once (key, value, &t->tls_psk_file, e);
  if (strcmp (key, "tls-hostname") == 0)
    return set_once (key, value, &t->tls_hostname, e);
  if (strcmp (key, "tls-verify-peer") == 0)
    return set_verify (value, t, e);
  return error_set (e, EINVAL, "parameter '%.100s' is not supported", key);
}

/* key=value pairs between & or ; (as libnbd splits them). */
static int
set_parameters (const struct parts *p, struct nbdx_target *t, struct error *e)
{
  char *save = NULL, *pair, *value;

  if (!p->query)
    return 0;
  for (pair = strtok_r (p->query, "&;", &save); pair;
       pair = strtok_r (NULL, "&;", &save)) {
    value = strchr (pair, '=');
    if (!value)
      return error_set (e, EINVAL, "parameter '%.100s' has no value", pair);
    *value++ = '\0';
    if (unescape ("parameter", pair, e) == -1
        || unescape (pair, value, e) == -1
        || set_parameter (p->scheme, pair, value, t, e) == -1)
      return -1;
  }
  return 0;
}

/* Connections may be opened after the process has changed its directory
 * (nbdkit does): keep an absolute path.
 */
static int
make_absolute (char **path, struct error *e)
{
  CLEANUP_FREE char *cwd = NULL;
  char *r;

  if (!*path || (*path)[0] == '/')
    return 0;
  cwd = getcwd (NULL, 0);
  if (!cwd)
    return error_errno (e, errno, "%s: current directory", *path);
  r = format_text ("%s/%s", cwd, *path);
  if (!r)
    return error_nomem (e, "a path", strlen (cwd) + strlen (*path) + 2);
  free (*path);
  *path = r;
  return 0;
}

static int
check_unix (const struct parts *p, struct nbdx_target *t, struct error *e)
{
  struct sockaddr_un a;

  if (p->host[0] || p->port)
    return error_set (e, EINVAL, "%s has no host: write "
                      "%s:///EXPORT?socket=PATH", p->scheme->name,
                      p->scheme->name);
  if (!t->socket)
    return error_set (e, EINVAL, "%s needs ?socket=PATH", p->scheme->name);
  if (make_absolute (&t->socket, e) == -1)
    return -1;
  if (strlen (t->socket) >= sizeof a.sun_path)
    return error_set (e, ENAMETOOLONG, "%s: the path of a Unix socket has at "
                      "most %zu bytes", t->socket, sizeof a.sun_path - 1);
  return 0;
}

/* Credentials of the caller (--object tls-creds-...) in place of the URI's:
 * they make TLS required for nbd:// as well.
 */
static int
set_credentials (const struct nbd_tls *tls, struct nbdx_target *t,
                 struct error *e)
{
  if (t->tls_certificates || t->tls_psk_file || t->tls_hostname)
    return error_set (e, EINVAL, "TLS credentials are given twice, in the URI "
                      "and apart from it");
  t->tls = true;
  t->tls_verify = tls->verify;
  if (tls->certificates
      && !(t->tls_certificates = copy (tls->certificates, e)))
    return -1;
  if (tls->psk_file && !(t->tls_psk_file = copy (tls->psk_file, e)))
    return -1;
  if (tls->hostname && !(t->tls_hostname = copy (tls->hostname, e)))
    return -1;
  if (tls->username) {
    free (t->tls_username);
    t->tls_username = copy (tls->username, e);
    if (!t->tls_username)
      return -1;
  }
  return 0;
}

static int
set_user (const struct parts *p, struct nbdx_target *t, struct error *e)
{
  if (!p->user)
    return 0;
  if (!p->scheme->tls)
    return error_set (e, EINVAL, "a user name needs TLS: use nbds or "
                      "nbds+unix");
  if (unescape ("user name", p->user, e) == -1)
    return -1;
  return set_once ("user name", p->user, &t->tls_username, e);
}

static int
parse (char *text, struct parts *p, const struct nbd_tls *tls,
       struct nbdx_target *t, struct error *e)
{
  if (split (text, p, e) == -1
      || set_export (p, t, e) == -1
      || set_user (p, t, e) == -1
      || set_parameters (p, t, e) == -1)
    return -1;
  if (p->scheme->unix_socket ? check_unix (p, t, e) : set_tcp (p, t, e))
    return -1;
  if (tls && set_credentials (tls, t, e) == -1)
    return -1;
  if (t->tls_certificates && t->tls_psk_file)
    return error_set (e, EINVAL, "tls-certificates and tls-psk-file exclude "
                      "each other");
  return make_absolute (&t->tls_certificates, e) == -1
    || make_absolute (&t->tls_psk_file, e) == -1 ? -1 : 0;
}

int
nbdx_target_name (struct nbdx_target *t, char *name, struct error *e)
{
  CLEANUP_FREE char *shown = name ? printable (name) : NULL;
  int n;

  t->name = name;
  if (!shown)
    return error_nomem (e, "a name", name ? strlen (name) + 1 : 1);
  n = snprintf (t->label, sizeof t->label, "%s", shown);
  if (n >= (int) sizeof t->label)
    memcpy (t->label + sizeof t->label - 4, "...", 4);
  return 0;
}

int
nbdx_target_parse (const char *uri, const struct nbd_tls *tls,
                   struct nbdx_target *t, struct error *e)
{
  CLEANUP_FREE char *text = NULL;
  struct parts p = { .scheme = NULL };

  if (nbdx_target_name (t, strdup (uri), e) == -1)
    return -1;
  if (check_characters (uri, e) == -1 || find_scheme (uri, &p.scheme, e) == -1)
    return error_prefix (e, "%s", t->label);
  t->tls = p.scheme->tls;
  t->tls_verify = true;
  text = strdup (uri + strlen (p.scheme->name) + 3);
  if (!text)
    return error_nomem (e, "an NBD URI", strlen (uri));
  if (parse (text, &p, tls, t, e) == -1)
    return error_prefix (e, "%s", t->label);
  return 0;
}

void
nbdx_target_free (struct nbdx_target *t)
{
  free (t->name);
  free (t->socket);
  free (t->host);
  free (t->port);
  free (t->export);
  free (t->tls_certificates);
  free (t->tls_psk_file);
  free (t->tls_username);
  free (t->tls_hostname);
}
