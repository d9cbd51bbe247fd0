/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* File driver: share blocks with another file (FICLONERANGE) or let the
 * kernel copy them (copy_file_range).
 *
 * Layer: storage.  Locking: a copy that moves the end of the file holds EOF.
 * "Not possible here" is never an error: the caller then reads and writes.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "storage/file.h"

/* Two file systems, a file system without it, a swap file, blocks that do not
 * match, an old kernel.  EBADF and EPERM: a description opened for append, or
 * an immutable file; the write that follows tells.
 */
static bool
not_possible (int err)
{
  switch (err) {
  case EXDEV:
  case EOPNOTSUPP:
  case EINVAL:
  case ETXTBSY:
  case ENOSYS:
  case ENOTTY:
  case EBADF:
  case EPERM:
    return true;
  default:
    return false;
  }
}

static int
failed (struct file *f, int err, const char *what, uint64_t offset,
        struct error *e)
{
  if (not_possible (err))
    return 0;
  return error_errno (e, err, "%s: %s to %" PRIu64, f->base.name, what,
                      offset);
}

static int
clone_blocks (struct file *f, uint64_t dst_offset, int src_fd,
              uint64_t src_offset, uint64_t len, struct error *e)
{
  struct file_clone_range range = {
    .src_fd = src_fd,
    .src_offset = src_offset,
    .src_length = len,
    .dest_offset = dst_offset,
  };
  int r;

  do
    r = ioctl (f->fd, FICLONERANGE, &range);
  while (r < 0 && errno == EINTR);
  if (r == 0)
    return 1;
  if (errno == EOPNOTSUPP || errno == ENOTTY)
    file_note_missing (&f->no_clone);
  return failed (f, errno, "share blocks", dst_offset, e);
}

/* 0 bytes copied = the source ends here, or a file system that pretends. */
static int
copy_bytes (struct file *f, uint64_t dst_offset, int src_fd,
            uint64_t src_offset, uint64_t len, struct error *e)
{
  off_t from = (off_t) src_offset, to = (off_t) dst_offset;
  ssize_t r;

  while (len) {
    r = copy_file_range (src_fd, &from, f->fd, &to,
                         (size_t) min_u64 (len, GiB), 0);
    if (r < 0 && errno == EINTR)
      continue;
    if (r < 0)
      return failed (f, errno, "copy", (uint64_t) to, e);
    if (r == 0)
      return 0;
    len -= (uint64_t) r;
  }
  return 1;
}

static int
transfer (struct file *f, uint64_t dst_offset, int src_fd,
          uint64_t src_offset, uint64_t len, bool share, struct error *e)
{
  if (share)
    return clone_blocks (f, dst_offset, src_fd, src_offset, len, e);
  return copy_bytes (f, dst_offset, src_fd, src_offset, len, e);
}

/* As transfer, past the end.  What was copied before a failure is cut off. */
static int
transfer_end_locked (struct file *f, uint64_t dst_offset, int src_fd,
                     uint64_t src_offset, uint64_t len, bool share,
                     struct error *e)
  REQUIRES (f->eof)
{
  uint64_t size = storage_size (&f->base);
  int r = transfer (f, dst_offset, src_fd, src_offset, len, share, e);

  if (r == 1)
    storage_note_end (&f->base, dst_offset + len);
  else if (file_ftruncate (f->fd, size) < 0 && r == 0)
    return error_errno (e, errno, "%s: truncate to %" PRIu64, f->base.name,
                        size);
  return r;
}

int
file_copy_from (struct storage *dst, uint64_t dst_offset,
                struct storage *src, uint64_t src_offset, uint64_t len,
                bool share, struct error *e)
{
  struct file *f = file_of (dst);
  int src_fd = src->ops->descriptor ? src->ops->descriptor (src) : -1;
  int r;

  /* A part of a block would need the block's lock (O_DIRECT). */
  if (src_fd < 0 || dst->caps.is_device || src->caps.is_device
      || (share && file_known_missing (&f->no_clone))
      || !is_aligned (dst_offset, f->align) || !is_aligned (len, f->align))
    return 0;
  if (dst_offset + len <= storage_size (dst))
    r = transfer (f, dst_offset, src_fd, src_offset, len, share, e);
  else {
    mutex_lock (&f->eof);
    r = transfer_end_locked (f, dst_offset, src_fd, src_offset, len, share,
                             e);
    mutex_unlock (&f->eof);
  }
  if (r == 1 && file_wants_fua (f, 0) && file_flush (dst, e) < 0)
    return -1;
  return r;
}
