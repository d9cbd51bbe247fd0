/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Change the virtual size.  Layer: image.  Locking: under the gate. */

#include <config.h>

#include <errno.h>

#include "image/image.h"

int
image_resize (struct image *im, uint64_t size, struct error *e)
{
  struct format *f = im->format;
  int r;

  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!f->ops->resize)
    return error_set (e, ENOTSUP, "%s: resizing %s images is not built yet",
                      im->name, f->ops->name);
  image_freeze (im);
  r = f->ops->resize (f, size, e);
  if (r == 0)
    __atomic_store_n (&im->size, f->info.size, __ATOMIC_RELEASE);
  image_thaw (im);
  return r;
}
