/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Other options for an open image.  Layer: image.  Locking: under the gate; a
 * flush before it keeps the time short for which guest I/O waits (I7).
 */

#include <config.h>

#include <errno.h>

#include "image/image.h"

int
image_amend (struct image *im, const struct format_amend *a, struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  int r;

  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!ops->amend)
    return error_set (e, ENOTSUP, "%s: the options of a %s image cannot be"
                      " changed", im->name, ops->name);
  if (image_flush (im, e) == -1)
    return -1;
  image_freeze (im);
  r = ops->amend (im->format, a, e);
  image_thaw (im);
  return r == -1 ? error_prefix (e, "%s", im->name) : 0;
}
