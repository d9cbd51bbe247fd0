/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* How clusters are found and given back: without a flush, and in images whose
 * refcounts are odd or made to do harm.
 */

#include <config.h>

#include <errno.h>

#include "formats/qcow2/qcow2.h"
#include "tests/unit/qcow2-fixture.h"

/* ---- steps ---- */

static void
set_up (struct fixture *f, const struct kind *k, uint64_t size,
        uint64_t cache_size)
{
  struct error e = ERROR_INIT;

  fixture_set_up (f, k, size, cache_size, storage_memory_new ("top", 0, &e));
}

static int
write_bytes (const struct fixture *f, uint64_t offset, size_t len, int byte,
             struct error *e)
{
  uint8_t *buf = unit_alloc (len);
  int r;

  memset (buf, byte, len);
  r = image_write (f->im, buf, len, offset, 0, e);
  free (buf);
  return r;
}

static bool
reads_bytes (const struct fixture *f, uint64_t offset, size_t len, int byte)
{
  uint8_t *buf = unit_alloc (len);
  struct error e = ERROR_INIT;
  bool same;

  CHECK_OK (image_read (f->im, buf, len, offset, &e), &e);
  same = buf[0] == byte && memcmp (buf, buf + 1, len - 1) == 0;
  free (buf);
  return same;
}

/* Change the image while it is closed. */
static void
poke (struct storage *st, uint64_t offset, uint64_t value, size_t len)
{
  struct error e = ERROR_INIT;
  uint8_t be[8];

  put_be64 (be, value);
  CHECK_OK (storage_pwrite (st, be + 8 - len, len, offset, 0, &e), &e);
}

static void
close_image (struct fixture *f)
{
  struct error e = ERROR_INIT;

  CHECK_OK (harness_close (f->im, &e), &e);
}

static uint64_t
reftable_of (const struct fixture *f)
{
  return to_qcow2 (f->im->format)->refcount_table_offset;
}

/* ---- without a flush ---- */

/* The smallest cache, so that epochs come early and leave much released. */
static void
test_reuse (void)
{
  static const struct kind k = { "cluster_size=512", false, false };
  struct error e = ERROR_INIT;
  struct fixture f;

  unit_begin ("what was trimmed is used again, though nobody flushes");
  set_up (&f, &k, 4 * MiB, 1);
  for (int i = 0; i < 100; ++i) {
    CHECK_OK (write_bytes (&f, 0, MiB, i + 1, &e), &e);
    CHECK_OK (image_trim (f.im, 0, MiB, 0, &e), &e);
  }
  CHECK (storage_size (f.top) < 80 * MiB);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

/* Every second cluster, so that no two pieces are one. */
static void
test_trim_memory (void)
{
  static const struct kind k = { "cluster_size=512", false, false };
  struct error e = ERROR_INIT;
  struct fixture f;

  unit_begin ("trims without end do not pile up in memory");
  set_up (&f, &k, 16 * MiB, 1);
  CHECK_OK (write_bytes (&f, 0, 16 * MiB, 1, &e), &e);
  for (uint64_t at = 0; at < 16 * MiB; at += 1024)
    CHECK_OK (image_trim (f.im, at, 512, 0, &e), &e);
  CHECK (to_qcow2 (f.im->format)->released.nr <= 4096);
  CHECK (reads_bytes (&f, 0, 512, 0));
  CHECK (reads_bytes (&f, 512, 512, 1));
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

/* ---- refcounts that do harm ---- */

/* 8 MiB of refcount table say that 2^39 clusters are in use, by naming one full
 * block again and again.
 */
static void
test_endless_search (void)
{
  static const struct kind k = { "refcount_bits=1", false, false };
  const uint64_t block = 16 * MiB, table = 17 * MiB;
  uint8_t *buf = unit_alloc (MAX_REFTABLE_BYTES);
  struct error e = ERROR_INIT;
  struct fixture f;

  unit_begin ("full refcounts without end are found to be corrupt");
  set_up (&f, &k, 64 * MiB, 0);
  close_image (&f);
  memset (buf, 0xff, 65536);
  CHECK_OK (storage_pwrite (f.top, buf, 65536, block, 0, &e), &e);
  for (size_t i = 0; i < MAX_REFTABLE_BYTES; i += 8)
    put_be64 (buf + i, block);
  CHECK_OK (storage_pwrite (f.top, buf, MAX_REFTABLE_BYTES, table, 0, &e),
            &e);
  free (buf);
  poke (f.top, H_REFCOUNT_TABLE_OFFSET, table, 8);
  poke (f.top, H_REFCOUNT_TABLE_CLUSTERS, MAX_REFTABLE_BYTES / 65536, 4);
  fixture_open (&f);
  watchdog (60);
  CHECK_FAILS (write_bytes (&f, 0, 512, 1, &e), &e, EIO);
  alarm (0);
  fixture_tear_down (&f);
}

/* 64 clusters a block: those of the second block are the guest's data. */
static void
test_lost_block (void)
{
  static const struct kind k = { "cluster_size=512,refcount_bits=64", false,
                                 false };
  struct error e = ERROR_INIT;
  struct fixture f;
  uint64_t reftable;

  unit_begin ("a refcount block behind the end does not free what is in use");
  set_up (&f, &k, MiB, 0);
  reftable = reftable_of (&f);
  CHECK_OK (write_bytes (&f, 0, 128 * KiB, 1, &e), &e);
  close_image (&f);
  poke (f.top, reftable + 8, round_up (storage_size (f.top), 512) + 4096, 8);
  fixture_open (&f);
  CHECK_FAILS (write_bytes (&f, 256 * KiB, 128 * KiB, 2, &e), &e, EIO);
  CHECK (reads_bytes (&f, 0, 128 * KiB, 1));
  fixture_tear_down (&f);
}

/* ---- odd, but right ---- */

static uint64_t
peek64 (struct storage *st, uint64_t offset)
{
  struct error e = ERROR_INIT;
  uint8_t be[8];

  CHECK_OK (storage_pread (st, be, 8, offset, &e), &e);
  return get_be64 (be);
}

/* The last cluster of the file is a refcount block for the range of clusters
 * behind it.  An L1 table of 64 KiB needs many ranges.
 */
static void
test_early_block (void)
{
  static const struct kind k = { "cluster_size=512,refcount_bits=64", false,
                                 false };
  struct error e = ERROR_INIT;
  struct fixture f;
  uint64_t reftable, end;

  unit_begin ("the disk grows though a refcount block is ahead of the file");
  set_up (&f, &k, MiB, 0);
  CHECK_OK (write_bytes (&f, 0, 512, 1, &e), &e);
  reftable = reftable_of (&f);
  close_image (&f);
  end = round_up (storage_size (f.top), 512);
  CHECK (end / 512 < 64);
  poke (f.top, end + 512 - 8, 0, 8);
  poke (f.top, peek64 (f.top, reftable) + end / 512 * 8, 1, 8);
  poke (f.top, reftable + 8, end, 8);
  fixture_open (&f);
  fixture_check_clean (&f);
  CHECK_OK (image_resize (f.im, 256 * MiB, &e), &e);
  CHECK_OK (write_bytes (&f, 255 * MiB, 512, 2, &e), &e);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  CHECK (reads_bytes (&f, 0, 512, 1));
  CHECK (reads_bytes (&f, 255 * MiB, 512, 2));
  fixture_tear_down (&f);
}

int
main (void)
{
  test_reuse ();
  test_trim_memory ();
  test_endless_search ();
  test_lost_block ();
  test_early_block ();
  return unit_end ();
}
