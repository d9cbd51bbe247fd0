/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Which images are served, under which names, to whom; start and shutdown.
 * The requests themselves are in connection.c.  Layer: server.
 *
 * Locking: the mutex guards the list of exports and the count of connections.
 * It is not held while an image is opened for its first writer, which may wait
 * for a disk.  The state lock is held shared by each request and by connect,
 * exclusive by shutdown: see server.h.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/lock.h"
#include "common/log.h"
#include "common/text.h"
#include "image/image.h"
#include "server/server.h"
#include "server/internal.h"

/* Shutdown must get in while requests keep coming: the default lock lets
 * readers overtake a waiting writer for ever (tried: more than 5 s behind 16
 * readers, 0.2 ms with this attribute).
 */
static int
state_lock_init (pthread_rwlock_t *lock)
{
  pthread_rwlockattr_t attr;
  int r;

  pthread_rwlockattr_init (&attr);
  pthread_rwlockattr_setkind_np (&attr,
                                 PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  r = pthread_rwlock_init (lock, &attr);
  pthread_rwlockattr_destroy (&attr);
  return r;
}

struct server *
server_new (struct error *e)
{
  struct server *s = calloc (1, sizeof *s);
  int r;

  if (!s) {
    error_nomem (e, "the server", sizeof *s);
    return NULL;
  }
  r = state_lock_init (&s->state);
  if (r) {
    error_errno (e, r, "server: lock");
    free (s);
    return NULL;
  }
  mutex_init (&s->mutex);
  return s;
}

static void
export_free (struct export *ex)
{
  free (ex->name);
  free (ex->description);
  free (ex);
}

/* Clients can show it to people, so it carries no control characters, and not
 * the folder: that is the server's business.
 */
static char *
describe (const struct image *im)
{
  const char *slash = strrchr (im->name, '/');
  const char *view = im->options.snapshot;
  char *safe, *text;

  text = format_text ("%s image %s%s%s", im->format->ops->name,
                      slash ? slash + 1 : im->name,
                      view ? ", snapshot " : "", view ? view : "");
  if (!text)
    return NULL;
  safe = printable (text);
  free (text);
  return safe;
}

static struct export *
find_export (struct server *s, const char *name)
{
  for (struct export *ex = s->exports; ex; ex = ex->next)
    if (strcmp (ex->name, name) == 0)
      return ex;
  if (s->exports && !s->exports->next && s->exports->name[0] == '\0')
    return s->exports;
  return NULL;
}

static struct export *
export_open (const char *name, json_t *tree,
             const struct image_open_options *opts, struct error *e)
{
  struct export *ex = calloc (1, sizeof *ex);

  if (!ex || !(ex->name = strdup (name))) {
    error_nomem (e, "an export", sizeof *ex);
    free (ex);
    return NULL;
  }
  ex->image = image_open (tree, opts, e);
  if (ex->image && !(ex->description = describe (ex->image))) {
    error_nomem (e, "an export's description", strlen (ex->image->name));
    image_close (ex->image, e);
    ex->image = NULL;
  }
  if (!ex->image) {
    export_free (ex);
    return NULL;
  }
  return ex;
}

int
server_add (struct server *s, const char *name, json_t *tree,
            const struct image_open_options *opts, struct error *e)
{
  struct export **end, *ex;

  for (end = &s->exports; *end; end = &(*end)->next)
    if (strcmp ((*end)->name, name) == 0)
      return error_set (e, EEXIST, "two images for the export \"%s\"", name);

  ex = export_open (name, tree, opts, e);
  if (!ex)
    return -1;
  *end = ex;
  return 0;
}

int
server_list (struct server *s,
             int (*each) (void *opaque, const char *name,
                          const char *description),
             void *opaque)
{
  int r = 0;

  mutex_lock (&s->mutex);
  for (struct export *ex = s->exports; ex && r == 0; ex = ex->next)
    r = each (opaque, ex->name, ex->description);
  mutex_unlock (&s->mutex);
  return r;
}

/* Are clusters that were allocated and never written worth looking for?  They
 * are holes of the file, as preallocation=metadata leaves them, and a client
 * that learns that they are zero need not read them.  But to ask the file
 * system costs a system call for each extent and cuts the answer into many, so
 * it is asked where at least a quarter of the file is holes.
 */
static unsigned
choose_extents_flags (struct image *im)
{
  uint64_t size = storage_size (im->storage), used;
  struct error e = ERROR_INIT;

  if (storage_disk_size (im->storage, &used, &e) == -1)
    return EXTENTS_METADATA;
  return used < size - size / 4 ? 0 : EXTENTS_METADATA;
}

static int
connect_inside (struct server *s, struct connection *c, const char *name,
                bool readonly, struct error *e)
{
  struct image *im;

  if (s->down)
    return error_set (e, ESHUTDOWN, "the server is shutting down");

  mutex_lock (&s->mutex);
  c->export = find_export (s, name);
  mutex_unlock (&s->mutex);
  if (!c->export)
    return error_set (e, ENOENT, "no export is called \"%s\"", name);

  im = c->export->image;
  c->writable = !readonly && im->writable;
  if (c->writable && image_begin_write (im, e) == -1)
    return -1;
  if (!readonly && !c->writable)
    log_debug ("%s: not writable, served read-only", im->name);
  c->size = image_size (im);
  c->extents_flags = choose_extents_flags (im);
  return 0;
}

struct connection *
server_connect (struct server *s, const char *name, bool readonly,
                struct error *e)
{
  struct connection *c = calloc (1, sizeof *c);
  int r;

  if (!c) {
    error_nomem (e, "a connection", sizeof *c);
    return NULL;
  }
  c->server = s;
  pthread_rwlock_rdlock (&s->state);
  r = connect_inside (s, c, name, readonly, e);
  pthread_rwlock_unlock (&s->state);
  if (r == -1) {
    free (c);
    return NULL;
  }
  mutex_lock (&s->mutex);
  ++s->nr_connections;
  mutex_unlock (&s->mutex);
  return c;
}

void
server_disconnect (struct connection *c)
{
  struct server *s = c->server;

  mutex_lock (&s->mutex);
  --s->nr_connections;
  mutex_unlock (&s->mutex);
  free (c);
}

/* The descriptions stay: a connection that outlives this may ask for one. */
static int
close_images (struct server *s, struct error *e)
{
  int r = 0;

  for (struct export *ex = s->exports; ex; ex = ex->next) {
    if (image_close (ex->image, e) == -1)
      r = -1;
    ex->image = NULL;
  }
  return r;
}

int
server_shutdown (struct server *s, struct error *e)
{
  int r = 0;

  pthread_rwlock_wrlock (&s->state);
  if (!s->down) {
    s->down = true;
    r = close_images (s, e);
  }
  pthread_rwlock_unlock (&s->state);
  return r;
}

/* nbdkit unloads a plugin while the threads of idle connections still sleep in
 * a read; what they hold is not pulled from under them.
 */
void
server_free (struct server *s)
{
  struct error e = ERROR_INIT;

  if (!s || s->nr_connections)
    return;
  server_shutdown (s, &e);
  while (s->exports) {
    struct export *ex = s->exports;

    s->exports = ex->next;
    export_free (ex);
  }
  mutex_destroy (&s->mutex);
  pthread_rwlock_destroy (&s->state);
  free (s);
}
