/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A window of another storage: the raw format's offset and size, and images
 * inside of other objects.
 *
 * Layer: storage.  Locking: none of its own.  The size of an open-ended slice
 * follows the object below it.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "storage/driver.h"

struct slice {
  struct storage base;
  struct storage *inner;      /* owned */
  uint64_t offset;
  bool to_end;                /* grows and shrinks with inner */
};

static const struct storage_ops slice_ops;

static struct slice *
slice_of (struct storage *st)
{
  return (struct slice *) st;
}

struct storage *
storage_slice_inner (struct storage *st, uint64_t *offset)
{
  if (st->ops != &slice_ops)
    return NULL;
  *offset += slice_of (st)->offset;
  return slice_of (st)->inner;
}

static void
slice_close (struct storage *st)
{
  struct slice *s = slice_of (st);

  storage_close (s->inner);
  free (st->name);
  free (s);
}

static int
slice_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
             struct error *e)
{
  struct slice *s = slice_of (st);

  return storage_pread (s->inner, buf, len, s->offset + offset, e);
}

/* storage.c knows that an open-ended slice may grow; that OFFSET + LEN with
 * the slice's own offset does not wrap is checked again below.
 */
static int
slice_pwrite (struct storage *st, const void *buf, size_t len,
              uint64_t offset, unsigned flags, struct error *e)
{
  struct slice *s = slice_of (st);

  if (storage_pwrite (s->inner, buf, len, s->offset + offset, flags, e) < 0)
    return -1;
  storage_note_end (st, offset + len);
  return 0;
}

static int
slice_zero (struct storage *st, uint64_t offset, uint64_t len,
            unsigned flags, struct error *e)
{
  struct slice *s = slice_of (st);

  if (storage_zero (s->inner, s->offset + offset, len, flags, e) < 0)
    return -1;
  storage_note_end (st, offset + len);
  return 0;
}

static int
slice_trim (struct storage *st, uint64_t offset, uint64_t len,
            unsigned flags, struct error *e)
{
  struct slice *s = slice_of (st);

  return storage_trim (s->inner, s->offset + offset, len, flags, e);
}

static int
slice_flush (struct storage *st, struct error *e)
{
  return storage_flush (slice_of (st)->inner, e);
}

static int
slice_truncate (struct storage *st, uint64_t size, struct error *e)
{
  struct slice *s = slice_of (st);

  if (size > INT64_MAX - s->offset)
    return error_set (e, EFBIG, "%s: a size of %" PRIu64 " bytes after "
                      "offset %" PRIu64 " is too large", st->name, size,
                      s->offset);
  if (storage_truncate (s->inner, s->offset + size, e) < 0)
    return -1;
  storage_set_size (st, size);
  return 0;
}

static int
slice_extents (struct storage *st, uint64_t offset, uint64_t len,
               struct storage_extent *out, size_t max, size_t *nr,
               struct error *e)
{
  struct slice *s = slice_of (st);

  return storage_extents (s->inner, s->offset + offset, len, out, max, nr, e);
}

static int
slice_lock (struct storage *st, unsigned held, unsigned unshared,
            struct error *e)
{
  return storage_lock (slice_of (st)->inner, held, unshared, e);
}

/* A fixed window whose object has become shorter ends earlier: what is gone
 * reads as zeroes below, so its size stays.
 */
static int
slice_refresh_size (struct storage *st, struct error *e)
{
  struct slice *s = slice_of (st);
  uint64_t size;

  if (storage_refresh_size (s->inner, e) < 0)
    return -1;
  if (s->to_end) {
    size = storage_size (s->inner);
    storage_set_size (st, size > s->offset ? size - s->offset : 0);
  }
  return 0;
}

static int
slice_disk_size (struct storage *st, uint64_t *size, struct error *e)
{
  return storage_disk_size (slice_of (st)->inner, size, e);
}

static void
slice_caps (struct slice *s)
{
  struct storage_caps *caps = &s->base.caps;

  *caps = s->inner->caps;
  caps->can_grow = caps->can_grow && s->to_end;
  if (!is_aligned (s->offset, caps->alignment))
    caps->alignment = 1;
}

static int
slice_set_writable (struct storage *st, struct error *e)
{
  struct slice *s = slice_of (st);

  if (storage_set_writable (s->inner, e) < 0)
    return -1;
  slice_caps (s);
  return 0;
}

static const struct storage_ops slice_ops = {
  .driver = "slice",
  .close = slice_close,
  .pread = slice_pread,
  .pwrite = slice_pwrite,
  .zero = slice_zero,
  .trim = slice_trim,
  .flush = slice_flush,
  .truncate = slice_truncate,
  .extents = slice_extents,
  .lock = slice_lock,
  .refresh_size = slice_refresh_size,
  .disk_size = slice_disk_size,
  .set_writable = slice_set_writable,
};

static int
check_window (struct storage *inner, uint64_t offset, uint64_t *size,
              struct error *e)
{
  uint64_t whole = storage_size (inner);

  if (offset > whole)
    return error_set (e, EINVAL, "%s: offset %" PRIu64 " lies past the end "
                      "at %" PRIu64, inner->name, offset, whole);
  if (*size == UINT64_MAX)
    *size = whole - offset;
  else if (*size > whole - offset)
    return error_set (e, EINVAL, "%s: offset %" PRIu64 " and size %" PRIu64
                      " do not fit into %" PRIu64 " bytes", inner->name,
                      offset, *size, whole);
  return 0;
}

struct storage *
storage_slice_new (struct storage *inner, uint64_t offset, uint64_t size,
                   struct error *e)
{
  bool to_end = size == UINT64_MAX;
  struct slice *s;

  if (check_window (inner, offset, &size, e) < 0)
    return NULL;
  s = calloc (1, sizeof *s);
  if (s)
    s->base.name = strdup (inner->name);
  if (!s || !s->base.name) {
    free (s);
    error_nomem (e, "a slice", sizeof *s);
    return NULL;
  }
  s->base.ops = &slice_ops;
  s->base.identity = inner->identity;
  s->base.size = size;
  s->inner = inner;
  s->offset = offset;
  s->to_end = to_end;
  slice_caps (s);
  return &s->base;
}
