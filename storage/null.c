/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* An object of zeroes that keeps nothing: reads give zeroes, what is written
 * is dropped (QEMU's null-co).
 *
 * Layer: storage.  No locking: there is no state.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "storage/storage.h"

static void
null_close (struct storage *st)
{
  free (st->name);
  free (st);
}

static int
null_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
            struct error *e)
{
  (void) st;
  (void) offset;
  (void) e;
  memset (buf, 0, len);
  return 0;
}

static int
null_pwrite (struct storage *st, const void *buf, size_t len,
             uint64_t offset, unsigned flags, struct error *e)
{
  (void) st;
  (void) buf;
  (void) len;
  (void) offset;
  (void) flags;
  (void) e;
  return 0;
}

static int
null_zero (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  (void) st;
  (void) offset;
  (void) len;
  (void) flags;
  (void) e;
  return 0;
}

static int
null_flush (struct storage *st, struct error *e)
{
  (void) st;
  (void) e;
  return 0;
}

static int
null_extents (struct storage *st, uint64_t offset, uint64_t len,
              struct storage_extent *out, size_t max, size_t *nr,
              struct error *e)
{
  (void) st;
  (void) offset;
  (void) max;
  (void) e;
  out[0].length = len;
  out[0].kind = EXTENT_HOLE;
  *nr = 1;
  return 0;
}

static int
null_disk_size (struct storage *st, uint64_t *size, struct error *e)
{
  (void) st;
  (void) e;
  *size = 0;
  return 0;
}

static const struct storage_ops null_ops = {
  .driver = "null-co",
  .close = null_close,
  .pread = null_pread,
  .pwrite = null_pwrite,
  .zero = null_zero,
  .trim = null_zero,
  .flush = null_flush,
  .extents = null_extents,
  .disk_size = null_disk_size,
};

struct storage *
storage_null_new (const char *name, uint64_t size, struct error *e)
{
  struct storage *st = calloc (1, sizeof *st);

  if (st)
    st->name = strdup (name);
  if (!st || !st->name) {
    free (st);
    error_nomem (e, name, sizeof *st);
    return NULL;
  }
  st->ops = &null_ops;
  st->size = size;
  st->caps = (struct storage_caps) {
    .writable = true, .can_punch = true, .zero_is_fast = true,
    .alignment = 1, .max_request = INT64_MAX,
  };
  return st;
}
