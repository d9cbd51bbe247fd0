/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The table of secrets: see secret.h.  Layer: common.
 *
 * Locking: one mutex for the table.  It is the program's, as QEMU's objects
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
#include "common/lock.h"
#include "common/object.h"
#include "common/secret.h"
#include "common/secure.h"
#include "common/tls_creds.h"

struct entry {
  char *id;                     /* owned */
  struct secret secret;
};

static struct mutex mutex = MUTEX_INIT;
static struct entry *table;     /* guarded by mutex; owned */
static size_t nr;               /* guarded by mutex */

void
secret_free (struct secret *s)
{
  secure_free (s->data, s->len);
  *s = (struct secret) { .data = NULL };
}

static int
copy (struct secret *to, const void *data, size_t len, struct error *e)
{
  to->data = malloc (len + 1);
  if (!to->data)
    return error_nomem (e, "a secret", len);
  memcpy (to->data, data, len);
  to->len = len;
  return 0;
}

static const struct entry *
find_locked (const char *id) REQUIRES (mutex)
{
  for (size_t i = 0; i < nr; ++i)
    if (strcmp (table[i].id, id) == 0)
      return &table[i];
  return NULL;
}

static int
add_locked (const char *id, const void *data, size_t len, struct error *e)
  REQUIRES (mutex)
{
  struct entry *bigger;

  if (find_locked (id))
    return error_set (e, EEXIST, "the secret '%s' is given twice", id);
  bigger = realloc (table, (nr + 1) * sizeof *table);
  if (!bigger)
    return error_nomem (e, "a secret", (nr + 1) * sizeof *table);
  table = bigger;
  bigger += nr;
  bigger->id = strdup (id);
  if (!bigger->id)
    return error_nomem (e, "a secret", strlen (id));
  if (copy (&bigger->secret, data, len, e) == -1) {
    free (bigger->id);
    return -1;
  }
  nr++;
  return 0;
}

int
secret_add (const char *id, const void *data, size_t len, struct error *e)
{
  int r;

  if (object_check_id (id, e) == -1)
    return -1;
  if (len > SECRET_MAX_SIZE)
    return error_set (e, EFBIG, "the secret '%s' is longer than %d bytes", id,
                      SECRET_MAX_SIZE);
  mutex_lock (&mutex);
  r = add_locked (id, data, len, e);
  mutex_unlock (&mutex);
  return r;
}

bool
secret_exists (const char *id)
{
  bool r;

  mutex_lock (&mutex);
  r = find_locked (id) != NULL;
  mutex_unlock (&mutex);
  return r;
}

int
secret_get (const char *id, struct secret *s, struct error *e)
{
  const struct entry *x;
  int r;

  *s = (struct secret) { .data = NULL };
  mutex_lock (&mutex);
  x = find_locked (id);
  r = x ? copy (s, x->secret.data, x->secret.len, e) : -1;
  mutex_unlock (&mutex);
  if (r == 0 || e->err)
    return r;
  if (tls_creds_exist (id))
    return error_set (e, EINVAL, "Object with id '%s' is not a secret", id);
  return error_set (e, ENOENT, "No secret with id '%s'", id);
}

const char *
secret_id (size_t i)
{
  const char *id;

  mutex_lock (&mutex);
  id = i < nr ? table[i].id : NULL;
  mutex_unlock (&mutex);
  return id;
}

void
secret_forget_all (void)
{
  mutex_lock (&mutex);
  for (size_t i = 0; i < nr; ++i) {
    secret_free (&table[i].secret);
    free (table[i].id);
  }
  free (table);
  table = NULL;
  nr = 0;
  mutex_unlock (&mutex);
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
    r = copy (s, buf, len, e);
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
