/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* QEMU's image locks, so that no two programs write one image.
 *
 * A permission i that is held shows as an OFD read lock on byte 100 + i, one
 * that is not shared as a read lock on byte 200 + i.  All new locks are set
 * first; then F_OFD_GETLK for a write lock tells whether somebody else's stand
 * against them.  So of two that race both may fail, but never both win.
 * Whole-file locks, write locks and POSIX locks are not used: the last vanish
 * when the process closes any descriptor of the file.
 *
 * Layer: storage.  Locking: image_lock.mutex for the whole change.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "storage/file.h"

static const char *const permission_names[LOCK_NR_PERMISSIONS] = {
  "consistent read", "write", "write unchanged", "resize",
};

enum { HOLDER_SIZE = 128 };

/* Who has the lock on BYTE, as a sentence.  OUT has HOLDER_SIZE bytes; empty
 * where nobody is found.
 */
static void
find_holder (int fd, const char *name, off_t byte, char *out)
{
  struct storage_lock_holder *list = NULL;
  struct error ignored = ERROR_INIT;
  size_t nr = 0;

  out[0] = '\0';
  if (lock_holders (fd, name, &list, &nr, &ignored) == -1)
    return;
  for (size_t i = 0; i < nr && !*out; ++i) {
    const struct storage_lock_holder *h = &list[i];
    bool has = byte < LOCK_UNSHARED_BASE
      ? h->held >> (byte - LOCK_HELD_BASE) & 1
      : h->unshared >> (byte - LOCK_UNSHARED_BASE) & 1;

    if (!has || h->pid == 0)
      continue;
    if (h->pid == (long) getpid ())
      snprintf (out, HOLDER_SIZE, " It is in use already in this process.");
    else
      snprintf (out, HOLDER_SIZE, " It is held by process %ld (%s).", h->pid,
                *h->command ? h->command : "unknown command");
  }
  free (list);
}

/* ---- single bytes ---- */

static int
set_byte (int fd, int type, off_t byte)
{
  struct flock fl = {
    .l_type = (short) type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };
  int r;

  do
    r = fcntl (fd, F_OFD_SETLK, &fl);
  while (r < 0 && errno == EINTR);
  return r;
}

static bool
is_conflict (int err)
{
  return err == EAGAIN || err == EACCES;
}

static int
conflict (int fd, const char *name, int bit, bool shared, off_t byte,
          struct error *e)
{
  char holder[HOLDER_SIZE];

  find_holder (fd, name, byte, holder);
  return error_set (e, EAGAIN, "Failed to get %s\"%s\" lock: Is another "
                    "process using the image [%s]?%s", shared ? "shared " : "",
                    permission_names[bit], name, holder);
}

/* May somebody else's lock be on BYTE?  If one is: the error. */
static int
test_byte (int fd, const char *name, int bit, bool shared, off_t byte,
           struct error *e)
{
  struct flock fl = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  if (fcntl (fd, F_OFD_GETLK, &fl) < 0)
    return error_errno (e, errno, "%s: test for locks", name);
  if (fl.l_type == F_UNLCK)
    return 0;
  return conflict (fd, name, bit, shared, byte, e);
}

/* ---- sets of bytes ---- */

/* Give back the bytes of BITS; that cannot fail for a lock that we hold. */
static void
unset_bits (int fd, off_t base, unsigned bits)
{
  for (int i = 0; i < LOCK_NR_PERMISSIONS; ++i)
    if (bits & (1u << i))
      set_byte (fd, F_UNLCK, base + i);
}

/* Set the bytes of BITS; on failure none of them, and errno. */
static int
set_bits (int fd, off_t base, unsigned bits, int *failed_bit)
{
  int err;

  for (int i = 0; i < LOCK_NR_PERMISSIONS; ++i)
    if ((bits & (1u << i)) && set_byte (fd, F_RDLCK, base + i) < 0) {
      err = errno;
      unset_bits (fd, base, bits & ((1u << i) - 1));
      *failed_bit = i;
      errno = err;
      return -1;
    }
  return 0;
}

static int
set_failed (int fd, const char *name, int err, int bit, off_t base,
            struct error *e)
{
  if (is_conflict (err))
    return conflict (fd, name, bit, base == LOCK_UNSHARED_BASE, base + bit, e);
  return error_errno (e, err, "%s: set a lock", name);
}

/* Set HELD and UNSHARED, all or nothing. */
static int
set_all (int fd, const char *name, unsigned held, unsigned unshared,
         struct error *e)
{
  int bit, err;

  if (set_bits (fd, LOCK_HELD_BASE, held, &bit) < 0)
    return set_failed (fd, name, errno, bit, LOCK_HELD_BASE, e);
  if (set_bits (fd, LOCK_UNSHARED_BASE, unshared, &bit) < 0) {
    err = errno;
    unset_bits (fd, LOCK_HELD_BASE, held);
    return set_failed (fd, name, err, bit, LOCK_UNSHARED_BASE, e);
  }
  return 0;
}

/* What we hold nobody may refuse to share; what we do not share nobody may
 * hold.
 */
static int
test_all (int fd, const char *name, unsigned held, unsigned unshared,
          struct error *e)
{
  for (int i = 0; i < LOCK_NR_PERMISSIONS; ++i) {
    if ((held & (1u << i))
        && test_byte (fd, name, i, false, LOCK_UNSHARED_BASE + i, e) < 0)
      return -1;
    if ((unshared & (1u << i))
        && test_byte (fd, name, i, true, LOCK_HELD_BASE + i, e) < 0)
      return -1;
  }
  return 0;
}

/* ---- changes ---- */

static int
change_locked (struct image_lock *lock, int fd, const char *name,
               unsigned held, unsigned unshared, struct error *e)
  REQUIRES (lock->mutex)
{
  unsigned new_held = held & ~lock->held;
  unsigned new_unshared = unshared & ~lock->unshared;

  if (set_all (fd, name, new_held, new_unshared, e) < 0)
    return -1;
  if (test_all (fd, name, held, unshared, e) < 0) {
    unset_bits (fd, LOCK_HELD_BASE, new_held);
    unset_bits (fd, LOCK_UNSHARED_BASE, new_unshared);
    return -1;
  }
  unset_bits (fd, LOCK_HELD_BASE, lock->held & ~held);
  unset_bits (fd, LOCK_UNSHARED_BASE, lock->unshared & ~unshared);
  lock->held = held;
  lock->unshared = unshared;
  return 0;
}

/* Errors of a file system (NFS, FUSE) or kernel without these locks. */
static bool
means_unsupported (int err)
{
  return err == ENOSYS || err == EINVAL || err == ENOLCK || err == EOPNOTSUPP;
}

static int
change_or_warn_locked (struct image_lock *lock, int fd, const char *name,
                       bool strict, unsigned held, unsigned unshared,
                       struct error *e)
  REQUIRES (lock->mutex)
{
  int r;

  if (lock->unsupported && !strict)
    return 0;
  r = change_locked (lock, fd, name, held, unshared, e);
  if (r == 0 || !means_unsupported (e->err) || strict)
    return r;
  log_warning ("%s: the image is not locked, because its file system has no "
               "locks: make sure that nobody else uses it", name);
  lock->unsupported = true;
  error_clear (e);
  return 0;
}

int
image_lock_change (struct image_lock *lock, int fd, const char *name,
                   bool strict, unsigned held, unsigned unshared,
                   struct error *e)
{
  int r;

  mutex_lock (&lock->mutex);
  r = change_or_warn_locked (lock, fd, name, strict, held, unshared, e);
  mutex_unlock (&lock->mutex);
  return r;
}

int
image_lock_copy (struct image_lock *lock, int fd, const char *name,
                 struct error *e)
{
  int r;

  mutex_lock (&lock->mutex);
  r = set_all (fd, name, lock->held, lock->unshared, e);
  mutex_unlock (&lock->mutex);
  return r;
}
