/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Internal snapshots against plain arrays, on every kind of image, with each
 * request of each operation failing, and with a crash after each.
 */

#include <config.h>

#include "tests/unit/qcow2-structure.h"

#define SIZE (256 * KiB + 1024)

static const char *const kinds[] = {
  "compat=1.1,cluster_size=4096",
  "compat=0.10,cluster_size=4096",
  "compat=1.1,cluster_size=512,refcount_bits=64",
  "compat=1.1,cluster_size=1024,refcount_bits=4",
  "compat=1.1,cluster_size=16384,extended_l2=on",
  "compat=1.1,cluster_size=65536",
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

static uint64_t seed;

static uint64_t
rnd (uint64_t below)
{
  return unit_below (&seed, below);
}

static int
snapshot (struct image *im, const char *name, struct error *e)
{
  struct format_snapshot s = { .name = (char *) name };

  return image_snapshot_create (im, &s, e);
}

static void
write_some (struct image *im)
{
  uint64_t o = rnd (image_size (im) / 512) * 512;
  uint64_t n = min_u64 ((1 + rnd (40)) * 512, image_size (im) - o);
  uint64_t cs = im->format->info.cluster_size;
  uint8_t *buf = unit_alloc (n + cs);
  struct error e = ERROR_INIT;

  memset (buf, (int) (1 + rnd (255)), n + cs);
  switch (rnd (5)) {
  case 0:
    CHECK_OK (image_zero (im, o, n, IMAGE_MAY_UNMAP, &e), &e);
    break;
  case 1:
    o = round_down (o, cs);
    n = min_u64 (cs, image_size (im) - o);
    CHECK_OK (image_write_packed (im, buf, n, o, &e), &e);
    break;
  default:
    CHECK_OK (image_write (im, buf, n, o, 0, &e), &e);
  }
  free (buf);
}

static struct storage *
new_image (const char *options, uint64_t size)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);

  CHECK_OK (harness_create (st, size, options, NULL, NULL, &e), &e);
  return st;
}

/* ---- the model ---- */

/* Take disk I of S out. */
static void
remove_disk (struct state *s, size_t i)
{
  free (s->disks[i].name);
  free (s->disks[i].content.p);
  s->nr--;
  memmove (&s->disks[i], &s->disks[i + 1],
           (s->nr - i) * sizeof s->disks[0]);
}

static struct bytes
copy_bytes (struct bytes b)
{
  struct bytes r = { .p = unit_alloc (b.len), .len = b.len };

  memcpy (r.p, b.p, b.len);
  return r;
}

/* The next thing on the image, and on the model of it. */
static void
step (struct image *im, struct state *s, unsigned n)
{
  struct error e = ERROR_INIT;
  char name[20];
  size_t i;

  switch (rnd (8)) {
  case 0:
    if (s->nr == 5)
      break;
    snprintf (name, sizeof name, "s%u", n);
    CHECK_OK (snapshot (im, name, &e), &e);
    s->disks[s->nr].name = strdup (name);
    s->disks[s->nr++].content = copy_bytes (s->disks[0].content);
    break;
  case 1:
    if (s->nr == 1)
      break;
    i = 1 + rnd (s->nr - 1);
    CHECK_OK (image_snapshot_delete (im, s->disks[i].name, &e), &e);
    remove_disk (s, i);
    break;
  case 2:
    if (s->nr == 1)
      break;
    i = 1 + rnd (s->nr - 1);
    CHECK_OK (image_snapshot_apply (im, s->disks[i].name, &e), &e);
    free (s->disks[0].content.p);
    s->disks[0].content = copy_bytes (s->disks[i].content);
    break;
  default:
    write_some (im);
    free (s->disks[0].content.p);
    state_read_disk (im, &s->disks[0]);
  }
}

static void
compare_with_arrays (const char *options)
{
  struct storage *st = new_image (options, SIZE);
  struct image *im = must_open (st, true);
  struct state model = state_of (im), now;
  struct error e = ERROR_INIT;

  for (unsigned i = 0; i < 120 && !unit_bad; ++i) {
    step (im, &model, i);
    if (i % 10 == 9) {
      CHECK_OK (harness_close (im, &e), &e);
      im = must_open (st, true);
      must_be_clean (im);
    }
    now = state_of (im);
    CHECK (state_same (&now, &model));
    state_free (&now);
  }
  CHECK_OK (harness_close (im, &e), &e);
  state_free (&model);
  storage_close (st);
}

/* ---- failures ---- */

/* Two snapshots, and a disk that differs from both. */
static struct bytes
make_template (const char *options)
{
  struct storage *st = new_image (options, 64 * KiB);
  struct image *im = must_open (st, true);
  struct error e = ERROR_INIT;
  struct bytes b;

  for (unsigned i = 0; i < 3; ++i) {
    write_some (im);
    write_some (im);
    if (i < 2)
      CHECK_OK (snapshot (im, i ? "two" : "one", &e), &e);
  }
  CHECK_OK (harness_close (im, &e), &e);
  b = bytes_of (st);
  storage_close (st);
  return b;
}

static int
create_one (struct image *im, struct error *e)
{
  return snapshot (im, "three", e);
}

static int
apply_one (struct image *im, struct error *e)
{
  return image_snapshot_apply (im, "one", e);
}

static int
delete_one (struct image *im, struct error *e)
{
  return image_snapshot_delete (im, "one", e);
}

static void
each_operation (const char *options,
                void (*run) (struct bytes template, operation op))
{
  struct bytes b = make_template (options);

  run (b, create_one);
  run (b, apply_one);
  run (b, delete_one);
  free (b.p);
}

/* ---- flags that other programs leave in a snapshot's tables ---- */

static uint64_t
get64 (struct storage *st, uint64_t host)
{
  struct error e = ERROR_INIT;
  uint8_t b[8];

  CHECK_OK (storage_pread (st, b, 8, host, &e), &e);
  return get_be64 (b);
}

static void
set_flag (struct storage *st, uint64_t host)
{
  struct error e = ERROR_INIT;
  uint64_t entry = get64 (st, host);
  uint8_t b[8];

  if ((entry & UINT64_C (0x00fffffffffffe00)) == 0)
    return;
  put_be64 (b, entry | UINT64_C (1) << 63);
  CHECK_OK (storage_pwrite (st, b, 8, host, 0, &e), &e);
}

/* The first snapshot's L1 table, and the first L2 table of it, say that all is
 * theirs alone: outside of the active tables the flag has no meaning.
 */
static void
flag_snapshot (struct storage *st)
{
  uint64_t l1 = get64 (st, get64 (st, 64));
  uint64_t l2 = get64 (st, l1) & UINT64_C (0x00fffffffffffe00);

  set_flag (st, l1);
  for (uint64_t i = 0; i < 4096; i += 8)
    set_flag (st, l2 + i);
}

static void
flags_of_others (void)
{
  struct storage *st = new_image (kinds[0], 64 * KiB);
  struct image *im = must_open (st, true);
  uint8_t *buf = unit_alloc (64 * KiB);
  struct error e = ERROR_INIT;
  struct state s;
  struct bytes b;

  memset (buf, 1, 64 * KiB);
  CHECK_OK (image_write (im, buf, 64 * KiB, 0, 0, &e), &e);
  CHECK_OK (snapshot (im, "one", &e), &e);
  memset (buf, 2, 64 * KiB);
  CHECK_OK (image_write (im, buf, 64 * KiB, 0, 0, &e), &e);
  CHECK_OK (harness_close (im, &e), &e);
  flag_snapshot (st);
  b = bytes_of (st);
  crash_everywhere (b, apply_one);
  im = must_open (st, true);
  CHECK_OK (apply_one (im, &e), &e);
  must_be_clean (im);
  s = state_of (im);
  CHECK_OK (harness_close (im, &e), &e);
  overwrite (st, &s);
  state_free (&s);
  storage_close (st);
  free (b.p);
  free (buf);
}

/* ---- what is refused ---- */

static void
refuse_overflow (const char *options, unsigned max)
{
  struct storage *st = new_image (options, 64 * KiB);
  struct image *im = must_open (st, true);
  struct error e = ERROR_INIT;
  struct bytes b, now;

  CHECK_OK (image_write (im, "x", 1, 0, 0, &e), &e);
  for (unsigned i = 1; i < max; ++i)
    CHECK_OK (snapshot (im, "a", &e), &e);
  CHECK_OK (image_flush (im, &e), &e);
  b = bytes_of (st);
  CHECK_FAILS (snapshot (im, "a", &e), &e, EOVERFLOW);
  if (max > 1)
    CHECK_FAILS (image_snapshot_apply (im, "a", &e), &e, EOVERFLOW);
  CHECK_OK (harness_close (im, &e), &e);
  now = bytes_of (st);
  CHECK (now.len == b.len && memcmp (now.p, b.p, b.len) == 0);
  free (now.p);
  free (b.p);
  storage_close (st);
}

static void
refuse_others (void)
{
  struct storage *st = new_image (kinds[0], 64 * KiB);
  struct image *im = must_open (st, true);
  struct error e = ERROR_INIT;
  struct format_view *view;
  char name[300];
  uint64_t size;

  memset (name, 'n', sizeof name);
  name[256] = '\0';
  CHECK_FAILS (snapshot (im, name, &e), &e, EINVAL);
  name[255] = '\0';
  CHECK_OK (snapshot (im, name, &e), &e);
  CHECK_FAILS (image_snapshot_apply (im, "none", &e), &e, ENOENT);
  CHECK_FAILS (image_snapshot_delete (im, "none", &e), &e, ENOENT);
  view = im->format->ops->open_view (im->format, name, &size, &e);
  CHECK_FAILS (image_snapshot_delete (im, name, &e), &e, EBUSY);
  CHECK_OK (image_snapshot_apply (im, name, &e), &e);
  im->format->ops->close_view (im->format, view);
  CHECK_OK (image_snapshot_delete (im, "1", &e), &e);
  must_be_clean (im);
  CHECK_OK (harness_close (im, &e), &e);
  storage_close (st);
}

int
main (void)
{
  char name[200];

  for (unsigned i = 0; i < NR_KINDS; ++i) {
    unit_finish ();
    snprintf (name, sizeof name, "%s: disk and snapshots read as arrays",
              kinds[i]);
    unit_begin (name);
    compare_with_arrays (kinds[i]);
  }
  for (unsigned i = 0; i < 4; ++i) {
    unit_finish ();
    snprintf (name, sizeof name, "%s: a failing request leaves the old or the"
              " new snapshots", kinds[i]);
    unit_begin (name);
    each_operation (kinds[i], fail_everywhere);
    unit_finish ();
    snprintf (name, sizeof name, "%s: so does a crash", kinds[i]);
    unit_begin (name);
    each_operation (kinds[i], crash_everywhere);
  }
  unit_begin ("flags that others left in a snapshot's tables lose nothing");
  flags_of_others ();
  unit_begin ("a refcount that would overflow is refused, nothing changes");
  refuse_overflow ("compat=1.1,cluster_size=4096,refcount_bits=1", 1);
  refuse_overflow ("compat=1.1,cluster_size=4096,refcount_bits=2", 3);
  unit_begin ("long names, no such snapshot, and one that is in use");
  refuse_others ();
  return unit_end ();
}
