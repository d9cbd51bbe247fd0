/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Guest reads and writes: the only loops that move guest bytes.  Layer: image.
 * Locking: the gate is entered, then the guest range is held: SHARED for reads
 * and for writes in place, EXCLUSIVE (rounded out to clusters) where a mapping
 * changes.
 *
 * A write that needs a place: reserve; fill what the place holds beyond the
 * request with what the guest reads there now; write; link.  A crash before
 * link has reached the disk leaves the old content.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "image/gate.h"
#include "image/hook.h"
#include "image/io.h"
#include "image/packed.h"
#include "image/policy.h"

/* ---- checks ---- */

static int
check_bounds (const struct image *im, uint64_t offset, uint64_t len, int err,
              struct error *e)
{
  uint64_t size = image_size (im);

  if (offset <= size && len <= size - offset)
    return 0;
  return error_set (e, err, "%s: %" PRIu64 " bytes at %" PRIu64 " are beyond"
                    " the end of the disk (%" PRIu64 " bytes)", im->name, len,
                    offset, size);
}

int
io_check_write (struct image *im, uint64_t offset, uint64_t len,
                struct error *e)
{
  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  return check_bounds (im, offset, len, ENOSPC, e);
}

bool
io_is_probed_head (const struct image *im, uint64_t offset)
{
  return im->probed && im->format->info.identity
    && offset < FORMAT_PROBE_SIZE;
}

void
io_lock_clusters (struct image *im, struct range *r, uint64_t offset,
                  uint64_t len)
{
  uint64_t cs = im->format->info.cluster_size;
  uint64_t start = round_down (offset, cs), end = round_up (offset + len, cs);

  if (io_is_probed_head (im, offset)) {
    start = 0;
    end = max_u64 (end, FORMAT_PROBE_SIZE);
  }
  range_lock (&im->ranges, r, start, end - start, RANGE_EXCLUSIVE);
}

/* Nothing from a guest may make a disk that was probed as raw look like another
 * format (see policy.h).  The caller holds the range by io_lock_clusters.
 */
int
io_check_probed_head (struct image *im, const void *buf, size_t len,
                      uint64_t offset, struct error *e)
{
  if (!io_is_probed_head (im, offset)
      || image_probed_raw_write_ok (im, buf, len, offset))
    return 0;
  return error_set (e, EPERM, "%s: the image was probed as raw, and this write"
                    " to its first sectors would make it look like another"
                    " format; name the format (raw) to allow it", im->name);
}

int
io_map (struct image *im, uint64_t offset, uint64_t len, struct mapping *m,
        struct error *e)
{
  if (im->format->ops->map (im->format, im->view, offset, len, m, e) == -1)
    return error_prefix (e, "%s: guest offset %" PRIu64, im->name, offset);
  assert (m->length > 0 && m->length <= len);
  return 0;
}

/* ---- read ---- */

/* What lies below: the backing file, and zeroes behind its end. */
static int
read_below (struct image *im, uint8_t *buf, size_t len, uint64_t offset,
            struct error *e)
{
  uint64_t size = im->backing ? image_size (im->backing) : 0;
  size_t n = 0;

  if (offset < size)
    n = (size_t) min_u64 (len, size - offset);
  if (n && image_read (im->backing, buf, n, offset, e) == -1)
    return -1;
  memset (buf + n, 0, len - n);
  return 0;
}

static int
read_mapped (struct image *im, const struct mapping *m, uint8_t *buf,
             uint64_t offset, struct error *e)
{
  size_t len = (size_t) m->length;

  switch (m->kind) {
  case MAP_DATA:
  case MAP_DATA_COW:
    return io_get (im, m->storage, buf, len, m->host, offset, e);
  case MAP_ZERO:
  case MAP_ZERO_ALLOC:
    memset (buf, 0, len);
    return 0;
  case MAP_PACKED:
    return packed_read (im, m, buf, len, offset, e);
  case MAP_BACKING:
  case MAP_BACKING_ALLOC:
    return read_below (im, buf, len, offset, e);
  }
  return error_set (e, EIO, "%s: unknown mapping %d", im->name,
                    (int) m->kind);
}

int
io_read (struct image *im, uint8_t *buf, size_t len, uint64_t offset,
         struct error *e)
{
  uint64_t size = image_size (im);
  struct mapping m;

  while (len > 0 && offset < size) {
    if (io_map (im, offset, min_u64 (len, size - offset), &m, e) == -1
        || read_mapped (im, &m, buf, offset, e) == -1)
      return -1;
    buf += m.length;
    offset += m.length;
    len -= (size_t) m.length;
  }
  if (len > 0)
    memset (buf, 0, len);
  return 0;
}

int
image_read (struct image *im, void *buf, size_t len, uint64_t offset,
            struct error *e)
{
  struct range range;
  int r;

  if (check_bounds (im, offset, len, EINVAL, e) == -1)
    return -1;
  if (len == 0)
    return 0;
  gate_enter (&im->gate);
  range_lock (&im->ranges, &range, offset, len, RANGE_SHARED);
  r = io_read (im, buf, len, offset, e);
  range_unlock (&im->ranges, &range);
  gate_leave (&im->gate);
  return r;
}

bool
io_reads_zero (const struct image *im, const struct mapping *m,
               uint64_t offset)
{
  switch (m->kind) {
  case MAP_ZERO:
  case MAP_ZERO_ALLOC:
    return true;
  case MAP_BACKING:
  case MAP_BACKING_ALLOC:
    return !im->backing || offset >= image_size (im->backing);
  default:
    return false;
  }
}

/* Is all of [offset, offset+len) zero without looking into data? */
static bool
range_reads_zero (struct image *im, uint64_t offset, uint64_t len)
{
  uint64_t end = min_u64 (offset + len, image_size (im));
  struct error ignored = ERROR_INIT;
  struct mapping m;

  for (; offset < end; offset += m.length)
    if (io_map (im, offset, end - offset, &m, &ignored) == -1
        || !io_reads_zero (im, &m, offset))
      return false;
  return true;
}

/* ---- write ---- */

static void
advance (struct write_job *w, uint64_t n)
{
  if (w->buf)
    w->buf += n;
  w->offset += n;
  w->len -= (size_t) n;
}

/* N bytes of W go to HOST. */
static int
put (const struct write_job *w, enum map_storage where, uint64_t host,
     size_t n, unsigned flags, struct error *e)
{
  return io_put (w->im, where, w->buf, n, host, w->offset, flags, e);
}

/* What is copied on write goes through buffers of this size: each of 64
 * requests in flight may hold one, and all the plugin may take beside their
 * data is 32 MiB (tests/plugin-memory.bats).  Places up to this size are put
 * together in one and written at once: one system call where head, data and
 * tail would take three.
 */
enum { COPY_SIZE = 256 * 1024 };

/* Copy what the guest reads at [from, from+len) into the place P. */
static int
copy_into (struct image *im, const struct placement *p, uint64_t from,
           uint64_t len, struct error *e)
{
  size_t size = (size_t) min_u64 (len, COPY_SIZE), n;
  CLEANUP_FREE uint8_t *buf = malloc (size);

  if (!buf)
    return error_nomem (e, "copy on write", size);
  for (; len > 0; from += n, len -= n) {
    n = (size_t) min_u64 (len, size);
    if (io_read (im, buf, n, from, e) == -1
        || io_put (im, p->storage, buf, n, p->host + (from - p->guest), from,
                   0, e) == -1)
      return -1;
  }
  return 0;
}

/* Fill [from, from+len) of the place P with what the guest reads there now. */
static int
fill (struct image *im, const struct placement *p, uint64_t from,
      uint64_t len, struct error *e)
{
  if (len == 0)
    return 0;
  if (!range_reads_zero (im, from, len))
    return copy_into (im, p, from, len, e);
  return p->reads_zero ? 0
    : io_put (im, p->storage, NULL, len, p->host + (from - p->guest), from, 0,
              e);
}

/* BUF = what [at, at+len) of the guest will be: N bytes of W, and around them
 * what it reads there now.
 */
static int
compose (const struct write_job *w, uint64_t n, uint64_t at, uint64_t len,
         uint8_t *buf, struct error *e)
{
  uint64_t end = at + len, data_end = w->offset + n;
  uint64_t from = max_u64 (at, min_u64 (w->offset, end));
  uint64_t to = max_u64 (from, min_u64 (data_end, end));

  if (io_read (w->im, buf, from - at, at, e) == -1
      || io_read (w->im, buf + (to - at), end - to, to, e) == -1)
    return -1;
  if (from == to)
    return 0;
  if (w->buf)
    memcpy (buf + (from - at), w->buf + (from - w->offset), to - from);
  else
    memset (buf + (from - at), 0, to - from);
  return 0;
}

/* The whole place, in buffers of COPY_SIZE. */
static int
write_joined (const struct write_job *w, const struct placement *p, size_t n,
              struct error *e)
{
  size_t size = (size_t) min_u64 (p->length, COPY_SIZE);
  CLEANUP_FREE uint8_t *buf = malloc (size);

  if (!buf)
    return error_nomem (e, "copy on write", size);
  for (uint64_t done = 0; done < p->length; done += size) {
    uint64_t len = min_u64 (size, p->length - done), at = p->guest + done;

    if (compose (w, n, at, len, buf, e) == -1
        || io_put (w->im, p->storage, buf, len, p->host + done, at, 0,
                   e) == -1)
      return -1;
  }
  return 0;
}

/* Give the place P its whole content: N bytes of W, and around them what the
 * guest reads there now.  With a cipher that is always written: what is zero in
 * the file is not to the guest, and sectors are encrypted as a whole.
 */
static int
write_place (const struct write_job *w, const struct placement *p, size_t n,
             struct error *e)
{
  uint64_t head = w->offset - p->guest, end = w->offset + n;
  uint64_t tail = p->guest + p->length - end;

  if (w->im->format->encrypted
      || ((head || tail) && p->length <= COPY_SIZE
          && !(p->reads_zero && range_reads_zero (w->im, p->guest, head)
               && range_reads_zero (w->im, end, tail))))
    return write_joined (w, p, n, e);
  if (fill (w->im, p, p->guest, head, e) == -1)
    return -1;
  /* Zeroes too, although the place may read as zero already: the file must
   * reach as far as its tables say.
   */
  if (put (w, p->storage, p->host + head, n, 0, e) == -1)
    return -1;
  return fill (w->im, p, end, tail, e);
}

/* Write what goes into one new place.  LIMIT: where the run ends that the
 * mapping told of, for places that the disk has already.
 */
static int
place_and_write (struct write_job *w, uint64_t limit, struct error *e)
{
  struct format *f = w->im->format;
  uint64_t cow = f->info.cow_size, start = round_down (w->offset, cow);
  uint64_t end = round_up (min_u64 (w->offset + w->len, limit), cow);
  struct placement p;
  size_t n;

  if (f->ops->reserve (f, start, end - start, &p, e) == -1)
    return error_prefix (e, "%s: guest offset %" PRIu64, w->im->name,
                         w->offset);
  n = (size_t) (min_u64 (w->offset + w->len, p.guest + p.length) - w->offset);
  packed_forget (w->im->packed, p.guest, p.length);
  if (write_place (w, &p, n, e) == -1 || f->ops->link (f, &p, e) == -1) {
    f->ops->abandon (f, &p);
    return -1;
  }
  w->placed = true;
  advance (w, n);
  return 0;
}

static bool
metadata_dirty (struct image *im)
{
  struct format *f = im->format;

  return f->ops->metadata_dirty && f->ops->metadata_dirty (f);
}

/* The disk is full, but clusters that were freed wait until the tables that
 * dropped them are written: a flush gives their space back.
 */
static bool
may_find_space (struct image *im, struct error *e)
{
  if (e->err != ENOSPC || !metadata_dirty (im))
    return false;
  error_clear (e);
  return im->format->ops->flush (im->format, e) == 0;
}

static uint64_t
place_limit (const struct mapping *m, uint64_t offset)
{
  if (m->kind == MAP_ZERO_ALLOC || m->kind == MAP_BACKING_ALLOC)
    return offset + m->length;
  return UINT64_MAX;
}

int
io_write_piece (struct write_job *w, struct error *e)
{
  struct mapping m;
  uint64_t limit;

  if (io_map (w->im, w->offset, w->len, &m, e) == -1)
    return -1;
  if (m.kind == MAP_DATA) {
    if (put (w, m.storage, m.host, (size_t) m.length, w->storage_flags,
             e) == -1)
      return -1;
    advance (w, m.length);
    return 0;
  }
  limit = place_limit (&m, w->offset);
  if (place_and_write (w, limit, e) == 0)
    return 0;
  return may_find_space (w->im, e) ? place_and_write (w, limit, e) : -1;
}

/* The bytes that a write in place keeps others from.  An encrypted sector is
 * written as a whole, and of two writers of one only one at a time: a mix of
 * their bytes would decrypt to neither.
 */
static void
lock_in_place (struct image *im, struct range *r, uint64_t offset,
               uint64_t len)
{
  uint64_t start = round_down (offset, SECTOR_SIZE);

  if (!im->format->encrypted)
    range_lock (&im->ranges, r, offset, len, RANGE_SHARED);
  else
    range_lock (&im->ranges, r, start,
                round_up (offset + len, SECTOR_SIZE) - start,
                RANGE_EXCLUSIVE);
}

/* As far as the data may be overwritten where they are. */
static int
write_in_place (struct write_job *w, struct error *e)
{
  struct range range;
  struct mapping m;
  int r = 0;

  lock_in_place (w->im, &range, w->offset, w->len);
  while (r == 0 && w->len > 0) {
    r = io_map (w->im, w->offset, w->len, &m, e);
    if (r == -1 || m.kind != MAP_DATA)
      break;
    r = hooks_before (w->im, w->offset, m.length, e);
    if (r == 0)
      r = put (w, m.storage, m.host, (size_t) m.length, w->storage_flags, e);
    if (r == 0)
      advance (w, m.length);
  }
  range_unlock (&w->im->ranges, &range);
  return r;
}

static int
write_exclusive (struct write_job *w, struct error *e)
{
  struct range range;
  int r;

  io_lock_clusters (w->im, &range, w->offset, w->len);
  r = io_check_probed_head (w->im, w->buf, w->len, w->offset, e);
  if (r == 0)
    r = hooks_before (w->im, w->offset, w->len, e);
  while (r == 0 && w->len > 0)
    r = io_write_piece (w, e);
  range_unlock (&w->im->ranges, &range);
  return r;
}

static int
write_gated (struct write_job *w, struct error *e)
{
  if (!io_is_probed_head (w->im, w->offset) && write_in_place (w, e) == -1)
    return -1;
  return w->len > 0 ? write_exclusive (w, e) : 0;
}

unsigned
io_fua_flag (struct image *im, unsigned flags)
{
  return (flags & IMAGE_FUA) && !metadata_dirty (im) ? STORAGE_FUA : 0;
}

/* Metadata that was clean may be dirty by now: another request may have placed
 * the very cluster that this one then wrote to in place.
 */
int
io_fua_end (struct image *im, unsigned flags, unsigned storage_flags,
            bool placed, struct error *e)
{
  if (!(flags & IMAGE_FUA)
      || ((storage_flags & STORAGE_FUA) && !placed && !metadata_dirty (im)))
    return 0;
  return image_flush (im, e);
}

int
image_write (struct image *im, const void *buf, size_t len, uint64_t offset,
             unsigned flags, struct error *e)
{
  struct write_job w = {
    .im = im, .buf = buf, .len = len, .offset = offset,
  };
  int r;

  if (io_check_write (im, offset, len, e) == -1)
    return -1;
  if (len == 0)
    return 0;
  if (im->options.detect_zeroes != DETECT_ZEROES_OFF && is_zero (buf, len)) {
    flags |= IMAGE_MAY_UNMAP;
    if (im->options.detect_zeroes == DETECT_ZEROES_ON)
      flags |= IO_KEEP;
    return image_zero (im, offset, len, flags, e);
  }
  flags = io_durable (im, flags);
  w.storage_flags = io_fua_flag (im, flags);
  gate_enter (&im->gate);
  r = write_gated (&w, e);
  gate_leave (&im->gate);
  if (r == -1)
    return -1;
  return io_fua_end (im, flags, w.storage_flags, w.placed, e);
}

int
image_flush (struct image *im, struct error *e)
{
  int r;

  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return 0;
  gate_enter (&im->gate);
  r = im->format->ops->flush (im->format, e);
  gate_leave (&im->gate);
  return r;
}

/* ---- compressed writes ---- */

static int
put_stream (struct image *im, const void *stream, size_t packed_length,
            uint64_t offset, struct error *e)
{
  struct format *f = im->format;
  struct placement p;

  if (f->ops->reserve_packed (f, offset, packed_length, &p, e) == -1)
    return error_prefix (e, "%s: guest offset %" PRIu64, im->name, offset);
  packed_forget (im->packed, p.guest, p.length);
  if (storage_pwrite (im->storage, stream, packed_length, p.host, 0, e) == -1
      || f->ops->link (f, &p, e) == -1) {
    f->ops->abandon (f, &p);
    return -1;
  }
  return 0;
}

static int
check_packed (struct image *im, size_t len, uint64_t offset, struct error *e)
{
  uint64_t cs = im->format->info.cluster_size;

  if (io_check_write (im, offset, len, e) == -1)
    return -1;
  if (!im->format->info.can_pack)
    return error_set (e, ENOTSUP, im->format->encrypted
                      ? "%s: Compression and encryption not supported at the"
                      " same time"
                      : "%s: the format or the image has no compressed"
                      " clusters", im->name);
  if (!is_aligned (offset, cs)
      || (len != cs && offset + len != image_size (im)) || len > cs)
    return error_set (e, EINVAL, "%s: a compressed write must be one cluster"
                      " of %" PRIu64 " bytes, not %zu bytes at %" PRIu64,
                      im->name, cs, len, offset);
  return 0;
}

int
image_write_stream (struct image *im, const void *buf, size_t len,
                    const void *stream, size_t packed_length, uint64_t offset,
                    struct error *e)
{
  struct range range;
  int r;

  if (check_packed (im, len, offset, e) == -1)
    return -1;
  if (len == 0)
    return 0;
  if (packed_length == 0)
    return image_write (im, buf, len, offset, 0, e);
  gate_enter (&im->gate);
  io_lock_clusters (im, &range, offset, len);
  r = hooks_before (im, offset, len, e);
  if (r == 0)
    r = put_stream (im, stream, packed_length, offset, e);
  range_unlock (&im->ranges, &range);
  gate_leave (&im->gate);
  if (r == -1 || !io_durable (im, 0))
    return r;
  return image_flush (im, e);
}

int
image_write_packed (struct image *im, const void *buf, size_t len,
                    uint64_t offset, struct error *e)
{
  size_t cs = im->format->info.cluster_size;
  CLEANUP_FREE uint8_t *whole = NULL, *stream = NULL;
  ssize_t n;

  if (check_packed (im, len, offset, e) == -1)
    return -1;
  stream = malloc (cs);
  whole = calloc (1, cs);
  if (!stream || !whole)
    return error_nomem (e, "a compressed cluster", 2 * cs);
  memcpy (whole, buf, len);
  /* One byte less than a cluster: a stream of full size saves nothing. */
  n = codec_compress (im->format->info.codec, whole, cs, stream, cs - 1, e);
  if (n == -1)
    return error_prefix (e, "%s: guest offset %" PRIu64, im->name, offset);
  return image_write_stream (im, buf, len, stream, (size_t) n, offset, e);
}
