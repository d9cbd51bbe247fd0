/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Amended images hold the same disk and the same snapshots: whatever the
 * option, with each request failing, and with a crash after each.
 */

#include <config.h>

#include "tests/unit/qcow2-structure.h"

#define SIZE (192 * KiB)

static struct storage *base_storage;

static void
make_base (void)
{
  struct error e = ERROR_INIT;
  uint8_t *buf = unit_alloc (SIZE);

  memset (buf, 0x99, SIZE);
  base_storage = storage_memory_new ("base", 0, &e);
  CHECK_OK (storage_pwrite (base_storage, buf, SIZE, 0, 0, &e), &e);
  base_image = harness_open (base_storage, &format_raw, NULL, NULL, false, 0,
                             &e);
  free (buf);
}

static void
drop_base (void)
{
  struct error e = ERROR_INIT;

  CHECK_OK (harness_close (base_image, &e), &e);
  storage_close (base_storage);
  base_image = NULL;
}

/* Data, compressed clusters, zero clusters with and without space, and a
 * snapshot with others.
 */
static struct bytes
make_template (const char *options)
{
  struct format_snapshot s = { .name = (char *) "s" };
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);
  uint8_t *buf = unit_alloc (SIZE);
  struct image *im;
  struct bytes b;
  uint64_t cs;

  CHECK_OK (harness_create (st, SIZE, options, base_image ? "base" : NULL,
                            NULL, &e), &e);
  im = must_open (st, true);
  cs = im->format->info.cluster_size;
  memset (buf, 1, SIZE);
  CHECK_OK (image_write (im, buf, 60 * KiB, 4 * KiB, 0, &e), &e);
  CHECK_OK (image_write_packed (im, buf, cs, 32 * KiB, &e), &e);
  CHECK_OK (image_zero (im, 8 * KiB, 8 * KiB, 0, &e), &e);
  CHECK_OK (image_zero (im, 100 * KiB, 20 * KiB, IMAGE_MAY_UNMAP, &e), &e);
  CHECK_OK (image_snapshot_create (im, &s, &e), &e);
  CHECK_OK (image_write (im, buf, 3000, 101 * KiB, 0, &e), &e);
  CHECK_OK (image_zero (im, 20 * KiB, 9 * KiB, IMAGE_MAY_UNMAP, &e), &e);
  CHECK_OK (image_zero (im, 100 * KiB, 4 * KiB, 0, &e), &e);
  CHECK_OK (harness_close (im, &e), &e);
  b = bytes_of (st);
  storage_close (st);
  free (buf);
  return b;
}

/* ---- operations ---- */

static int
amend (struct image *im, const char *options, struct error *e)
{
  struct format_amend a = { .options = harness_options (options) };
  int r = image_amend (im, &a, e);

  json_decref (a.options);
  return r;
}

/* What the operation of the row that is run asks for. */
static const char *row_amends;

static int
amend_row (struct image *im, struct error *e)
{
  return amend (im, row_amends, e);
}

static const struct {
  const char *promise, *options, *amends;
  bool backing;
} rows[] = {
  { "version 3 becomes 2", "compat=1.1,cluster_size=4096", "compat=0.10",
    false },
  { "version 3 becomes 2 over a backing file",
    "compat=1.1,cluster_size=4096", "compat=0.10", true },
  { "version 3 with clusters of 512 bytes becomes 2 over a backing file",
    "compat=1.1,cluster_size=512", "compat=0.10", true },
  { "version 2 becomes 3 over a backing file",
    "compat=0.10,cluster_size=4096", "compat=1.1", true },
  { "version 2 with clusters of 512 bytes becomes 3",
    "compat=0.10,cluster_size=512", "compat=1.1", false },
  { "refcounts become 64 bits wide", "compat=1.1,cluster_size=512",
    "refcount_bits=64", false },
  { "refcounts become 2 bits wide",
    "compat=1.1,cluster_size=4096,refcount_bits=64", "refcount_bits=2", false },
  { "version 3 with narrow refcounts becomes 2",
    "compat=1.1,cluster_size=4096,refcount_bits=8",
    "compat=0.10,refcount_bits=16", true },
  { "version 2 gets all that is new", "compat=0.10,cluster_size=4096",
    "compat=1.1,lazy_refcounts=on,refcount_bits=32", false },
};
enum { NR_ROWS = sizeof rows / sizeof rows[0] };

static void
run_row (unsigned i)
{
  struct bytes b;
  char name[200];

  if (rows[i].backing)
    make_base ();
  b = make_template (rows[i].options);
  row_amends = rows[i].amends;
  snprintf (name, sizeof name, "%s; a failing request changes nothing that can"
            " be read", rows[i].promise);
  unit_begin (name);
  fail_everywhere (b, amend_row);
  unit_finish ();
  snprintf (name, sizeof name, "%s; nor does a crash", rows[i].promise);
  unit_begin (name);
  crash_everywhere (b, amend_row);
  unit_finish ();
  free (b.p);
  if (rows[i].backing)
    drop_base ();
}

/* ---- what is refused changes nothing ---- */

static void
refuse (const char *image_options, const char *options, int err)
{
  struct bytes b = make_template (image_options), now;
  struct storage *st = storage_of (b);
  struct image *im = must_open (st, true);
  struct error e = ERROR_INIT;

  CHECK_FAILS (amend (im, options, &e), &e, err);
  CHECK_OK (harness_close (im, &e), &e);
  now = bytes_of (st);
  CHECK (now.len == b.len && memcmp (now.p, b.p, b.len) == 0);
  free (now.p);
  free (b.p);
  storage_close (st);
}

/* Unknown extensions and the compression type survive. */
static void
keeps_all (void)
{
  static const uint8_t extension[24] = {
    0x12, 0x34, 0x56, 0x78, 0, 0, 0, 13, 'u', 'n', 'k', 'n', 'o', 'w', 'n', ' ',
    't', 'h', 'i', 'n', 'g',
  };
  struct error e = ERROR_INIT;
  struct bytes b = make_template ("compat=0.10,cluster_size=4096");
  struct storage *st = storage_of (b);
  struct image *im;
  uint8_t head[4096];

  CHECK_OK (storage_pwrite (st, extension, sizeof extension, 72, 0, &e), &e);
  im = must_open (st, true);
  CHECK_OK (amend (im, "compat=1.1", &e), &e);
  CHECK_OK (amend (im, "refcount_bits=32", &e), &e);
  CHECK_OK (harness_close (im, &e), &e);
  CHECK_OK (storage_pread (st, head, sizeof head, 0, &e), &e);
  CHECK (memcmp (head + 112, extension, sizeof extension) == 0);
  im = must_open (st, true);
  CHECK_OK (amend (im, "compat=0.10,refcount_bits=16", &e), &e);
  CHECK_OK (harness_close (im, &e), &e);
  CHECK_OK (storage_pread (st, head, sizeof head, 0, &e), &e);
  CHECK (memcmp (head + 72, extension, sizeof extension) == 0);
  storage_close (st);
  free (b.p);
}

int
main (void)
{
  static const char v3[] = "compat=1.1,cluster_size=4096";

  only_leaks = true;
  for (unsigned i = 0; i < NR_ROWS; ++i)
    run_row (i);
  unit_begin ("what is refused changes nothing");
  refuse (v3, "refcount_bits=1", EINVAL);
  refuse (v3, "refcount_bits=3", EINVAL);
  refuse (v3, "compat=0.10,refcount_bits=8", EINVAL);
  refuse (v3, "compat=7", EINVAL);
  refuse (v3, "backing_file=x", EPERM);
  refuse (v3, "data_file=x", EINVAL);
  refuse (v3, "data_file_raw=on", EINVAL);
  refuse (v3, "encrypt.state=active", EINVAL);
  refuse ("compat=0.10,cluster_size=4096", "lazy_refcounts=on", EINVAL);
  refuse ("compat=0.10,cluster_size=4096", "refcount_bits=64", EINVAL);
  refuse ("compat=1.1,cluster_size=16384,extended_l2=on", "compat=0.10",
          ENOTSUP);
  unit_begin ("unknown header extensions stay");
  keeps_all ();
  return unit_end ();
}
