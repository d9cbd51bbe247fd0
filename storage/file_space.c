/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* File driver: zeroes, holes, the size, and where the data lies.
 *
 * Layer: storage.  Locking: what moves the end of the file holds EOF.
 *
 * A zero request tries, in this order: a hole (MAY_UNMAP), ZERO_RANGE, the
 * device's command, a hole that is allocated again, zero bytes.  What the
 * kernel answers with EOPNOTSUPP is not asked again.  On a block device
 * fallocate (PUNCH_HOLE) means "zeroes, may unmap, never by writing" and
 * ZERO_RANGE "zeroes, allocated, by writing if need be" (Linux 4.9).
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/file.h"

/* Up to this, zeroes that keep their space are written to the page cache: on
 * ext4 64 KiB took 35 us, ZERO_RANGE 63 us, and the next write to that place
 * must change the extent tree again.
 */
static const uint64_t small_zero = 64 * KiB;

/* No usual file system gives back less. */
static const uint64_t usual_block = 4 * KiB;

/* ---- what the kernel offers ---- */

enum outcome { DONE, NOT_HERE, FAILED };

static enum outcome
judge (int r, bool *missing, struct file *f, const char *what,
       uint64_t offset, struct error *e)
{
  if (r == 0)
    return DONE;
  if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOTTY
      || errno == ENODEV) {
    file_note_missing (missing);
    return NOT_HERE;
  }
  if (errno == EINVAL)
    return NOT_HERE;
  error_errno (e, errno, "%s: %s at %" PRIu64, f->base.name, what, offset);
  return FAILED;
}

static enum outcome
try_fallocate (struct file *f, int mode, bool *missing, const char *what,
               uint64_t offset, uint64_t len, struct error *e)
{
  int r;

  if (file_known_missing (missing))
    return NOT_HERE;
  do
    r = fallocate (f->fd, mode, (off_t) offset, (off_t) len);
  while (r < 0 && errno == EINTR);
  return judge (r, missing, f, what, offset, e);
}

static enum outcome
try_punch (struct file *f, uint64_t offset, uint64_t len, struct error *e)
{
  return try_fallocate (f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        &f->no_punch, "punch a hole", offset, len, e);
}

static enum outcome
try_ioctl (struct file *f, unsigned long request, bool *missing,
           const char *what, uint64_t offset, uint64_t len, struct error *e)
{
  uint64_t range[2] = { offset, len };
  int r;

  if (file_known_missing (missing))
    return NOT_HERE;
  do
    r = ioctl (f->fd, request, range);
  while (r < 0 && errno == EINTR);
  return judge (r, missing, f, what, offset, e);
}

/* A hole, then blocks for it again.  Only where the file system has both. */
static enum outcome
try_punch_and_allocate (struct file *f, uint64_t offset, uint64_t len,
                        struct error *e)
{
  enum outcome r;

  if (file_known_missing (&f->no_allocate))
    return NOT_HERE;
  r = try_punch (f, offset, len, e);
  if (r != DONE)
    return r;
  return try_fallocate (f, FALLOC_FL_KEEP_SIZE, &f->no_allocate, "allocate",
                        offset, len, e);
}

/* Zeroes that keep their space. */
static enum outcome
try_allocated_zeroes (struct file *f, uint64_t offset, uint64_t len,
                      bool fast, struct error *e)
{
  enum outcome r;

  if (f->base.caps.is_device && fast && !f->device_zero_fast)
    return NOT_HERE;
  r = try_fallocate (f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                     &f->no_zero_range, "zero", offset, len, e);
  if (r != NOT_HERE)
    return r;
  if (f->base.caps.is_device)
    return try_ioctl (f, BLKZEROOUT, &f->no_device_zero, "zero", offset, len,
                      e);
  return try_punch_and_allocate (f, offset, len, e);
}

/* ---- zero ---- */

static int
no_fast_zero (struct file *f, uint64_t offset, struct error *e)
{
  return error_set (e, ENOTSUP, "%s: no fast way to zero at %" PRIu64,
                    f->base.name, offset);
}

/* A hole in a part of a block frees nothing, and costs a change of the file
 * system's tables.
 */
static bool
frees_space (const struct file *f, uint64_t offset, uint64_t len)
{
  return f->base.caps.is_device
    || round_up (offset, usual_block) < round_down (offset + len,
                                                    usual_block);
}

/* OFFSET and LEN are multiples of zero_align, or the range ends the file. */
static int
zero_blocks (struct file *f, uint64_t offset, uint64_t len, unsigned flags,
             struct error *e)
{
  bool fast = flags & STORAGE_FAST;
  bool unmap = (flags & STORAGE_MAY_UNMAP) && !f->no_discard
    && frees_space (f, offset, len);
  enum outcome r = NOT_HERE;

  if (unmap)
    r = try_punch (f, offset, len, e);
  else if (len <= small_zero && !fast && !f->direct)
    return storage_write_zeroes (&f->base, offset, len, 0, e);
  if (r == NOT_HERE)
    r = try_allocated_zeroes (f, offset, len, fast, e);
  if (r != NOT_HERE)
    return r == DONE ? 0 : -1;
  if (fast)
    return no_fast_zero (f, offset, e);
  return storage_write_zeroes (&f->base, offset, len, 0, e);
}

/* Parts of blocks at both ends are written, after the middle, which may refuse
 * a fast request and then must have left everything as it was.  With O_DIRECT
 * those writes take the lock of their block; the kernel's own zeroing of a
 * part of a block would not.
 */
static int
zero_inside (struct file *f, uint64_t offset, uint64_t len, unsigned flags,
             struct error *e)
{
  uint64_t end = offset + len;
  uint64_t from = round_up (offset, f->zero_align);
  uint64_t to = round_down (end, f->zero_align);

  if (from >= to) {
    if (flags & STORAGE_FAST)
      return no_fast_zero (f, offset, e);
    return storage_write_zeroes (&f->base, offset, len, 0, e);
  }
  if (zero_blocks (f, from, to - from, flags, e) < 0
      || storage_write_zeroes (&f->base, offset, from - offset, 0, e) < 0)
    return -1;
  return storage_write_zeroes (&f->base, to, end - to, 0, e);
}

/* Grow to END.  [OFFSET, END) was past the end a moment ago; what others have
 * added there since is a hole.  *BY_HAND: the caller must write the zeroes.
 */
static int
zero_grow_locked (struct file *f, uint64_t offset, uint64_t end,
                  unsigned flags, bool *by_hand, struct error *e)
  REQUIRES (f->eof)
{
  bool hole = flags & STORAGE_MAY_UNMAP;
  enum outcome r = NOT_HERE;

  if (!hole)
    r = try_fallocate (f, 0, &f->no_allocate, "allocate", offset,
                       end - offset, e);
  if (r == FAILED)
    return -1;
  if (r == NOT_HERE && end > storage_size (&f->base)
      && file_ftruncate (f->fd, end) < 0)
    return error_errno (e, errno, "%s: truncate to %" PRIu64, f->base.name,
                        end);
  storage_note_end (&f->base, end);
  *by_hand = r == NOT_HERE && !hole && !(flags & STORAGE_FAST);
  return 0;
}

static int
zero_grow (struct file *f, uint64_t offset, uint64_t end, unsigned flags,
           struct error *e)
{
  bool by_hand = false;
  int r;

  mutex_lock (&f->eof);
  r = zero_grow_locked (f, offset, end, flags, &by_hand, e);
  mutex_unlock (&f->eof);
  if (r == 0 && by_hand)
    r = storage_write_zeroes (&f->base, offset, end - offset, 0, e);
  return r;
}

int
file_zero (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  struct file *f = file_of (st);
  uint64_t end = offset + len;
  uint64_t size = storage_size (st);
  uint64_t inside = offset < size ? min_u64 (end, size) - offset : 0;

  if (inside && zero_inside (f, offset, inside, flags, e) < 0)
    return -1;
  if (inside < len && zero_grow (f, max_u64 (offset, size), end, flags, e) < 0)
    return -1;
  return file_wants_fua (f, flags) ? file_flush (st, e) : 0;
}

/* ---- trim ---- */

int
file_trim (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  struct file *f = file_of (st);
  uint64_t from = round_up (offset, f->zero_align);
  uint64_t to = round_down (offset + len, f->zero_align);
  enum outcome r;

  if (f->no_discard || from >= to)
    return 0;
  if (st->caps.is_device)
    r = try_ioctl (f, BLKDISCARD, &f->no_device_discard, "discard", from,
                   to - from, e);
  else
    r = try_punch (f, from, to - from, e);
  if (r == FAILED)
    return -1;
  return r == DONE && file_wants_fua (f, flags) ? file_flush (st, e) : 0;
}

/* ---- size ---- */

int
file_ftruncate (int fd, uint64_t size)
{
  int r;

  do
    r = ftruncate (fd, (off_t) size);
  while (r < 0 && errno == EINTR);
  return r;
}

static int
truncate_locked (struct file *f, uint64_t size, struct error *e)
  REQUIRES (f->eof)
{
  if (file_ftruncate (f->fd, size) < 0)
    return error_errno (e, errno, "%s: truncate to %" PRIu64, f->base.name,
                        size);
  storage_set_size (&f->base, size);
  return 0;
}

int
file_truncate (struct storage *st, uint64_t size, struct error *e)
{
  struct file *f = file_of (st);
  int r;

  mutex_lock (&f->eof);
  r = truncate_locked (f, size, e);
  mutex_unlock (&f->eof);
  if (r == 0 && file_wants_fua (f, 0))
    r = file_flush (st, e);
  return r;
}

int
file_ask_size (int fd, bool is_device, const char *name, uint64_t *size,
               struct error *e)
{
  struct stat sb;

  if (is_device) {
    if (ioctl (fd, BLKGETSIZE64, size) < 0)
      return error_errno (e, errno, "%s: size of the device", name);
    if (*size > INT64_MAX)
      return error_set (e, EFBIG, "%s: the device says it has %" PRIu64
                        " bytes", name, *size);
    return 0;
  }
  if (fstat (fd, &sb) < 0)
    return error_errno (e, errno, "%s: fstat", name);
  *size = (uint64_t) sb.st_size;
  return 0;
}

static int
refresh_size_locked (struct file *f, struct error *e)
  REQUIRES (f->eof)
{
  uint64_t size;

  if (file_ask_size (f->fd, f->base.caps.is_device, f->base.name, &size,
                     e) < 0)
    return -1;
  storage_set_size (&f->base, size);
  return 0;
}

int
file_refresh_size (struct storage *st, struct error *e)
{
  struct file *f = file_of (st);
  int r;

  mutex_lock (&f->eof);
  r = refresh_size_locked (f, e);
  mutex_unlock (&f->eof);
  return r;
}

/* st_blocks is in units of 512 bytes on every file system. */
int
file_disk_size (struct storage *st, uint64_t *size, struct error *e)
{
  struct stat sb;

  if (fstat (file_of (st)->fd, &sb) < 0)
    return error_errno (e, errno, "%s: fstat", st->name);
  *size = (uint64_t) sb.st_blocks * 512;
  return 0;
}

/* ---- extents ---- */

/* The piece at POS, which ends before END.  lseek moves the position of the
 * description, which nothing here uses.  An answer that makes no sense (the
 * file was cut meanwhile, or the file system knows no holes) means data.
 */
static struct storage_extent
piece_at (struct file *f, uint64_t pos, uint64_t end)
{
  struct storage_extent x = { .length = end - pos, .kind = EXTENT_DATA };
  off_t data = lseek (f->fd, (off_t) pos, SEEK_DATA);
  off_t hole;

  if (data < 0 && errno != ENXIO)
    return x;
  if (data < 0 || (uint64_t) data > pos) {
    x.kind = EXTENT_HOLE;
    if (data >= 0)
      x.length = min_u64 (end, (uint64_t) data) - pos;
    return x;
  }
  hole = lseek (f->fd, (off_t) pos, SEEK_HOLE);
  if (hole > 0 && (uint64_t) hole > pos)
    x.length = min_u64 (end, (uint64_t) hole) - pos;
  return x;
}

int
file_extents (struct storage *st, uint64_t offset, uint64_t len,
              struct storage_extent *out, size_t max, size_t *nr,
              struct error *e)
{
  struct file *f = file_of (st);
  uint64_t end = offset + len;
  size_t n = 0;

  (void) e;
  if (st->caps.is_device) {
    out[0] = (struct storage_extent) { .length = len, .kind = EXTENT_DATA };
    *nr = 1;
    return 0;
  }
  while (offset < end && n < max) {
    out[n] = piece_at (f, offset, end);
    offset += out[n++].length;
  }
  *nr = n;
  return 0;
}
