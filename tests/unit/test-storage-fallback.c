/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* storage/file*.c and lock.c where the kernel or the file system lacks
 * something, or fails: a seccomp filter in a child process answers one system
 * call with an error.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/log.h"
#include "tests/unit/storage-model.h"

enum { ANY = -1 };

/* NUMBER fails with ERR from now on, if its argument INDEX (0..5) is VALUE;
 * INDEX ANY = always.  False where there is no seccomp.
 */
static bool
deny (long number, int index, uint32_t value, int err)
{
  uint32_t arg = (uint32_t) (offsetof (struct seccomp_data, args)
                             + (size_t) (index == ANY ? 0 : index) * 8);
  struct sock_filter code[] = {
    BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, nr)),
    BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, (uint32_t) number, 0, 3),
    BPF_STMT (BPF_LD | BPF_W | BPF_ABS, arg),
    BPF_JUMP (BPF_JMP | (index == ANY ? BPF_JGE : BPF_JEQ) | BPF_K,
              index == ANY ? 0 : value, 0, 1),
    BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t) err),
    BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog prog = {
    .len = sizeof code / sizeof code[0], .filter = code,
  };

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  return false;                 /* the low half of an argument lies elsewhere */
#endif
  return prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    && prctl (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

/* Run F in a process of its own, which then may filter itself. */
static void
in_child (void (*f) (void))
{
  int status = -1;
  pid_t pid;

  fflush (stdout);
  pid = fork ();
  if (pid == 0) {
    f ();
    fflush (stdout);
    _exit (unit_bad);
  }
  waitpid (pid, &status, 0);
  CHECK (WIFEXITED (status) && WEXITSTATUS (status) == 0);
}

static struct storage *
open_image (enum cache_mode cache, bool strict)
{
  struct storage_open_options o = {
    .writable = true, .cache = cache, .lock_strict = strict,
  };
  struct error e = ERROR_INIT;
  struct storage *st;
  bool created;

  unlink ("image");
  st = storage_file_create ("image", NULL, &o, &created, &e);
  if (!st) {
    printf ("# open: %s\n", e.text);
    _exit (1);
  }
  return st;
}

static bool
skipped (bool denied)
{
  if (!denied)
    printf ("# skipped: no seccomp here\n");
  return !denied;
}

/* ---- zeroes ---- */

static void
check_zero (struct storage *st, unsigned flags, int err)
{
  enum { SIZE = 256 * 1024 };
  unsigned char *buf = unit_alloc (SIZE);
  struct error e = ERROR_INIT;

  memset (buf, 1, SIZE);
  CHECK_OK (storage_pwrite (st, buf, SIZE, 0, 0, &e), &e);
  if (err) {
    CHECK_FAILS (storage_zero (st, 1, SIZE - 2, flags, &e), &e, err);
    CHECK_OK (storage_pread (st, buf, SIZE, 0, &e), &e);
    CHECK (memchr (buf, 0, SIZE) == NULL);
  } else {
    CHECK_OK (storage_zero (st, 1, SIZE - 2, flags, &e), &e);
    CHECK_OK (storage_pread (st, buf, SIZE, 0, &e), &e);
    CHECK (buf[0] == 1 && buf[SIZE - 1] == 1 && is_zero (buf + 1, SIZE - 2));
  }
  free (buf);
}

static void
no_fallocate (void)
{
  struct storage *st = open_image (CACHE_WRITEBACK, false);
  struct error e = ERROR_INIT;
  uint64_t disk;

  if (skipped (deny (SYS_fallocate, ANY, 0, EOPNOTSUPP)))
    return;
  for (int again = 0; again < 2; ++again) {
    check_zero (st, 0, 0);
    check_zero (st, STORAGE_MAY_UNMAP | STORAGE_FUA, 0);
    check_zero (st, STORAGE_FAST, ENOTSUP);
    check_zero (st, STORAGE_FAST | STORAGE_MAY_UNMAP, ENOTSUP);
  }
  CHECK_OK (storage_trim (st, 0, 65536, 0, &e), &e);
  CHECK_OK (storage_zero (st, MiB, MiB, 0, &e), &e);
  CHECK_OK (storage_flush (st, &e), &e);
  CHECK_OK (storage_disk_size (st, &disk, &e), &e);
  CHECK (storage_size (st) == 2 * MiB && disk >= MiB);
  storage_close (st);
}

static void
no_zero_range (void)
{
  struct storage *st = open_image (CACHE_WRITEBACK, false);

  if (skipped (deny (SYS_fallocate, 1, 0x11, EOPNOTSUPP)))
    return;
  check_zero (st, 0, 0);
  check_zero (st, STORAGE_MAY_UNMAP, 0);
  storage_close (st);
}

static void
fallocate_fails (void)
{
  struct storage *st = open_image (CACHE_WRITEBACK, false);

  if (skipped (deny (SYS_fallocate, ANY, 0, EIO)))
    return;
  check_zero (st, STORAGE_MAY_UNMAP, EIO);
  storage_close (st);
}

static void
test_zero (void)
{
  unit_begin ("without fallocate zeroes are written, and never fast");
  in_child (no_fallocate);
  unit_begin ("without ZERO_RANGE zeroes are zeroes");
  in_child (no_zero_range);
  unit_begin ("an error of fallocate is not taken for a missing feature");
  in_child (fallocate_fails);
}

/* ---- durable writes and flush ---- */

static void
no_pwritev2 (void)
{
  struct storage *st = open_image (CACHE_WRITETHROUGH, false);

  if (skipped (deny (SYS_pwritev2, ANY, 0, EOPNOTSUPP)))
    return;
  model_run (st, false, 30, 1);
  storage_close (st);
}

/* Neither, so a durable write has to say that it failed. */
static void
no_durable_write (void)
{
  struct storage *st = open_image (CACHE_WRITEBACK, false);
  struct error e = ERROR_INIT;

  CHECK_OK (storage_truncate (st, 4096, &e), &e);
  if (skipped (deny (SYS_pwritev2, ANY, 0, EOPNOTSUPP)
               && deny (SYS_fdatasync, ANY, 0, EIO)))
    return;
  CHECK_OK (storage_pwrite (st, "x", 1, 0, 0, &e), &e);
  CHECK_FAILS (storage_pwrite (st, "x", 1, 0, STORAGE_FUA, &e), &e, EIO);
  CHECK_FAILS (storage_flush (st, &e), &e, EIO);
  storage_close (st);
}

static void
durable_write_fails (void)
{
  struct storage *st = open_image (CACHE_WRITEBACK, false);
  struct error e = ERROR_INIT;

  CHECK_OK (storage_truncate (st, 4096, &e), &e);
  if (skipped (deny (SYS_pwritev2, ANY, 0, EIO)))
    return;
  CHECK_FAILS (storage_pwrite (st, "x", 1, 0, STORAGE_FUA, &e), &e, EIO);
  CHECK_OK (storage_pwrite (st, "x", 1, 0, 0, &e), &e);
  CHECK_FAILS (storage_flush (st, &e), &e, EIO);
  storage_close (st);
}

static void *
failing_flush (void *arg)
{
  struct error e = ERROR_INIT;

  CHECK_FAILS (storage_flush (arg, &e), &e, EIO);
  return NULL;
}

static void
flush_fails (void)
{
  struct storage *st = open_image (CACHE_WRITEBACK, false);
  struct storage *unsafe;
  pthread_t threads[NR_THREADS];
  struct error e = ERROR_INIT;

  if (skipped (deny (SYS_fdatasync, ANY, 0, EIO)))
    return;
  for (int i = 0; i < NR_THREADS; ++i)
    if (pthread_create (&threads[i], NULL, failing_flush, st) != 0)
      abort ();
  for (int i = 0; i < NR_THREADS; ++i)
    pthread_join (threads[i], NULL);
  CHECK_OK (storage_pwrite (st, "x", 1, 0, 0, &e), &e);
  CHECK_FAILS (storage_pwrite (st, "x", 1, 0, STORAGE_FUA, &e), &e, EIO);
  storage_close (st);
  unsafe = open_image (CACHE_UNSAFE, false);
  CHECK_OK (storage_pwrite (unsafe, "x", 1, 0, STORAGE_FUA, &e), &e);
  CHECK_OK (storage_flush (unsafe, &e), &e);
  storage_close (unsafe);
}

static void
test_flush (void)
{
  unit_begin ("cache=writethrough without RWF_DSYNC works");
  in_child (no_pwritev2);
  unit_begin ("without RWF_DSYNC a durable write fails where fdatasync does");
  in_child (no_durable_write);
  unit_begin ("a durable write that the medium failed makes flushes fail");
  in_child (durable_write_fails);
  unit_begin ("a failed flush fails for all who wait, and for ever; "
              "cache=unsafe never flushes");
  in_child (flush_fails);
}

/* ---- copies ---- */

static void
check_no_copy (int err, int result)
{
  struct storage *src = open_image (CACHE_WRITEBACK, false), *dst;
  struct error e = ERROR_INIT;
  char buf[1000];

  CHECK (rename ("image", "source") == 0);
  dst = open_image (CACHE_WRITEBACK, false);
  memset (buf, 1, sizeof buf);
  CHECK_OK (storage_pwrite (src, buf, sizeof buf, 0, 0, &e), &e);
  if (skipped (deny (SYS_copy_file_range, ANY, 0, err)))
    return;
  CHECK (storage_copy_range (src, 0, dst, 0, sizeof buf, &e) == result);
  CHECK (e.err == (result < 0 ? err : 0) && storage_size (dst) == 0);
  storage_close (src);
  storage_close (dst);
}

static void
copy_exdev (void)
{
  check_no_copy (EXDEV, 0);
}

static void
copy_etxtbsy (void)
{
  check_no_copy (ETXTBSY, 0);
}

static void
copy_eio (void)
{
  check_no_copy (EIO, -1);
}

static void
test_copy (void)
{
  unit_begin ("a copy that the kernel refuses is left to the caller, one that "
              "failed is an error");
  in_child (copy_exdev);
  in_child (copy_etxtbsy);
  in_child (copy_eio);
}

/* ---- locks ---- */

static unsigned nr_warnings;

static void
count_warnings (enum log_level level, const char *text)
{
  CHECK (level == LOG_WARNING && strstr (text, "image: "));
  nr_warnings++;
}

static void
locks_missing (void)
{
  enum { RW = PERM_CONSISTENT_READ | PERM_WRITE };
  struct storage *st = open_image (CACHE_WRITEBACK, false);
  struct error e = ERROR_INIT;

  if (skipped (deny (SYS_fcntl, 1, F_OFD_SETLK, ENOLCK)))
    return;
  log_set_sink (count_warnings);
  CHECK_OK (storage_lock (st, RW, PERM_WRITE, &e), &e);
  CHECK (nr_warnings == 1);
  CHECK_OK (storage_lock (st, PERM_CONSISTENT_READ, 0, &e), &e);
  CHECK_OK (storage_set_writable (st, &e), &e);
  CHECK (nr_warnings == 1);
  storage_close (st);
  st = open_image (CACHE_WRITEBACK, true);
  CHECK_FAILS (storage_lock (st, RW, PERM_WRITE, &e), &e, ENOLCK);
  CHECK (nr_warnings == 1);
  storage_close (st);
}

/* Setting works, asking does not. */
static void
locks_half_missing (void)
{
  struct storage *st = open_image (CACHE_WRITEBACK, true);
  struct error e = ERROR_INIT;

  if (skipped (deny (SYS_fcntl, 1, F_OFD_GETLK, EINVAL)))
    return;
  CHECK_FAILS (storage_lock (st, PERM_WRITE, PERM_WRITE, &e), &e, EINVAL);
  storage_close (st);
}

static void
test_locks (void)
{
  unit_begin ("a file system without locks: one warning, or with locking=on "
              "an error");
  in_child (locks_missing);
  in_child (locks_half_missing);
}

/* ---- direct I/O ---- */

static void
no_direct (void)
{
  struct storage_open_options o = { .writable = true, .cache = CACHE_NONE };
  struct error e = ERROR_INIT;
  bool created = false;

  unlink ("new");
  if (skipped (deny (SYS_fcntl, 1, F_SETFL, EINVAL)))
    return;
  CHECK (storage_file_create ("new", NULL, &o, &created, &e) == NULL);
  CHECK (e.err == EINVAL && strstr (e.text, "'new'"));
  CHECK (!created && access ("new", F_OK) < 0);
}

/* An older kernel does not tell the alignment: it is found by reading. */
static void
no_statx (void)
{
  struct storage_open_options o = { .writable = true, .cache = CACHE_NONE };
  struct storage *st = open_image (CACHE_WRITEBACK, false), *direct;
  struct error e = ERROR_INIT;

  CHECK_OK (storage_truncate (st, 5000, &e), &e);
  if (skipped (deny (SYS_statx, ANY, 0, ENOSYS)))
    return;
  direct = storage_file_open ("image", &o, &e);
  if (!direct) {
    printf ("# skipped: %s\n", e.text);
    return;
  }
  CHECK (direct->caps.alignment >= 512 && direct->caps.alignment <= 4096);
  CHECK_OK (storage_truncate (direct, 0, &e), &e);
  model_run (direct, false, 100, 5);
  storage_close (direct);
  storage_close (st);
}

static void
test_direct (void)
{
  unit_begin ("a file that could not be opened is not left behind");
  in_child (no_direct);
  unit_begin ("the alignment of O_DIRECT is found without statx");
  in_child (no_statx);
}

int
main (void)
{
  model_enter_dir ();
  test_zero ();
  test_flush ();
  test_copy ();
  test_locks ();
  test_direct ();
  return unit_end ();
}
