/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* One client's requests on one image.  Layer: server.
 *
 * Locking: each request holds the server's state lock shared (see registry.c);
 * everything else is the image's.
 */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "common/error.h"
#include "image/image.h"
#include "server/server.h"
#include "server/internal.h"

/* Block status is answered from metadata, but a fragmented image may have a
 * mapping for each 512 bytes.  So many lookups bound the time of one request;
 * a shorter answer than was asked for is allowed, and the client comes again.
 */
enum { MAX_LOOKUPS = 65536 };

uint64_t
connection_size (const struct connection *c)
{
  return c->size;
}

bool
connection_writable (const struct connection *c)
{
  return c->writable;
}

const char *
connection_description (const struct connection *c)
{
  return c->export->description;
}

/* The image, with the state lock held, or NULL and nothing held. */
static struct image *
enter (struct connection *c, struct error *e)
{
  pthread_rwlock_rdlock (&c->server->state);
  if (!c->server->down)
    return c->export->image;
  pthread_rwlock_unlock (&c->server->state);
  error_set (e, ESHUTDOWN, "the server is shutting down");
  return NULL;
}

static int
leave (struct connection *c, int r)
{
  pthread_rwlock_unlock (&c->server->state);
  return r;
}

int
connection_read (struct connection *c, void *buf, size_t len, uint64_t offset,
                 struct error *e)
{
  struct image *im = enter (c, e);

  if (!im)
    return -1;
  return leave (c, image_read (im, buf, len, offset, e));
}

int
connection_write (struct connection *c, const void *buf, size_t len,
                  uint64_t offset, unsigned flags, struct error *e)
{
  struct image *im = enter (c, e);

  if (!im)
    return -1;
  return leave (c, image_write (im, buf, len, offset, flags, e));
}

int
connection_zero (struct connection *c, uint64_t offset, uint64_t len,
                 unsigned flags, struct error *e)
{
  struct image *im = enter (c, e);

  if (!im)
    return -1;
  return leave (c, image_zero (im, offset, len, flags, e));
}

int
connection_trim (struct connection *c, uint64_t offset, uint64_t len,
                 unsigned flags, struct error *e)
{
  struct image *im = enter (c, e);

  if (!im)
    return -1;
  return leave (c, image_trim (im, offset, len, flags, e));
}

/* Multi-conn: there is one image for all connections, so this covers what was
 * acknowledged on any of them.
 */
int
connection_flush (struct connection *c, struct error *e)
{
  struct image *im = enter (c, e);

  if (!im)
    return -1;
  return leave (c, c->writable ? image_flush (im, e) : 0);
}

/* Extend LENGTH bytes of KIND from OFFSET as far as the image goes on alike,
 * to END at most.  NEXT gets the first one that differs; its length is 0 when
 * END was reached.
 */
static int
merge_extents (struct image *im, uint64_t offset, uint64_t end,
               unsigned flags, const struct image_extent *kind,
               uint64_t *length, struct image_extent *next,
               unsigned *lookups, struct error *e)
{
  *length = kind->length;
  next->length = 0;
  while (offset + *length < end && *lookups < MAX_LOOKUPS) {
    uint64_t at = offset + *length;

    ++*lookups;
    if (image_extents (im, at, end - at, flags, next, e) == -1)
      return -1;
    if (next->data != kind->data || next->zero != kind->zero)
      return 0;
    *length += next->length;
    next->length = 0;
  }
  return 0;
}

static int
extents_inside (struct connection *c, struct image *im, uint64_t offset,
                uint64_t end, bool one, connection_add_extent add,
                void *opaque, struct error *e)
{
  unsigned flags = c->extents_flags;
  struct image_extent kind, next = { .length = 0 };
  unsigned lookups = 1;
  uint64_t length;

  if (image_extents (im, offset, end - offset, flags, &kind, e) == -1)
    return -1;
  do {
    if (merge_extents (im, offset, end, flags, &kind, &length, &next, &lookups,
                       e) == -1)
      return -1;
    if (add (opaque, offset, length, kind.data, kind.zero, e) == -1)
      return error_set (e, EIO, "block status: the extent was not taken");
    offset += length;
    kind = next;
  } while (!one && kind.length);
  return 0;
}

int
connection_extents (struct connection *c, uint64_t offset, uint64_t len,
                    bool one, connection_add_extent add, void *opaque,
                    struct error *e)
{
  struct image *im = enter (c, e);

  if (!im)
    return -1;
  len = min_u64 (len, CONNECTION_EXTENTS_MAX);
  return leave (c, extents_inside (c, im, offset, offset + len, one, add,
                                   opaque, e));
}
