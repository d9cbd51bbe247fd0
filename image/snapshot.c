/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Internal snapshots of an open image.  Layer: image.  Locking: under the gate;
 * a flush before it keeps the time short for which guest I/O waits (I7).
 */

#include <config.h>

#include <errno.h>

#include "image/image.h"
#include "image/packed.h"

static int
begin (struct image *im, bool supported, struct error *e)
{
  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!supported)
    return error_set (e, ENOTSUP, "%s: the format %s has no internal"
                      " snapshots", im->name, im->format->ops->name);
  if (image_flush (im, e) == -1)
    return -1;
  image_freeze (im);
  return 0;
}

static int
end (struct image *im, int r, struct error *e)
{
  image_thaw (im);
  return r == -1 ? error_prefix (e, "%s", im->name) : 0;
}

int
image_snapshot_create (struct image *im, const struct format_snapshot *s,
                       struct error *e)
{
  const struct format_ops *ops = im->format->ops;

  if (begin (im, ops->snapshot_create, e) == -1)
    return -1;
  return end (im, ops->snapshot_create (im->format, s, e), e);
}

/* The new disk and size hold also when there is an error, if it came late. */
int
image_snapshot_apply (struct image *im, const char *snapshot,
                      struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  uint64_t old = image_size (im);
  int r;

  if (begin (im, ops->snapshot_apply, e) == -1)
    return -1;
  r = ops->snapshot_apply (im->format, snapshot, e);
  packed_forget (im->packed, 0, old);
  __atomic_store_n (&im->size, im->format->info.size, __ATOMIC_RELEASE);
  return end (im, r, e);
}

int
image_snapshot_delete (struct image *im, const char *snapshot,
                       struct error *e)
{
  const struct format_ops *ops = im->format->ops;

  if (begin (im, ops->snapshot_delete, e) == -1)
    return -1;
  return end (im, ops->snapshot_delete (im->format, snapshot, e), e);
}
