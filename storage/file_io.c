/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* File driver: read, write and flush.
 *
 * Layer: storage.  Locking: see file.h.  The ordinary request is one system
 * call without a lock.  Four things need more:
 *
 * - A write that moves the end of the file holds EOF, since the end is also
 *   moved by truncate and zero.
 * - O_DIRECT with an unaligned offset, length or buffer goes through a bounce
 *   buffer.  Where only a part of a block is written, the block is read,
 *   changed and written with its range in the list BUSY, so that writes to
 *   other bytes of the block wait.
 * - O_DIRECT and an end that is not aligned: the last block is written in
 *   full and the file is cut to its size again, with EOF held.  A crash
 *   between the two leaves up to a block of zeroes behind the end.
 * - Flush.  The kernel tells a lost write to one fdatasync only, for each open
 *   file description.  So one fdatasync runs at a time and those that come
 *   meanwhile share the next one (a flush that started earlier does not cover
 *   their writes); and durable single writes use a description of their own,
 *   so that they cannot take away the error that a flush must report.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "storage/file.h"

/* Linux moves at most this much in one call, rounded for O_DIRECT. */
static const size_t max_transfer = 0x7fff0000;

/* What goes to the page cache goes in pieces.  ext4 (Linux 6.18) takes memory
 * for a write in one large folio, and where a host has to back such memory
 * again that costs more than the copy: 2.9 GB of a raw disk took 1.0 s of
 * system time in pieces of 64 KiB, 2.0 s in 256 KiB and 4.3 s in 1 MiB.  Over
 * what is cached already the pieces cost nothing that can be measured.
 */
static const size_t cached_piece = 64 * KiB;

/* ---- whole requests in spite of short ones ---- */

/* Past the end of the file there are zeroes.  A short answer whose length is
 * not a multiple of the block ends at the end of the file as well (O_DIRECT).
 */
static int
read_all (struct file *f, void *buf, size_t len, uint64_t offset,
          struct error *e)
{
  char *p = buf;
  ssize_t r;
  size_t n;

  while (len) {
    r = pread (f->fd, p, len < max_transfer ? len : max_transfer,
               (off_t) offset);
    if (r < 0) {
      if (errno == EINTR)
        continue;
      return error_errno (e, errno, "%s: read at %" PRIu64, f->base.name,
                          offset);
    }
    n = (size_t) r;
    if (n == 0 || (n < len && !is_aligned (n, f->align))) {
      memset (p + n, 0, len - n);
      return 0;
    }
    p += n;
    offset += n;
    len -= n;
  }
  return 0;
}

/* A durable write is one, however long: each would wait for the medium. */
static size_t
piece_of (const struct file *f, size_t len, bool fua)
{
  size_t most = f->direct || fua ? max_transfer : cached_piece;

  return len < most ? len : most;
}

static ssize_t
write_once (struct file *f, const void *buf, size_t len, uint64_t offset,
            bool fua)
{
  struct iovec iov;

  if (!fua)
    return pwrite (f->fd, buf, len, (off_t) offset);
  iov.iov_base = (void *) (uintptr_t) buf;
  iov.iov_len = len;
  return pwritev2 (f->fua_fd, &iov, 1, (off_t) offset, RWF_DSYNC);
}

/* A durable write that failed at the medium: what else is lost is unknown. */
static int
write_failed (struct file *f, int err, uint64_t offset, bool fua,
              struct error *e)
{
  if (fua && err == EIO)
    storage_note_flush_error (&f->base, err);
  return error_errno (e, err, "%s: write at %" PRIu64, f->base.name, offset);
}

static int
write_pieces (struct file *f, const void *buf, size_t len, uint64_t offset,
              bool fua, struct error *e)
{
  const char *p = buf;
  ssize_t r;

  while (len) {
    r = write_once (f, p, piece_of (f, len, fua), offset, fua);
    if (r < 0 && errno == EINTR)
      continue;
    if (r < 0 && fua && (errno == EOPNOTSUPP || errno == ENOSYS)) {
      file_note_missing (&f->no_dsync);
      if (write_pieces (f, p, len, offset, false, e) < 0)
        return -1;
      return file_flush (&f->base, e);
    }
    if (r <= 0)
      return write_failed (f, r < 0 ? errno : EIO, offset, fua, e);
    p += r;
    offset += (uint64_t) r;
    len -= (size_t) r;
  }
  return 0;
}

static int
write_all (struct file *f, const void *buf, size_t len, uint64_t offset,
           bool fua, struct error *e)
{
  if (!fua || !file_known_missing (&f->no_dsync))
    return write_pieces (f, buf, len, offset, fua, e);
  if (write_pieces (f, buf, len, offset, false, e) < 0)
    return -1;
  return file_flush (&f->base, e);
}

/* ---- bounce buffers ---- */

static void *
get_bounce (struct file *f, struct error *e)
{
  void *p;
  int r;

  for (size_t i = 0; i < NR_BOUNCE; ++i)
    if (__atomic_load_n (&f->bounce[i], __ATOMIC_RELAXED)) {
      p = __atomic_exchange_n (&f->bounce[i], NULL, __ATOMIC_ACQUIRE);
      if (p)
        return p;
    }
  r = posix_memalign (&p, 4096 > f->mem_align ? 4096 : f->mem_align,
                      BOUNCE_SIZE);
  if (r == 0)
    return p;
  error_nomem (e, "a bounce buffer", BOUNCE_SIZE);
  return NULL;
}

static void
put_bounce (struct file *f, void *p)
{
  void *none;

  for (size_t i = 0; i < NR_BOUNCE; ++i) {
    none = NULL;
    if (__atomic_compare_exchange_n (&f->bounce[i], &none, p, false,
                                     __ATOMIC_RELEASE, __ATOMIC_RELAXED))
      return;
  }
  free (p);
}

void
file_free_bounce (struct file *f)
{
  for (size_t i = 0; i < NR_BOUNCE; ++i)
    free (f->bounce[i]);
}

/* ---- O_DIRECT ---- */

static bool
overlaps_busy_locked (struct file *f, uint64_t start, uint64_t end)
  REQUIRES (f->blocks)
{
  for (const struct busy_blocks *b = f->busy; b; b = b->next)
    if (b->start < end && start < b->end)
      return true;
  return false;
}

static void
enter_blocks (struct file *f, struct busy_blocks *b)
{
  mutex_lock (&f->blocks);
  while (overlaps_busy_locked (f, b->start, b->end))
    mutex_wait (&f->blocks, &f->blocks_free);
  b->next = f->busy;
  f->busy = b;
  mutex_unlock (&f->blocks);
}

static void
leave_blocks (struct file *f, struct busy_blocks *b)
{
  struct busy_blocks **p;

  mutex_lock (&f->blocks);
  for (p = &f->busy; *p != b; p = &(*p)->next)
    ;
  *p = b->next;
  pthread_cond_broadcast (&f->blocks_free);
  mutex_unlock (&f->blocks);
}

/* How much of the request can go straight to the kernel, 0 = nothing. */
static size_t
straight_length (const struct file *f, const char *p, size_t len,
                 uint64_t offset)
{
  if (!is_aligned (offset, f->align)
      || !is_aligned ((uintptr_t) p, f->mem_align))
    return 0;
  return (size_t) round_down (len, f->align);
}

/* How much to take through the bounce buffer: up to the next block if the
 * rest can go straight from there, else what fits.
 */
static size_t
bounce_length (const struct file *f, const char *p, size_t len,
               uint64_t offset)
{
  size_t in_block = (size_t) (offset & (f->align - 1));
  size_t head = f->align - in_block;
  size_t n = BOUNCE_SIZE - in_block;

  if (head < len && is_aligned ((uintptr_t) (p + head), f->mem_align))
    n = head;
  return n < len ? n : len;
}

static int
read_bounced (struct file *f, char *p, size_t len, uint64_t offset,
              struct error *e)
{
  uint64_t start = round_down (offset, f->align);
  uint64_t end = round_up (offset + len, f->align);
  char *bounce = get_bounce (f, e);
  int r;

  if (!bounce)
    return -1;
  r = read_all (f, bounce, (size_t) (end - start), start, e);
  if (r == 0)
    memcpy (p, bounce + (offset - start), len);
  put_bounce (f, bounce);
  return r;
}

static int
direct_pread (struct file *f, char *p, size_t len, uint64_t offset,
              struct error *e)
{
  size_t n;
  int r;

  while (len) {
    n = straight_length (f, p, len, offset);
    if (n)
      r = read_all (f, p, n, offset, e);
    else {
      n = bounce_length (f, p, len, offset);
      r = read_bounced (f, p, n, offset, e);
    }
    if (r < 0)
      return -1;
    p += n;
    offset += n;
    len -= n;
  }
  return 0;
}

/* Read the blocks of BOUNCE (at START) that the request covers in part. */
static int
fill_partial (struct file *f, char *bounce, uint64_t start, uint64_t end,
              uint64_t offset, size_t len, struct error *e)
{
  uint64_t last = end - f->align;
  bool head = start != offset;
  bool tail = end != offset + len;

  if (head && read_all (f, bounce, f->align, start, e) < 0)
    return -1;
  if (tail && !(head && last == start))
    return read_all (f, bounce + (last - start), f->align, last, e);
  return 0;
}

static int
write_bounced (struct file *f, const char *p, size_t len, uint64_t offset,
               bool fua, struct error *e)
{
  struct busy_blocks b = {
    .start = round_down (offset, f->align),
    .end = round_up (offset + len, f->align),
  };
  bool partial = b.start != offset || b.end != offset + len;
  char *bounce = get_bounce (f, e);
  int r;

  if (!bounce)
    return -1;
  if (partial)
    enter_blocks (f, &b);
  r = fill_partial (f, bounce, b.start, b.end, offset, len, e);
  if (r == 0) {
    memcpy (bounce + (offset - b.start), p, len);
    r = write_all (f, bounce, (size_t) (b.end - b.start), b.start, fua, e);
  }
  if (partial)
    leave_blocks (f, &b);
  put_bounce (f, bounce);
  return r;
}

static int
direct_pwrite (struct file *f, const char *p, size_t len, uint64_t offset,
               bool fua, struct error *e)
{
  size_t n;
  int r;

  while (len) {
    n = straight_length (f, p, len, offset);
    if (n)
      r = write_all (f, p, n, offset, fua, e);
    else {
      n = bounce_length (f, p, len, offset);
      r = write_bounced (f, p, n, offset, fua, e);
    }
    if (r < 0)
      return -1;
    p += n;
    offset += n;
    len -= n;
  }
  return 0;
}

/* ---- the calls ---- */

int
file_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
            struct error *e)
{
  struct file *f = file_of (st);

  if (f->direct)
    return direct_pread (f, buf, len, offset, e);
  return read_all (f, buf, len, offset, e);
}

static int
write_inside (struct file *f, const void *buf, size_t len, uint64_t offset,
              bool fua, struct error *e)
{
  if (f->direct)
    return direct_pwrite (f, buf, len, offset, fua, e);
  return write_all (f, buf, len, offset, fua, e);
}

/* Write and move the end; on failure the end is where it was. */
static int
write_and_grow_locked (struct file *f, const void *buf, size_t len,
                       uint64_t offset, bool fua, struct error *e)
  REQUIRES (f->eof)
{
  uint64_t size = storage_size (&f->base);
  uint64_t end = max_u64 (size, offset + len);
  int r = write_inside (f, buf, len, offset, fua, e);

  if (r < 0)
    end = size;
  if (r < 0 || !is_aligned (end, f->align))
    if (file_ftruncate (f->fd, end) < 0 && r == 0)
      return error_errno (e, errno, "%s: truncate to %" PRIu64, f->base.name,
                          end);
  storage_set_size (&f->base, end);
  return r;
}

/* A durable write takes milliseconds.  Others must not wait for it with EOF
 * held, so the file grows by a hole first; a crash leaves zeroes there, as it
 * might have without this.  Sets *AGAIN: write inside the file now.
 */
static int
write_end_locked (struct file *f, const void *buf, size_t len,
                  uint64_t offset, bool fua, bool *again, struct error *e)
  REQUIRES (f->eof)
{
  uint64_t end = offset + len;

  *again = fua && is_aligned (end, f->align);
  if (!*again)
    return write_and_grow_locked (f, buf, len, offset, fua, e);
  if (end <= storage_size (&f->base))
    return 0;
  if (file_ftruncate (f->fd, end) < 0)
    return error_errno (e, errno, "%s: truncate to %" PRIu64, f->base.name,
                        end);
  storage_set_size (&f->base, end);
  return 0;
}

static int
write_end (struct file *f, const void *buf, size_t len, uint64_t offset,
           bool fua, struct error *e)
{
  bool again;
  int r;

  mutex_lock (&f->eof);
  r = write_end_locked (f, buf, len, offset, fua, &again, e);
  mutex_unlock (&f->eof);
  if (r == 0 && again)
    r = write_inside (f, buf, len, offset, fua, e);
  return r;
}

int
file_pwrite (struct storage *st, const void *buf, size_t len, uint64_t offset,
             unsigned flags, struct error *e)
{
  struct file *f = file_of (st);
  bool fua = file_wants_fua (f, flags);

  if (round_up (offset + len, f->align) <= storage_size (st))
    return write_inside (f, buf, len, offset, fua, e);
  return write_end (f, buf, len, offset, fua, e);
}

/* ---- flush ---- */

static int
sync_once (struct file *f)
{
  int r;

  do
    r = fdatasync (f->fd);
  while (r < 0 && errno == EINTR);
  return r < 0 ? errno : 0;
}

/* Run flush number flush_started + 1 with the mutex free meanwhile. */
static void
lead_flush_locked (struct file *f)
  REQUIRES (f->flushes)
{
  uint64_t number = ++f->flush_started;
  int err;

  f->flush_running = true;
  mutex_unlock (&f->flushes);
  err = sync_once (f);
  mutex_lock (&f->flushes);
  if (err)
    storage_note_flush_error (&f->base, err);
  f->flush_running = false;
  f->flush_finished = number;
  pthread_cond_broadcast (&f->flush_done);
}

int
file_flush (struct storage *st, struct error *e)
{
  struct file *f = file_of (st);
  uint64_t mine;

  if (f->unsafe)
    return 0;
  mutex_lock (&f->flushes);
  mine = f->flush_started + 1;
  while (f->flush_finished < mine)
    if (f->flush_running)
      mutex_wait (&f->flushes, &f->flush_done);
    else
      lead_flush_locked (f);
  mutex_unlock (&f->flushes);
  return storage_check_flush_error (st, e);
}
