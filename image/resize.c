/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Change the virtual size.  Layer: image.  Locking: under the gate. */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "image/image.h"

/* What a grown disk shows behind its old end must be zero: where the backing
 * file is longer, the format says so before the new size is on disk.
 */
static int
resize_frozen (struct image *im, uint64_t size, struct error *e)
{
  struct format *f = im->format;
  uint64_t zero_until = im->backing ? image_size (im->backing) : 0;

  if (f->ops->resize (f, size, zero_until, e) == -1)
    return error_prefix (e, "%s: resize", im->name);
  __atomic_store_n (&im->size, f->info.size, __ATOMIC_RELEASE);
  return 0;
}

/* The tail of what was the last cluster is no guest data before; other programs
 * may have left something there.
 */
static int
zero_tail (struct image *im, uint64_t old, struct error *e)
{
  uint64_t end = round_up (old, im->format->info.cluster_size);

  end = min_u64 (end, image_size (im));
  if (im->format->info.identity || end <= old)
    return 0;
  return image_zero (im, old, end - old, IMAGE_MAY_UNMAP, e);
}

int
image_resize (struct image *im, uint64_t size, struct error *e)
{
  struct format *f = im->format;
  uint64_t old;
  int r;

  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!f->ops->resize)
    return error_set (e, ENOTSUP, "%s: Image format driver does not support"
                      " resize (%s)", im->name, f->ops->name);
  image_freeze (im);
  old = image_size (im);
  r = resize_frozen (im, size, e);
  image_thaw (im);
  return r == -1 ? -1 : zero_tail (im, old, e);
}
