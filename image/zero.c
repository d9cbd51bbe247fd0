/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Zero and trim.  Layer: image.  Locking: as io.c; mappings change, so the
 * clusters are held EXCLUSIVE, in pieces, so that a request for a whole disk
 * lets others in between.
 *
 * A zero request is told to the format where the format can say it (unmap);
 * where it cannot, zeroes are written as data.  A trim is a hint: only whole
 * units are dropped, and what the format cannot say is left as it is.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "image/gate.h"
#include "image/hook.h"
#include "image/io.h"
#include "image/packed.h"

#define PIECE (GiB)

/* Does [offset, offset+len) of the disk hold whole units from OFFSET on?
 * *N = their bytes; the last unit of the disk may be cut by its end.
 */
static bool
whole_units (const struct image *im, uint64_t offset, uint64_t len,
             uint64_t *n)
{
  uint64_t cow = im->format->info.cow_size;

  if (!is_aligned (offset, cow))
    return false;
  *n = offset + len == image_size (im) ? len : round_down (len, cow);
  return *n > 0;
}

/* Drop [offset, offset+len) from the format's tables, as far as one call goes;
 * *DONE = 0 where the format cannot say it.
 */
static int
unmap (struct image *im, uint64_t offset, uint64_t len, enum unmap_how how,
       uint64_t *done, struct error *e)
{
  struct format *f = im->format;

  *done = 0;
  if (!f->ops->unmap)
    return 0;
  packed_forget (im->packed, offset, len);
  if (f->ops->unmap (f, offset, len, how, done, e) == -1)
    return error_prefix (e, "%s: guest offset %" PRIu64, im->name, offset);
  /* Space in an external data file is not the format's to free.  Whether the
   * table or the hole gets to the disk first, the guest reads the old data or
   * zeroes.
   */
  if (*done && how != UNMAP_KEEP && f->info.data_file_identity
      && im->options.discard)
    return storage_trim (im->data_file, offset, *done, 0, e);
  return 0;
}

/* Zeroes as data: in place, or in a place of their own. */
static int
zero_as_data (struct write_job *w, uint64_t len, unsigned flags,
              struct error *e)
{
  struct write_job piece = *w;
  struct mapping m;
  int r = 0;

  piece.len = (size_t) len;
  while (r == 0 && piece.len > 0) {
    if (io_map (w->im, piece.offset, piece.len, &m, e) == -1)
      return -1;
    if ((flags & IMAGE_MAY_UNMAP)
        && io_reads_zero (w->im, &m, piece.offset)) {
      piece.offset += m.length;
      piece.len -= (size_t) m.length;
    }
    else
      r = io_write_piece (&piece, e);
  }
  w->placed |= piece.placed;
  return r;
}

/* Try what the format may be able to say, the wanted way first. */
static int
zero_by_format (struct image *im, uint64_t offset, uint64_t len,
                unsigned flags, uint64_t *done, struct error *e)
{
  bool may_unmap = flags & IMAGE_MAY_UNMAP;
  bool keep = !may_unmap || !im->options.discard || flags & IO_KEEP;

  *done = 0;
  if (keep && unmap (im, offset, len, UNMAP_KEEP, done, e) == -1)
    return -1;
  if (*done || !may_unmap)
    return 0;
  return unmap (im, offset, len, UNMAP_ZERO, done, e);
}

/* One step of a zero request: whole units by the format, or the bytes up to
 * the next unit as data.
 */
static int
zero_step (struct write_job *w, uint64_t end, unsigned flags, struct error *e)
{
  uint64_t cow = w->im->format->info.cow_size, n, done = 0;

  if (whole_units (w->im, w->offset, end - w->offset, &n)) {
    if (zero_by_format (w->im, w->offset, n, flags, &done, e) == -1)
      return -1;
    if (done) {
      w->placed = true;
      w->offset += done;
      return 0;
    }
    if (w->im->format->ops->unmap)
      n = min_u64 (n, cow);     /* the next unit may be another kind */
  }
  else
    n = min_u64 (end, round_down (w->offset, cow) + cow) - w->offset;
  n = min_u64 (n, PIECE);
  if (zero_as_data (w, n, flags, e) == -1)
    return -1;
  w->offset += n;
  return 0;
}

static int
zero_gated (struct write_job *w, uint64_t len, unsigned flags,
            struct error *e)
{
  uint64_t end = w->offset + len;
  struct range range;
  int r;

  io_lock_clusters (w->im, &range, w->offset, len);
  r = io_check_probed_head (w->im, NULL, len, w->offset, e);
  if (r == 0 && !(flags & IO_NO_CHANGE))
    r = hooks_before (w->im, w->offset, len, e);
  while (r == 0 && w->offset < end)
    r = zero_step (w, end, flags, e);
  range_unlock (&w->im->ranges, &range);
  return r;
}

int
io_zero_behind (struct image *im, uint64_t offset, uint64_t len,
                struct error *e)
{
  struct write_job w = { .im = im, .offset = offset };

  return zero_as_data (&w, len, IMAGE_MAY_UNMAP, e);
}

/* Would this be faster than writing zero bytes? */
static bool
is_fast (const struct image *im, uint64_t offset, uint64_t len,
         unsigned flags)
{
  uint64_t cow = im->format->info.cow_size;

  if (im->format->info.identity)
    return im->storage->caps.zero_is_fast;
  return im->format->info.zero_is_fast && (flags & IMAGE_MAY_UNMAP)
    && round_up (offset, cow) + cow <= offset + len;
}

int
image_zero (struct image *im, uint64_t offset, uint64_t len, unsigned flags,
            struct error *e)
{
  struct write_job w = { .im = im, .offset = offset };
  uint64_t n;
  int r = 0;

  if (io_check_write (im, offset, len, e) == -1)
    return -1;
  if ((flags & IMAGE_FAST) && !is_fast (im, offset, len, flags))
    return error_set (e, ENOTSUP, "%s: zeroes are not faster than data here",
                      im->name);
  flags = io_durable (im, flags);
  w.storage_flags = io_fua_flag (im, flags);
  if (flags & IMAGE_MAY_UNMAP && im->options.discard && !(flags & IO_KEEP))
    w.storage_flags |= STORAGE_MAY_UNMAP;
  for (; r == 0 && len > 0; len -= n) {
    n = min_u64 (len, PIECE - (w.offset & (PIECE - 1)));
    gate_enter (&im->gate);
    r = zero_gated (&w, n, flags, e);
    gate_leave (&im->gate);
  }
  if (r == -1)
    return -1;
  return io_fua_end (im, flags, w.storage_flags, w.placed, e);
}

/* ---- trim ---- */

static int
trim_identity (struct image *im, uint64_t offset, uint64_t len,
               struct error *e)
{
  uint64_t size = storage_size (im->storage);
  struct range range;
  int r;

  if (offset >= size)
    return 0;
  len = min_u64 (len, size - offset);
  io_lock_clusters (im, &range, offset, len);
  r = io_check_probed_head (im, NULL, len, offset, e);
  if (r == 0)
    r = hooks_before (im, offset, len, e);
  if (r == 0)
    r = storage_trim (im->storage, offset, len, 0, e);
  range_unlock (&im->ranges, &range);
  return r;
}

/* The format keeps what is allocated: what becomes free is the space under the
 * data.  A storage that could only write zeroes is left alone.
 */
static int
trim_in_place (struct image *im, uint64_t offset, uint64_t len,
               struct error *e)
{
  struct storage *st = im->storage;
  struct mapping m;

  if (!st->caps.can_punch || im->format->encrypted)
    return 0;                   /* a hole does not decrypt to zeroes */
  for (; len > 0; offset += m.length, len -= m.length)
    if (io_map (im, offset, len, &m, e) == -1
        || (m.kind == MAP_DATA
            && storage_zero (st, m.host, m.length, STORAGE_MAY_UNMAP,
                             e) == -1))
      return -1;
  return 0;
}

static int
trim_units (struct image *im, uint64_t offset, uint64_t len, struct error *e)
{
  uint64_t cow = im->format->info.cow_size, end = offset + len, n, done;
  struct range range;
  int r;

  io_lock_clusters (im, &range, offset, len);
  /* All of it, though only whole units are dropped: whoever asks what changed
   * since then need not know the format.
   */
  r = hooks_before (im, offset, len, e);
  if (im->format->info.trim_in_place)
    cow = SECTOR_SIZE;
  offset = min_u64 (round_up (offset, cow), end);
  if (r == 0 && im->format->info.trim_in_place)
    r = trim_in_place (im, offset, end - offset, e);
  else
    while (r == 0 && offset < end
           && whole_units (im, offset, end - offset, &n)) {
      r = unmap (im, offset, n, UNMAP_ZERO, &done, e);
      offset += done ? done : cow;
    }
  range_unlock (&im->ranges, &range);
  return r;
}

int
image_trim (struct image *im, uint64_t offset, uint64_t len, unsigned flags,
            struct error *e)
{
  uint64_t n;
  int r = 0;

  if (io_check_write (im, offset, len, e) == -1)
    return -1;
  for (; r == 0 && len > 0 && im->options.discard; len -= n, offset += n) {
    n = min_u64 (len, PIECE - (offset & (PIECE - 1)));
    gate_enter (&im->gate);
    if (im->format->info.identity)
      r = trim_identity (im, offset, n, e);
    else
      r = trim_units (im, offset, n, e);
    gate_leave (&im->gate);
  }
  if (r == -1 || !(io_durable (im, flags) & IMAGE_FUA))
    return r;
  return image_flush (im, e);
}
