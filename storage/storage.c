/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The calls of storage.h: the checks that all drivers share (range, writable,
 * end of the object, sticky flush errors), then the driver.
 *
 * Layer: storage.  Locking: none; the size and the sticky error are atomic.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "storage/driver.h"

static const struct {
  const char *name;
  enum cache_mode mode;
} cache_modes[] = {
  { "none", CACHE_NONE },
  { "off", CACHE_NONE },
  { "writeback", CACHE_WRITEBACK },
  { "writethrough", CACHE_WRITETHROUGH },
  { "directsync", CACHE_DIRECTSYNC },
  { "unsafe", CACHE_UNSAFE },
};

int
cache_mode_parse (const char *what, const char *text, enum cache_mode *mode,
                  struct error *e)
{
  for (size_t i = 0; i < sizeof cache_modes / sizeof cache_modes[0]; ++i)
    if (strcmp (text, cache_modes[i].name) == 0) {
      *mode = cache_modes[i].mode;
      return 0;
    }
  return error_set (e, EINVAL, "%s: unknown cache mode '%s' (use none, "
                    "writeback, writethrough, directsync or unsafe)",
                    what, text);
}

const unsigned char *
storage_zero_bytes (void)
{
  static unsigned char zero_bytes[ZERO_BYTES_SIZE]
    __attribute__ ((aligned (ZERO_BYTES_ALIGN)));

  return zero_bytes;
}

/* ---- sticky flush errors ---- */

void
storage_note_flush_error (struct storage *st, int err)
{
  int none = 0;

  __atomic_compare_exchange_n (&st->flush_error, &none, err ? err : EIO,
                               false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

int
storage_check_flush_error (struct storage *st, struct error *e)
{
  int err = __atomic_load_n (&st->flush_error, __ATOMIC_ACQUIRE);

  if (!err)
    return 0;
  return error_errno (e, err, "%s: data may be lost, because a flush failed "
                      "earlier; check the medium and open the image again",
                      st->name);
}

/* ---- checks ---- */

static int
check_range (const struct storage *st, const char *what, uint64_t offset,
             uint64_t len, struct error *e)
{
  if (offset <= INT64_MAX && len <= INT64_MAX - offset)
    return 0;
  return error_set (e, EINVAL, "%s: %s of %" PRIu64 " bytes at %" PRIu64
                    " goes past the largest possible offset",
                    st->name, what, len, offset);
}

static int
check_writable (const struct storage *st, const char *what, struct error *e)
{
  if (st->caps.writable)
    return 0;
  return error_set (e, EROFS, "%s: %s refused: it is open read-only",
                    st->name, what);
}

/* Everything that a request which changes bytes must pass. */
static int
check_change (struct storage *st, const char *what, uint64_t offset,
              uint64_t len, unsigned flags, struct error *e)
{
  uint64_t size;

  if (check_range (st, what, offset, len, e) < 0
      || check_writable (st, what, e) < 0)
    return -1;
  size = storage_size (st);
  if (offset + len > size && !st->caps.can_grow)
    return error_set (e, ENOSPC, "%s: %s of %" PRIu64 " bytes at %" PRIu64
                      " goes past the end at %" PRIu64
                      ", and the object cannot grow",
                      st->name, what, len, offset, size);
  if (flags & STORAGE_FUA)
    return storage_check_flush_error (st, e);
  return 0;
}

/* ---- calls ---- */

void
storage_close (struct storage *st)
{
  if (st)
    st->ops->close (st);
}

/* The part inside, then zeroes.  A file that somebody else extends (a reader
 * that shares it with a writer) is asked for its size first.
 */
static int
pread_across_end (struct storage *st, void *buf, size_t len, uint64_t offset,
                  struct error *e)
{
  uint64_t size;
  size_t inside;

  if (st->caps.is_local_file && storage_refresh_size (st, e) < 0)
    return -1;
  size = storage_size (st);
  inside = offset < size ? (size_t) min_u64 (len, size - offset) : 0;
  if (inside && st->ops->pread (st, buf, inside, offset, e) < 0)
    return -1;
  memset ((char *) buf + inside, 0, len - inside);
  return 0;
}

int
storage_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
               struct error *e)
{
  if (check_range (st, "read", offset, len, e) < 0)
    return -1;
  if (len == 0)
    return 0;
  if (offset + len > storage_size (st))
    return pread_across_end (st, buf, len, offset, e);
  return st->ops->pread (st, buf, len, offset, e);
}

int
storage_pwrite (struct storage *st, const void *buf, size_t len,
                uint64_t offset, unsigned flags, struct error *e)
{
  if (check_change (st, "write", offset, len, flags, e) < 0)
    return -1;
  if (len == 0)
    return 0;
  return st->ops->pwrite (st, buf, len, offset, flags, e);
}

int
storage_write_zeroes (struct storage *st, uint64_t offset, uint64_t len,
                      unsigned flags, struct error *e)
{
  unsigned each = len > ZERO_BYTES_SIZE ? 0 : flags & STORAGE_FUA;

  for (uint64_t done = 0; done < len; ) {
    size_t n = (size_t) min_u64 (len - done, ZERO_BYTES_SIZE);

    if (st->ops->pwrite (st, storage_zero_bytes (), n, offset + done, each,
                         e) < 0)
      return -1;
    done += n;
  }
  if ((flags & STORAGE_FUA) && !each)
    return storage_flush (st, e);
  return 0;
}

int
storage_zero (struct storage *st, uint64_t offset, uint64_t len,
              unsigned flags, struct error *e)
{
  if (check_change (st, "zero", offset, len, flags, e) < 0)
    return -1;
  if (len == 0)
    return 0;
  if (st->ops->zero)
    return st->ops->zero (st, offset, len, flags, e);
  if (flags & STORAGE_FAST)
    return error_set (e, ENOTSUP, "%s: no fast way to zero %" PRIu64
                      " bytes at %" PRIu64, st->name, len, offset);
  return storage_write_zeroes (st, offset, len, flags, e);
}

int
storage_trim (struct storage *st, uint64_t offset, uint64_t len,
              unsigned flags, struct error *e)
{
  uint64_t size = storage_size (st);

  if (check_range (st, "trim", offset, len, e) < 0
      || check_writable (st, "trim", e) < 0)
    return -1;
  if ((flags & STORAGE_FUA) && storage_check_flush_error (st, e) < 0)
    return -1;
  if (len == 0 || offset >= size || !st->ops->trim)
    return 0;
  return st->ops->trim (st, offset, min_u64 (len, size - offset), flags, e);
}

int
storage_flush (struct storage *st, struct error *e)
{
  int err;

  if (!st->caps.writable)
    return 0;
  if (storage_check_flush_error (st, e) < 0)
    return -1;
  if (!st->ops->flush)
    return 0;
  if (st->ops->flush (st, e) < 0) {
    err = e->err;
    storage_note_flush_error (st, err);
    return -1;
  }
  return storage_check_flush_error (st, e);
}

int
storage_truncate (struct storage *st, uint64_t size, struct error *e)
{
  uint64_t old = storage_size (st);

  if (check_range (st, "truncate", size, 0, e) < 0
      || check_writable (st, "truncate", e) < 0)
    return -1;
  if (st->ops->truncate && st->caps.can_grow)
    return st->ops->truncate (st, size, e);
  if (size == old)
    return 0;
  return error_set (e, size > old ? ENOSPC : ENOTSUP,
                    "%s: the size of this object is fixed: it has %" PRIu64
                    " bytes, wanted are %" PRIu64, st->name, old, size);
}

int
storage_extents (struct storage *st, uint64_t offset, uint64_t len,
                 struct storage_extent *out, size_t max, size_t *nr,
                 struct error *e)
{
  uint64_t size = storage_size (st);

  if (len == 0 || max == 0 || offset >= size || len > size - offset)
    return error_set (e, EINVAL, "%s: extents of %" PRIu64 " bytes at %"
                      PRIu64 " lie outside of the object (%" PRIu64 " bytes)",
                      st->name, len, offset, size);
  if (st->ops->extents)
    return st->ops->extents (st, offset, len, out, max, nr, e);
  out[0].length = len;
  out[0].kind = EXTENT_DATA;
  *nr = 1;
  return 0;
}

int
storage_lock (struct storage *st, unsigned held, unsigned unshared,
              struct error *e)
{
  return st->ops->lock ? st->ops->lock (st, held, unshared, e) : 0;
}

int
storage_refresh_size (struct storage *st, struct error *e)
{
  return st->ops->refresh_size ? st->ops->refresh_size (st, e) : 0;
}

int
storage_disk_size (struct storage *st, uint64_t *size, struct error *e)
{
  if (st->ops->disk_size)
    return st->ops->disk_size (st, size, e);
  return error_set (e, ENOTSUP, "%s: how much space the object takes cannot "
                    "be known", st->name);
}

int
storage_set_writable (struct storage *st, struct error *e)
{
  if (st->caps.writable)
    return 0;
  if (st->ops->set_writable)
    return st->ops->set_writable (st, e);
  return error_set (e, ENOTSUP, "%s: cannot become writable once it is open",
                    st->name);
}

/* ---- copies inside the kernel ---- */

struct storage *
storage_below_slices (struct storage *st, uint64_t *offset)
{
  struct storage *inner;

  while ((inner = storage_slice_inner (st, offset)) != NULL)
    st = inner;
  return st;
}

static int
copy_between (struct storage *src, uint64_t src_offset, struct storage *dst,
              uint64_t dst_offset, uint64_t len, bool share, struct error *e)
{
  struct storage *to = dst;
  uint64_t end;
  int r;

  if (check_range (src, "copy", src_offset, len, e) < 0
      || check_change (dst, "copy", dst_offset, len, 0, e) < 0)
    return -1;
  if (len == 0)
    return 1;
  if (src_offset + len > storage_size (src))
    return 0;                   /* zeroes past its end: no file has them */
  end = dst_offset + len;
  src = storage_below_slices (src, &src_offset);
  to = storage_below_slices (to, &dst_offset);
  if (!to->ops->copy_from
      || (storage_same (src, to)
          && ranges_overlap (src_offset, len, dst_offset, len)))
    return 0;
  r = to->ops->copy_from (to, dst_offset, src, src_offset, len, share, e);
  if (r == 1)
    storage_note_end (dst, end);
  return r;
}

int
storage_clone_range (struct storage *src, uint64_t src_offset,
                     struct storage *dst, uint64_t dst_offset, uint64_t len,
                     struct error *e)
{
  return copy_between (src, src_offset, dst, dst_offset, len, true, e);
}

int
storage_copy_range (struct storage *src, uint64_t src_offset,
                    struct storage *dst, uint64_t dst_offset, uint64_t len,
                    struct error *e)
{
  return copy_between (src, src_offset, dst, dst_offset, len, false, e);
}
