/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* storage/memory.c and storage/slice.c, and the checks of storage/storage.c. */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include "tests/unit/storage-model.h"

static struct storage *
memory (uint64_t size)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("memory", size, &e);

  if (!st) {
    printf ("not ok memory: %s\n", e.text);
    exit (EXIT_FAILURE);
  }
  return st;
}

static void
test_memory (void)
{
  struct storage *st = memory (0);

  unit_begin ("memory: reads what was written, at every size");
  model_run (st, false, 600, 1);
  storage_close (st);

  unit_begin ("memory: threads do not disturb each other");
  st = memory (0);
  stripes_run (st);
  storage_close (st);
}

static void
test_memory_far (void)
{
  const uint64_t far = INT64_MAX - 8191;
  struct storage *st = memory (INT64_MAX);
  struct error e = ERROR_INIT;
  struct storage_extent x[8];
  uint64_t disk = 0;
  char buf[3];
  size_t nr = 0;

  unit_begin ("memory: the largest object costs what was written to it");
  CHECK_OK (storage_pwrite (st, "abc", 3, far, 0, &e), &e);
  CHECK_OK (storage_pwrite (st, "x", 1, 4096, 0, &e), &e);
  CHECK_OK (storage_pread (st, buf, 3, far, &e), &e);
  CHECK (memcmp (buf, "abc", 3) == 0);
  CHECK_OK (storage_disk_size (st, &disk, &e), &e);
  CHECK (disk == 8192);

  unit_begin ("memory: a hole is passed in one step");
  CHECK_OK (storage_extents (st, 0, INT64_MAX, x, 8, &nr, &e), &e);
  CHECK (nr == 5);
  CHECK (x[0].kind == EXTENT_HOLE && x[0].length == 4096);
  CHECK (x[1].kind == EXTENT_DATA && x[1].length == 4096);
  CHECK (x[2].kind == EXTENT_HOLE && x[2].length == far - 8192);
  CHECK (x[3].kind == EXTENT_DATA && x[3].length == 4096);
  CHECK (x[4].kind == EXTENT_HOLE && x[4].length == 4095);

  unit_begin ("memory: zero and truncate give pages back");
  CHECK_OK (storage_zero (st, 0, INT64_MAX, STORAGE_MAY_UNMAP, &e), &e);
  CHECK_OK (storage_disk_size (st, &disk, &e), &e);
  CHECK (disk == 0);
  CHECK_OK (storage_pwrite (st, "abc", 3, 5000, 0, &e), &e);
  CHECK_OK (storage_truncate (st, 5001, &e), &e);
  CHECK_OK (storage_truncate (st, 9000, &e), &e);
  CHECK_OK (storage_pread (st, buf, 3, 5000, &e), &e);
  CHECK (memcmp (buf, "a\0\0", 3) == 0);
  storage_close (st);
}

static void
test_checks (void)
{
  struct storage *st = memory (100), *slice;
  struct error e = ERROR_INIT;
  struct storage_extent x;
  char buf[8] = "1234567";
  size_t nr;

  unit_begin ("a request past the largest offset is refused");
  CHECK_FAILS (storage_pread (st, buf, 8, INT64_MAX - 7, &e), &e, EINVAL);
  CHECK_FAILS (storage_pwrite (st, buf, 8, UINT64_MAX, 0, &e), &e, EINVAL);
  CHECK_FAILS (storage_zero (st, 1, INT64_MAX, 0, &e), &e, EINVAL);
  CHECK_FAILS (storage_trim (st, 1, UINT64_MAX, 0, &e), &e, EINVAL);
  CHECK_FAILS (storage_truncate (st, UINT64_MAX, &e), &e, EINVAL);
  CHECK_FAILS (storage_extents (st, 90, 11, &x, 1, &nr, &e), &e, EINVAL);
  CHECK_FAILS (storage_extents (st, 90, 0, &x, 1, &nr, &e), &e, EINVAL);
  CHECK (storage_size (st) == 100);

  unit_begin ("past the end there are zeroes");
  CHECK_OK (storage_pwrite (st, buf, 8, 92, 0, &e), &e);
  CHECK_OK (storage_pread (st, buf, 8, 96, &e), &e);
  CHECK (memcmp (buf, "567\0\0\0\0\0", 8) == 0);
  CHECK_OK (storage_pread (st, buf, 8, 4000, &e), &e);
  CHECK (is_zero (buf, 8));

  unit_begin ("a request of no bytes changes nothing");
  CHECK_OK (storage_pwrite (st, buf, 0, 200, 0, &e), &e);
  CHECK_OK (storage_zero (st, 200, 0, 0, &e), &e);
  CHECK_OK (storage_pread (st, buf, 0, 200, &e), &e);
  CHECK (storage_size (st) == 100);

  unit_begin ("a read-only object is not changed");
  st->caps.writable = false;
  CHECK_FAILS (storage_pwrite (st, buf, 1, 0, 0, &e), &e, EROFS);
  CHECK_FAILS (storage_zero (st, 0, 1, 0, &e), &e, EROFS);
  CHECK_FAILS (storage_trim (st, 0, 1, 0, &e), &e, EROFS);
  CHECK_FAILS (storage_truncate (st, 0, &e), &e, EROFS);
  CHECK_OK (storage_flush (st, &e), &e);
  st->caps.writable = true;

  unit_begin ("an object of fixed size is full at its end");
  slice = storage_slice_new (st, 10, 20, &e);
  CHECK (slice != NULL);
  CHECK_FAILS (storage_pwrite (slice, buf, 8, 13, 0, &e), &e, ENOSPC);
  CHECK_FAILS (storage_zero (slice, 20, 1, 0, &e), &e, ENOSPC);
  CHECK_FAILS (storage_truncate (slice, 21, &e), &e, ENOSPC);
  CHECK_FAILS (storage_truncate (slice, 19, &e), &e, ENOTSUP);
  CHECK_OK (storage_truncate (slice, 20, &e), &e);
  CHECK_OK (storage_trim (slice, 15, 1000, 0, &e), &e);
  CHECK_OK (storage_pread (st, buf, 8, 92, &e), &e);
  CHECK (memcmp (buf, "1234567", 8) == 0);
  storage_close (slice);
}

static void
test_sticky_flush (void)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_fault_new (memory (4096),
                                          "op=flush,index=2,errno=ENOSPC",
                                          &e);
  char c = 1;

  unit_begin ("after a failed flush none succeeds, nor a durable write");
  CHECK (st != NULL);
  CHECK_OK (storage_flush (st, &e), &e);
  CHECK_FAILS (storage_flush (st, &e), &e, ENOSPC);
  CHECK_FAILS (storage_flush (st, &e), &e, ENOSPC);
  CHECK_FAILS (storage_pwrite (st, &c, 1, 0, STORAGE_FUA, &e), &e, ENOSPC);
  CHECK_FAILS (storage_zero (st, 0, 1, STORAGE_FUA, &e), &e, ENOSPC);
  CHECK_FAILS (storage_trim (st, 0, 1, STORAGE_FUA, &e), &e, ENOSPC);
  CHECK_OK (storage_pwrite (st, &c, 1, 0, 0, &e), &e);
  storage_close (st);
}

static void
test_slice (void)
{
  struct error e = ERROR_INIT;
  struct storage *inner = memory (1000), *st;
  char buf[4];

  unit_begin ("a slice refuses a window that is not there");
  CHECK (storage_slice_new (inner, 1001, UINT64_MAX, &e) == NULL);
  CHECK (e.err == EINVAL);
  error_clear (&e);
  CHECK (storage_slice_new (inner, 500, 501, &e) == NULL);
  error_clear (&e);

  unit_begin ("a slice to the end grows and shrinks with its object");
  CHECK_OK (storage_pwrite (inner, "head", 4, 996, 0, &e), &e);
  st = storage_slice_new (inner, 1000, UINT64_MAX, &e);
  CHECK (st != NULL && storage_size (st) == 0);
  model_run (st, false, 300, 3);
  CHECK (storage_size (inner) == 1000 + storage_size (st));
  CHECK_OK (storage_truncate (inner, 1010, &e), &e);
  CHECK_OK (storage_refresh_size (st, &e), &e);
  CHECK (storage_size (st) == 10);
  CHECK_OK (storage_pread (inner, buf, 4, 996, &e), &e);
  CHECK (memcmp (buf, "head", 4) == 0);
  CHECK_FAILS (storage_truncate (st, INT64_MAX, &e), &e, EFBIG);
  CHECK_FAILS (storage_pwrite (st, buf, 4, INT64_MAX - 100, 0, &e), &e,
               EINVAL);
  storage_close (st);

  unit_begin ("a slice of a fixed size touches nothing around it");
  inner = memory (300000);
  CHECK_OK (storage_pwrite (inner, "head", 4, 96, 0, &e), &e);
  CHECK_OK (storage_pwrite (inner, "tail", 4, 250100, 0, &e), &e);
  st = storage_slice_new (inner, 100, 250000, &e);
  CHECK (st != NULL);
  model_run (st, true, 300, 4);
  CHECK_OK (storage_pread (inner, buf, 4, 96, &e), &e);
  CHECK (memcmp (buf, "head", 4) == 0);
  CHECK_OK (storage_pread (inner, buf, 4, 250100, &e), &e);
  CHECK (memcmp (buf, "tail", 4) == 0);
  storage_close (st);
}

static void
test_cache_modes (void)
{
  struct error e = ERROR_INIT;
  enum cache_mode mode;

  unit_begin ("a cache mode is one of the five, or named in the error");
  CHECK_OK (cache_mode_parse ("-t", "none", &mode, &e), &e);
  CHECK (mode == CACHE_NONE);
  CHECK_OK (cache_mode_parse ("-t", "unsafe", &mode, &e), &e);
  CHECK (mode == CACHE_UNSAFE);
  CHECK_OK (cache_mode_parse ("-t", "directsync", &mode, &e), &e);
  CHECK (mode == CACHE_DIRECTSYNC);
  CHECK (cache_mode_parse ("-t", "fast", &mode, &e) == -1);
  CHECK (strstr (e.text, "-t") && strstr (e.text, "'fast'"));
}

int
main (void)
{
  test_memory ();
  test_memory_far ();
  test_checks ();
  test_sticky_flush ();
  test_slice ();
  test_cache_modes ();
  return unit_end ();
}
