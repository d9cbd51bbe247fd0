/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Let a disk show nothing but its backing file.  Layer: image.  Locking: as
 * zero.c, in pieces.
 *
 * What is dropped must stand in the backing file, durable, before: then a crash
 * at any point leaves each cluster either here or there, with the same bytes.
 * So no guest data change, and no write hook is told.
 */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "image/gate.h"
#include "image/io.h"
#include "image/packed.h"

#define PIECE (GiB)

static int
cannot (const struct image *im, struct error *e)
{
  return error_set (e, ENOTSUP, "%s: the %s format cannot give clusters back "
                    "to the backing file", im->name, im->format->ops->name);
}

/* The caller holds [offset, end). */
static int
drop (struct image *im, uint64_t offset, uint64_t end, struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  uint64_t done;

  packed_forget (im->packed, offset, end - offset);
  for (; offset < end; offset += done) {
    if (ops->unmap (im->format, offset, end - offset, UNMAP_TRANSPARENT, &done,
                    e) == -1)
      return error_prefix (e, "%s: guest offset %llu", im->name,
                           (unsigned long long) offset);
    if (done == 0)
      return cannot (im, e);
  }
  return 0;
}

static int
empty_at_once (struct image *im, struct error *e)
{
  int r;

  image_freeze (im);
  packed_forget (im->packed, 0, image_size (im));
  r = im->format->ops->empty (im->format, e);
  image_thaw (im);
  return r == -1 ? error_prefix (e, "%s", im->name) : 0;
}

int
image_empty (struct image *im, struct error *e)
{
  uint64_t size = image_size (im), n;
  struct range range;
  int r = 0;

  if (io_check_write (im, 0, size, e) == -1)
    return -1;
  if (im->format->ops->empty)
    return empty_at_once (im, e);
  if (!im->format->ops->unmap)
    return cannot (im, e);
  for (uint64_t offset = 0; r == 0 && offset < size; offset += n) {
    n = min_u64 (size - offset, PIECE);
    gate_enter (&im->gate);
    io_lock_clusters (im, &range, offset, n);
    r = drop (im, offset, offset + n, e);
    range_unlock (&im->ranges, &range);
    gate_leave (&im->gate);
  }
  return r == -1 ? -1 : image_flush (im, e);
}
