/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* QED: what the model and the programs do not get to see. */

#include <config.h>

#include <errno.h>

#include "formats/qed/qed.h"
#include "formats/refmap.h"
#include "tests/unit/harness.h"
#include "tests/unit/unit.h"

enum { CS = 65536, L1 = 0x10000, L2 = 0x50000, DATA = 0x90000 };

static struct storage *
new_image (const char *backing)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("top", 0, &e);

  CHECK_OK (harness_create_format (st, &format_qed, 4 * MiB,
                                   "cluster_size=65536", backing, NULL, &e),
            &e);
  return st;
}

static struct format *
open_format (struct storage *st, bool has_backing)
{
  struct format_open_options o = { .writable = true, .discard = true };
  struct format_needs needs = { .backing = NULL };
  struct error e = ERROR_INIT;
  struct format *f = format_qed.open (st, &o, &needs, &e);

  format_needs_free (&needs);
  if (!f) {
    unit_fail (__FILE__, __LINE__, "open: %s", e.text);
    unit_finish ();
    exit (EXIT_FAILURE);
  }
  CHECK_OK (format_qed.activate (f, NULL, has_backing, &e), &e);
  return f;
}

static uint64_t
get (struct storage *st, uint64_t at)
{
  struct error e = ERROR_INIT;
  uint8_t buf[8];

  CHECK_OK (storage_pread (st, buf, sizeof buf, at, &e), &e);
  return get_le64 (buf);
}

static void
put (struct storage *st, uint64_t at, uint64_t v)
{
  struct error e = ERROR_INIT;
  uint8_t buf[8];

  put_le64 (buf, v);
  CHECK_OK (storage_pwrite (st, buf, sizeof buf, at, 0, &e), &e);
}

/* Write cluster I of the disk as the core does it. */
static void
write_cluster (struct format *f, uint64_t i)
{
  struct error e = ERROR_INIT;
  uint8_t *buf = unit_alloc (CS);
  struct placement p;

  memset (buf, 'x', CS);
  CHECK_OK (format_qed.reserve (f, i * CS, CS, &p, &e), &e);
  CHECK (p.guest == i * CS && p.length == CS);
  CHECK_OK (storage_pwrite (f->storage, buf, CS, p.host, 0, &e), &e);
  CHECK_OK (format_qed.link (f, &p, &e), &e);
  free (buf);
}

static void
test_mend_beside_readers (void)
{
  struct storage *st = new_image (NULL);
  struct error e = ERROR_INIT;
  struct mapping m;
  struct format *f;

  unit_begin ("what was mended does not come back from the cache");
  f = open_format (st, false);
  CHECK_OK (format_qed.begin_write (f, &e), &e);
  write_cluster (f, 0);
  CHECK_OK (format_qed.close (f, &e), &e);
  put (st, L2 + 8, UINT64_C (0x123456789000));
  put (st, H_FEATURES, QED_F_NEED_CHECK);

  f = open_format (st, false);
  CHECK (f->dirty_flag);
  CHECK_OK (format_qed.map (f, NULL, 0, CS, &m, &e), &e);
  CHECK (m.kind == MAP_DATA && m.host == DATA);
  CHECK_FAILS (format_qed.map (f, NULL, CS, CS, &m, &e), &e, EIO);
  CHECK_OK (format_qed.begin_write (f, &e), &e);
  CHECK (!f->dirty_flag && get (st, H_FEATURES) == 0);
  CHECK_OK (format_qed.map (f, NULL, CS, CS, &m, &e), &e);
  CHECK (m.kind == MAP_BACKING);
  write_cluster (f, 2);
  CHECK_OK (format_qed.close (f, &e), &e);
  CHECK (get (st, L2) == DATA && get (st, L2 + 8) == 0);
  CHECK (get (st, L2 + 16) == DATA + CS);
  storage_close (st);
}

static void
test_abandoned (void)
{
  struct storage *st = new_image (NULL);
  struct format *f = open_format (st, false);
  struct placement p[3];
  struct error e = ERROR_INIT;

  unit_begin ("places that were given back are used again, or cut off");
  CHECK_OK (format_qed.begin_write (f, &e), &e);
  for (unsigned i = 0; i < 3; ++i)
    CHECK_OK (format_qed.reserve (f, i * CS, CS, &p[i], &e), &e);
  CHECK (p[0].host == DATA && p[2].host == DATA + 2 * CS && p[0].reads_zero);
  format_qed.abandon (f, &p[0]);
  write_cluster (f, 7);                 /* in the place of the first one */
  format_qed.abandon (f, &p[1]);
  format_qed.abandon (f, &p[2]);
  CHECK_OK (format_qed.reserve (f, 9 * CS, CS, &p[1], &e), &e);
  CHECK (p[1].host == DATA + CS && !p[1].reads_zero);
  format_qed.abandon (f, &p[1]);
  CHECK (get (st, H_FEATURES) == QED_F_NEED_CHECK);
  CHECK_OK (format_qed.close (f, &e), &e);
  CHECK (storage_size (st) == DATA + CS);
  CHECK (get (st, L2 + 7 * 8) == DATA && get (st, H_FEATURES) == 0);
  storage_close (st);
}

/* The backing file that the image names is not followed, this time. */
static void
test_zero_without_backing (void)
{
  struct storage *st = new_image ("base");
  struct format *f = open_format (st, true);
  struct error e = ERROR_INIT;
  uint64_t done;

  unit_begin ("zeroes hide the backing file, whether it is followed or not");
  CHECK_OK (format_qed.begin_write (f, &e), &e);
  CHECK_OK (format_qed.unmap (f, 0, CS, UNMAP_ZERO, &done, &e), &e);
  CHECK (done == CS);
  CHECK_OK (format_qed.close (f, &e), &e);
  f = open_format (st, false);
  CHECK_OK (format_qed.begin_write (f, &e), &e);
  CHECK_OK (format_qed.unmap (f, 0, 2 * CS, UNMAP_ZERO, &done, &e), &e);
  CHECK (done == 2 * CS);
  CHECK_OK (format_qed.close (f, &e), &e);
  CHECK (get (st, L2) == QED_ZERO && get (st, L2 + 8) == QED_ZERO
         && get (st, L2 + 16) == 0);
  /* No data cluster is ever dropped. */
  f = open_format (st, true);
  CHECK_OK (format_qed.begin_write (f, &e), &e);
  write_cluster (f, 1);
  CHECK_OK (format_qed.unmap (f, 0, 3 * CS, UNMAP_TRANSPARENT, &done, &e), &e);
  CHECK (done == CS);
  CHECK_OK (format_qed.unmap (f, CS, CS, UNMAP_ZERO, &done, &e), &e);
  CHECK (done == 0);
  CHECK_OK (format_qed.unmap (f, 2 * CS, CS, UNMAP_KEEP, &done, &e), &e);
  CHECK (done == 0);
  CHECK_OK (format_qed.close (f, &e), &e);
  CHECK (get (st, L2) == 0 && get (st, L2 + 8) == DATA);
  storage_close (st);
}

/* The header is marked, durably, before the file or a table changes. */
static void
test_mark_fails (void)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_fault_new (new_image (NULL),
                                          "op=write,index=1", &e);
  struct format *f = open_format (st, false);
  uint64_t size = storage_size (st);
  struct placement p;

  unit_begin ("an image that cannot be marked is not changed");
  CHECK_OK (format_qed.begin_write (f, &e), &e);
  CHECK_FAILS (format_qed.reserve (f, 0, CS, &p, &e), &e, EIO);
  CHECK (storage_size (st) == size && get (st, H_FEATURES) == 0);
  CHECK_OK (format_qed.reserve (f, 0, CS, &p, &e), &e);
  CHECK (get (st, H_FEATURES) == QED_F_NEED_CHECK);
  format_qed.abandon (f, &p);
  CHECK_OK (format_qed.close (f, &e), &e);
  storage_close (st);
}

static void
test_long_names (void)
{
  static const struct { size_t room; const char *options; } t[] = {
    { 4096 - H_LENGTH, "cluster_size=4096" },
    { MAX_BACKING_NAME, "cluster_size=8192,table_size=1" },
  };
  char name[MAX_BACKING_NAME + 2];
  struct error e = ERROR_INIT;

  unit_begin ("names of backing files may be as long as QEMU's");
  for (unsigned i = 0; i < 2; ++i) {
    struct storage *st = storage_memory_new ("top", 0, &e);
    struct format_open_options o = { .info_only = true };
    struct format_needs needs;
    struct format *f;

    memset (name, 'n', sizeof name);
    name[t[i].room + 1] = '\0';
    CHECK_FAILS (harness_create_format (st, &format_qed, MiB, t[i].options,
                                        name, NULL, &e), &e, EINVAL);
    CHECK (storage_size (st) == 0);
    name[t[i].room] = '\0';
    CHECK_OK (harness_create_format (st, &format_qed, MiB, t[i].options, name,
                                     NULL, &e), &e);
    f = format_qed.open (st, &o, &needs, &e);
    CHECK_OK (f ? 0 : -1, &e);
    CHECK (needs.backing && strcmp (needs.backing, name) == 0);
    format_needs_free (&needs);
    CHECK_OK (format_qed.close (f, &e), &e);
    storage_close (st);
  }
}

/* Clusters so far from each other that the least memory has no room for all:
 * which table is shared is found in the second window, in which the entries of
 * the first are mended.
 */
static void
test_repair_in_windows (void)
{
  enum { T0 = 0x2000, T2 = 0x3000, NR = 400, SHARED = 390 };
  const struct format_check_options o = { .repair = REPAIR_ALL, .memory = 1 };
  const uint64_t apart = 4096 * REF_PAGE, first = 0x10000;
  const uint64_t t1 = first + SHARED * apart;
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("far", 0, &e);
  struct format_check_result r;
  struct format *f;

  unit_begin ("a repair in little memory knows tables that are shared too");
  CHECK_OK (harness_create_format (st, &format_qed, GiB,
                                   "cluster_size=4096,table_size=1", NULL,
                                   NULL, &e), &e);
  CHECK_OK (storage_truncate (st, first + NR * apart, &e), &e);
  put (st, 0x1000, T0);
  put (st, 0x1008, t1);         /* what T0 says is data */
  put (st, 0x1010, T2);
  for (uint64_t i = 0; i < NR; ++i)
    put (st, T0 + 8 * i, first + i * apart);
  put (st, T0 + 8 * (NR + 1), 3);
  put (st, T2, 5);
  put (st, t1 + 80, 7);
  put (st, t1 + 88, 9);
  for (unsigned i = 0; i < 2; ++i) {
    f = open_format (st, false);
    CHECK_OK (format_qed.check (f, &o, &r, &e), &e);
    CHECK (r.corruptions == 3 && r.corruptions_fixed == (i ? 0 : 2));
    CHECK_OK (format_qed.close (f, &e), &e);
    CHECK (get (st, T0 + 8 * (NR + 1)) == 0 && get (st, T2) == 0);
    CHECK (get (st, t1 + 80) == 7 && get (st, t1 + 88) == 9);
    CHECK (get (st, H_FEATURES) == 0);
  }
  storage_close (st);
}

int
main (void)
{
  test_mend_beside_readers ();
  test_abandoned ();
  test_zero_without_backing ();
  test_mark_fails ();
  test_long_names ();
  test_repair_in_windows ();
  return unit_end ();
}
