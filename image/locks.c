/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Which of QEMU's image locks a layer holds, and the first write.
 *
 * Layer: image.  Locking: image_begin_write freezes the image; everything else
 * runs before anybody else can see the image.
 *
 *   read    held: consistent read           unshared: write, resize
 *   write   held: consistent read, write,   unshared: write, resize
 *           resize
 *
 * A raw backing file is held for consistent read only, and so is everything
 * under -U and for info.  With share=on writing stays shared, as qemu-nbd does
 * it for raw images: two of them can write to one disk, for guests that know
 * how to share it.
 */

#include <config.h>

#include <errno.h>

#include "image/hook.h"
#include "image/image.h"
#include "image/layer.h"

static void
permissions (const struct image *im, bool is_backing, bool writing,
             unsigned *held, unsigned *unshared)
{
  const struct image_open_options *o = &im->options;

  *held = PERM_CONSISTENT_READ;
  *unshared = 0;
  if (o->force_share || o->info_only)
    return;
  if (is_backing && !writing
      && (!im->format || im->format->info.identity))
    return;
  *unshared = PERM_RESIZE | (o->share ? 0 : PERM_WRITE);
  if (writing)
    *held |= PERM_WRITE | (o->share ? 0 : PERM_RESIZE);
}

int
layer_lock (struct image *im, bool is_backing, bool writing, struct error *e)
{
  unsigned held, unshared;

  permissions (im, is_backing, writing, &held, &unshared);
  if (storage_lock (im->storage, held, unshared, e) == -1)
    return -1;
  return im->data_file ? storage_lock (im->data_file, held, unshared, e) : 0;
}

/* Two programs that allocate clusters in one file destroy it. */
static int
check_share (const struct image *im, struct error *e)
{
  if (!im->options.share || im->format->info.identity)
    return 0;
  return error_set (e, ENOTSUP, "%s: share=on is for raw images: two writers "
                    "would destroy a %s image", im->name,
                    im->format->ops->name);
}

static int
begin_format (struct image *im, struct error *e)
{
  const struct format_ops *ops = im->format->ops;

  if (!ops->begin_write || ops->begin_write (im->format, e) == 0)
    return 0;
  return error_prefix (e, "%s", im->name);
}

/* A writer that does not get all its locks keeps none of them. */
static int
begin_write_frozen (struct image *im, struct error *e)
{
  struct error ignored = ERROR_INIT;

  if (im->writing)
    return 0;
  if (!im->writable)
    return error_set (e, EROFS, "%s: the image is open read-only", im->name);
  if (check_share (im, e) == -1)
    return -1;
  if (layer_lock (im, false, true, e) == -1 || hook_add_format (im, e) == -1
      || begin_format (im, e) == -1) {
    layer_lock (im, false, false, &ignored);
    return -1;
  }
  __atomic_store_n (&im->writing, true, __ATOMIC_RELEASE);
  return 0;
}

int
image_begin_write (struct image *im, struct error *e)
{
  int r;

  if (__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return 0;
  image_freeze (im);
  r = begin_write_frozen (im, e);
  image_thaw (im);
  return r;
}
