/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Schedules of two threads that went wrong once, or in another program, each
 * played on purpose: the storage calls back at the read, trim or flush that one
 * thread does with the mutex dropped, and the other thread runs there.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>

#include "formats/qcow2/qcow2.h"
#include "image/io.h"
#include "tests/unit/qcow2-fixture.h"

/* ---- a storage with a breakpoint ---- */

struct breakpoint {
  struct wrapper wrapper;
  uint64_t host, length;        /* atomic: reads of it; length 0 = none */
  bool trim;                    /* not reads, but trims */
  int err;                      /* the read fails with it; 0 = it does not */
  int write_err;                /* atomic: so do all writes */
  bool lies;                    /* the next write of header fields is done, and
                                   fails */
  void *(*run) (void *);        /* in a thread of its own, meanwhile */
  void (*flushing) (void *);    /* atomic: at the next flush, or NULL */
  void *opaque;
};

/* true = here the other thread has run. */
static bool
breakpoint_hit (struct breakpoint *b, uint64_t offset, uint64_t len)
{
  uint64_t length = __atomic_load_n (&b->length, __ATOMIC_ACQUIRE);
  pthread_t id;

  if (!ranges_overlap (b->host, length, offset, len)
      || __atomic_exchange_n (&b->length, 0, __ATOMIC_ACQ_REL) == 0)
    return false;
  if (pthread_create (&id, NULL, b->run, b->opaque) != 0)
    abort ();
  pthread_join (id, NULL);
  return true;
}

static int
breakpoint_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
                  struct error *e)
{
  struct breakpoint *b = (struct breakpoint *) st;

  if (!b->trim && breakpoint_hit (b, offset, len) && b->err)
    return error_set (e, b->err, "the read failed (fault of a test)");
  return storage_pread (wrapper_inner (st), buf, len, offset, e);
}

static int
breakpoint_pwrite (struct storage *st, const void *buf, size_t len,
                   uint64_t offset, unsigned flags, struct error *e)
{
  struct breakpoint *b = (struct breakpoint *) st;
  int err = __atomic_load_n (&b->write_err, __ATOMIC_ACQUIRE);

  if (err)
    return error_set (e, err, "the write failed (fault of a test)");
  if (b->lies && offset == H_REFCOUNT_TABLE_OFFSET) {
    b->lies = false;
    if (jitter_pwrite (st, buf, len, offset, flags, e) == -1)
      return -1;
    return error_set (e, ENOTCONN, "the answer was lost (fault of a test)");
  }
  return jitter_pwrite (st, buf, len, offset, flags, e);
}

static int
breakpoint_trim (struct storage *st, uint64_t offset, uint64_t len,
                 unsigned flags, struct error *e)
{
  struct breakpoint *b = (struct breakpoint *) st;

  if (b->trim)
    breakpoint_hit (b, offset, len);
  return jitter_trim (st, offset, len, flags, e);
}

static int
breakpoint_flush (struct storage *st, struct error *e)
{
  struct breakpoint *b = (struct breakpoint *) st;
  void (*flushing) (void *) = __atomic_exchange_n (&b->flushing, NULL,
                                                   __ATOMIC_ACQ_REL);

  if (flushing)
    flushing (b->opaque);
  return jitter_flush (st, e);
}

static const struct storage_ops breakpoint_ops = {
  .driver = "breakpoint",
  .close = wrapper_free,
  .pread = breakpoint_pread,
  .pwrite = breakpoint_pwrite,
  .zero = jitter_zero,
  .trim = breakpoint_trim,
  .flush = breakpoint_flush,
  .truncate = jitter_truncate,
  WRAPPER_OPS,
};

static struct breakpoint *
breakpoint_new (void)
{
  struct error e = ERROR_INIT;

  return wrapper_new (&breakpoint_ops, sizeof (struct breakpoint),
                      jitter_new ("top", 0), &e);
}

static void
breakpoint_set (struct breakpoint *b, uint64_t host, uint64_t length,
                void *(*run) (void *), void *opaque)
{
  b->host = host;
  b->run = run;
  b->opaque = opaque;
  __atomic_store_n (&b->length, length, __ATOMIC_RELEASE);
}

/* ---- steps ---- */

static struct qcow2 *
qcow2_of (const struct fixture *f)
{
  return to_qcow2 (f->im->format);
}

/* Where GUEST lies. */
static uint64_t
host_of (const struct fixture *f, uint64_t guest)
{
  struct error e = ERROR_INIT;
  struct mapping m = { .kind = MAP_ZERO };

  CHECK_OK (f->im->format->ops->map (f->im->format, NULL, guest, 512, &m,
                                     &e), &e);
  CHECK (m.kind == MAP_DATA || m.kind == MAP_PACKED);
  return m.host;
}

static void
write_cluster (const struct fixture *f, uint64_t guest)
{
  size_t cs = f->im->format->info.cluster_size;
  uint8_t *buf = unit_alloc (cs);
  struct error e = ERROR_INIT;

  unit_random (buf, cs, guest + 1);
  CHECK_OK (image_write (f->im, buf, cs, guest, 0, &e), &e);
  free (buf);
}

static void
check_cluster (const struct fixture *f, uint64_t guest)
{
  size_t cs = f->im->format->info.cluster_size;
  uint8_t *want = unit_alloc (cs), *got = unit_alloc (cs);
  struct error e = ERROR_INIT;

  unit_random (want, cs, guest + 1);
  CHECK_OK (image_read (f->im, got, cs, guest, &e), &e);
  same_bytes (got, want, guest, cs);
  free (want);
  free (got);
}

/* A cluster that packs into very little. */
static void
packed_bytes (const struct fixture *f, uint8_t *buf, uint64_t guest)
{
  memset (buf, (int) (guest % 251) + 1, f->im->format->info.cluster_size);
}

static void
write_packed_cluster (const struct fixture *f, uint64_t guest)
{
  size_t cs = f->im->format->info.cluster_size;
  uint8_t *buf = unit_alloc (cs);
  struct error e = ERROR_INIT;

  packed_bytes (f, buf, guest);
  CHECK_OK (image_write_packed (f->im, buf, cs, guest, &e), &e);
  free (buf);
}

static void
check_packed_cluster (const struct fixture *f, uint64_t guest)
{
  size_t cs = f->im->format->info.cluster_size;
  uint8_t *want = unit_alloc (cs), *got = unit_alloc (cs);
  struct error e = ERROR_INIT;

  packed_bytes (f, want, guest);
  memset (got, 0, cs);
  CHECK_OK (image_read (f->im, got, cs, guest, &e), &e);
  same_bytes (got, want, guest, cs);
  free (want);
  free (got);
}

/* So that the smallest cache holds nothing else: look at NR L2 tables. */
static void
push_out (const struct fixture *f, uint64_t first, unsigned nr)
{
  uint64_t reach = f->im->format->info.vm_state_unit;
  struct error e = ERROR_INIT;
  struct mapping m;

  CHECK_OK (image_flush (f->im, &e), &e);
  CHECK_OK (image_flush (f->im, &e), &e);
  for (unsigned i = 0; i < nr; ++i)
    CHECK_OK (f->im->format->ops->map (f->im->format, NULL,
                                       (first + i) * reach, 512, &m, &e), &e);
}

/* ---- FUA ---- */

struct fua {
  struct fixture *f;
  uint8_t *sector;
};

static void *
fua_thread (void *opaque)
{
  struct fua *u = opaque;
  struct error e = ERROR_INIT;

  CHECK_OK (image_write (u->f->im, u->sector, 512, 1024, IMAGE_FUA, &e), &e);
  return NULL;
}

static bool
somebody_waits (struct range_locks *rl)
{
  bool r;

  mutex_lock (&rl->mutex);
  r = rl->first != rl->last;
  mutex_unlock (&rl->mutex);
  return r;
}

/* The storage as it stands now, without a shutdown: what a crash would leave,
 * since memory has no cache to lose.
 */
static void
check_durable (struct fixture *f, const uint8_t *want, uint64_t offset)
{
  struct error e = ERROR_INIT;
  struct image *im = harness_open (f->top, &format_qcow2, NULL, NULL, false,
                                   0, &e);
  uint8_t got[512];

  if (!im) {
    unit_fail (__FILE__, __LINE__, "open: %s", e.text);
    return;
  }
  CHECK_OK (image_read (im, got, sizeof got, offset, &e), &e);
  same_bytes (got, want, offset, sizeof got);
  CHECK_OK (harness_close (im, &e), &e);
}

/* The FUA write finds tables that are clean, then waits for the range; who had
 * the range allocates the cluster.  The write goes into it in place, but it is
 * durable only when the table is.
 */
static void
test_fua (void)
{
  static const struct kind k = { "compat=1.1", false, false };
  struct error e = ERROR_INIT;
  struct fixture f;
  struct placement p;
  struct range range;
  struct fua u = { .f = &f };
  uint8_t sector[512], zero[65536] = { 0 };
  pthread_t id;

  unit_begin ("a FUA write into a cluster that was just allocated is durable");
  fixture_set_up (&f, &k, MiB, 0, jitter_new ("top", 0));
  unit_random (sector, sizeof sector, 1);
  u.sector = sector;
  range_lock (&f.im->ranges, &range, 0, 65536, RANGE_EXCLUSIVE);
  if (pthread_create (&id, NULL, fua_thread, &u) != 0)
    abort ();
  while (!somebody_waits (&f.im->ranges))
    usleep (100);
  CHECK_OK (f.im->format->ops->reserve (f.im->format, 0, 65536, &p, &e), &e);
  CHECK_OK (storage_pwrite (f.top, zero, p.length, p.host, 0, &e), &e);
  CHECK_OK (f.im->format->ops->link (f.im->format, &p, &e), &e);
  range_unlock (&f.im->ranges, &range);
  pthread_join (id, NULL);
  check_durable (&f, sector, 1024);
  fixture_tear_down (&f);
}

/* ---- a packing cluster that is freed while somebody packs into it ---- */

/* What the other thread writes. */
struct other {
  struct fixture *f;
  uint64_t guest;
};

static void *
packing_thread (void *opaque)
{
  struct other *o = opaque;

  write_packed_cluster (o->f, o->guest);
  return NULL;
}

static void *
writing_thread (void *opaque)
{
  struct other *o = opaque;

  write_cluster (o->f, o->guest);
  return NULL;
}

/* Write clusters from *GUEST on until one lies at host cluster CLUSTER - 1. */
static void
write_up_to (const struct fixture *f, uint64_t cluster, uint64_t *guest)
{
  uint64_t cs = f->im->format->info.cluster_size, at;

  do {
    write_cluster (f, *guest);
    at = host_of (f, *guest) / cs;
    *guest += cs;
  } while (at + 1 < cluster && !unit_bad);
  CHECK (at + 1 == cluster);
}

/* Two clusters are freed together: the one that is being packed into, whose
 * refcount is the last of a slice, and the next one.  While the slice of the
 * next one is being read, another stream is packed into the first.
 */
static void
test_packing (void)
{
  static const struct kind k = {
    "compat=1.1,cluster_size=8192,refcount_bits=64", false, false };
  enum { CS = 8192, PER_SLICE = 4096 / 8, TABLES = 20 };
  struct breakpoint *b = breakpoint_new ();
  struct error e = ERROR_INIT;
  struct fixture f;
  struct other o = { .f = &f };
  uint64_t reach, guest = 0, freed;

  unit_begin ("a cluster that is packed into again is not given away");
  fixture_set_up (&f, &k, GiB, 1, &b->wrapper.base);
  reach = f.im->format->info.vm_state_unit;
  for (unsigned i = 1; i <= TABLES; ++i)
    write_cluster (&f, i * reach);
  write_up_to (&f, PER_SLICE - 1, &guest);
  freed = guest;
  write_packed_cluster (&f, freed);
  CHECK (host_of (&f, freed) == (PER_SLICE - 1) * (uint64_t) CS);
  write_cluster (&f, freed + CS);
  CHECK (host_of (&f, freed + CS) == PER_SLICE * (uint64_t) CS);
  push_out (&f, 1, TABLES);

  o.guest = freed + 2 * CS;
  CHECK_OK (image_trim (f.im, freed, 2 * CS, 0, &e), &e);
  /* The first refcount block is where the header says. */
  breakpoint_set (b, 2 * CS + PER_SLICE * 8, 1, packing_thread, &o);
  CHECK_OK (image_flush (f.im, &e), &e);
  CHECK (b->length == 0);
  CHECK_OK (image_flush (f.im, &e), &e);
  check_packed_cluster (&f, o.guest);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

/* ---- a hole that is punched late ---- */

/* The only free cluster is one whose hole is just being punched: a write that
 * looks for space meanwhile must go elsewhere.
 */
static void
test_punch (void)
{
  static const struct kind k = { "compat=1.1,cluster_size=4096", false,
                                 false };
  enum { CS = 4096, NR = 8 };
  struct breakpoint *b = breakpoint_new ();
  struct error e = ERROR_INIT;
  struct fixture f;
  struct other o = { .f = &f, .guest = NR * CS };

  unit_begin ("a cluster is not given away before its hole is punched");
  fixture_set_up (&f, &k, MiB, 0, &b->wrapper.base);
  for (uint64_t i = 0; i < NR; ++i)
    write_cluster (&f, i * CS);
  fixture_reopen (&f);          /* the search for space begins at 0 again */
  b->trim = true;
  breakpoint_set (b, host_of (&f, CS), CS, writing_thread, &o);
  CHECK_OK (image_trim (f.im, CS, CS, 0, &e), &e);
  CHECK_OK (image_flush (f.im, &e), &e);
  CHECK (b->length == 0);
  check_cluster (&f, o.guest);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

/* ---- a table that goes while it is being read ---- */

/* The refcount table is replaced by a larger one while another thread reads the
 * old one, and that read fails.
 */
static void
test_growth (void)
{
  static const struct kind k = {
    "compat=1.1,cluster_size=512,refcount_bits=64", false, false };
  enum { CS = 512, TABLES = 20 };
  struct breakpoint *b = breakpoint_new ();
  struct error e = ERROR_INIT;
  struct fixture f;
  struct other o = { .f = &f };
  uint64_t reach, guest = 0, end, old;

  unit_begin ("a read that fails while the refcount table moves is harmless");
  fixture_set_up (&f, &k, 16 * MiB, 1, &b->wrapper.base);
  reach = f.im->format->info.vm_state_unit;
  end = (qcow2_of (&f)->refcount_table_clusters * (uint64_t) CS / 8)
    << qcow2_of (&f)->refblock_bits;
  for (unsigned i = 0; i < TABLES; ++i)
    write_cluster (&f, 8 * MiB + i * reach);
  write_up_to (&f, end, &guest);
  push_out (&f, 8 * MiB / reach, TABLES);

  old = qcow2_of (&f)->refcount_table_offset;
  o.guest = guest;
  b->err = EIO;
  breakpoint_set (b, old, CS, writing_thread, &o);
  CHECK_OK (image_trim (f.im, 0, CS, 0, &e), &e);
  CHECK_OK (image_flush (f.im, &e), &e);
  CHECK (b->length == 0);
  CHECK (qcow2_of (&f)->refcount_table_offset != old);
  fixture_reopen (&f);
  fixture_tear_down (&f);
}

/* ---- a header that was written, it is said, in vain ---- */

static uint64_t
header_reftable (const struct fixture *f)
{
  struct error e = ERROR_INIT;
  uint8_t field[8] = { 0 };

  CHECK_OK (storage_pread (f->top, field, sizeof field,
                           H_REFCOUNT_TABLE_OFFSET, &e), &e);
  return get_be64 (field);
}

/* The driver goes on with the old table, so the header must name that. */
static void
test_lost_answer (void)
{
  static const struct kind k = {
    "compat=1.1,cluster_size=512,refcount_bits=64", false, false };
  enum { CS = 512 };
  struct breakpoint *b = breakpoint_new ();
  struct error e = ERROR_INIT;
  uint8_t data[CS] = { 1 };
  struct fixture f;
  uint64_t guest = 0, old, end;

  unit_begin ("after a lost answer the header names the table that is used");
  fixture_set_up (&f, &k, 16 * MiB, 0, &b->wrapper.base);
  old = qcow2_of (&f)->refcount_table_offset;
  end = (qcow2_of (&f)->refcount_table_clusters * (uint64_t) CS / 8)
    << qcow2_of (&f)->refblock_bits;
  write_up_to (&f, end, &guest);
  b->lies = true;
  CHECK_FAILS (image_write (f.im, data, CS, guest, 0, &e), &e, ENOTCONN);
  CHECK (!b->lies);
  CHECK (qcow2_of (&f)->refcount_table_offset == old);
  CHECK (header_reftable (&f) == old);
  CHECK_OK (image_write (f.im, data, CS, guest, 0, &e), &e);
  CHECK (qcow2_of (&f)->refcount_table_offset != old);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

/* ---- a refcount block that is not entered ---- */

struct dirtier {
  struct fixture *f;
  struct breakpoint *b;
  uint64_t first;               /* guest offset of the first L2 table's reach */
};

static size_t
dirty_slices (const struct fixture *f)
{
  struct qcow2 *q = qcow2_of (f);
  size_t nr = 0;

  mutex_lock (&q->mutex);
  for (unsigned i = 0; i < NR_SLICE_KINDS; ++i)
    nr += q->cache.nr_dirty[i];
  mutex_unlock (&q->mutex);
  return nr;
}

/* Make so many slices dirty that the next two must wait for an epoch, and then
 * the disk is gone.
 */
static void *
dirtying_thread (void *opaque)
{
  struct dirtier *d = opaque;
  uint64_t reach = d->f->im->format->info.vm_state_unit;
  struct error e = ERROR_INIT;

  for (unsigned i = 0; dirty_slices (d->f) < 7; ++i)
    CHECK_OK (image_trim (d->f->im, d->first + i * reach, 512, 0, &e), &e);
  __atomic_store_n (&d->b->write_err, EIO, __ATOMIC_RELEASE);
  return NULL;
}

/* The new block is in the cache when there is no room for what says so. */
static void
test_new_block (void)
{
  static const struct kind k = {
    "compat=1.1,cluster_size=512,refcount_bits=64", false, false };
  enum { CS = 512, TABLES = 20, PER_BLOCK = CS / 8 };
  struct breakpoint *b = breakpoint_new ();
  struct error e = ERROR_INIT;
  uint8_t data[CS] = { 1 };
  struct fixture f;
  struct dirtier d = { .f = &f, .b = b, .first = 8 * MiB };
  uint64_t reach, guest = 0, end;

  unit_begin ("a refcount block that could not be entered is made once more");
  fixture_set_up (&f, &k, 16 * MiB, 1, &b->wrapper.base);
  reach = f.im->format->info.vm_state_unit;
  for (unsigned i = 0; i < TABLES; ++i)
    write_cluster (&f, d.first + i * reach);
  write_cluster (&f, guest);
  end = round_up (host_of (&f, guest) / CS + PER_BLOCK / 2, PER_BLOCK);
  guest += CS;
  write_up_to (&f, end, &guest);
  push_out (&f, d.first / reach, TABLES);

  breakpoint_set (b, end * CS, CS, dirtying_thread, &d);
  CHECK_FAILS (image_write (f.im, data, CS, guest, 0, &e), &e, EIO);
  CHECK (b->length == 0);
  __atomic_store_n (&b->write_err, 0, __ATOMIC_RELEASE);
  CHECK_OK (image_write (f.im, data, CS, guest, 0, &e), &e);
  CHECK_OK (image_flush (f.im, &e), &e);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

/* ---- a flush that comes while tables are written ---- */

struct late {
  struct fixture *f;
  pthread_t id;
  int written;                  /* atomic */
};

enum { LATE_PLACE = 1 << 20 };

static void *
late_thread (void *opaque)
{
  struct late *l = opaque;
  struct error e = ERROR_INIT;
  uint8_t want[512];

  unit_random (want, sizeof want, LATE_PLACE);
  CHECK_OK (image_write (l->f->im, want, sizeof want, LATE_PLACE, 0, &e), &e);
  __atomic_store_n (&l->written, 1, __ATOMIC_RELEASE);
  CHECK_OK (image_flush (l->f->im, &e), &e);
  check_durable (l->f, want, LATE_PLACE);
  return NULL;
}

/* The tables have been copied to be written out.  The pause lets the other
 * thread get to its flush: without it the test would see less, but not fail.
 */
static void
start_late (void *opaque)
{
  struct late *l = opaque;

  if (pthread_create (&l->id, NULL, late_thread, l) != 0)
    abort ();
  while (!__atomic_load_n (&l->written, __ATOMIC_ACQUIRE))
    sched_yield ();
  usleep (20000);
}

static void
test_late_flush (void)
{
  static const struct kind k = { "compat=1.1,cluster_size=4096", false, false };
  struct breakpoint *b = breakpoint_new ();
  struct error e = ERROR_INIT;
  struct fixture f;
  struct late l = { .f = &f };

  unit_begin ("a flush does not end with one that began before the write");
  fixture_set_up (&f, &k, 2 * MiB, 1 << 20, &b->wrapper.base);
  write_cluster (&f, 0);
  b->opaque = &l;
  __atomic_store_n (&b->flushing, start_late, __ATOMIC_RELEASE);
  CHECK_OK (image_flush (f.im, &e), &e);
  CHECK (l.written);
  if (l.written)
    pthread_join (l.id, NULL);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

int
main (void)
{
  watchdog (120);
  test_fua ();
  test_packing ();
  test_punch ();
  test_growth ();
  test_lost_answer ();
  test_new_block ();
  test_late_flush ();
  return unit_end ();
}
