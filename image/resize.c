/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Change the virtual size.  Layer: image.  Locking: under the gate; a flush
 * before it keeps the time short for which guest I/O waits (I7).
 */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "image/io.h"
#include "image/packed.h"

/* What a grown disk shows behind its old end must be zero: where the backing
 * file is longer, the format says so before the new size is on disk.  An error
 * may come after the new size has.
 */
static int
resize_frozen (struct image *im, uint64_t size, enum preallocation mode,
               struct error *e)
{
  struct format *f = im->format;
  uint64_t zero_until = im->backing ? image_size (im->backing) : 0;
  uint64_t old = image_size (im);
  int r;

  if (mode == PREALLOCATION_OFF)
    r = f->ops->resize (f, size, zero_until, e);
  else
    r = f->ops->resize_preallocated (f, size, zero_until, mode, e);
  if (im->packed && f->info.size < old)
    packed_forget (im->packed, f->info.size, old - f->info.size);
  __atomic_store_n (&im->size, f->info.size, __ATOMIC_RELEASE);
  return r == -1 ? error_prefix (e, "%s", im->name) : 0;
}

/* The tail of what was the last cluster is no guest data before, but a larger
 * disk once had it, or another program left something there.  It is zero, and
 * durable, before a new size shows it: with a crash between the two the guest
 * would read what was cut off long ago.
 */
static int
zero_tail_frozen (struct image *im, uint64_t size, struct error *e)
{
  const struct format_info *info = &im->format->info;
  uint64_t old = image_size (im), end = round_up (old, info->cluster_size);

  if (size <= old || end == old || info->identity || info->flat)
    return 0;
  if (io_zero_behind (im, old, end - old, e) == -1)
    return -1;
  return im->format->ops->flush (im->format, e);
}

/* Where the format has no clusters, what is new is reached only through its
 * size.
 */
static int
zero_flat (struct image *im, uint64_t old, struct error *e)
{
  uint64_t end = round_up (old, im->format->info.cluster_size);

  end = min_u64 (end, image_size (im));
  if (!im->format->info.flat || im->format->info.identity || end <= old)
    return 0;
  return image_zero (im, old, end - old, IMAGE_MAY_UNMAP | IO_NO_CHANGE, e);
}

static int
check_possible (const struct image *im, uint64_t size,
                enum preallocation mode, struct error *e)
{
  const struct format_ops *ops = im->format->ops;

  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!ops->resize)
    return error_set (e, ENOTSUP, "%s: Image format driver does not support"
                      " resize (%s)", im->name, ops->name);
  if (mode == PREALLOCATION_OFF)
    return 0;
  if (size <= image_size (im))
    return error_set (e, EINVAL, "%s: Preallocation can only be used for"
                      " growing images", im->name);
  if (!ops->resize_preallocated)
    return error_set (e, ENOTSUP, "%s: Unsupported preallocation mode: %s",
                      im->name, preallocation_name (mode));
  return 0;
}

int
image_resize_preallocated (struct image *im, uint64_t size,
                           enum preallocation mode, struct error *e)
{
  uint64_t old;
  int r;

  if (check_possible (im, size, mode, e) == -1 || image_flush (im, e) == -1)
    return -1;
  image_freeze (im);
  old = image_size (im);
  r = zero_tail_frozen (im, size, e);
  if (r == 0)
    r = resize_frozen (im, size, mode, e);
  image_thaw (im);
  return r == -1 ? -1 : zero_flat (im, old, e);
}

int
image_resize (struct image *im, uint64_t size, struct error *e)
{
  return image_resize_preallocated (im, size, PREALLOCATION_OFF, e);
}
