/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Copy on read: what comes from below becomes the image's own.  Layer: image.
 * Locking: one cluster at a time, held EXCLUSIVE as for a write (io.c).
 *
 * The guest reads the same before and after, so no hook is told, and a crash in
 * between leaves some clusters copied and others not.
 */

#include <config.h>

#include <stdlib.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "image/gate.h"
#include "image/io.h"

/* Zeroes are said, not written, where the format can say it: *DONE > 0. */
static int
say_zero (struct image *im, uint64_t offset, uint64_t len, uint64_t *done,
          struct error *e)
{
  struct format *f = im->format;
  uint64_t cow = f->info.cow_size;

  *done = 0;
  if (!f->ops->unmap || !is_aligned (offset, cow)
      || (!is_aligned (len, cow) && offset + len != image_size (im)))
    return 0;
  return f->ops->unmap (f, offset, len, UNMAP_ZERO, done, e);
}

/* LEN bytes at OFFSET, which nobody but the layers below has. */
static int
copy_run (struct image *im, uint8_t *buf, uint64_t offset, uint64_t len,
          struct error *e)
{
  struct write_job w = { .im = im, .buf = buf, .offset = offset };
  uint64_t done = 0;

  if (io_read (im, buf, (size_t) len, offset, e) == -1)
    return -1;
  while (len > 0 && is_zero (buf, (size_t) len)) {
    if (say_zero (im, w.offset, len, &done, e) == -1)
      return -1;
    if (done == 0)
      break;
    w.offset += done;
    len -= done;
  }
  for (w.len = (size_t) len; w.len > 0;)
    if (io_write_piece (&w, e) == -1)
      return -1;
  return 0;
}

static int
copy_cluster (struct image *im, uint8_t *buf, uint64_t offset, uint64_t end,
              struct error *e)
{
  struct mapping m;

  for (; offset < end; offset += m.length)
    if (io_map (im, offset, end - offset, &m, e) == -1
        || ((m.kind == MAP_BACKING || m.kind == MAP_BACKING_ALLOC)
            && copy_run (im, buf, offset, m.length, e) == -1))
      return -1;
  return 0;
}

int
image_copy_up (struct image *im, uint64_t offset, uint64_t len,
               struct error *e)
{
  uint64_t cs = im->format->info.cluster_size, end = offset + len;
  CLEANUP_FREE uint8_t *buf = NULL;
  struct range range;
  int r = 0;

  if (io_check_write (im, offset, len, e) == -1)
    return -1;
  if (im->format->info.identity || im->format->info.flat || len == 0)
    return 0;
  buf = malloc ((size_t) cs);
  if (!buf)
    return error_nomem (e, "copy on read", (size_t) cs);
  for (offset = round_down (offset, cs); r == 0 && offset < end;
       offset += cs) {
    gate_enter (&im->gate);
    io_lock_clusters (im, &range, offset, 1);
    r = copy_cluster (im, buf, offset, min_u64 (offset + cs, image_size (im)),
                      e);
    range_unlock (&im->ranges, &range);
    gate_leave (&im->gate);
  }
  return r;
}
