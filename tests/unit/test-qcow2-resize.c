/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Another size for a qcow2: content stays, what is new is zero, check is clean;
 * with each request failing, and with a crash after each, it is the old disk or
 * the new one.
 */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "tests/unit/qcow2-structure.h"

static const struct {
  const char *options;
  bool backing;
  uint64_t from, to;
} rows[] = {
  { "compat=1.1", false, MiB + 512, 3 * MiB },
  { "compat=0.10", false, MiB, 64 * GiB },
  { "compat=1.1,cluster_size=512", false, MiB, GiB },
  { "compat=1.1,cluster_size=512,refcount_bits=64", false, 3 * 512, 256 * MiB },
  { "compat=1.1,cluster_size=512,refcount_bits=1", false, 512, 64 * MiB },
  { "compat=1.1,cluster_size=4096", true, MiB - 1536, 2 * MiB },
  { "compat=1.1,cluster_size=65536", true, MiB - 1536, TiB },
  { "compat=1.1,cluster_size=16384,extended_l2=on", true, MiB - 512,
    GiB },
};

struct test {
  struct storage *st, *base_st;
  struct image *base, *im;
};

static void
open_it (struct test *t)
{
  struct error e = ERROR_INIT;

  t->im = harness_open (t->st, &format_qcow2, t->base, NULL, true, 0, &e);
  if (!t->im) {
    unit_fail (__FILE__, __LINE__, "open: %s", e.text);
    unit_finish ();
    exit (EXIT_FAILURE);
  }
}

static void
check_clean (struct test *t)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result r;
  struct error e = ERROR_INIT;

  memset (&r, 0, sizeof r);
  CHECK_OK (t->im->format->ops->check (t->im->format, &o, &r, &e), &e);
  CHECK (r.corruptions == 0 && r.leaks == 0 && r.check_errors == 0);
}

/* The base is full of data for 2 MiB: more than the small disks over it. */
static void
set_up (struct test *t, unsigned i)
{
  uint8_t *buf = unit_alloc (2 * MiB);
  struct error e = ERROR_INIT;

  *t = (struct test) { .st = storage_memory_new ("top", 0, &e) };
  if (rows[i].backing) {
    unit_random (buf, 2 * MiB, 3);
    t->base_st = storage_memory_new ("base", 0, &e);
    CHECK_OK (storage_pwrite (t->base_st, buf, 2 * MiB, 0, 0, &e), &e);
    t->base = harness_open (t->base_st, &format_raw, NULL, NULL, false, 0,
                            &e);
  }
  CHECK_OK (harness_create (t->st, rows[i].from, rows[i].options,
                            rows[i].backing ? "base" : NULL, NULL, &e), &e);
  open_it (t);
  free (buf);
}

static void
grow (unsigned i)
{
  uint64_t from = rows[i].from, to = rows[i].to;
  uint8_t *old = unit_alloc (from), *now = unit_alloc (from);
  uint8_t *new = unit_alloc (4 * MiB);
  struct error e = ERROR_INIT;
  struct test t;

  set_up (&t, i);
  unit_random (old, from, 5);
  CHECK_OK (image_write (t.im, old, from / 2, 0, 0, &e), &e);
  CHECK_OK (image_write (t.im, old, 512, from - 512, 0, &e), &e);
  CHECK_OK (image_read (t.im, old, from, 0, &e), &e);
  CHECK_OK (image_resize (t.im, to, &e), &e);
  CHECK (image_size (t.im) == to);
  CHECK_OK (image_write (t.im, old, 512, to - 512, 0, &e), &e);
  CHECK_OK (harness_close (t.im, &e), &e);

  open_it (&t);
  check_clean (&t);
  CHECK (image_size (t.im) == to);
  CHECK_OK (image_read (t.im, now, from, 0, &e), &e);
  CHECK (memcmp (now, old, from) == 0);
  uint64_t n = min_u64 (4 * MiB, to - 512 - from);
  CHECK_OK (image_read (t.im, new, n, from, &e), &e);
  CHECK (is_zero (new, n));
  CHECK_OK (image_read (t.im, new, 512, to - 512, &e), &e);
  CHECK (memcmp (new, old, 512) == 0);
  CHECK_FAILS (image_resize (t.im, to + 1, &e), &e, EINVAL);
  CHECK_OK (harness_close (t.im, &e), &e);
  if (t.base)
    CHECK_OK (harness_close (t.base, &e), &e);
  storage_close (t.st);
  storage_close (t.base_st);
  free (old);
  free (now);
  free (new);
}

/* ---- smaller, and larger again ---- */

static const char *const kinds[] = {
  "compat=1.1,cluster_size=4096",
  "compat=0.10,cluster_size=4096",
  "compat=1.1,cluster_size=512,refcount_bits=64",
  "compat=1.1,cluster_size=1024,refcount_bits=1",
  "compat=1.1,cluster_size=16384,extended_l2=on",
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

#define MAX_SIZE (600 * KiB)

static uint64_t seed;

static uint64_t
rnd (uint64_t below)
{
  return unit_below (&seed, below);
}

static void
write_somewhere (struct image *im, uint8_t *model)
{
  uint64_t size = image_size (im), o = rnd (size), n = rnd (40000) + 1;
  struct error e = ERROR_INIT;

  n = min_u64 (n, size - o);
  memset (model + o, (int) rnd (256), n);
  CHECK_OK (image_write (im, model + o, n, o, 0, &e), &e);
}

static void
resize_at_random (struct image *im, uint8_t *model)
{
  static const enum preallocation modes[] = {
    PREALLOCATION_OFF, PREALLOCATION_METADATA, PREALLOCATION_FALLOC,
    PREALLOCATION_FULL,
  };
  uint64_t size = (1 + rnd (MAX_SIZE / 512)) * 512, old = image_size (im);
  enum preallocation mode = size > old ? modes[rnd (4)] : PREALLOCATION_OFF;
  struct error e = ERROR_INIT;

  CHECK_OK (image_resize_preallocated (im, size, mode, &e), &e);
  CHECK (image_size (im) == size);
  if (size > old)
    memset (model + old, 0, size - old);
}

static void
model_sizes (const char *options)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);
  uint8_t *model = unit_alloc (MAX_SIZE), *buf = unit_alloc (MAX_SIZE);
  struct image *im;

  memset (model, 0, MAX_SIZE);
  CHECK_OK (harness_create (st, 100 * KiB, options, NULL, NULL, &e), &e);
  im = must_open (st, true);
  for (unsigned i = 0; i < 60 && !unit_bad; ++i) {
    for (unsigned j = 0; j < 4; ++j)
      write_somewhere (im, model);
    resize_at_random (im, model);
    CHECK_OK (image_read (im, buf, image_size (im), 0, &e), &e);
    CHECK (memcmp (buf, model, image_size (im)) == 0);
    if (i % 8)
      continue;
    CHECK_OK (harness_close (im, &e), &e);
    im = must_open (st, true);
    must_be_clean (im);
  }
  CHECK_OK (harness_close (im, &e), &e);
  storage_close (st);
  free (model);
  free (buf);
}

/* ---- failures and crashes ---- */

/* Almost 200 KiB of data, of which a snapshot (not in version 2, where that
 * forbids to resize) has the first half.  The disk was larger once, so that
 * data are behind its end, in the last cluster.
 */
static struct bytes
make_template (const char *options, bool snapshot)
{
  struct format_snapshot s = { .name = (char *) "s" };
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);
  uint8_t *buf = unit_alloc (230 * KiB);
  struct image *im;
  struct bytes b;

  CHECK_OK (harness_create (st, 230 * KiB, options, NULL, NULL, &e), &e);
  im = must_open (st, true);
  memset (buf, 1, 230 * KiB);
  CHECK_OK (image_write (im, buf, 100 * KiB, 0, 0, &e), &e);
  if (snapshot)
    CHECK_OK (image_snapshot_create (im, &s, &e), &e);
  memset (buf, 2, 230 * KiB);
  CHECK_OK (image_write (im, buf, 150 * KiB, 80 * KiB, 0, &e), &e);
  CHECK_OK (image_resize (im, 200 * KiB - 1024, &e), &e);
  CHECK_OK (harness_close (im, &e), &e);
  b = bytes_of (st);
  storage_close (st);
  free (buf);
  return b;
}

static int
shrink_it (struct image *im, struct error *e)
{
  return image_resize (im, 60 * KiB - 512, e);
}

static int
grow_it (struct image *im, struct error *e)
{
  return image_resize (im, 3 * MiB, e);
}

static int
preallocate_it (struct image *im, struct error *e)
{
  return image_resize_preallocated (im, 300 * KiB, PREALLOCATION_METADATA, e);
}

static void
each_operation (const char *options, bool snapshot,
                void (*run) (struct bytes template, operation op))
{
  struct bytes b = make_template (options, snapshot);

  run (b, shrink_it);
  run (b, grow_it);
  run (b, preallocate_it);
  free (b.p);
}

static void
trouble (unsigned i)
{
  bool snapshot = i != 1 && i != 3;
  char name[200];

  snprintf (name, sizeof name, "%s: a failing request leaves the old or the new"
            " size", kinds[i]);
  unit_begin (name);
  each_operation (kinds[i], snapshot, fail_everywhere);
  unit_finish ();
  snprintf (name, sizeof name, "%s: so does a crash", kinds[i]);
  unit_begin (name);
  each_operation (kinds[i], snapshot, crash_everywhere);
  unit_finish ();
}

/* ---- the file ---- */

static void
file_ends (void)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);
  uint8_t *buf = unit_alloc (4 * MiB);
  struct image *im;
  uint64_t size;

  memset (buf, 1, 4 * MiB);
  CHECK_OK (harness_create (st, 64 * KiB, "compat=1.1,cluster_size=4096", NULL,
                            NULL, &e), &e);
  size = storage_size (st);
  im = must_open (st, true);
  CHECK_OK (image_resize (im, 4 * MiB, &e), &e);
  CHECK_OK (image_write (im, buf, 4 * MiB, 0, 0, &e), &e);
  CHECK_OK (image_flush (im, &e), &e);
  CHECK (storage_size (st) > 4 * MiB);
  CHECK_OK (image_resize (im, 64 * KiB, &e), &e);
  must_be_clean (im);
  CHECK_OK (harness_close (im, &e), &e);
  CHECK (storage_size (st) < size + 100 * KiB);
  im = must_open (st, false);
  must_be_clean (im);
  CHECK_OK (harness_close (im, &e), &e);
  storage_close (st);
  free (buf);
}

int
main (void)
{
  char name[200];

  only_leaks = true;
  for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
    unit_finish ();
    snprintf (name, sizeof name, "%s grows from %llu to %llu bytes%s",
              rows[i].options, (unsigned long long) rows[i].from,
              (unsigned long long) rows[i].to,
              rows[i].backing ? " over a longer backing file" : "");
    unit_begin (name);
    grow (i);
  }
  for (unsigned i = 0; i < NR_KINDS; ++i) {
    unit_finish ();
    snprintf (name, sizeof name, "%s: every size reads as an array", kinds[i]);
    unit_begin (name);
    model_sizes (kinds[i]);
    unit_finish ();
    trouble (i);
  }
  unit_begin ("the file of a disk that was made smaller ends where it can");
  file_ends ();
  return unit_end ();
}
