/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Another backing file: the header says the old one or the new one, at
 * whichever request it ends, whatever a crash then leaves of what was not
 * flushed, and everything else in it stays.
 */

#include <config.h>

#include <errno.h>

#include "tests/unit/crash-log.h"
#include "tests/unit/harness.h"

#define DISK MiB

struct named {
  const char *name, *format;    /* or NULL */
};

static char long_a[1024], long_b[1024], too_long[4097];

static const struct {
  const struct format_ops *ops;
  const char *options;
} kinds[] = {
  { &format_qcow2, "compat=1.1" },
  { &format_qcow2, "compat=0.10,cluster_size=4096" },
  { &format_qcow2, "compat=1.1,cluster_size=4096,lazy_refcounts=on" },
  { &format_qcow2, "compat=1.1,cluster_size=512" },
  { &format_qed, "cluster_size=4096" },
  { &format_qed, "cluster_size=65536,table_size=1" },
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

/* One after the other; the first is what create gets. */
static const struct named steps[] = {
  { "base.raw", "raw" },
  { "other.raw", "raw" },
  { NULL, NULL },
  { "a", NULL },
  { "a", "raw" },
  { "a-much-longer-name-than-the-one-that-was-there-before.raw", "raw" },
  { "b", NULL },
  { NULL, NULL },
};
static const struct named long_steps[] = {
  { long_a, "raw" },
  { long_b, NULL },
  { long_a, "raw" },
  { long_a, NULL },
  { NULL, NULL },
  { long_b, "raw" },
};

static bool
same (const char *a, const char *b)
{
  return a && b ? strcmp (a, b) == 0 : a == b;
}

static bool
says (struct storage *st, const struct format_ops *ops,
      const struct named *want)
{
  struct format_needs needs = { .backing = NULL };
  struct format_open_options o = { .info_only = true };
  struct error e = ERROR_INIT;
  struct format *f = ops->open (st, &o, &needs, &e);
  bool r;

  if (!f) {
    unit_fail (__FILE__, __LINE__, "open: %s", e.text);
    return false;
  }
  r = same (needs.backing, want->name)
    && same (needs.backing_format, want->format) && f->info.size == DISK;
  format_needs_free (&needs);
  CHECK_OK (ops->close (f, &e), &e);
  return r;
}

/* A copy of ST in memory. */
static struct storage *
copy_of (struct storage *st)
{
  size_t n = (size_t) storage_size (st);
  uint8_t *buf = unit_alloc (n);
  struct error e = ERROR_INIT;
  struct storage *copy = storage_memory_new ("copy", n, &e);

  CHECK_OK (storage_pread (st, buf, n, 0, &e), &e);
  CHECK_OK (storage_pwrite (copy, buf, n, 0, 0, &e), &e);
  free (buf);
  return copy;
}

static void
copy_back (struct storage *from, struct storage *to)
{
  size_t n = (size_t) storage_size (from);
  uint8_t *buf = unit_alloc (n);
  struct error e = ERROR_INIT;

  CHECK_OK (storage_pread (from, buf, n, 0, &e), &e);
  CHECK_OK (storage_pwrite (to, buf, n, 0, 0, &e), &e);
  free (buf);
}

/* -1 = the request that was to fail did. */
static int
change (struct storage *st, const struct format_ops *ops,
        const struct named *to, struct error *e)
{
  struct error ignored = ERROR_INIT;
  struct image *im = harness_open (st, ops, NULL, NULL, true, 0, e);
  int r;

  if (!im)
    return -1;
  r = ops->set_backing (im->format, to->name, to->format, e);
  if (harness_close (im, &ignored) == -1)
    r = -1;
  return r;
}

/* From what ST says to what TO says, with a crash after each request. */
static void
crash_step (struct storage *st, const struct format_ops *ops,
            const struct named *from, const struct named *to)
{
  struct bytes before = bytes_of (st);
  struct storage *log = log_new (before);
  struct error e = ERROR_INIT;
  const uint64_t picks[] = {
    UINT64_MAX, 0, UINT64_MAX, UINT64_C (0x5555555555555555),
    UINT64_C (0xaaaaaaaaaaaaaaaa), UINT64_C (0xcccccccccccccccc),
  };

  CHECK (change (log, ops, to, &e) == 0);
  for (size_t end = 0; end <= the_log.nr && !unit_bad; ++end)
    for (size_t i = 0; i < sizeof picks / sizeof picks[0]; ++i) {
      struct storage *left = crash_state (before, end, picks[i], i == 2);

      if (end == the_log.nr || !says (left, ops, from))
        CHECK (says (left, ops, to));
      storage_close (left);
    }
  storage_close (log);
  log_clear ();
  free (before.p);
}

/* The same with every request in turn failing, and all that follow, and then
 * with none.
 */
static void
step (struct storage *st, const struct format_ops *ops,
      const struct named *from, const struct named *to)
{
  struct error e = ERROR_INIT;
  int r = -1;

  for (int i = 1; r == -1 && i < 40; ++i) {
    struct storage *copy = copy_of (st), *bad;
    char spec[100];

    snprintf (spec, sizeof spec, "op=any,index=%d,count=0", i);
    bad = storage_fault_new (copy, spec, &e);
    r = change (bad, ops, to, &e);
    error_clear (&e);
    /* The wrapper owns the copy: look before it goes. */
    if (r == -1 && !says (copy, ops, from))
      CHECK (says (copy, ops, to));
    if (r == 0) {
      CHECK (says (copy, ops, to));
      copy_back (copy, st);
    }
    storage_close (bad);
  }
  CHECK (r == 0);
}

static void
check_clean (struct storage *st, const struct format_ops *ops)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result r;
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, ops, NULL, NULL, false, 0, &e);

  memset (&r, 0, sizeof r);
  CHECK_OK (ops->check (im->format, &o, &r, &e), &e);
  CHECK (r.corruptions == 0 && r.leaks == 0 && r.check_errors == 0);
  CHECK_OK (harness_close (im, &e), &e);
}

/* What else is in the header is as in an image that never had a backing file.
 * The feature name table, where there is one, ends at 520.
 */
static void
check_extensions (struct storage *st, const char *options)
{
  struct error e = ERROR_INIT;
  struct storage *fresh = storage_memory_new ("fresh", 0, &e);
  uint8_t a[528], b[528];
  size_t n = strstr (options, "compat=1.1") && !strstr (options, "=512")
    ? sizeof a : 72;

  CHECK_OK (harness_create_format (fresh, &format_qcow2, DISK, options, NULL,
                                   NULL, &e), &e);
  CHECK_OK (storage_pread (st, a, n, 0, &e), &e);
  CHECK_OK (storage_pread (fresh, b, n, 0, &e), &e);
  CHECK (memcmp (a, b, n) == 0);
  storage_close (fresh);
}

static void
run (unsigned kind, const struct named *list, size_t nr, const char *what)
{
  const struct format_ops *ops = kinds[kind].ops;
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("top", 0, &e);
  char text[200];

  snprintf (text, sizeof text, "%s with %s: %s of the backing file change at"
            " once", ops->name, kinds[kind].options, what);
  unit_begin (text);
  CHECK_OK (harness_create_format (st, ops, DISK, kinds[kind].options,
                                   list[0].name, NULL, &e), &e);
  CHECK (says (st, ops, &list[0]));
  for (size_t i = 1; i < nr; ++i) {
    crash_step (st, ops, &list[i - 1], &list[i]);
    step (st, ops, &list[i - 1], &list[i]);
  }
  check_clean (st, ops);
  if (ops == &format_qcow2 && !list[nr - 1].name)
    check_extensions (st, kinds[kind].options);
  storage_close (st);
  unit_finish ();
}

/* What cannot be done is refused, and nothing is changed. */
static void
test_refused (void)
{
  const struct named base = steps[0], cut = { too_long, "raw" };
  const struct named empty = { "", "raw" }, full = { long_b, "raw" };
  struct error e = ERROR_INIT;

  unit_begin ("a name that is too long, or has no room, is refused");
  for (unsigned i = 0; i < NR_KINDS; ++i) {
    struct storage *st = storage_memory_new ("top", 0, &e);

    CHECK_OK (harness_create_format (st, kinds[i].ops, DISK, kinds[i].options,
                                     base.name, NULL, &e), &e);
    CHECK_FAILS (change (st, kinds[i].ops, &cut, &e), &e, EINVAL);
    CHECK_FAILS (change (st, kinds[i].ops, &empty, &e), &e, EINVAL);
    if (strstr (kinds[i].options, "=512"))
      CHECK_FAILS (change (st, kinds[i].ops, &full, &e), &e, ENOSPC);
    CHECK (says (st, kinds[i].ops, &base));
    storage_close (st);
  }
}

int
main (void)
{
  memset (long_a, 'a', sizeof long_a - 1);
  memset (long_b, 'b', sizeof long_b - 1);
  memset (too_long, 'c', sizeof too_long - 1);
  for (unsigned i = 0; i < NR_KINDS; ++i) {
    run (i, steps, sizeof steps / sizeof steps[0], "name and format");
    if (!strstr (kinds[i].options, "=512"))
      run (i, long_steps, sizeof long_steps / sizeof long_steps[0],
           "the longest name and format");
  }
  test_refused ();
  return unit_end ();
}
