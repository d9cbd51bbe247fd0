/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The table of TLS credentials: see tls_creds.h.  Layer: common.
 *
 * The names of the files in the folder are QEMU's, which are libnbd's too.
 * They are looked at when the object is made, so that the error names the file
 * and not the server; libnbd reads them when it connects.
 *
 * Locking: the table's own.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/id_table.h"
#include "common/log.h"
#include "common/object.h"
#include "common/secret.h"
#include "common/secure.h"
#include "common/text.h"
#include "common/tls_creds.h"

/* ---- the table ---- */

void
tls_creds_free (struct tls_creds *c)
{
  free (c->dir);
  free (c->username);
  *c = (struct tls_creds) { .dir = NULL };
}

static int
copy (void *into, const void *creds, struct error *e)
{
  const struct tls_creds *from = creds;
  struct tls_creds *to = into;

  *to = *from;
  to->dir = strdup (from->dir);
  to->username = from->username ? strdup (from->username) : NULL;
  if (to->dir && (to->username || !from->username))
    return 0;
  tls_creds_free (to);
  return error_nomem (e, "TLS credentials", strlen (from->dir));
}

static void
clear (void *c)
{
  tls_creds_free (c);
}

static struct id_table table = {
  .what = "TLS credentials", .value_size = sizeof (struct tls_creds),
  .copy = copy, .clear = clear, .mutex = MUTEX_INIT,
};

bool
tls_creds_exist (const char *id)
{
  return id_table_has (&table, id);
}

/* In QEMU's words. */
int
tls_creds_get (const char *id, struct tls_creds *c, struct error *e)
{
  int r;

  *c = (struct tls_creds) { .dir = NULL };
  r = id_table_get (&table, id, c, e);
  if (r != 0)
    return r == 1 ? 0 : -1;
  if (secret_exists (id))
    return error_set (e, EINVAL, "Object with id '%s' is not TLS credentials",
                      id);
  return error_set (e, ENOENT, "No TLS credentials with id '%s'", id);
}

void
tls_creds_forget_all (void)
{
  id_table_clear (&table);
}

/* ---- as text ---- */

/* A comma is written twice.  Owned, or NULL. */
static char *
double_commas (const char *text)
{
  char *r = malloc (2 * strlen (text) + 1), *d = r;

  if (!r)
    return NULL;
  for (; *text; ++text) {
    *d++ = *text;
    if (*text == ',')
      *d++ = ',';
  }
  *d = '\0';
  return r;
}

static char *
text_of (const char *id, const struct tls_creds *c)
{
  CLEANUP_FREE char *dir = double_commas (c->dir), *user = NULL;

  if (!dir)
    return NULL;
  if (!c->psk)
    return format_text ("tls-creds-x509,id=%s,dir=%s,endpoint=client,"
                        "verify-peer=%s", id, dir, c->verify ? "on" : "off");
  user = double_commas (c->username);
  if (!user)
    return NULL;
  return format_text ("tls-creds-psk,id=%s,dir=%s,endpoint=client,username=%s",
                      id, dir, user);
}

char *
tls_creds_text (size_t i, struct error *e)
{
  const char *id = id_table_id (&table, i);
  struct tls_creds creds;
  char *r;

  if (!id || tls_creds_get (id, &creds, e) == -1)
    return NULL;
  r = text_of (id, &creds);
  tls_creds_free (&creds);
  if (!r)
    error_nomem (e, "TLS credentials", 0);
  return r;
}

/* ---- files ---- */

/* 1 = there, 0 = not, -1 = it cannot be read. */
static int
look_at (const char *dir, const char *file, struct error *e)
{
  CLEANUP_FREE char *path = format_text ("%s/%s", dir, file);

  if (!path)
    return error_nomem (e, "a path", strlen (dir));
  if (access (path, R_OK) == 0)
    return 1;
  if (errno == ENOENT)
    return 0;
  return error_errno (e, errno, "Unable to access credentials %s", path);
}

static int
need (const char *dir, const char *file, struct error *e)
{
  int r = look_at (dir, file, e);

  if (r == 0)
    return error_errno (e, ENOENT, "Unable to access credentials %s/%s", dir,
                        file);
  return r == 1 ? 0 : -1;
}

/* A client needs no certificate of its own; half of one is none, as with
 * QEMU, but hardly what is meant.
 */
static int
check_certificates (const char *dir, struct error *e)
{
  int cert, key;

  if (need (dir, "ca-cert.pem", e) == -1
      || (cert = look_at (dir, "client-cert.pem", e)) == -1
      || (key = look_at (dir, "client-key.pem", e)) == -1)
    return -1;
  if (cert != key)
    log_warning ("%s/%s is not used: there is no %s", dir,
                 cert ? "client-cert.pem" : "client-key.pem",
                 cert ? "client-key.pem" : "client-cert.pem");
  return 0;
}

/* "NAME:KEY" lines. */
static bool
has_user (FILE *fp, const char *user)
{
  size_t len = strlen (user), size = 0;
  char *line = NULL;
  bool r = false;

  while (!r && getline (&line, &size, fp) != -1)
    r = strncmp (line, user, len) == 0 && line[len] == ':';
  secure_free (line, size);
  return r;
}

static int
check_keys (const char *dir, const char *user, struct error *e)
{
  CLEANUP_FREE char *path = format_text ("%s/keys.psk", dir);
  FILE *fp = path ? fopen (path, "re") : NULL;
  bool found;

  if (!path)
    return error_nomem (e, "a path", strlen (dir));
  if (!fp)
    return error_errno (e, errno, "Unable to access credentials %s", path);
  found = has_user (fp, user);
  fclose (fp);
  return found ? 0 : error_set (e, ENOENT, "Username %s not found in PSK file "
                                "%s", user, path);
}

/* ---- the objects ---- */

enum property {
  ID = OBJECT_ID, DIR_NAME, ENDPOINT, VERIFY_PEER, PRIORITY,
  USERNAME,                     /* psk */
  PASSWORDID = USERNAME,        /* x509 */
  SANITY_CHECK,
};

/* What libnbd has no call for. */
static int
refuse (const char *const *o, bool psk, struct error *e)
{
  bool check = false;

  if (o[PRIORITY])
    return error_set (e, ENOTSUP, "tls-creds: priority is not built: libnbd "
                      "has one of its own");
  if (psk)
    return 0;
  if (o[PASSWORDID])
    return error_set (e, ENOTSUP, "tls-creds-x509: passwordid is not built: "
                      "libnbd reads keys without a password only (openssl pkey "
                      "-in client-key.pem makes such a copy)");
  if (o[SANITY_CHECK]
      && parse_bool ("sanity-check", o[SANITY_CHECK], &check, e) == -1)
    return -1;
  return check ? error_set (e, ENOTSUP, "tls-creds-x509: sanity-check=on is "
                            "not built: certificates are checked when they "
                            "are used") : 0;
}

/* What both have. */
static int
common_properties (const char *const *o, bool psk, struct error *e)
{
  const char *endpoint = o[ENDPOINT] ? o[ENDPOINT] : "client";

  if (strcmp (endpoint, "server") == 0)
    return error_set (e, ENOTSUP, "Expected TLS credentials for a client "
                      "endpoint, not endpoint=server (nbdimg serve has "
                      "--tls-certificates and --tls-psk)");
  if (strcmp (endpoint, "client") != 0)
    return error_set (e, EINVAL, "Parameter 'endpoint' does not accept value "
                      "'%s'", endpoint);
  if (!o[DIR_NAME] || !*o[DIR_NAME])
    return error_set (e, EINVAL, "Missing 'dir' property value");
  return refuse (o, psk, e);
}

static int
add_x509 (const char *const *o, struct error *e)
{
  struct tls_creds creds = { .dir = (char *) o[DIR_NAME], .verify = true };

  if (common_properties (o, false, e) == -1
      || (o[VERIFY_PEER] && parse_bool ("verify-peer", o[VERIFY_PEER],
                                        &creds.verify, e) == -1)
      || check_certificates (creds.dir, e) == -1)
    return -1;
  return id_table_add (&table, o[ID], &creds, e);
}

/* Both sides of a pre-shared key know it: there is nothing to switch off. */
static int
add_psk (const char *const *o, struct error *e)
{
  const struct tls_creds creds = {
    .psk = true, .dir = (char *) o[DIR_NAME], .verify = true,
    .username = (char *) (o[USERNAME] ? o[USERNAME] : "qemu"),
  };
  bool verify = true;

  if (common_properties (o, true, e) == -1
      || (o[VERIFY_PEER] && parse_bool ("verify-peer", o[VERIFY_PEER],
                                        &verify, e) == -1))
    return -1;
  if (!verify)
    return error_set (e, ENOTSUP, "tls-creds-psk: verify-peer=off is not "
                      "built: a server without the key is always refused");
  if (check_keys (creds.dir, creds.username, e) == -1)
    return -1;
  return id_table_add (&table, o[ID], &creds, e);
}

const struct object_type object_tls_x509 = {
  .name = "tls-creds-x509",
  .properties = {
    [ID] = "id", [DIR_NAME] = "dir", [ENDPOINT] = "endpoint",
    [VERIFY_PEER] = "verify-peer", [PRIORITY] = "priority",
    [PASSWORDID] = "passwordid", [SANITY_CHECK] = "sanity-check",
  },
  .booleans = 1 << VERIFY_PEER | 1 << SANITY_CHECK,
  .add = add_x509,
};

const struct object_type object_tls_psk = {
  .name = "tls-creds-psk",
  .properties = {
    [ID] = "id", [DIR_NAME] = "dir", [ENDPOINT] = "endpoint",
    [VERIFY_PEER] = "verify-peer", [PRIORITY] = "priority",
    [USERNAME] = "username",
  },
  .booleans = 1 << VERIFY_PEER,
  .add = add_psk,
};
