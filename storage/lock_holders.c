/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Who holds the image locks of a file (lock.c has their bytes).
 *
 * Layer: storage.  No locking, no state.  OFD locks carry no process id, so the
 * processes that this user may see are looked through, in /proc; what nobody
 * of them has is somebody's all the same.  The answer is old when it is given.
 */

#include <config.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "storage/file.h"

/* A line "lock:\t1: OFDLCK ADVISORY READ -1 08:01:77 100 101" of fdinfo: add
 * the permissions that it covers.
 */
static void
add_line (const char *line, struct storage_lock_holder *h)
{
  long long first, last;
  char end[32];

  if (strncmp (line, "lock:", 5) != 0
      || sscanf (line, "lock: %*s %*s %*s %*s %*s %*s %lld %31s", &first,
                 end) != 2)
    return;
  last = strcmp (end, "EOF") == 0 ? INT64_MAX : strtoll (end, NULL, 10);
  for (int i = 0; i < LOCK_NR_PERMISSIONS; ++i) {
    if (first <= LOCK_HELD_BASE + i && LOCK_HELD_BASE + i <= last)
      h->held |= 1u << i;
    if (first <= LOCK_UNSHARED_BASE + i && LOCK_UNSHARED_BASE + i <= last)
      h->unshared |= 1u << i;
  }
}

static void
add_fdinfo (int fdinfo_dir, const char *number, struct storage_lock_holder *h)
{
  CLEANUP_FCLOSE FILE *fp = NULL;
  char line[256];
  int fd = openat (fdinfo_dir, number, O_RDONLY | O_CLOEXEC);

  if (fd < 0)
    return;
  fp = fdopen (fd, "r");
  if (!fp) {
    close (fd);
    return;
  }
  while (fgets (line, sizeof line, fp))
    add_line (line, h);
}

/* What process PID holds by descriptors other than OWN. */
static void
add_process (const char *pid, int own, const struct stat *image,
             struct storage_lock_holder *h)
{
  char path[64];
  struct stat sb;
  struct dirent *d;
  DIR *dir;

  snprintf (path, sizeof path, "/proc/%.16s/fdinfo", pid);
  dir = opendir (path);
  if (!dir)
    return;
  while ((d = readdir (dir)) != NULL) {
    if (!isdigit ((unsigned char) d->d_name[0])
        || (own >= 0 && atoi (d->d_name) == own))
      continue;
    snprintf (path, sizeof path, "/proc/%.16s/fd/%.16s", pid, d->d_name);
    if (stat (path, &sb) == 0 && sb.st_dev == image->st_dev
        && sb.st_ino == image->st_ino)
      add_fdinfo (dirfd (dir), d->d_name, h);
  }
  closedir (dir);
}

/* The command as /proc tells it, without characters that drive terminals. */
static void
name_process (const char *pid, struct storage_lock_holder *h)
{
  CLEANUP_CLOSE int fd = -1;
  char path[64];
  ssize_t n = 0;

  snprintf (path, sizeof path, "/proc/%.16s/comm", pid);
  fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd >= 0)
    n = read (fd, h->command, sizeof h->command - 1);
  if (n < 0)
    n = 0;
  if (n > 0 && h->command[n - 1] == '\n')
    n--;
  h->command[n] = '\0';
  for (char *p = h->command; *p; ++p)
    if (!isprint ((unsigned char) *p))
      *p = '?';
}

/* ---- all of them ---- */

struct list {
  struct storage_lock_holder *items;    /* owned */
  size_t nr;
};

static int
append (struct list *l, const struct storage_lock_holder *h, struct error *e)
{
  struct storage_lock_holder *p = realloc (l->items,
                                           (l->nr + 1) * sizeof *p);

  if (!p)
    return error_nomem (e, "holders of locks", (l->nr + 1) * sizeof *p);
  l->items = p;
  l->items[l->nr++] = *h;
  return 0;
}

static int
look_through (DIR *proc, int fd, const struct stat *image, struct list *l,
              struct error *e)
{
  long self = (long) getpid ();
  struct dirent *d;

  while ((d = readdir (proc)) != NULL) {
    struct storage_lock_holder h = { .pid = atol (d->d_name) };

    if (!isdigit ((unsigned char) d->d_name[0]))
      continue;
    add_process (d->d_name, h.pid == self ? fd : -1, image, &h);
    if (!h.held && !h.unshared)
      continue;
    name_process (d->d_name, &h);
    if (append (l, &h, e) == -1)
      return -1;
  }
  return 0;
}

static bool
is_locked (int fd, off_t byte)
{
  struct flock fl = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  return fcntl (fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
}

/* Locks that stand, and that no process was found for: another user's, or
 * another machine's.
 */
static int
add_unknown (int fd, struct list *l, struct error *e)
{
  struct storage_lock_holder h = { .pid = 0 };

  for (int i = 0; i < LOCK_NR_PERMISSIONS; ++i) {
    if (is_locked (fd, LOCK_HELD_BASE + i))
      h.held |= 1u << i;
    if (is_locked (fd, LOCK_UNSHARED_BASE + i))
      h.unshared |= 1u << i;
  }
  for (size_t i = 0; i < l->nr; ++i) {
    h.held &= ~l->items[i].held;
    h.unshared &= ~l->items[i].unshared;
  }
  return h.held || h.unshared ? append (l, &h, e) : 0;
}

int
lock_holders (int fd, const char *name, struct storage_lock_holder **holders,
              size_t *nr, struct error *e)
{
  struct list l = { .items = NULL };
  struct stat image;
  DIR *proc;
  int r;

  if (fstat (fd, &image) == -1)
    return error_errno (e, errno, "%s: fstat", name);
  proc = opendir ("/proc");
  r = proc ? look_through (proc, fd, &image, &l, e) : 0;
  if (proc)
    closedir (proc);
  if (r == 0)
    r = add_unknown (fd, &l, e);
  if (r == -1) {
    free (l.items);
    return -1;
  }
  *holders = l.items;
  *nr = l.nr;
  return 0;
}

int
storage_lock_holders (struct storage *st, struct storage_lock_holder **holders,
                      size_t *nr, struct error *e)
{
  uint64_t offset = 0;
  int fd;

  st = storage_below_slices (st, &offset);
  fd = st->ops->descriptor ? st->ops->descriptor (st) : -1;
  if (fd == -1)
    return error_set (e, ENOTSUP, "%s: only files and devices have image locks;"
                      " the server of an NBD export has those of its own",
                      st->name);
  return lock_holders (fd, st->name, holders, nr, e);
}
