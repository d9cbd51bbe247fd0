/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* storage/file*.c on regular files; the cache modes, the end of the file,
 * zeroes and holes, descriptors, and what is refused.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/storage-model.h"

#define READS ": reads what was written, at every offset and size"
#define SHARES ": threads that share blocks and the end do not disturb " \
  "each other"
#define MODE(mode, name) \
  { mode, "cache=" name READS, "cache=" name SHARES }

static const struct {
  enum cache_mode mode;
  const char *reads, *shares; /* promises */
} modes[] = {
  MODE (CACHE_WRITEBACK, "writeback"),
  MODE (CACHE_NONE, "none"),
  MODE (CACHE_WRITETHROUGH, "writethrough"),
  MODE (CACHE_DIRECTSYNC, "directsync"),
  MODE (CACHE_UNSAFE, "unsafe"),
};
enum { NR_MODES = sizeof modes / sizeof modes[0] };

static struct storage *
must (struct storage *st, const struct error *e)
{
  if (!st) {
    printf ("not ok open: %s\n", e->text);
    exit (EXIT_FAILURE);
  }
  return st;
}

static struct storage *
fresh (const char *path, const struct storage_open_options *o)
{
  struct error e = ERROR_INIT;
  bool created = false;
  struct storage *st;

  unlink (path);
  st = must (storage_file_create (path, NULL, o, &created, &e), &e);
  CHECK (created);
  return st;
}

static struct storage *
open_rw (const char *path, bool no_discard)
{
  struct storage_open_options o = {
    .writable = true, .no_discard = no_discard,
  };
  struct error e = ERROR_INIT;

  return must (storage_file_open (path, &o, &e), &e);
}

static struct storage *
open_ro (const char *path)
{
  struct storage_open_options o = { .writable = false };
  struct error e = ERROR_INIT;

  return must (storage_file_open (path, &o, &e), &e);
}

/* Some file systems have no O_DIRECT. */
static bool
mode_works (enum cache_mode mode)
{
  struct storage_open_options o = { .writable = true, .cache = mode };
  struct error e = ERROR_INIT;
  struct storage *st;
  bool created;

  st = storage_file_create ("probe", NULL, &o, &created, &e);
  storage_close (st);
  return st != NULL;
}

static uint64_t
disk_size (struct storage *st)
{
  struct error e = ERROR_INIT;
  uint64_t size = 0;

  CHECK_OK (storage_flush (st, &e), &e);
  CHECK_OK (storage_disk_size (st, &size, &e), &e);
  return size;
}

/* ---- all cache modes ---- */

static void
check_reopened (const char *path, uint64_t size)
{
  struct storage *direct, *buffered = open_ro (path);
  unsigned char *a = unit_alloc ((size_t) size), *b;
  struct storage_open_options o = { .cache = CACHE_NONE };
  struct error e = ERROR_INIT;

  b = unit_alloc ((size_t) size);
  CHECK (storage_size (buffered) == size);
  CHECK_OK (storage_pread (buffered, a, (size_t) size, 0, &e), &e);
  direct = storage_file_open (path, &o, &e);
  if (direct) {
    CHECK_OK (storage_pread (direct, b, (size_t) size, 0, &e), &e);
    CHECK (memcmp (a, b, (size_t) size) == 0);
  }
  storage_close (direct);
  storage_close (buffered);
  free (a);
  free (b);
}

static void
test_mode (enum cache_mode mode, const char *reads, const char *shares)
{
  struct storage_open_options o = { .writable = true, .cache = mode };
  struct storage *st;
  uint64_t size;

  unit_begin (reads);
  if (!mode_works (mode)) {
    printf ("# skipped: not on this file system\n");
    return;
  }
  st = fresh ("a", &o);
  model_run (st, false, 250, 10 + (uint64_t) mode);
  size = storage_size (st);
  storage_close (st);
  check_reopened ("a", size);

  unit_begin (shares);
  st = fresh ("a", &o);
  stripes_run (st);
  size = storage_size (st);
  storage_close (st);
  check_reopened ("a", size);
}

/* ---- the end of the file ---- */

static void
test_end (void)
{
  struct storage_open_options o = { .writable = true };
  struct storage *st = fresh ("a", &o), *reader;
  struct error e = ERROR_INIT;
  char buf[8];

  unit_begin ("a write past the end leaves zeroes in between");
  CHECK_OK (storage_pwrite (st, "ab", 2, 100001, 0, &e), &e);
  CHECK (storage_size (st) == 100003);
  CHECK_OK (storage_pread (st, buf, 8, 99999, &e), &e);
  CHECK (memcmp (buf, "\0\0ab\0\0\0\0", 8) == 0);

  unit_begin ("what was cut off is zero after the file has grown again");
  CHECK_OK (storage_truncate (st, 100002, &e), &e);
  CHECK_OK (storage_truncate (st, 100010, &e), &e);
  CHECK_OK (storage_pread (st, buf, 8, 100000, &e), &e);
  CHECK (memcmp (buf, "\0a\0\0\0\0\0\0", 8) == 0);

  unit_begin ("a reader sees what somebody else has added");
  reader = open_ro ("a");
  CHECK_OK (storage_pwrite (st, "new", 3, 200000, 0, &e), &e);
  CHECK (storage_size (reader) == 100010);
  CHECK_OK (storage_pread (reader, buf, 8, 200000, &e), &e);
  CHECK (memcmp (buf, "new\0\0\0\0\0", 8) == 0);
  CHECK_OK (storage_refresh_size (reader, &e), &e);
  CHECK (storage_size (reader) == 200003);
  storage_close (reader);
  storage_close (st);
}

/* A limit on the size of files stands in for a full disk. */
static void
test_failed_growth (void)
{
  struct storage_open_options o = { .writable = true };
  struct storage *st = fresh ("a", &o), *src = fresh ("source", &o);
  struct error e = ERROR_INIT;
  struct rlimit old, limit;
  char *buf = unit_alloc (100000);
  struct stat sb;

  unit_begin ("a write that cannot grow the file leaves its size");
  memset (buf, 1, 100000);
  CHECK_OK (storage_pwrite (src, buf, 100000, 0, 0, &e), &e);
  storage_close (src);
  signal (SIGXFSZ, SIG_IGN);
  getrlimit (RLIMIT_FSIZE, &old);
  limit = old;
  limit.rlim_cur = 65536;
  setrlimit (RLIMIT_FSIZE, &limit);
  CHECK_OK (storage_pwrite (st, buf, 1000, 0, 0, &e), &e);
  CHECK_FAILS (storage_pwrite (st, buf, 100000, 500, 0, &e), &e, EFBIG);
  CHECK_FAILS (storage_pwrite (st, buf, 100000, 500, STORAGE_FUA, &e), &e,
               EFBIG);
  CHECK_FAILS (storage_zero (st, 500, 100000, 0, &e), &e, EFBIG);
  CHECK_FAILS (storage_truncate (st, 100000, &e), &e, EFBIG);
  CHECK_OK (storage_pread (st, buf, 1000, 0, &e), &e);
  src = open_ro ("source");
  CHECK (storage_copy_range (src, 0, st, 1000, 100000, &e) != 1);
  error_clear (&e);
  storage_close (src);
  setrlimit (RLIMIT_FSIZE, &old);
  CHECK (storage_size (st) == 1000);
  CHECK (stat ("a", &sb) == 0 && sb.st_size == 1000);

  unit_begin ("and neither flush nor later writes fail for it");
  CHECK_OK (storage_pwrite (st, buf, 100000, 500, STORAGE_FUA, &e), &e);
  CHECK_OK (storage_flush (st, &e), &e);
  CHECK (storage_size (st) == 100500);
  storage_close (st);
  free (buf);
}

/* ---- zeroes and holes ---- */

static void
test_zero_grows (void)
{
  struct storage_open_options o = { .writable = true };
  struct storage *st = fresh ("a", &o);
  struct error e = ERROR_INIT;
  char buf[8];

  unit_begin ("zeroes past the end grow the file, with space or without");
  CHECK_OK (storage_pwrite (st, "abcd", 4, 0, 0, &e), &e);
  CHECK_OK (storage_zero (st, 2, MiB, STORAGE_MAY_UNMAP, &e), &e);
  CHECK (storage_size (st) == MiB + 2);
  CHECK_OK (storage_pread (st, buf, 8, 0, &e), &e);
  CHECK (memcmp (buf, "ab\0\0\0\0\0\0", 8) == 0);
  CHECK (disk_size (st) < MiB / 2);
  CHECK_OK (storage_zero (st, 8 * MiB, MiB, 0, &e), &e);
  CHECK (storage_size (st) == 9 * MiB);
  CHECK (disk_size (st) >= MiB && disk_size (st) < 2 * MiB);
  storage_close (st);
}

static void
fill (struct storage *st, uint64_t size)
{
  unsigned char *buf = unit_alloc ((size_t) size);
  struct error e = ERROR_INIT;

  unit_random (buf, (size_t) size, 5);
  CHECK_OK (storage_pwrite (st, buf, (size_t) size, 0, 0, &e), &e);
  CHECK_OK (storage_flush (st, &e), &e);
  free (buf);
}

static bool
reads_zero (struct storage *st, uint64_t offset, size_t len)
{
  unsigned char *buf = unit_alloc (len);
  struct error e = ERROR_INIT;
  bool r;

  CHECK_OK (storage_pread (st, buf, len, offset, &e), &e);
  r = is_zero (buf, len);
  free (buf);
  return r;
}

static void
test_holes (void)
{
  struct storage_open_options o = { .writable = true };
  struct storage *st = fresh ("a", &o);
  struct error e = ERROR_INIT;
  struct storage_extent x[4];
  size_t nr = 0;

  unit_begin ("zeroes that keep their space keep it");
  fill (st, 4 * MiB);
  CHECK (disk_size (st) >= 4 * MiB);
  CHECK_OK (storage_zero (st, MiB, MiB, 0, &e), &e);
  CHECK (reads_zero (st, MiB, MiB) && disk_size (st) >= 4 * MiB);

  if (st->caps.can_punch) {
    unit_begin ("discard=ignore: nothing gives space back");
    storage_close (st);
    st = open_rw ("a", true);
    CHECK (!st->caps.can_punch);
    CHECK_OK (storage_trim (st, 0, MiB, 0, &e), &e);
    CHECK (!reads_zero (st, 0, MiB));
    CHECK_OK (storage_zero (st, 0, MiB, STORAGE_MAY_UNMAP, &e), &e);
    CHECK (reads_zero (st, 0, MiB) && disk_size (st) >= 4 * MiB);
    storage_close (st);
    st = open_rw ("a", false);

    unit_begin ("zeroes with may-unmap, and trim, give space back");
    CHECK_OK (storage_zero (st, MiB, MiB, STORAGE_MAY_UNMAP, &e), &e);
    CHECK (reads_zero (st, MiB, MiB) && disk_size (st) <= 3 * MiB + 65536);
    CHECK_OK (storage_trim (st, 2 * MiB, MiB, STORAGE_FUA, &e), &e);
    CHECK (reads_zero (st, 2 * MiB, MiB));
    CHECK (disk_size (st) <= 2 * MiB + 65536);
    CHECK (!reads_zero (st, 3 * MiB, MiB));

    unit_begin ("extents tell holes from data");
    CHECK_OK (storage_zero (st, 0, MiB, STORAGE_MAY_UNMAP, &e), &e);
    CHECK_OK (storage_extents (st, 1000, 4 * MiB - 2000, x, 4, &nr, &e), &e);
    CHECK (nr == 2);
    CHECK (x[0].kind == EXTENT_HOLE && x[0].length == 3 * MiB - 1000);
    CHECK (x[1].kind == EXTENT_DATA && x[1].length == MiB - 1000);
    CHECK_OK (storage_extents (st, 0, 4 * MiB, x, 1, &nr, &e), &e);
    CHECK (nr == 1 && x[0].length == 3 * MiB);
  }
  storage_close (st);
}

static void
test_fast_zero (void)
{
  struct storage_open_options o = { .writable = true, .cache = CACHE_NONE };
  struct error e = ERROR_INIT;
  struct storage *st;

  unit_begin ("a fast zero is fast, or is refused and changes nothing");
  st = fresh ("a", &o);
  fill (st, MiB);
  if (st->caps.alignment > 1) {
    CHECK_FAILS (storage_zero (st, 10, 100, STORAGE_FAST, &e), &e, ENOTSUP);
    CHECK (!reads_zero (st, 10, 100));
  }
  if (st->caps.zero_is_fast) {
    CHECK_OK (storage_zero (st, 10, MiB - 20, STORAGE_FAST, &e), &e);
    CHECK (reads_zero (st, 10, MiB - 20));
    CHECK (!reads_zero (st, 0, 10) && !reads_zero (st, MiB - 10, 10));
  }
  storage_close (st);
}

/* ---- what is opened ---- */

static void
refused (const char *path, int err, const char *word)
{
  struct storage_open_options ro = { .writable = false };
  struct storage_open_options rw = { .writable = true };
  struct error e = ERROR_INIT;
  bool created = true;

  CHECK (storage_file_open (path, &ro, &e) == NULL);
  if (e.err != err || !strstr (e.text, word) || !strstr (e.text, path))
    unit_fail (__FILE__, __LINE__, "%d: %s", e.err, e.text);
  error_clear (&e);
  CHECK (storage_file_open (path, &rw, &e) == NULL);
  error_clear (&e);
  CHECK (storage_file_create (path, NULL, &rw, &created, &e) == NULL);
  CHECK (!created && e.err != 0);
}

static void
test_kinds (void)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX, .sun_path = "socket" };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct stat sb;

  alarm (60);
  unit_begin ("a FIFO, a socket, a folder and a terminal are refused by "
              "kind, at once");
  CHECK (mkfifo ("fifo", 0600) == 0);
  CHECK (bind (fd, (struct sockaddr *) &sa, sizeof sa) == 0);
  CHECK (mkdir ("folder", 0700) == 0);
  refused ("fifo", ENOTSUP, "FIFO");
  refused ("socket", ENOTSUP, "socket");
  refused ("folder", EISDIR, "irectory");
  refused ("/dev/zero", ENOTSUP, "character device");
  refused ("/dev/fdset/1", ENOENT, "/dev/fd/N");
  CHECK (stat ("fifo", &sb) == 0 && stat ("socket", &sb) == 0);
  close (fd);
  alarm (0);
}

static void
test_create (void)
{
  struct storage_open_options o = { .writable = true };
  const struct storage_new_file nocow = { .nocow = true };
  struct error e = ERROR_INIT;
  struct storage *st, *other;
  bool created = true;
  char buf[2];

  unit_begin ("create leaves a file that was there as it was, and says so");
  st = fresh ("a", &o);
  CHECK_OK (storage_pwrite (st, "ab", 2, 0, 0, &e), &e);
  other = must (storage_file_create ("a", &nocow, &o, &created, &e), &e);
  CHECK (!created && storage_size (other) == 2);
  CHECK_OK (storage_pread (other, buf, 2, 0, &e), &e);
  CHECK (memcmp (buf, "ab", 2) == 0);

  unit_begin ("two names of one file are the same object");
  storage_close (other);
  CHECK (link ("a", "hard") == 0 && symlink ("a", "soft") == 0);
  other = open_ro ("hard");
  CHECK (storage_same (st, other));
  storage_close (other);
  other = open_ro ("./soft");
  CHECK (storage_same (st, other));
  storage_close (other);
  other = must (storage_file_create ("b", &nocow, &o, &created, &e), &e);
  CHECK (created && !storage_same (st, other));
  storage_close (other);

  unit_begin ("create follows a link to nothing, and never removes it");
  CHECK (symlink ("target", "dangling") == 0);
  other = must (storage_file_create ("dangling", NULL, &o, &created, &e),
                &e);
  CHECK (!created && access ("target", F_OK) == 0);
  storage_close (other);
  storage_close (st);

  unit_begin ("a file that is not there, or a folder that is not, is named");
  CHECK (storage_file_open ("nothing", &o, &e) == NULL);
  CHECK (e.err == ENOENT && strstr (e.text, "'nothing'"));
  error_clear (&e);
  CHECK (storage_file_create ("no/where", NULL, &o, &created, &e) == NULL);
  CHECK (e.err == ENOENT && !created);
}

static struct storage *
open_number (int fd, bool writable, bool try, struct error *e)
{
  struct storage_open_options o = {
    .writable = writable, .try_writable = try,
  };
  char name[32];

  snprintf (name, sizeof name, "/dev/fd/%d", fd);
  return storage_file_open (name, &o, e);
}

static void
test_descriptors (void)
{
  int rw = open ("gone", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  int ro = open ("gone", O_RDONLY | O_CLOEXEC);
  int wo = open ("gone", O_WRONLY | O_CLOEXEC);
  struct storage_open_options o = { .writable = true };
  struct error e = ERROR_INIT;
  struct storage *st;
  char buf[32];

  unlink ("gone");
  unit_begin ("/dev/fd/N is the open file, with or without a name");
  st = must (open_number (rw, true, false, &e), &e);
  CHECK (st->caps.writable);
  CHECK_OK (storage_pwrite (st, "ab", 2, 0, STORAGE_FUA, &e), &e);
  storage_close (st);
  CHECK (pread (rw, buf, 2, 0) == 2 && memcmp (buf, "ab", 2) == 0);
  st = must (open_number (ro, false, false, &e), &e);
  CHECK (!st->caps.writable && storage_size (st) == 2);
  storage_close (st);

  unit_begin ("/dev/fd/N can do what its descriptor can do");
  CHECK (open_number (ro, true, false, &e) == NULL && e.err == EACCES);
  error_clear (&e);
  CHECK (open_number (wo, false, false, &e) == NULL && e.err == EACCES);
  error_clear (&e);
  st = must (open_number (ro, false, true, &e), &e);
  CHECK (!st->caps.writable);
  storage_close (st);

  unit_begin ("/dev/fd/N with O_DIRECT leaves the descriptor as it was");
  o.cache = CACHE_NONE;
  snprintf (buf, sizeof buf, "/dev/fd/%d", rw);
  st = storage_file_open (buf, &o, &e);
  CHECK (st || e.err == EINVAL);
  error_clear (&e);
  CHECK (!(fcntl (rw, F_GETFL) & O_DIRECT));
  storage_close (st);
  CHECK (!(fcntl (rw, F_GETFL) & O_DIRECT));
  close (rw);
  close (ro);
  close (wo);
  CHECK (open_number (wo, false, false, &e) == NULL && e.err == EBADF);
}

/* ---- set_writable ---- */

struct reader {
  struct storage *st;
  int stop;                     /* atomic */
  uint64_t reads;
};

static void *
reader_thread (void *arg)
{
  struct reader *r = arg;
  struct error e = ERROR_INIT;
  char buf[4];

  do {
    CHECK_OK (storage_pread (r->st, buf, 4, 0, &e), &e);
    CHECK (memcmp (buf, "abcd", 4) == 0);
    r->reads++;
  } while (!__atomic_load_n (&r->stop, __ATOMIC_RELAXED));
  return NULL;
}

static void
test_set_writable (void)
{
  struct storage_open_options o = { .writable = true };
  struct reader r = { .stop = 0 };
  struct error e = ERROR_INIT;
  pthread_t thread;
  struct stat sb;
  ino_t inode;

  unit_begin ("a file becomes writable by its descriptor, under its readers");
  r.st = fresh ("a", &o);
  CHECK_OK (storage_pwrite (r.st, "abcd", 4, 0, 0, &e), &e);
  storage_close (r.st);
  r.st = open_ro ("a");
  CHECK (stat ("a", &sb) == 0);
  inode = sb.st_ino;
  CHECK (rename ("a", "moved") == 0);
  CHECK_FAILS (storage_pwrite (r.st, "x", 1, 4, 0, &e), &e, EROFS);
  if (pthread_create (&thread, NULL, reader_thread, &r) != 0)
    abort ();
  CHECK_OK (storage_set_writable (r.st, &e), &e);
  CHECK_OK (storage_set_writable (r.st, &e), &e);
  CHECK (r.st->caps.writable && r.st->caps.can_grow);
  CHECK_OK (storage_pwrite (r.st, "efgh", 4, 4, STORAGE_FUA, &e), &e);
  CHECK_OK (storage_flush (r.st, &e), &e);
  __atomic_store_n (&r.stop, 1, __ATOMIC_RELAXED);
  pthread_join (thread, NULL);
  CHECK (r.reads > 0);
  storage_close (r.st);
  CHECK (stat ("moved", &sb) == 0 && sb.st_size == 8 && sb.st_ino == inode);
  CHECK (access ("a", F_OK) < 0);
}

/* ---- flush from many threads ---- */

static void *
flush_thread (void *arg)
{
  struct storage *st = arg;
  struct error e = ERROR_INIT;

  for (int i = 0; i < 20; ++i) {
    CHECK_OK (storage_pwrite (st, "x", 1, (uint64_t) i * 4096, 0, &e), &e);
    CHECK_OK (storage_flush (st, &e), &e);
  }
  return NULL;
}

static void
test_flushes (void)
{
  struct storage_open_options o = { .writable = true };
  struct storage *st = fresh ("a", &o);
  pthread_t threads[NR_THREADS];

  unit_begin ("flushes from many threads all come back");
  for (int i = 0; i < NR_THREADS; ++i)
    if (pthread_create (&threads[i], NULL, flush_thread, st) != 0)
      abort ();
  for (int i = 0; i < NR_THREADS; ++i)
    pthread_join (threads[i], NULL);
  storage_close (st);
}

/* ---- copies in the kernel ---- */

static void
check_copy (struct storage *src, struct storage *dst, uint64_t from,
            uint64_t to, size_t len, bool share)
{
  unsigned char *want = unit_alloc (len), *got = unit_alloc (len);
  uint64_t size = storage_size (dst);
  struct error e = ERROR_INIT;
  int r;

  CHECK_OK (storage_pread (src, want, len, from, &e), &e);
  r = share ? storage_clone_range (src, from, dst, to, len, &e)
    : storage_copy_range (src, from, dst, to, len, &e);
  CHECK (r == 0 || r == 1);
  if (r == 1) {
    CHECK (storage_size (dst) == max_u64 (size, to + len));
    CHECK_OK (storage_pread (dst, got, len, to, &e), &e);
    CHECK (memcmp (want, got, len) == 0);
  } else
    CHECK (storage_size (dst) == size);
  free (want);
  free (got);
}

static void
test_copy (void)
{
  struct storage_open_options o = { .writable = true };
  struct storage *src = fresh ("a", &o), *dst = fresh ("b", &o), *memory;
  struct error e = ERROR_INIT;

  unit_begin ("a copy in the kernel is whole, or was not possible");
  fill (src, 3 * MiB + 100);
  for (int share = 0; share < 2; ++share) {
    check_copy (src, dst, 0, MiB, MiB, share);
    check_copy (src, dst, MiB, 0, MiB, share);
    check_copy (src, dst, 5, 7, 100, share);
    check_copy (src, dst, MiB + 3, 5 * MiB + 1, MiB + 5, share);
    check_copy (src, dst, 3 * MiB, 8 * MiB, 100, share);
  }
  CHECK (storage_copy_range (src, 0, dst, 0, 0, &e) == 1);

  unit_begin ("a copy that the kernel cannot make is left to the caller");
  CHECK (storage_copy_range (src, 3 * MiB, dst, 0, 200, &e) == 0);
  CHECK (storage_copy_range (src, 0, src, 100, 200, &e) == 0);
  memory = storage_memory_new ("memory", 4 * MiB, &e);
  CHECK (storage_copy_range (src, 0, memory, 0, MiB, &e) == 0);
  CHECK (storage_copy_range (memory, 0, dst, 0, MiB, &e) == 0);
  CHECK (storage_clone_range (memory, 0, dst, 0, MiB, &e) == 0);
  CHECK (e.err == 0);
  storage_close (memory);

  unit_begin ("a copy through slices lands where the slices are");
  src = storage_slice_new (src, 100, UINT64_MAX, &e);
  dst = storage_slice_new (dst, 1000, UINT64_MAX, &e);
  CHECK (src && dst);
  check_copy (src, dst, 50, 3000, 70000, false);
  check_copy (src, dst, 0, storage_size (dst) + 10, 70000, false);
  storage_close (src);
  storage_close (dst);
}

int
main (void)
{
  model_enter_dir ();
  for (int i = 0; i < NR_MODES; ++i)
    test_mode (modes[i].mode, modes[i].reads, modes[i].shares);
  test_end ();
  test_failed_growth ();
  test_zero_grows ();
  test_holes ();
  if (mode_works (CACHE_NONE))
    test_fast_zero ();
  test_kinds ();
  test_create ();
  test_descriptors ();
  test_set_writable ();
  test_flushes ();
  test_copy ();
  return unit_end ();
}
