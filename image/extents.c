/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What is where: data, zeroes, holes, and in which layer.  Layer: image.
 * Locking: the range is held SHARED while the layer is asked; the answer may be
 * old as soon as it is given, as with any extents call.
 */

#include <config.h>

#include "common/bytes.h"
#include "image/gate.h"
#include "image/io.h"

/* Ask the storage about [host, host+length): where it reads as zeroes, the
 * disk does too.  Behind its end there is nothing but zeroes.
 */
static int
ask_storage (struct storage *st, uint64_t host, struct image_extent *x,
             bool identity, struct error *e)
{
  uint64_t size = storage_size (st);
  struct storage_extent se = { .length = x->length, .kind = EXTENT_HOLE };
  size_t nr;

  if (host < size
      && storage_extents (st, host, min_u64 (x->length, size - host), &se, 1,
                          &nr, e) == -1)
    return -1;
  x->length = min_u64 (x->length, se.length);
  if (se.kind == EXTENT_DATA)
    return 0;
  x->zero = true;
  if (identity)
    x->data = false;
  return 0;
}

static int
data_extent (struct image *im, const struct mapping *m, unsigned flags,
             struct image_extent *x, struct error *e)
{
  bool identity = im->format->info.identity;

  x->data = x->present = true;
  if (im->format->encrypted)    /* holes of the file are no zeroes, and what is
                                   there is of no use to others */
    return 0;
  x->has_host = true;
  x->host = m->host;
  if ((flags & EXTENTS_METADATA) && !identity)
    return 0;
  return ask_storage (io_storage (im, m->storage), m->host, x, identity, e);
}

static int
below_extent (struct image *im, uint64_t offset, unsigned flags,
              struct image_extent *x, struct error *e)
{
  uint64_t size = im->backing ? image_size (im->backing) : 0;

  if (flags & EXTENTS_TOP_ONLY)
    return 0;
  if (offset >= size) {
    x->zero = true;
    return 0;
  }
  if (image_extents (im->backing, offset,
                     min_u64 (x->length, size - offset), flags, x, e) == -1)
    return -1;
  x->depth++;
  return 0;
}

static int
describe (struct image *im, const struct mapping *m, uint64_t offset,
          unsigned flags, struct image_extent *x, struct error *e)
{
  switch (m->kind) {
  case MAP_DATA:
  case MAP_DATA_COW:
    return data_extent (im, m, flags, x, e);
  case MAP_ZERO_ALLOC:
    x->has_host = !im->format->encrypted;
    x->host = m->host;
    x->zero = x->present = true;
    return 0;
  case MAP_ZERO:
    x->zero = x->present = true;
    return 0;
  case MAP_PACKED:
    x->data = x->present = x->compressed = true;
    return 0;
  case MAP_BACKING:
  case MAP_BACKING_ALLOC:
    break;
  }
  if (below_extent (im, offset, flags, x, e) == -1)
    return -1;
  if (m->kind == MAP_BACKING_ALLOC && x->layer == im
      && !im->format->encrypted) {
    x->has_host = true;
    x->host = m->host;
  }
  return 0;
}

int
image_extents (struct image *im, uint64_t offset, uint64_t len,
               unsigned flags, struct image_extent *out, struct error *e)
{
  struct range range;
  struct mapping m;
  int r;

  gate_enter (&im->gate);
  range_lock (&im->ranges, &range, offset, len, RANGE_SHARED);
  r = io_map (im, offset, len, &m, e);
  if (r == 0) {
    *out = (struct image_extent) { .length = m.length, .layer = im };
    r = describe (im, &m, offset, flags, out, e);
  }
  range_unlock (&im->ranges, &range);
  gate_leave (&im->gate);
  return r;
}
