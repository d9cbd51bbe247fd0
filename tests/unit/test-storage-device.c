/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* storage/file*.c on a block device: a loop device over a file, where the
 * system lets us have one.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "tests/unit/storage-model.h"

enum { DEVICE_SIZE = 384 * 1024 };      /* less than MODEL_SIZE */

/* A device over FILE that goes away when it is closed for the last time.
 * Returns a descriptor that keeps it, -1 = not here.
 */
static int
make_device (const char *file, uint32_t block, bool read_only, char *path,
             size_t size)
{
  struct loop_config config = { .block_size = block };
  int control = open ("/dev/loop-control", O_RDWR | O_CLOEXEC);
  int fd = -1, number;

  config.info.lo_flags = LO_FLAGS_AUTOCLEAR
    | (read_only ? LO_FLAGS_READ_ONLY : 0);
  config.fd = (uint32_t) open (file, O_RDWR | O_CLOEXEC);
  for (int i = 0; control >= 0 && fd < 0 && i < 20; ++i) {
    number = ioctl (control, LOOP_CTL_GET_FREE);
    if (number < 0)
      break;
    snprintf (path, size, "/dev/loop%d", number);
    fd = open (path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (fd >= 0 && ioctl (fd, LOOP_CONFIGURE, &config) < 0) {
      close (fd);
      fd = -1;
    }
  }
  close ((int) config.fd);
  if (control >= 0)
    close (control);
  return fd;
}

static struct storage *
open_device (const char *path, enum cache_mode cache, bool no_discard)
{
  struct storage_open_options o = {
    .writable = true, .cache = cache, .no_discard = no_discard,
  };
  struct error e = ERROR_INIT;
  struct storage *st = storage_file_open (path, &o, &e);

  if (!st) {
    printf ("not ok open: %s\n", e.text);
    exit (EXIT_FAILURE);
  }
  return st;
}

static void
test_caps (const char *path)
{
  struct storage *st = open_device (path, CACHE_WRITEBACK, false);
  struct error e = ERROR_INIT;
  struct storage_extent x;
  uint64_t disk = 1;
  size_t nr;
  char c = 1;

  unit_begin ("a block device has a fixed size and its own name of driver");
  CHECK_STR (st->ops->driver, "host_device");
  CHECK (st->caps.is_device && !st->caps.is_local_file && !st->caps.can_grow
         && !st->caps.reads_zero_past_end);
  CHECK (storage_size (st) == DEVICE_SIZE);
  CHECK_OK (storage_refresh_size (st, &e), &e);
  CHECK (storage_size (st) == DEVICE_SIZE);
  CHECK_FAILS (storage_pwrite (st, &c, 1, DEVICE_SIZE, 0, &e), &e, ENOSPC);
  CHECK_FAILS (storage_zero (st, 1, DEVICE_SIZE, 0, &e), &e, ENOSPC);
  CHECK_FAILS (storage_truncate (st, DEVICE_SIZE + 1, &e), &e, ENOSPC);
  CHECK_FAILS (storage_truncate (st, DEVICE_SIZE - 1, &e), &e, ENOTSUP);
  CHECK_OK (storage_truncate (st, DEVICE_SIZE, &e), &e);
  CHECK_OK (storage_disk_size (st, &disk, &e), &e);
  CHECK (disk == 0);
  CHECK_OK (storage_extents (st, 5, 1000, &x, 1, &nr, &e), &e);
  CHECK (nr == 1 && x.kind == EXTENT_DATA && x.length == 1000);
  storage_close (st);
}

static void
test_model (const char *path, enum cache_mode cache, uint64_t seed)
{
  struct storage *st = open_device (path, cache, false);
  struct error e = ERROR_INIT;

  CHECK_OK (storage_zero (st, 0, DEVICE_SIZE, 0, &e), &e);
  model_run (st, true, 250, seed);
  CHECK_OK (storage_flush (st, &e), &e);
  stripes_run (st);
  storage_close (st);
}

static void
test_space (const char *path, const char *file)
{
  struct storage *st = open_device (path, CACHE_NONE, true);
  unsigned char *buf = unit_alloc (DEVICE_SIZE);
  struct error e = ERROR_INIT;
  struct stat sb;

  unit_begin ("discard=ignore keeps what a trim would lose");
  memset (buf, 1, DEVICE_SIZE);
  CHECK_OK (storage_pwrite (st, buf, DEVICE_SIZE, 0, STORAGE_FUA, &e), &e);
  CHECK_OK (storage_trim (st, 0, DEVICE_SIZE, 0, &e), &e);
  CHECK_OK (storage_pread (st, buf, DEVICE_SIZE, 0, &e), &e);
  CHECK (memchr (buf, 0, DEVICE_SIZE) == NULL);
  storage_close (st);

  st = open_device (path, CACHE_NONE, false);
  if (st->caps.can_punch) {
    unit_begin ("a device that can gives space back");
    CHECK_OK (storage_zero (st, 100, DEVICE_SIZE - 200, STORAGE_MAY_UNMAP,
                            &e), &e);
    CHECK_OK (storage_flush (st, &e), &e);
    CHECK (stat (file, &sb) == 0 && sb.st_blocks * 512 < DEVICE_SIZE / 4);
    CHECK_OK (storage_pread (st, buf, DEVICE_SIZE, 0, &e), &e);
    CHECK (buf[99] == 1 && buf[DEVICE_SIZE - 100] == 1);
    CHECK (is_zero (buf + 100, DEVICE_SIZE - 200));
  }
  if (st->caps.zero_is_fast) {
    unit_begin ("a device with a command for zeroes is fast");
    memset (buf, 1, DEVICE_SIZE);
    CHECK_OK (storage_pwrite (st, buf, DEVICE_SIZE, 0, 0, &e), &e);
    CHECK_OK (storage_zero (st, 0, DEVICE_SIZE, STORAGE_FAST, &e), &e);
    CHECK_OK (storage_pread (st, buf, DEVICE_SIZE, 0, &e), &e);
    CHECK (is_zero (buf, DEVICE_SIZE));
  }
  storage_close (st);
  free (buf);
}

static void
test_identity (const char *path, const char *file)
{
  struct storage *a = open_device (path, CACHE_WRITEBACK, false), *b;
  struct error e = ERROR_INIT;
  struct stat sb;

  unit_begin ("two nodes of one device are the same object, its file is not");
  CHECK (stat (path, &sb) == 0);
  if (mknod ("node", S_IFBLK | 0600, sb.st_rdev) == 0) {
    b = storage_file_open ("node", &(struct storage_open_options) {
        .writable = false }, &e);
    if (b)
      CHECK (storage_same (a, b));
    else
      printf ("# skipped: %s\n", e.text);
    storage_close (b);
    error_clear (&e);
  }
  b = storage_file_open (file, &(struct storage_open_options) {
      .writable = false }, &e);
  CHECK (b && !storage_same (a, b));
  storage_close (b);
  storage_close (a);
}

static void
test_read_only (const char *path)
{
  struct storage_open_options o = { .writable = true };
  struct error e = ERROR_INIT;
  struct storage *st;

  unit_begin ("a device that is set read-only is opened for reading only");
  CHECK (storage_file_open (path, &o, &e) == NULL);
  CHECK (e.err == EROFS || e.err == EACCES);
  error_clear (&e);
  o.try_writable = true;
  st = storage_file_open (path, &o, &e);
  CHECK (st && !st->caps.writable);
  if (st)
    CHECK (storage_set_writable (st, &e) == -1 && !st->caps.writable);
  storage_close (st);
}

int
main (void)
{
  char path[64];
  int fd;

  model_enter_dir ();
  fd = open ("disk", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || ftruncate (fd, DEVICE_SIZE) < 0)
    abort ();
  close (fd);
  fd = make_device ("disk", 512, false, path, sizeof path);
  if (fd < 0) {
    printf ("ok # skipped: no loop devices here\n");
    return EXIT_SUCCESS;
  }
  test_caps (path);
  unit_begin ("a device reads what was written, through the page cache");
  test_model (path, CACHE_WRITEBACK, 1);
  unit_begin ("a device reads what was written, with O_DIRECT");
  test_model (path, CACHE_NONE, 2);
  unit_begin ("a device reads what was written, each write durable");
  test_model (path, CACHE_DIRECTSYNC, 3);
  test_space (path, "disk");
  test_identity (path, "disk");
  close (fd);

  fd = make_device ("disk", 4096, false, path, sizeof path);
  if (fd >= 0) {
    unit_begin ("a device with sectors of 4096 bytes takes any request");
    test_model (path, CACHE_WRITEBACK, 4);
    test_model (path, CACHE_NONE, 5);
    close (fd);
  }

  fd = make_device ("disk", 512, true, path, sizeof path);
  if (fd >= 0) {
    test_read_only (path);
    close (fd);
  }
  return unit_end ();
}
