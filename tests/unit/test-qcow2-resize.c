/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Growing a qcow2: content stays, what is new is zero, check is clean. */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "tests/unit/harness.h"
#include "tests/unit/unit.h"

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
  CHECK_FAILS (image_resize (t.im, from, &e), &e, ENOTSUP);
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

int
main (void)
{
  char name[200];

  for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
    snprintf (name, sizeof name, "%s grows from %llu to %llu bytes%s",
              rows[i].options, (unsigned long long) rows[i].from,
              (unsigned long long) rows[i].to,
              rows[i].backing ? " over a longer backing file" : "");
    unit_begin (name);
    grow (i);
  }
  return unit_end ();
}
