/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The name of the backing file in an image's header.  Layer: image.  Locking:
 * under the gate.
 */

#include <config.h>

#include <errno.h>

#include "image/image.h"

int
image_set_backing (struct image *im, const char *name, const char *format,
                   struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  int r;

  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!ops->set_backing)
    return error_set (e, ENOTSUP, "Operation not supported: the backing file of"
                      " %s images cannot be changed", ops->name);
  image_freeze (im);
  r = ops->set_backing (im->format, name, format, e);
  image_thaw (im);
  return r;
}
