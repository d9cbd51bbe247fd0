/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Write hooks: who must know of a change of guest data before it is made
 * (private to image/).
 *
 * Every change passes through hooks_before, whatever makes it: write, zero,
 * trim, compressed and shared clusters.  What the guest does not see is no
 * change: copies on write, clusters that are given back to a backing file with
 * the same content, the space behind the disk.
 */

#ifndef NBDIMG_IMAGE_HOOK_H
#define NBDIMG_IMAGE_HOOK_H

#include "image/image.h"

struct write_hook {
  struct write_hook *next;
  /* Guest data of [offset, offset+len) are about to change, or to be written
   * once more.  From any thread, with the gate entered and the range held,
   * SHARED at least.  An error: the change is not made.
   */
  int (*before) (struct write_hook *hook, uint64_t offset, uint64_t len,
                 struct error *e);
};

/* HOOK is borrowed.  The image is frozen. */
extern void hook_add (struct image *im, struct write_hook *hook);

/* The format's own account of changes (persistent bitmaps), from begin_write
 * on; freed by hooks_free.
 */
extern int hook_add_format (struct image *im, struct error *e);
extern void hooks_free (struct image *im);

extern int hooks_before (struct image *im, uint64_t offset, uint64_t len,
                         struct error *e);

#endif /* NBDIMG_IMAGE_HOOK_H */
