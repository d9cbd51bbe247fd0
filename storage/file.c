/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* File driver: open, create, close, and what the object can do.
 *
 * Layer: storage.  Locking: see file.h; nothing here runs beside a request,
 * except set_writable, which replaces what stands behind the descriptor in
 * one step (dup3), so that requests in flight end on the old description.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "storage/file.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

/* ---- from a name to a descriptor ---- */

/* O_NONBLOCK: a FIFO must not hang us.  O_NOCTTY: nor a terminal own us. */
enum { OPEN_FLAGS = O_NONBLOCK | O_CLOEXEC | O_NOCTTY };

static const char set_prefix[] = "/dev/fdset/";
static const char *const descriptor_prefixes[] = {
  "/dev/fd/", "/proc/self/fd/",
};

static int
open_failed (const char *path, int err, struct error *e)
{
  struct stat sb;

  if (err == ENXIO && stat (path, &sb) == 0 && S_ISSOCK (sb.st_mode))
    return error_set (e, ENOTSUP, "Could not open '%s': it is a socket; an "
                      "NBD server on it has the name nbd+unix:///?socket=%s",
                      path, path);
  return error_errno (e, err, "Could not open '%s'", path);
}

/* The number in "/dev/fd/N": 1 = it is one, 0 = another kind of name. */
static int
descriptor_number (const char *path, int *fd, struct error *e)
{
  const char *digits = NULL;
  uint64_t n;

  if (strncmp (path, set_prefix, sizeof set_prefix - 1) == 0)
    return error_set (e, ENOENT, "Could not open '%s': there are no "
                      "descriptor sets outside of QEMU; use /dev/fd/N", path);
  for (size_t i = 0; i < 2 && !digits; ++i) {
    size_t len = strlen (descriptor_prefixes[i]);

    if (strncmp (path, descriptor_prefixes[i], len) == 0)
      digits = path + len;
  }
  if (!digits || !*digits || strspn (digits, "0123456789") != strlen (digits))
    return 0;
  if (parse_number (path, digits, 0, INT32_MAX, &n, e) < 0)
    return -1;
  *fd = (int) n;
  return 1;
}

/* By descriptor: no new permission check, and the file may have no name. */
static int
open_number (const char *path, int number, bool *writable, bool may_fall_back,
             struct error *e)
{
  int mode = fcntl (number, F_GETFL), fd;

  if (mode < 0)
    return open_failed (path, errno, e);
  mode &= O_ACCMODE;
  if (mode == O_WRONLY || (*writable && mode != O_RDWR && !may_fall_back))
    return error_set (e, EACCES, "Could not open '%s': the descriptor is not "
                      "open for reading%s", path, *writable ? " and writing"
                      : "");
  *writable = *writable && mode == O_RDWR;
  fd = fcntl (number, F_DUPFD_CLOEXEC, 0);
  return fd < 0 ? open_failed (path, errno, e) : fd;
}

static int
open_path (const char *path, bool *writable, bool may_fall_back,
           struct error *e)
{
  int fd = open (path, (*writable ? O_RDWR : O_RDONLY) | OPEN_FLAGS);
  int err = errno;

  if (fd < 0 && *writable && may_fall_back
      && (err == EACCES || err == EPERM || err == EROFS || err == ETXTBSY)) {
    *writable = false;
    fd = open (path, O_RDONLY | OPEN_FLAGS);
    err = errno;
  }
  return fd < 0 ? open_failed (path, err, e) : fd;
}

static int
check_kind (int fd, const char *path, struct stat *sb, struct error *e)
{
  const char *kind = NULL;

  if (fstat (fd, sb) < 0)
    return error_errno (e, errno, "Could not open '%s': fstat", path);
  if (S_ISDIR (sb->st_mode))
    return error_set (e, EISDIR, "Could not open '%s': it is a directory",
                      path);
  if (S_ISFIFO (sb->st_mode))
    kind = "FIFO";
  else if (S_ISSOCK (sb->st_mode))
    kind = "socket";
  else if (S_ISCHR (sb->st_mode))
    kind = "character device";
  else if (!S_ISREG (sb->st_mode) && !S_ISBLK (sb->st_mode))
    kind = "special file";
  if (kind)
    return error_set (e, ENOTSUP, "Could not open '%s': it is a %s, an image "
                      "is a file or a block device", path, kind);
  return 0;
}

/* ---- direct I/O ---- */

/* The same file once more, by its descriptor; -1 and errno where /proc or the
 * permissions do not let us.
 */
static int
open_again (int fd, int flags)
{
  char path[64];

  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  return open (path, flags | OPEN_FLAGS);
}

static int
change_flags (int fd, int remove, int add)
{
  int flags = fcntl (fd, F_GETFL);

  return flags < 0 ? -1 : fcntl (fd, F_SETFL, (flags & ~remove) | add);
}

/* What the kernel says (since Linux 6.1, not on every file system). */
static bool
ask_dio_alignment (struct file *f)
{
#ifdef STATX_DIOALIGN
  struct statx sx;

  if (statx (f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0
      && (sx.stx_mask & STATX_DIOALIGN) && sx.stx_dio_offset_align) {
    f->align = sx.stx_dio_offset_align;
    f->mem_align = sx.stx_dio_mem_align;
    return true;
  }
#endif
  (void) f;
  return false;
}

/* The smallest block at which a read is not refused.  An empty file answers
 * every read with its end, so there the largest usual sector is taken.
 */
static uint32_t
try_dio_alignment (struct file *f)
{
  enum { LARGEST = 65536, USUAL = 4096 };
  CLEANUP_FREE void *buf = NULL;
  uint32_t align = SECTOR_SIZE;
  ssize_t r;

  if (storage_size (&f->base) < USUAL
      || posix_memalign (&buf, LARGEST, LARGEST) != 0)
    return USUAL;
  while (align < LARGEST) {
    do
      r = pread (f->fd, buf, align, 0);
    while (r < 0 && errno == EINTR);
    if (r >= 0 || errno != EINVAL)
      break;
    align *= 2;
  }
  return align;
}

/* O_DIRECT belongs to the description, and that of a descriptor which was
 * handed to us has other users: have one of our own where we can.
 */
static void
leave_shared_description (struct file *f, bool writable)
{
  int fd = open_again (f->fd, writable ? O_RDWR : O_RDONLY);

  if (fd >= 0) {
    close (f->fd);
    f->fd = fd;
    f->by_descriptor = false;
  }
}

static int
set_direct (struct file *f, bool writable, struct error *e)
{
  int sector = 0;

  if (f->by_descriptor)
    leave_shared_description (f, writable);
  if (change_flags (f->fd, 0, O_DIRECT) < 0)
    return error_errno (e, errno, "Could not open '%s': its file system has "
                        "no O_DIRECT, use cache=writeback", f->base.name);
  if (f->base.caps.is_device && ioctl (f->fd, BLKSSZGET, &sector) == 0)
    f->align = f->mem_align = (uint32_t) sector;
  else if (!ask_dio_alignment (f))
    f->align = f->mem_align = try_dio_alignment (f);
  if (!is_power_of_2 (f->align) || f->align > BOUNCE_SIZE / 2
      || !is_power_of_2 (f->mem_align) || f->mem_align > BOUNCE_SIZE / 2)
    return error_set (e, ENOTSUP, "Could not open '%s': O_DIRECT with blocks "
                      "of %" PRIu32 " bytes and buffers aligned to %" PRIu32
                      " is not supported", f->base.name, f->align,
                      f->mem_align);
  return 0;
}

/* ---- capabilities ---- */

/* A number from /sys about the queue of a block device (or of the disk that
 * a partition lies on), 0 if it is not there.
 */
static uint64_t
queue_limit (dev_t dev, const char *name)
{
  static const char *const forms[] = {
    "/sys/dev/block/%u:%u/queue/%s", "/sys/dev/block/%u:%u/../queue/%s",
  };
  uint64_t value = 0;
  char path[128];
  FILE *fp = NULL;

  for (size_t i = 0; i < 2 && !fp; ++i) {
    snprintf (path, sizeof path, i ? forms[1] : forms[0], major (dev),
              minor (dev), name);
    fp = fopen (path, "re");
  }
  if (!fp)
    return 0;
  if (fscanf (fp, "%" SCNu64, &value) != 1)
    value = 0;
  fclose (fp);
  return value;
}

static void
device_caps (struct file *f, dev_t dev)
{
  struct storage_caps *caps = &f->base.caps;
  int sector = SECTOR_SIZE;

  f->device_zero_fast = queue_limit (dev, "write_zeroes_max_bytes") > 0;
  caps->zero_is_fast = f->device_zero_fast;
  caps->can_punch = !f->no_discard
    && queue_limit (dev, "discard_max_bytes") > 0;
  if (ioctl (f->fd, BLKSSZGET, &sector) < 0 || sector < SECTOR_SIZE
      || !is_power_of_2 ((uint64_t) sector))
    sector = SECTOR_SIZE;
  f->zero_align = (uint32_t) sector;
}

/* Past the end there is nothing to punch, so this changes nothing. */
static bool
punch_works (int fd, uint64_t size)
{
  uint64_t past = round_up (size, MiB) + MiB;

  return past <= INT64_MAX - MiB
    && fallocate (fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t) past, (off_t) MiB) == 0;
}

/* The common file systems are known, so that opening one of them does not
 * change its time stamps; a file of ext4 that came from ext3 has no extents
 * and thus no ZERO_RANGE.
 */
static void
regular_caps (struct file *f)
{
  struct storage_caps *caps = &f->base.caps;
  struct statfs fs;
  int flags = 0;
  bool punch;

  if (fstatfs (f->fd, &fs) < 0)
    fs.f_type = 0;
  switch ((uint32_t) fs.f_type) {
  case EXT4_SUPER_MAGIC:
    punch = true;
    caps->zero_is_fast = ioctl (f->fd, FS_IOC_GETFLAGS, &flags) == 0
      && (flags & FS_EXTENT_FL);
    break;
  case XFS_SUPER_MAGIC:
  case BTRFS_SUPER_MAGIC:
  case TMPFS_MAGIC:
    punch = caps->zero_is_fast = true;
    break;
  default:
    punch = caps->writable && punch_works (f->fd, storage_size (&f->base));
    caps->zero_is_fast = false;
  }
  caps->can_punch = punch && !f->no_discard;
}

static void
set_caps (struct file *f, const struct stat *sb, bool writable)
{
  struct storage_caps *caps = &f->base.caps;

  caps->writable = writable;
  caps->can_grow = writable && !caps->is_device;
  caps->reads_zero_past_end = !caps->is_device;
  caps->alignment = f->align;
  caps->max_request = INT64_MAX;
  f->zero_align = f->align;
  if (caps->is_device)
    device_caps (f, sb->st_rdev);
  else
    regular_caps (f);
}

/* ---- the object ---- */

static const struct storage_ops file_ops, device_ops;

/* Without a description of its own a durable write shares the other one: then
 * two that fail at the same moment may be told to one of them only.
 */
static void
open_fua (struct file *f)
{
  int flags = f->direct ? O_RDWR | O_DIRECT : O_RDWR;
  int fd = f->unsafe ? -1 : open_again (f->fd, flags);

  if (fd >= 0)
    change_flags (fd, O_NONBLOCK, 0);
  f->fua_fd = fd >= 0 ? fd : f->fd;
}

static void
set_options (struct file *f, const struct storage_open_options *o)
{
  f->direct = o->cache == CACHE_NONE || o->cache == CACHE_DIRECTSYNC;
  f->writethrough = o->cache == CACHE_WRITETHROUGH
    || o->cache == CACHE_DIRECTSYNC;
  f->unsafe = o->cache == CACHE_UNSAFE;
  f->no_discard = o->no_discard;
  f->no_lock = o->no_lock;
  f->lock_strict = o->lock_strict;
  f->align = f->mem_align = 1;
}

static void
set_identity (struct file *f, const struct stat *sb)
{
  bool device = S_ISBLK (sb->st_mode);

  f->base.ops = device ? &device_ops : &file_ops;
  f->base.caps.is_device = device;
  f->base.caps.is_local_file = !device;
  f->base.identity.valid = true;
  f->base.identity.device = device ? sb->st_rdev : sb->st_dev;
  f->base.identity.inode = device ? 0 : sb->st_ino;
}

static struct file *
new_file (const char *path, struct error *e)
{
  struct file *f = calloc (1, sizeof *f);

  if (f)
    f->base.name = strdup (path);
  if (!f || !f->base.name) {
    free (f);
    error_nomem (e, path, sizeof *f);
    return NULL;
  }
  f->fd = f->fua_fd = -1;
  mutex_init (&f->eof);
  mutex_init (&f->blocks);
  mutex_init (&f->flushes);
  mutex_init (&f->lock.mutex);
  pthread_cond_init (&f->blocks_free, NULL);
  pthread_cond_init (&f->flush_done, NULL);
  return f;
}

static void
file_close (struct storage *st)
{
  struct file *f = file_of (st);
  struct error ignored = ERROR_INIT;

  /* The description of a descriptor that was handed to us lives on. */
  if (f->by_descriptor)
    image_lock_change (&f->lock, f->fd, st->name, false, 0, 0, &ignored);
  if (f->fua_fd >= 0 && f->fua_fd != f->fd)
    close (f->fua_fd);
  if (f->fd >= 0)
    close (f->fd);
  file_free_bounce (f);
  pthread_cond_destroy (&f->flush_done);
  pthread_cond_destroy (&f->blocks_free);
  mutex_destroy (&f->lock.mutex);
  mutex_destroy (&f->flushes);
  mutex_destroy (&f->blocks);
  mutex_destroy (&f->eof);
  free (st->name);
  free (f);
}

static int
prepare (struct file *f, bool writable, struct error *e)
{
  const char *name = f->base.name;
  struct stat sb;

  if (check_kind (f->fd, name, &sb, e) < 0)
    return -1;
  set_identity (f, &sb);
  if (file_ask_size (f->fd, f->base.caps.is_device, name, &f->base.size,
                     e) < 0
      || (f->direct && set_direct (f, writable, e) < 0))
    return -1;
  if (!f->by_descriptor && change_flags (f->fd, O_NONBLOCK, 0) < 0)
    return error_errno (e, errno, "Could not open '%s': fcntl", name);
  set_caps (f, &sb, writable);
  if (writable)
    open_fua (f);
  return 0;
}

/* A block device that is set read-only opens for writing nevertheless. */
static int
check_read_only_device (struct file *f, const char *path, bool *writable,
                        bool may_fall_back, struct error *e)
{
  struct stat sb;
  int ro = 0;

  if (!*writable || fstat (f->fd, &sb) < 0 || !S_ISBLK (sb.st_mode)
      || ioctl (f->fd, BLKROGET, &ro) < 0 || !ro)
    return 0;
  if (!may_fall_back)
    return error_set (e, EROFS, "Could not open '%s': the device is set "
                      "read-only", path);
  *writable = false;
  return 0;
}

static struct storage *
finish_open (struct file *f, const char *path, bool writable,
             bool may_fall_back, struct error *e)
{
  if (check_read_only_device (f, path, &writable, may_fall_back, e) < 0
      || prepare (f, writable, e) < 0) {
    file_close (&f->base);
    return NULL;
  }
  return storage_test_wrap (&f->base, e);
}

struct storage *
storage_file_open (const char *path, const struct storage_open_options *o,
                   struct error *e)
{
  bool writable = o->writable || o->try_writable;
  struct file *f = new_file (path, e);
  int number, is_number;

  if (!f)
    return NULL;
  set_options (f, o);
  is_number = descriptor_number (path, &number, e);
  f->by_descriptor = is_number == 1;
  if (is_number == 1)
    f->fd = open_number (path, number, &writable, o->try_writable, e);
  else if (is_number == 0)
    f->fd = open_path (path, &writable, o->try_writable, e);
  if (f->fd < 0) {
    file_close (&f->base);
    return NULL;
  }
  return finish_open (f, path, writable, o->try_writable, e);
}

/* ---- create ---- */

/* Copy-on-write file systems give a file without it only while it is empty.
 * Where there is no such flag the file is as it is.
 */
static void
set_nocow (int fd)
{
  int flags;

  if (ioctl (fd, FS_IOC_GETFLAGS, &flags) == 0) {
    flags |= FS_NOCOW_FL;
    ioctl (fd, FS_IOC_SETFLAGS, &flags);
  }
}

/* The same with the hint, which fails where it is no multiple of a block.  0 is
 * set too, since the folder may hand down another one.
 */
static void
set_extent_size_hint (int fd, const char *path,
                      const struct storage_new_file *how)
{
  struct fsxattr attributes;

  if (ioctl (fd, FS_IOC_FSGETXATTR, &attributes) == -1)
    return;
  attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
  attributes.fsx_extsize = how->extent_size_hint;
  if (ioctl (fd, FS_IOC_FSSETXATTR, &attributes) == -1
      && how->hint_asked_for && errno != ENOTTY && errno != EOPNOTSUPP)
    log_warning ("%s: extent_size_hint=%" PRIu32 ": %s; the file is made "
                 "without", path, how->extent_size_hint, strerror (errno));
}

/* A file of no bytes that was made for us is as good as new. */
static void
set_attributes (int fd, const char *path, const struct storage_new_file *how)
{
  struct stat sb;

  if (fstat (fd, &sb) == -1 || !S_ISREG (sb.st_mode) || sb.st_size > 0)
    return;
  if (how->nocow)
    set_nocow (fd);
  set_extent_size_hint (fd, path, how);
}

/* Open what is there or make it.  O_EXCL tells which; the loop is for a file
 * that comes or goes between the two.  A symbolic link to nothing is neither:
 * there the file is made, but never said to be ours to remove.
 */
static int
open_or_make (const char *path, bool *created, struct error *e)
{
  enum { MODE = 0644, ROUNDS = 8 };
  int fd = -1;

  *created = false;
  for (int i = 0; fd < 0 && i < ROUNDS; ++i) {
    fd = open (path, O_RDWR | OPEN_FLAGS);
    if (fd >= 0 || errno != ENOENT)
      break;
    fd = open (path, O_RDWR | O_CREAT | O_EXCL | OPEN_FLAGS, MODE);
    *created = fd >= 0;
    if (fd < 0 && errno != EEXIST)
      break;
  }
  if (fd < 0 && errno == EEXIST)
    fd = open (path, O_RDWR | O_CREAT | OPEN_FLAGS, MODE);
  if (fd < 0 && errno == ENXIO)
    return open_failed (path, errno, e);
  if (fd < 0)
    return error_errno (e, errno, "Could not create '%s'", path);
  return fd;
}

struct storage *
storage_file_create (const char *path, const struct storage_new_file *how,
                     const struct storage_open_options *o, bool *created,
                     struct error *e)
{
  struct storage_open_options writable = *o;
  struct storage *st;
  struct file *f;
  int number, is_number;

  *created = false;
  writable.writable = true;
  is_number = descriptor_number (path, &number, e);
  if (is_number < 0)
    return NULL;
  if (is_number)
    return storage_file_open (path, &writable, e);
  f = new_file (path, e);
  if (!f)
    return NULL;
  set_options (f, o);
  f->fd = open_or_make (path, created, e);
  if (f->fd < 0) {
    file_close (&f->base);
    return NULL;
  }
  if (how)
    set_attributes (f->fd, path, how);
  st = finish_open (f, path, true, false, e);
  if (!st && *created) {
    unlink (path);
    *created = false;
  }
  return st;
}

/* ---- the rest ---- */

static int
file_lock (struct storage *st, unsigned held, unsigned unshared,
           struct error *e)
{
  struct file *f = file_of (st);

  if (f->no_lock)
    return 0;
  return image_lock_change (&f->lock, f->fd, st->name, f->lock_strict, held,
                            unshared, e);
}

static int
file_descriptor (struct storage *st)
{
  return file_of (st)->fd;
}

/* The new description gets the locks before the old one loses them, and the
 * old one goes when the last request on it has ended.
 */
static int
replace_description (struct file *f, int fd, struct error *e)
{
  if (change_flags (fd, O_NONBLOCK, f->direct ? O_DIRECT : 0) < 0)
    return error_errno (e, errno, "%s: make writable: fcntl", f->base.name);
  if (image_lock_copy (&f->lock, fd, f->base.name, e) < 0)
    return -1;
  if (dup3 (fd, f->fd, O_CLOEXEC) < 0)
    return error_errno (e, errno, "%s: make writable: dup", f->base.name);
  return 0;
}

static int
file_set_writable (struct storage *st, struct error *e)
{
  struct file *f = file_of (st);
  CLEANUP_CLOSE int fd = open_again (f->fd, O_RDWR);
  bool writable = true;
  struct stat sb;

  if (fd < 0)
    return error_errno (e, errno, "%s: make writable", st->name);
  if (fstat (fd, &sb) < 0)
    return error_errno (e, errno, "%s: make writable: fstat", st->name);
  if (check_read_only_device (f, st->name, &writable, false, e) < 0
      || replace_description (f, fd, e) < 0)
    return -1;
  open_fua (f);
  set_caps (f, &sb, true);
  return 0;
}

#define FILE_OPS                        \
  .close = file_close,                  \
  .pread = file_pread,                  \
  .pwrite = file_pwrite,                \
  .zero = file_zero,                    \
  .trim = file_trim,                    \
  .flush = file_flush,                  \
  .truncate = file_truncate,            \
  .extents = file_extents,              \
  .lock = file_lock,                    \
  .refresh_size = file_refresh_size,    \
  .descriptor = file_descriptor,        \
  .disk_size = file_disk_size,          \
  .set_writable = file_set_writable,    \
  .copy_from = file_copy_from

static const struct storage_ops file_ops = { .driver = "file", FILE_OPS };
static const struct storage_ops device_ops = {
  .driver = "host_device", FILE_OPS
};
