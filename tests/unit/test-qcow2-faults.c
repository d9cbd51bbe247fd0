/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Request number k of the storage fails, for every k of a small workload, in
 * each way that requests fail; so does allocation number k of memory.
 *
 * The disk below is as mean as a real one.  What was written and not flushed
 * may be lost; a flush that fails loses some of it for good, though reads still
 * show it (Linux's page cache) and the next flush would succeed.
 *
 * After each failure: no crash; the caller was told; each sector reads as what
 * was written last, or as something that failed to be; the image has no error
 * but leaks, as the running driver sees it, after a restart, and after a crash;
 * what a flush promised is there, and no later flush promises what is lost.
 *
 * Every third k only; with -n 1 all, -k KIND one kind.
 */

#include <config.h>

#include <errno.h>

#include "tests/unit/failing-disk.h"
#include "tests/unit/qcow2-fixture.h"

/* USED: so many sectors more, that are full at first.  3868 are so many that
 * the refcount table of 4096 clusters must grow.  SCALE: the workload begins
 * its requests so many times as far out, in several L2 tables or blocks: a
 * place that was given back is then that of something else.
 */
static const struct scene {
  struct kind kind;
  unsigned used, scale;
} kinds[] = {
  { { "compat=1.1,cluster_size=512", false, false }, 0, 1 },
  { { "compat=1.1,cluster_size=512,refcount_bits=64", true, false }, 0, 1 },
  { { "compat=1.1,cluster_size=512,refcount_bits=64", false, false }, 3868,
    1 },
  { { "compat=1.1,cluster_size=512,refcount_bits=1", false, false }, 0, 1 },
  { { "compat=0.10,cluster_size=1024", true, false }, 0, 1 },
  { { "compat=1.1,cluster_size=4096,compression_type=zstd", true, false }, 0,
    1 },
  { { "compat=1.1,cluster_size=16384,extended_l2=on", true, false }, 0, 1 },
  { { "compat=1.1,cluster_size=4096,data_file=d", false, true }, 0, 1 },
  { { "compat=1.1,cluster_size=4096,data_file=d,data_file_raw=on", false,
      true }, 0, 1 },
  { { "qed:cluster_size=4096,table_size=1", true, false }, 0, 1 },
  { { "qed:cluster_size=4096,table_size=2", false, false }, 0, 1 },
  { { "qcow:", false, false }, 0, 1 },
  { { "qcow:", true, false }, 0, 1 },
  { { "qcow:", false, false }, 0, 16 },
  { { "qed:cluster_size=4096,table_size=1", false, false }, 0, 16 },
  { { "vdi:static=off", false, false }, 0, 16 },
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

/* ---- what each sector may read as ---- */

/* Bit 0 = zeroes, bit n = what operation n wrote, FIRST = as at first. */
#define FIRST (UINT64_C (1) << 63)
enum { MAX_OPS = 62 };

struct run {
  struct fixture f;             /* its storages are disks, and base */
  uint64_t sectors;
  unsigned scale;
  uint64_t *now, *durable;      /* [sector]: sets of values */
  uint8_t *first, *buf;         /* of the disk */
  bool told;                    /* some call has failed */
  bool is_large;                /* too large to be read again and again */
  const char *when;             /* for messages */
  uint64_t k;
};

static uint64_t
value_of (const struct run *r, const uint8_t *p, uint64_t sector)
{
  uint64_t set = 0;

  if (memcmp (p, r->first + sector * 512, 512) == 0)
    set |= FIRST;
  if (p[0] < MAX_OPS && memcmp (p, p + 1, 511) == 0)
    set |= UINT64_C (1) << p[0];
  return set;
}

static void
check_sectors (struct run *r, struct image *im, const uint64_t *allowed)
{
  struct error e = ERROR_INIT;

  if (image_read (im, r->buf, r->f.size, 0, &e) == -1) {
    unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ", %s: %s",
               failure_names[failure], r->k, r->when, e.text);
    return;
  }
  for (uint64_t s = 0; s < r->sectors; ++s) {
    if (value_of (r, r->buf + s * 512, s) & allowed[s])
      continue;
    unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ", %s: sector %" PRIu64
               " reads as 0x%02x, allowed are %" PRIx64,
               failure_names[failure], r->k, r->when, s, r->buf[s * 512],
               allowed[s]);
    return;
  }
}

static void
check_tables (struct run *r, struct image *im)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result c;
  struct error e = ERROR_INIT;

  if (!im->format->ops->check)
    return;
  memset (&c, 0, sizeof c);
  if (im->format->ops->check (im->format, &o, &c, &e) == -1 || c.corruptions
      || c.check_errors || im->format->corrupt_flag)
    unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ", %s: %" PRIu64
               " corruptions, %" PRIu64 " errors%s %s",
               failure_names[failure], r->k, r->when, c.corruptions,
               c.check_errors,
               im->format->corrupt_flag ? ", marked corrupt" : "", e.text);
}

/* ---- the workload ---- */

enum op_type { WRITE, WRITE_FUA, PACKED, ZERO, ZERO_UNMAP, TRIM, FLUSH };

static const struct op {
  enum op_type type;
  unsigned sector, nr;          /* of a disk of 512 sectors */
} ops[] = {
  { WRITE, 0, 8 }, { WRITE, 3, 40 }, { PACKED, 64, 0 }, { PACKED, 96, 0 },
  { FLUSH, 0, 0 }, { WRITE, 65, 3 }, { ZERO, 8, 24 }, { ZERO_UNMAP, 0, 32 },
  { TRIM, 64, 64 }, { WRITE, 160, 8 }, { WRITE, 256, 70 },
  { WRITE_FUA, 1, 2 }, { TRIM, 0, 32 },
  { WRITE, 300, 33 }, { FLUSH, 0, 0 }, { PACKED, 128, 0 }, { PACKED, 128, 0 },
  { WRITE, 0, 64 }, { ZERO_UNMAP, 256, 128 }, { WRITE_FUA, 290, 9 },
  { TRIM, 128, 32 }, { WRITE, 400, 112 }, { FLUSH, 0, 0 }, { WRITE, 5, 250 },
};
enum { NR_OPS = sizeof ops / sizeof ops[0], NR_SECTORS = 512 };

static void
spread (uint64_t *set, uint64_t from, uint64_t nr, uint64_t and, uint64_t or)
{
  for (uint64_t s = from; s < from + nr; ++s)
    set[s] = (set[s] & and) | or;
}

static int
call (struct run *r, const struct op *op, uint64_t offset, uint64_t length,
      uint8_t byte, struct error *e)
{
  struct image *im = r->f.im;
  int result = -1;

  memset (r->buf, byte, length);
  counting = true;
  switch (op->type) {
  case WRITE: case WRITE_FUA:
    result = image_write (im, r->buf, length, offset,
                          op->type == WRITE_FUA ? IMAGE_FUA : 0, e);
    break;
  case PACKED:
    result = image_write_packed (im, r->buf, length, offset, e);
    break;
  case ZERO: case ZERO_UNMAP:
    result = image_zero (im, offset, length,
                         op->type == ZERO ? 0 : IMAGE_MAY_UNMAP, e);
    break;
  case TRIM: result = image_trim (im, offset, length, 0, e); break;
  case FLUSH: result = image_flush (im, e); break;
  }
  counting = false;
  return result;
}

static void
note (struct run *r, const struct op *op, uint64_t from, uint64_t nr,
      uint64_t value, bool ok)
{
  bool exact = ok && op->type != TRIM;

  if (op->type == FLUSH) {
    if (ok)
      memcpy (r->durable, r->now, r->sectors * sizeof r->now[0]);
    return;
  }
  spread (r->now, from, nr, exact ? 0 : UINT64_MAX, value);
  spread (r->durable, from, nr,
          exact && op->type == WRITE_FUA ? 0 : UINT64_MAX, value);
}

static void
do_op (struct run *r, unsigned i)
{
  const struct op *op = &ops[i];
  uint64_t from = (uint64_t) op->sector * r->scale, nr = op->nr;
  bool zero = op->type == ZERO || op->type == ZERO_UNMAP || op->type == TRIM;
  struct error e = ERROR_INIT;
  int result;

  if (op->type == PACKED) {
    if (!r->f.im->format->info.can_pack)
      return;
    nr = r->f.im->format->info.cluster_size / 512;
    from = round_down (from, nr);
  }
  result = call (r, op, from * 512, nr * 512, zero ? 0 : (uint8_t) (i + 1),
                 &e);
  if (result == -1) {
    r->told = true;
    if (e.err == 0 || e.text[0] == '\0')
      unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ": no reason is given",
                 failure_names[failure], r->k);
  }
  note (r, op, from, nr, UINT64_C (1) << (zero ? 0 : i + 1), result == 0);
  if (op->type == FLUSH && result == 0 && flush_failed)
    unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ": a flush succeeds after"
               " one that failed", failure_names[failure], r->k);
  if (failure != FAIL_FOR_GOOD && !r->is_large)
    check_sectors (r, r->f.im, r->now);
}

/* ---- one run ---- */

static struct image *
open_counted (struct run *r, struct error *e)
{
  struct image *im;

  counting = true;
  im = harness_open (r->f.top, harness_kind_format (r->f.kind->options),
                     r->f.base_im, r->f.data, true, 1, e);
  counting = false;
  return im;
}

/* A program that opens the image later finds it whole, and can write to it. */
static void
judge (struct run *r, struct storage *st, struct storage *data,
       const uint64_t *allowed, const char *when)
{
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st,
                                   harness_kind_format (r->f.kind->options),
                                   r->f.base_im, data, true, 0, &e);

  r->when = when;
  if (!im) {
    unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ", %s: %s",
               failure_names[failure], r->k, when, e.text);
    return;
  }
  check_sectors (r, im, allowed);
  check_tables (r, im);
  memset (r->buf, 0x66, r->f.size);
  CHECK_OK (image_write (im, r->buf, 40 * 512, 20 * 512, 0, &e), &e);
  CHECK_OK (image_trim (im, 256 * 512, 64 * 512, 0, &e), &e);
  CHECK_OK (image_flush (im, &e), &e);
  check_tables (r, im);
  CHECK_OK (harness_close (im, &e), &e);
}

/* What lies behind the sectors of the workload is full at first. */
static void
fill_up (struct run *r)
{
  uint64_t from = NR_SECTORS * 512, len = r->f.size - from;
  struct error e = ERROR_INIT;
  struct image *im = harness_open (r->f.top, &format_qcow2, NULL, NULL, true,
                                   0, &e);

  unit_must (im ? 0 : -1, &e);
  memset (r->first + from, 0x65, len);
  unit_must (image_write (im, r->first + from, len, from, 0, &e), &e);
  unit_must (harness_close (im, &e), &e);
}

static void
set_up (struct run *r, const struct scene *scene)
{
  const struct kind *k = &scene->kind;
  uint64_t sectors = (uint64_t) NR_SECTORS * scene->scale + scene->used;
  struct error e = ERROR_INIT;

  failing_request = failing_allocation = 0;
  *r = (struct run) {
    .f = { .kind = k, .size = sectors * 512 },
    .sectors = sectors, .scale = scene->scale,
    .is_large = sectors > NR_SECTORS,
    .when = "as it runs",
  };
  r->first = unit_alloc (r->f.size);
  r->buf = unit_alloc (r->f.size);
  r->now = unit_alloc (r->sectors * sizeof r->now[0]);
  r->durable = unit_alloc (r->sectors * sizeof r->durable[0]);
  fixture_first_bytes (&r->f, r->first, 0, r->f.size);
  for (uint64_t s = 0; s < r->sectors; ++s)
    r->now[s] = r->durable[s] = FIRST;
  if (k->backing) {
    r->f.base = new_disk ("base");
    unit_must (storage_pwrite (r->f.base, r->first,
                               fixture_base_size (&r->f), 0, 0, &e), &e);
    r->f.base_im = harness_open (r->f.base, &format_raw, NULL, NULL, false,
                                 0, &e);
  }
  r->f.top = new_disk ("top");
  r->f.data = k->data_file ? new_disk ("data") : NULL;
  unit_must (harness_create_kind (r->f.top, k->options, r->f.size,
                                  k->backing ? "base" : NULL, r->f.data, &e),
             &e);
  unit_must (storage_flush (r->f.top, &e), &e);
  if (scene->used)
    fill_up (r);
  hit = hit_change = flush_failed = false;
  nr_requests = nr_allocations = 0;
}

static void
tear_down (struct run *r)
{
  struct error e = ERROR_INIT;

  if (r->f.base_im)
    harness_close (r->f.base_im, &e);
  storage_close (r->f.top);
  storage_close (r->f.base);
  storage_close (r->f.data);
  free (r->first);
  free (r->buf);
  free (r->now);
  free (r->durable);
}

/* A failure that is over: nothing was lost, so a flush can still succeed. */
static void
last_flush (struct run *r)
{
  struct error e = ERROR_INIT;
  bool may_succeed = !flush_failed && !(hit && failure == FAIL_FOR_GOOD);
  int result;

  if (failing_request <= nr_requests || failure == FAIL_MEMORY) {
    counting = hit;
    result = image_flush (r->f.im, &e);
    counting = false;
    if (result == 0)
      memcpy (r->durable, r->now, r->sectors * sizeof r->now[0]);
    if ((result == 0) != may_succeed)
      unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ": the last flush %s: %s",
                 failure_names[failure], r->k,
                 result == 0 ? "succeeds" : "fails", e.text);
    if (failure != FAIL_FOR_GOOD)
      check_tables (r, r->f.im);
    error_clear (&e);
  }
}

/* Returns whether request or allocation K was there at all. */
static bool
run (const struct scene *scene, uint64_t k)
{
  struct error e = ERROR_INIT;
  bool closed = false;
  struct run r;

  set_up (&r, scene);
  r.k = k;
  random_state = k * NR_FAILURES + failure;
  failing_request = failure == FAIL_MEMORY ? 0 : k;
  failing_allocation = failure == FAIL_MEMORY ? k : 0;
  r.f.im = open_counted (&r, &e);
  if (!r.f.im)
    r.told = true;
  for (unsigned i = 0; r.f.im && i < NR_OPS; ++i)
    do_op (&r, i);
  if (r.f.im) {
    last_flush (&r);
    counting = true;
    closed = harness_close (r.f.im, &e) == 0;
    r.told = r.told || !closed;
    counting = false;
  }
  /* What fails for want of space is tried again after a flush. */
  if (hit_change && !r.told && failure != FAIL_SHORT)
    unit_fail (__FILE__, __LINE__, "%s %" PRIu64 ": nobody was told",
               failure_names[failure], k);
  if (!flush_failed && k % 2)
    judge (&r, r.f.top, r.f.data, closed ? r.now : r.durable,
          "after a restart");
  else
    judge (&r, after_crash (r.f.top), after_crash (r.f.data), r.durable,
           "after a crash");
  tear_down (&r);
  return failure == FAIL_MEMORY ? nr_allocations >= k : hit;
}

static void
test_scene (const struct scene *scene, uint64_t stride)
{
  uint64_t k, step = scene->used ? 3 * stride : scene->scale > 1 ? 1 : stride;
  char name[200];

  for (failure = FAIL_EIO; failure < NR_FAILURES; ++failure) {
    if (failure == FAIL_MEMORY && !CAN_FAIL_MALLOC)
      continue;
    snprintf (name, sizeof name, "%s%s: %s at each moment does no harm",
              scene->kind.options, scene->used ? ", nearly full"
              : scene->scale > 1 ? ", spread" : "",
              failure_names[failure]);
    unit_begin (name);
    for (k = 1; run (scene, k) && !unit_bad; k += step)
      ;
    printf ("# up to %" PRIu64 "\n", k);
    CHECK (k > 10);
  }
}

int
main (int argc, char **argv)
{
  unsigned only = NR_KINDS;
  uint64_t stride = 3;
  int c;

  while ((c = getopt (argc, argv, "n:k:")) != -1)
    switch (c) {
    case 'n': stride = strtoull (optarg, NULL, 0); break;
    case 'k': only = (unsigned) strtoul (optarg, NULL, 0); break;
    default: return EXIT_FAILURE;
    }
  for (unsigned i = 0; i < NR_KINDS; ++i)
    if (only == NR_KINDS || only == i)
      test_scene (&kinds[i], stride ? stride : 1);
  return unit_end ();
}
