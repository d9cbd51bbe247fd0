/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Persistent bitmaps of an open image.  Layer: image.  Locking: under the gate;
 * a source and a target are frozen one after the other, never together.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "image/image.h"

static int
has_none (const struct image *im, struct error *e)
{
  return error_set (e, ENOTSUP, "%s: images of the format %s have no persistent"
                    " bitmaps", im->name, im->format->ops->name);
}

int
image_bitmaps (struct image *im, struct format_bitmap **list, size_t *nr,
               struct error *e)
{
  int r;

  *list = NULL;
  *nr = 0;
  if (!im->format->ops->bitmaps)
    return has_none (im, e);
  image_freeze (im);
  r = im->format->ops->bitmaps (im->format, list, nr, e);
  image_thaw (im);
  return r;
}

int
image_bitmap_edit (struct image *im, const struct format_bitmap_edit *edit,
                   struct error *e)
{
  int r;

  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!im->format->ops->bitmap_edit)
    return has_none (im, e);
  image_freeze (im);
  r = im->format->ops->bitmap_edit (im->format, edit, e);
  image_thaw (im);
  return r;
}

/* Bitmaps are those of the disk, also where a snapshot is what is looked at. */
static uint64_t
disk_size (const struct image *im)
{
  return im->format->info.size;
}

static int
map (struct image *im, const char *name, uint64_t offset, bool *dirty,
     uint64_t *done, struct error *e)
{
  int r;

  image_freeze (im);
  r = im->format->ops->bitmap_map (im->format, name, offset,
                                   disk_size (im) - offset, dirty, done, e);
  image_thaw (im);
  return r;
}

/* A range without length changes nothing: is there a bitmap, and a usable one?
 */
static int
check_merge (struct image *im, const char *name, struct image *from,
             struct error *e)
{
  const struct format_bitmap_edit nothing = {
    .verb = BITMAP_SET, .name = name,
  };

  if (image_bitmap_edit (im, &nothing, e) == -1)
    return -1;
  if (!from->format->ops->bitmap_map)
    return has_none (from, e);
  if (disk_size (im) == disk_size (from))
    return 0;
  return error_set (e, EINVAL, "Bitmaps are of different sizes (destination "
                    "size is %" PRIu64 ", source size is %" PRIu64 ") and "
                    "can't be merged", disk_size (im), disk_size (from));
}

int
image_bitmap_merge (struct image *im, const char *name, struct image *from,
                    const char *source, struct error *e)
{
  struct format_bitmap_edit edit = { .verb = BITMAP_SET, .name = name };
  uint64_t size = disk_size (from);
  bool dirty;

  if (check_merge (im, name, from, e) == -1)
    return -1;
  /* An empty disk has no bits, but the bitmap must be there all the same. */
  do {
    if (map (from, source, edit.offset, &dirty, &edit.length, e) == -1
        || (dirty && image_bitmap_edit (im, &edit, e) == -1))
      return -1;
    edit.offset += edit.length;
  } while (edit.offset < size);
  return 0;
}
