/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The table of secrets: see secret.h.  Layer: common.
 *
 * Locking: the table's own.  It is the program's, as QEMU's objects
 * are, since an ID may be named by any image of a chain, by create's options
 * and by another secret.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/id_table.h"
#include "common/object.h"
#include "common/secret.h"
#include "common/secure.h"
#include "common/tls_creds.h"

void
secret_free (struct secret *s)
{
  secure_free (s->data, s->len);
  *s = (struct secret) { .data = NULL };
}

static int
copy (void *to, const void *from, struct error *e)
{
  const struct secret *s = from;
  uint8_t *data = malloc (s->len + 1);

  if (!data)
    return error_nomem (e, "a secret", s->len);
  if (s->len)
    memcpy (data, s->data, s->len);
  *(struct secret *) to = (struct secret) { .data = data, .len = s->len };
  return 0;
}

static void
clear (void *s)
{
  secret_free (s);
}

static struct id_table table = {
  .what = "a secret", .value_size = sizeof (struct secret), .copy = copy,
  .clear = clear, .mutex = MUTEX_INIT,
};

int
secret_add (const char *id, const void *data, size_t len, struct error *e)
{
  const struct secret s = { .data = (uint8_t *) data, .len = len };

  if (object_check_id (id, e) == -1)
    return -1;
  if (len > SECRET_MAX_SIZE)
    return error_set (e, EFBIG, "the secret '%s' is longer than %d bytes", id,
                      SECRET_MAX_SIZE);
  return id_table_add (&table, id, &s, e);
}

bool
secret_exists (const char *id)
{
  return id_table_has (&table, id);
}

int
secret_get (const char *id, struct secret *s, struct error *e)
{
  int r;

  *s = (struct secret) { .data = NULL };
  r = id_table_get (&table, id, s, e);
  if (r != 0)
    return r == 1 ? 0 : -1;
  if (tls_creds_exist (id))
    return error_set (e, EINVAL, "Object with id '%s' is not a secret", id);
  return error_set (e, ENOENT, "No secret with id '%s'", id);
}

const char *
secret_id (size_t i)
{
  return id_table_id (&table, i);
}

void
secret_forget_all (void)
{
  id_table_clear (&table);
}

/* ---- files ---- */

/* BUF has room for one byte more than a secret may have. */
static int
read_all (int fd, const char *file, uint8_t *buf, size_t *len,
          struct error *e)
{
  ssize_t n;

  for (*len = 0; *len <= SECRET_MAX_SIZE; *len += (size_t) n) {
    n = read (fd, buf + *len, SECRET_MAX_SIZE + 1 - *len);
    if (n == -1)
      return error_errno (e, errno, "Unable to read %s", file);
    if (n == 0)
      break;
  }
  return 0;
}

int
secret_read_file (struct secret *s, const char *file, struct error *e)
{
  CLEANUP_CLOSE int fd = open (file, O_RDONLY | O_CLOEXEC);
  uint8_t *buf;
  size_t len;
  int r;

  if (fd == -1)
    return error_errno (e, errno, "Unable to read %s", file);
  buf = malloc (SECRET_MAX_SIZE + 1);
  if (!buf)
    return error_nomem (e, "a secret", SECRET_MAX_SIZE + 1);
  r = read_all (fd, file, buf, &len, e);
  if (r == 0 && len > SECRET_MAX_SIZE)
    r = error_set (e, EFBIG, "%s is longer than a secret may be (%d bytes)",
                   file, SECRET_MAX_SIZE);
  if (r == 0)
    r = copy (s, &(struct secret) { .data = buf, .len = len }, e);
  secure_free (buf, SECRET_MAX_SIZE + 1);
  return r;
}

int
secret_add_file (const char *id, const char *file, struct error *e)
{
  struct secret s = { .data = NULL };
  int r = secret_read_file (&s, file, e);

  if (r == 0)
    r = secret_add (id, s.data, s.len, e);
  secret_free (&s);
  return r;
}
