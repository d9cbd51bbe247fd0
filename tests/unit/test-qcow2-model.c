/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Images against a plain array: random writes, zeroes, trims, flushes and
 * reopenings on every kind of image, of qcow2 and of the other formats that
 * write tables, with a cache of the smallest size and of
 * the usual one.  With -m SIZE, -n OPS, -s SEED, -k KIND for longer runs.
 */

#include <config.h>

#include <inttypes.h>
#include <unistd.h>

#include "common/bytes.h"
#include "tests/unit/harness.h"
#include "tests/unit/unit.h"

struct kind {
  const char *options;
  bool backing, data_file;
};

static const struct kind kinds[] = {
  { "compat=1.1", false, false },
  { "compat=1.1", true, false },
  { "compat=0.10", false, false },
  { "compat=0.10", true, false },
  { "compat=0.10,cluster_size=512", true, false },
  { "compat=1.1,cluster_size=512", false, false },
  { "compat=1.1,cluster_size=512,refcount_bits=64", true, false },
  { "compat=1.1,cluster_size=4096", false, false },
  { "compat=1.1,cluster_size=4096,refcount_bits=1", true, false },
  { "compat=1.1,cluster_size=512,refcount_bits=1", false, false },
  { "compat=1.1,cluster_size=1024,refcount_bits=8", true, false },
  { "compat=1.1,cluster_size=2097152", true, false },
  { "compat=1.1,cluster_size=16384,extended_l2=on", true, false },
  { "compat=1.1,cluster_size=65536,extended_l2=on", false, false },
  { "compat=1.1,lazy_refcounts=on,cluster_size=4096", true, false },
  { "compat=1.1,cluster_size=4096,data_file=d", false, true },
  { "compat=1.1,cluster_size=4096,data_file=d,data_file_raw=on", false, true },
  { "compat=1.1,data_file=d,extended_l2=on", false, true },
  { "compat=1.1,cluster_size=4096,compression_type=zstd", true, false },
  { "compat=1.1,cluster_size=4096,encrypt.format=luks,encrypt.key-secret=s,"
    "encrypt.iter-time=1", true, false },
  { "qcow:encrypt.format=aes,encrypt.key-secret=s", true, false },
  { "vdi:static=off", false, false },
  { "vdi:static=on", false, false },
  { "qed:cluster_size=65536", false, false },
  { "qed:cluster_size=65536", true, false },
  { "qed:cluster_size=4096,table_size=1", true, false },
  { "qed:cluster_size=4096,table_size=16", false, false },
  { "qed:cluster_size=2097152,table_size=2", true, false },
  { "qcow:", false, false },
  { "qcow:", true, false },
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

static uint64_t state;

static uint64_t
rnd (uint64_t below)
{
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * UINT64_C (0x2545f4914f6cdd1d) >> 11) % below;
}

struct test {
  const struct kind *kind;
  uint64_t size;
  struct storage *st, *base_st, *data_st;
  struct image *base, *im;
  uint8_t *model, *buf;
  uint64_t cache_size;
};

static void
check_clean (struct test *t)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result r;
  struct error e = ERROR_INIT;

  if (!t->im->format->ops->check)
    return;
  memset (&r, 0, sizeof r);
  CHECK_OK (t->im->format->ops->check (t->im->format, &o, &r, &e), &e);
  if (r.corruptions || r.leaks || r.check_errors)
    unit_fail (__FILE__, __LINE__, "check: %" PRIu64 " corruptions, %" PRIu64
               " leaks, %" PRIu64 " errors", r.corruptions, r.leaks,
               r.check_errors);
}

static void
check_content (struct test *t)
{
  struct error e = ERROR_INIT;
  uint64_t o;

  memset (t->buf, 0x55, t->size);
  CHECK_OK (image_read (t->im, t->buf, t->size, 0, &e), &e);
  if (memcmp (t->buf, t->model, t->size) == 0)
    return;
  for (o = 0; t->buf[o] == t->model[o]; ++o)
    ;
  unit_fail (__FILE__, __LINE__, "content differs at %" PRIu64
             ": 0x%02x, not 0x%02x", o, t->buf[o], t->model[o]);
}

static void
reopen (struct test *t)
{
  struct error e = ERROR_INIT;

  if (t->im)
    CHECK_OK (harness_close (t->im, &e), &e);
  t->im = harness_open (t->st, harness_kind_format (t->kind->options),
                        t->base, t->data_st, true,
                        t->cache_size, &e);
  if (!t->im) {
    unit_fail (__FILE__, __LINE__, "open: %s", e.text);
    exit (unit_end () ? EXIT_FAILURE : EXIT_FAILURE);
  }
}

static void
some_range (struct test *t, uint64_t *offset, uint64_t *len)
{
  uint64_t unit = rnd (3) == 0 ? 1 : rnd (2) ? 512 : 4096;
  uint64_t max = rnd (4) ? 64 * KiB : MiB;

  *offset = rnd (t->size / unit) * unit;
  *len = (1 + rnd (max / unit)) * unit;
  *len = min_u64 (*len, t->size - *offset);
}

static void
do_write (struct test *t)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (t, &o, &n);
  unit_random (t->model + o, n, rnd (UINT32_MAX));
  CHECK_OK (image_write (t->im, t->model + o, n, o,
                         rnd (8) ? 0 : IMAGE_FUA, &e), &e);
}

static void
do_zero (struct test *t)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (t, &o, &n);
  memset (t->model + o, 0, n);
  CHECK_OK (image_zero (t->im, o, n, rnd (2) ? IMAGE_MAY_UNMAP : 0, &e), &e);
}

/* After a trim each byte is what it was, or zero. */
static void
do_trim (struct test *t)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (t, &o, &n);
  CHECK_OK (image_trim (t->im, o, n, 0, &e), &e);
  CHECK_OK (image_read (t->im, t->buf, n, o, &e), &e);
  for (uint64_t i = 0; i < n; ++i)
    if (t->buf[i] != 0 && t->buf[i] != t->model[o + i]) {
      unit_fail (__FILE__, __LINE__, "trim: wrong byte at %" PRIu64, o + i);
      return;
    }
  memcpy (t->model + o, t->buf, n);
}

static void
do_packed (struct test *t)
{
  uint64_t cs = t->im->format->info.cluster_size;
  uint64_t o = rnd (div_round_up (t->size, cs)) * cs;
  uint64_t n = min_u64 (cs, t->size - o);
  struct error e = ERROR_INIT;

  if (!t->im->format->info.can_pack)
    return;
  memset (t->model + o, (int) rnd (256), n);
  unit_random (t->model + o, rnd (n), rnd (UINT32_MAX));
  CHECK_OK (image_write_packed (t->im, t->model + o, n, o, &e), &e);
}

static void
do_read (struct test *t)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (t, &o, &n);
  CHECK_OK (image_read (t->im, t->buf, n, o, &e), &e);
  CHECK (memcmp (t->buf, t->model + o, n) == 0);
}

static void
step (struct test *t)
{
  struct error e = ERROR_INIT;
  uint64_t what = rnd (100);

  if (what < 40)
    do_write (t);
  else if (what < 50)
    do_zero (t);
  else if (what < 60)
    do_trim (t);
  else if (what < 75)
    do_packed (t);
  else if (what < 90)
    do_read (t);
  else if (what < 98)
    CHECK_OK (image_flush (t->im, &e), &e);
  else {
    reopen (t);
    check_clean (t);
    check_content (t);
  }
}

static void
set_up (struct test *t, const struct kind *k, uint64_t size,
        uint64_t cache_size)
{
  struct error e = ERROR_INIT;

  *t = (struct test) { .kind = k, .size = size, .cache_size = cache_size };
  t->model = unit_alloc (size);
  t->buf = unit_alloc (size);
  memset (t->model, 0, size);
  t->st = storage_memory_new ("top", 0, &e);
  if (k->backing) {
    t->base_st = storage_memory_new ("base", size - 3 * MiB / 2, &e);
    unit_random (t->model, MiB, 7);
    CHECK_OK (storage_pwrite (t->base_st, t->model, MiB, 0, 0, &e), &e);
    t->base = harness_open (t->base_st, &format_raw, NULL, NULL, false, 0,
                            &e);
  }
  if (k->data_file)
    t->data_st = storage_memory_new ("data", size, &e);
  CHECK_OK (harness_create_kind (t->st, k->options, size,
                                 k->backing ? "base" : NULL, t->data_st, &e),
            &e);
  reopen (t);
}

static void
tear_down (struct test *t)
{
  struct error e = ERROR_INIT;

  CHECK_OK (harness_close (t->im, &e), &e);
  if (t->base)
    CHECK_OK (harness_close (t->base, &e), &e);
  storage_close (t->st);
  storage_close (t->base_st);
  storage_close (t->data_st);
  free (t->model);
  free (t->buf);
}

static void
run (const struct kind *k, uint64_t size, uint64_t cache_size, unsigned nr)
{
  char name[200];
  struct test t;

  snprintf (name, sizeof name, "%s%s with a cache of %" PRIu64
            " KiB reads as an array", k->options,
            k->backing ? " over a backing file" : "", cache_size / 1024);
  unit_begin (name);
  set_up (&t, k, size, cache_size);
  for (unsigned i = 0; i < nr && !unit_bad; ++i)
    step (&t);
  reopen (&t);
  check_clean (&t);
  check_content (&t);
  tear_down (&t);
}

int
main (int argc, char **argv)
{
  uint64_t size = 6 * MiB + 1536;
  unsigned nr = 400;
  int c, only = -1;

  harness_add_secret ();
  state = 88172645463325252u;
  while ((c = getopt (argc, argv, "m:n:s:k:")) != -1)
    switch (c) {
    case 'm': size = strtoull (optarg, NULL, 0); break;
    case 'n': nr = (unsigned) strtoul (optarg, NULL, 0); break;
    case 's': state = strtoull (optarg, NULL, 0) | 1; break;
    case 'k': only = atoi (optarg); break;
    default: return EXIT_FAILURE;
    }
  for (int i = 0; i < NR_KINDS; ++i) {
    if (only >= 0 && only != i)
      continue;
    run (&kinds[i], size, 1, nr);
    run (&kinds[i], size, 16 * MiB, nr);
  }
  return unit_end ();
}
