/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Guest writes whose bytes are in another file already: share its blocks, or
 * let the kernel copy them.  Layer: image.  Locking: as a write in io.c: the
 * gate, then the guest's clusters EXCLUSIVE.
 *
 * The steps and what a crash leaves are those of a write: reserve, put the
 * bytes there, link.
 */

#include <config.h>

#include "common/bytes.h"
#include "image/gate.h"
#include "image/hook.h"
#include "image/io.h"
#include "image/packed.h"

struct share_job {
  struct image *im;
  struct storage *src;
  uint64_t src_offset;          /* of the guest offset 0; may wrap */
  bool copy;                    /* where sharing is not possible */
};

/* 1 = done, 0 = not possible here, -1. */
static int
move (const struct share_job *s, enum map_storage where, uint64_t host,
      uint64_t offset, uint64_t len, struct error *e)
{
  struct storage *dst = io_storage (s->im, where);
  uint64_t from = s->src_offset + offset;
  int r = storage_clone_range (s->src, from, dst, host, len, e);

  if (r == 0 && s->copy)
    r = storage_copy_range (s->src, from, dst, host, len, e);
  return r;
}

/* Into a new place, which must lie within what was asked for. */
static int
share_placed (const struct share_job *s, uint64_t offset, uint64_t len,
              uint64_t *n, struct error *e)
{
  struct format *f = s->im->format;
  struct placement p;
  int r = 0;

  if (f->ops->reserve (f, offset, len, &p, e) == -1)
    return error_prefix (e, "%s: guest offset %llu", s->im->name,
                         (unsigned long long) offset);
  if (p.guest == offset && p.length <= len) {
    packed_forget (s->im->packed, p.guest, p.length);
    r = move (s, p.storage, p.host, offset, p.length, e);
    if (r == 1 && f->ops->link (f, &p, e) == -1)
      r = -1;
  }
  if (r != 1)
    f->ops->abandon (f, &p);
  *n = p.length;
  return r;
}

static int
share_step (const struct share_job *s, uint64_t offset, uint64_t len,
            uint64_t *n, struct error *e)
{
  struct mapping m;

  if (io_map (s->im, offset, len, &m, e) == -1)
    return -1;
  *n = m.length;
  if (m.kind == MAP_DATA)
    return move (s, m.storage, m.host, offset, m.length, e);
  if (m.kind == MAP_ZERO_ALLOC || m.kind == MAP_BACKING_ALLOC)
    len = m.length;
  return share_placed (s, offset, len, n, e);
}

static int
share_locked_range (const struct share_job *s, uint64_t offset, uint64_t len,
                    uint64_t *done, struct error *e)
{
  struct range range;
  uint64_t n;
  int r;

  io_lock_clusters (s->im, &range, offset, len);
  r = hooks_before (s->im, offset, len, e) == -1 ? -1 : 1;
  while (r == 1 && *done < len) {
    r = share_step (s, offset + *done, len - *done, &n, e);
    if (r == 1)
      *done += n;
  }
  range_unlock (&s->im->ranges, &range);
  return r;
}

int
image_share (struct image *im, uint64_t offset, uint64_t len,
             struct storage *src, uint64_t src_offset, bool copy,
             uint64_t *done, struct error *e)
{
  const struct share_job s = {
    .im = im, .src = src, .src_offset = src_offset - offset, .copy = copy,
  };
  int r;

  *done = 0;
  if (io_check_write (im, offset, len, e) == -1)
    return -1;
  /* A disk that was probed may not get another format's header this way.  A
   * format that drops nothing could not give back the place where sharing turns
   * out to be impossible.  What is encrypted is no copy of anything.
   */
  if (io_is_probed_head (im, offset) || im->format->info.trim_in_place
      || im->format->encrypted
      || !is_aligned (offset | len, im->format->info.cow_size))
    return 0;
  gate_enter (&im->gate);
  r = share_locked_range (&s, offset, len, done, e);
  gate_leave (&im->gate);
  if (r == -1)
    return -1;
  return io_durable (im, 0) ? image_flush (im, e) : 0;
}
