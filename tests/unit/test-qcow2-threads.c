/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Many threads on one image (qcow2, the other formats that write tables, and
 * what encryption adds), which must end as if each had been alone, without an
 * error, a leak or a hang, with the smallest table cache and the usual one.
 * With -n ROUNDS, -t THREADS, -s SEED, -k KIND, -w SECONDS (of the watchdog)
 * for longer runs.
 */

#include <config.h>

#include <pthread.h>

#include "tests/unit/qcow2-fixture.h"

static const struct kind kinds[] = {
  { "compat=1.1", true, false },
  { "compat=1.1,cluster_size=512", true, false },
  { "compat=1.1,cluster_size=512,refcount_bits=64", false, false },
  { "compat=1.1,cluster_size=512,refcount_bits=1", true, false },
  { "compat=0.10,cluster_size=4096", true, false },
  { "compat=0.10,cluster_size=512", false, false },
  { "compat=1.1,cluster_size=4096,refcount_bits=2", false, false },
  { "compat=1.1,cluster_size=4096,compression_type=zstd", true, false },
  { "compat=1.1,cluster_size=16384,extended_l2=on", true, false },
  { "compat=1.1,cluster_size=16384,extended_l2=on,refcount_bits=64", false,
    false },
  { "compat=1.1,cluster_size=2097152", true, false },
  { "compat=1.1,cluster_size=2097152,extended_l2=on", false, false },
  { "compat=1.1,cluster_size=4096,data_file=d", false, true },
  { "compat=1.1,cluster_size=4096,lazy_refcounts=on,refcount_bits=32", true,
    false },
  { "compat=1.1,cluster_size=4096,encrypt.format=luks,encrypt.key-secret=s,"
    "encrypt.iter-time=1", true, false },
  { "qcow:encrypt.format=aes,encrypt.key-secret=s", false, false },
  { "vdi:static=off", false, false },
  { "qed:cluster_size=65536", true, false },
  { "qed:cluster_size=4096,table_size=1", true, false },
  { "qed:cluster_size=4096,table_size=16", false, false },
  { "qed:cluster_size=2097152,table_size=1", true, false },
  { "qcow:", false, false },
  { "qcow:", true, false },
  { "luks:key-secret=s,iter-time=10", false, false },
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

enum { MAX_THREADS = 64 };
static unsigned nr_threads = 8, rounds = 30;
static uint64_t seed = 1;

/* One thread of a test. */
struct worker {
  struct fixture *f;
  unsigned number;
  uint64_t random;
  uint8_t *model;               /* of the whole disk; each thread changes only
                                   its own bytes of it */
  uint8_t *buf;                 /* as large as the disk */
  pthread_barrier_t *barrier;
  uint64_t start, end;          /* its own part of the disk */
  const int *stop;              /* atomic */
};

static void
run_workers (struct worker *w, unsigned nr, void *(*f) (void *))
{
  pthread_t ids[MAX_THREADS];

  for (unsigned i = 0; i < nr; ++i)
    if (pthread_create (&ids[i], NULL, f, &w[i]) != 0)
      abort ();
  for (unsigned i = 0; i < nr; ++i)
    pthread_join (ids[i], NULL);
}

static struct worker *
new_workers (struct fixture *f, uint8_t *model)
{
  struct worker *w = unit_alloc (nr_threads * sizeof w[0]);

  for (unsigned i = 0; i < nr_threads; ++i)
    w[i] = (struct worker) {
      .f = f, .number = i, .random = seed * 1000 + i, .model = model,
      .buf = unit_alloc (f->size),
    };
  return w;
}

static void
free_workers (struct worker *w)
{
  for (unsigned i = 0; i < nr_threads; ++i)
    free (w[i].buf);
  free (w);
}

static uint8_t *
first_model (const struct fixture *f)
{
  uint8_t *model = unit_alloc (f->size);

  fixture_first_bytes (f, model, 0, f->size);
  return model;
}

/* The end of every test: clean, and the right bytes, also when reopened. */
static void
check_and_tear_down (struct fixture *f, uint8_t *model)
{
  fixture_check_content (f, model);
  fixture_reopen (f);
  fixture_check_clean (f);
  fixture_check_content (f, model);
  fixture_tear_down (f);
  free (model);
}

static void
begin (const char *what, const struct kind *k, uint64_t cache_size)
{
  static char name[300];

  unit_finish ();               /* it still needs the old name */
  snprintf (name, sizeof name, "%s: %s%s, cache of %" PRIu64 " KiB", what,
            k->options, k->backing ? " over a backing file" : "",
            cache_size / KiB);
  unit_begin (name);
}

/* ---- stripes of one cluster ---- */

enum { STRIPE_CLUSTERS = 12, STRIPES_EACH = 4 };

/* The stripes are sectors, but for the smallest clusters, and where sectors are
 * encrypted: each is written as a whole, whoever has a part of it.
 */
static uint64_t
stripe_size (const struct worker *w)
{
  uint64_t cs = w->f->im->format->info.cluster_size;

  return min_u64 (w->f->im->format->encrypted ? 64 : 512,
                  cs / nr_threads & ~UINT64_C (7));
}

static void
write_stripes (struct worker *w, uint64_t cluster)
{
  uint64_t cs = w->f->im->format->info.cluster_size, len = stripe_size (w);
  uint64_t group = len * nr_threads, at;
  struct error e = ERROR_INIT;

  for (unsigned i = 0; i < STRIPES_EACH; ++i) {
    at = random_below (&w->random, cs / group) * group + w->number * len;
    at += cluster * cs;
    unit_random (w->model + at, len, random_next (&w->random));
    CHECK_OK (image_write (w->f->im, w->model + at, len, at, 0, &e), &e);
  }
}

/* What was written in an earlier round is there; then it goes. */
static void
clear_cluster (struct worker *w, uint64_t cluster)
{
  uint64_t cs = w->f->im->format->info.cluster_size, at = cluster * cs;
  struct error e = ERROR_INIT;

  CHECK_OK (image_read (w->f->im, w->buf, cs, at, &e), &e);
  same_bytes (w->buf, w->model + at, at, cs);
  memset (w->model + at, 0, cs);
  CHECK_OK (image_zero (w->f->im, at, cs, IMAGE_MAY_UNMAP, &e), &e);
}

static void *
stripes_thread (void *opaque)
{
  struct worker *w = opaque;

  for (unsigned r = 0; r < rounds; ++r) {
    uint64_t cluster = r % STRIPE_CLUSTERS;

    pthread_barrier_wait (w->barrier);
    if (r % nr_threads == w->number && r >= STRIPE_CLUSTERS)
      clear_cluster (w, cluster);
    pthread_barrier_wait (w->barrier);
    write_stripes (w, cluster);
  }
  return NULL;
}

static void
test_stripes (const struct kind *k, uint64_t cache_size)
{
  uint64_t cs = strstr (k->options, "vdi:") ? MiB : 65536, size;
  pthread_barrier_t barrier;
  struct fixture f;
  struct worker *w;
  uint8_t *model;
  const char *option = strstr (k->options, "cluster_size=");

  if (option)
    cs = strtoull (option + strlen ("cluster_size="), NULL, 10);
  size = cs * STRIPE_CLUSTERS;
  begin ("writes into one cluster at once all stay", k, cache_size);
  fixture_set_up (&f, k, size, cache_size, jitter_new ("top", 0));
  model = first_model (&f);
  w = new_workers (&f, model);
  pthread_barrier_init (&barrier, NULL, nr_threads);
  for (unsigned i = 0; i < nr_threads; ++i)
    w[i].barrier = &barrier;
  run_workers (w, nr_threads, stripes_thread);
  pthread_barrier_destroy (&barrier);
  free_workers (w);
  check_and_tear_down (&f, model);
}

/* ---- a part of the disk for each thread ---- */

static void
some_range (struct worker *w, uint64_t *offset, uint64_t *len)
{
  uint64_t cs = w->f->im->format->info.cluster_size;
  uint64_t unit = random_below (&w->random, 4) ? 512 : 1;
  uint64_t nr = (w->end - w->start) / unit;
  uint64_t max = min_u64 (max_u64 (cs * 3, 16 * KiB), 256 * KiB);

  *offset = w->start + random_below (&w->random, nr) * unit;
  *len = (1 + random_below (&w->random, max / unit)) * unit;
  *len = min_u64 (*len, w->end - *offset);
}

static void
region_write (struct worker *w)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (w, &o, &n);
  unit_random (w->model + o, n, random_next (&w->random));
  CHECK_OK (image_write (w->f->im, w->model + o, n, o,
                         random_below (&w->random, 16) ? 0 : IMAGE_FUA, &e),
            &e);
}

static void
region_zero (struct worker *w)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (w, &o, &n);
  memset (w->model + o, 0, n);
  CHECK_OK (image_zero (w->f->im, o, n,
                        random_below (&w->random, 2) ? IMAGE_MAY_UNMAP : 0,
                        &e), &e);
}

static void
region_read (struct worker *w)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (w, &o, &n);
  CHECK_OK (image_read (w->f->im, w->buf, n, o, &e), &e);
  same_bytes (w->buf, w->model + o, o, n);
}

/* Each byte is what it was, or zero. */
static void
region_trim (struct worker *w)
{
  struct error e = ERROR_INIT;
  uint64_t o, n;

  some_range (w, &o, &n);
  CHECK_OK (image_trim (w->f->im, o, n, 0, &e), &e);
  CHECK_OK (image_read (w->f->im, w->buf, n, o, &e), &e);
  for (uint64_t i = 0; i < n; ++i)
    if (w->buf[i] != 0 && w->buf[i] != w->model[o + i]) {
      unit_fail (__FILE__, __LINE__, "trim: wrong byte at %" PRIu64, o + i);
      break;
    }
  memcpy (w->model + o, w->buf, n);
}

/* Compressed, where a whole cluster is the thread's own. */
static void
region_pack (struct worker *w)
{
  uint64_t cs = w->f->im->format->info.cluster_size;
  uint64_t first = div_round_up (w->start, cs), end = w->end / cs, o;
  struct error e = ERROR_INIT;

  if (first >= end || !w->f->im->format->info.can_pack)
    return;
  o = (first + random_below (&w->random, end - first)) * cs;
  memset (w->model + o, (int) random_below (&w->random, 256), cs);
  unit_random (w->model + o, random_below (&w->random, cs),
               random_next (&w->random));
  CHECK_OK (image_write_packed (w->f->im, w->model + o, cs, o, &e), &e);
}

static void
region_step (struct worker *w)
{
  uint64_t what = random_below (&w->random, 100);
  struct error e = ERROR_INIT;

  if (what < 35)
    region_write (w);
  else if (what < 45)
    region_zero (w);
  else if (what < 60)
    region_trim (w);
  else if (what < 75)
    region_pack (w);
  else if (what < 97)
    region_read (w);
  else
    CHECK_OK (image_flush (w->f->im, &e), &e);
}

static void *
region_thread (void *opaque)
{
  struct worker *w = opaque;

  for (unsigned r = 0; r < rounds; ++r)
    region_step (w);
  return NULL;
}

/* One that flushes and one that asks where things are, all the time. */
static void *
flush_thread (void *opaque)
{
  struct worker *w = opaque;
  struct error e = ERROR_INIT;

  while (!__atomic_load_n (w->stop, __ATOMIC_RELAXED)) {
    CHECK_OK (image_flush (w->f->im, &e), &e);
    jitter_pause ();
  }
  return NULL;
}

static void *
extents_thread (void *opaque)
{
  struct worker *w = opaque;
  struct error e = ERROR_INIT;
  struct image_extent x;

  while (!__atomic_load_n (w->stop, __ATOMIC_RELAXED)) {
    uint64_t o = random_below (&w->random, w->f->size);

    CHECK_OK (image_extents (w->f->im, o, w->f->size - o, 0, &x, &e), &e);
    CHECK (x.length > 0 && x.length <= w->f->size - o);
    jitter_pause ();
  }
  return NULL;
}

/* The parts end anywhere: neighbours share clusters. */
static void
divide (struct worker *w, uint64_t size)
{
  uint64_t at = 0;

  for (unsigned i = 0; i < nr_threads; ++i) {
    w[i].start = at;
    at = size * (i + 1) / nr_threads + (i + 1 < nr_threads ? i * 7 : 0);
    w[i].end = at;
  }
}

static void
run_regions (struct fixture *f, struct worker *w)
{
  int stop = 0;
  struct worker asker = { .f = f, .random = seed, .stop = &stop };
  struct worker flusher = asker;
  pthread_t ids[2];

  if (pthread_create (&ids[0], NULL, flush_thread, &flusher) != 0
      || pthread_create (&ids[1], NULL, extents_thread, &asker) != 0)
    abort ();
  run_workers (w, nr_threads, region_thread);
  __atomic_store_n (&stop, 1, __ATOMIC_RELAXED);
  pthread_join (ids[0], NULL);
  pthread_join (ids[1], NULL);
}

static uint64_t
region_disk_size (const struct kind *k)
{
  return (strstr (k->options, "2097152") ? 24 : 3) * MiB + 1536;
}

static void
test_regions (const struct kind *k, uint64_t cache_size)
{
  struct fixture f;
  struct worker *w;
  uint8_t *model;

  begin ("each thread reads what it wrote", k, cache_size);
  fixture_set_up (&f, k, region_disk_size (k), cache_size,
                  jitter_new ("top", 0));
  model = first_model (&f);
  w = new_workers (&f, model);
  divide (w, f.size);
  run_regions (&f, w);
  /* Again, with the free clusters that the first run left in the file. */
  fixture_reopen (&f);
  fixture_check_clean (&f);
  run_regions (&f, w);
  free_workers (w);
  check_and_tear_down (&f, model);
}

/* ---- all over a large disk ---- */

/* Each sector is written once, by the thread whose turn its cluster is, and
 * says where it lies.
 */
static void *
far_thread (void *opaque)
{
  struct worker *w = opaque;
  uint64_t nr = w->f->size / (64 * KiB * nr_threads), at;
  uint8_t want[512], got[512];
  struct error e = ERROR_INIT;

  for (unsigned r = 0; r < 4 * rounds; ++r) {
    at = (random_below (&w->random, nr) * nr_threads + w->number) * 64 * KiB;
    unit_random (want, sizeof want, at);
    CHECK_OK (image_write (w->f->im, want, sizeof want, at, 0, &e), &e);
    CHECK_OK (image_read (w->f->im, got, sizeof got, at, &e), &e);
    same_bytes (got, want, at, sizeof got);
  }
  return NULL;
}

/* Each write needs an L1 slice that is not in the cache, and a new table: who
 * adds it has to load again, while the others wait for it.
 */
static void
test_far (const struct kind *k, uint64_t size)
{
  struct fixture f;
  struct worker *w;

  begin ("new tables all over a large disk", k, 1);
  fixture_set_up (&f, k, size, 1, jitter_new ("top", 0));
  w = unit_alloc (nr_threads * sizeof w[0]);
  for (unsigned i = 0; i < nr_threads; ++i)
    w[i] = (struct worker) { .f = &f, .number = i, .random = seed * 1000 + i };
  run_workers (w, nr_threads, far_thread);
  free (w);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  fixture_tear_down (&f);
}

/* ---- one new table for all ---- */

/* What one L2 table reaches, with clusters of 4 KiB, is as much. */
#define TABLE_REACH (2 * MiB)

static uint64_t
place_of (unsigned round, unsigned thread)
{
  return round * TABLE_REACH + thread * (TABLE_REACH / MAX_THREADS);
}

static void *
table_thread (void *opaque)
{
  struct worker *w = opaque;
  struct error e = ERROR_INIT;
  uint8_t buf[512];

  for (unsigned r = 0; r < rounds; ++r) {
    uint64_t at = place_of (r, w->number);

    unit_random (buf, sizeof buf, at);
    pthread_barrier_wait (w->barrier);
    CHECK_OK (image_write (w->f->im, buf, sizeof buf, at, 0, &e), &e);
  }
  return NULL;
}

static void
check_places (const struct fixture *f)
{
  uint8_t want[512], got[512];
  struct error e = ERROR_INIT;

  for (unsigned r = 0; r < rounds && !unit_bad; ++r)
    for (unsigned i = 0; i < nr_threads; ++i) {
      unit_random (want, sizeof want, place_of (r, i));
      CHECK_OK (image_read (f->im, got, sizeof got, place_of (r, i), &e), &e);
      same_bytes (got, want, place_of (r, i), sizeof got);
    }
}

/* In each round all write where there is no table yet, at once: one adds it,
 * and what the others put there is not lost with a second one.
 */
static void
test_new_tables (const struct kind *k)
{
  pthread_barrier_t barrier;
  struct fixture f;
  struct worker *w;

  begin ("all write where one table is missing", k, 1);
  fixture_set_up (&f, k, rounds * TABLE_REACH, 1, jitter_new ("top", 0));
  w = unit_alloc (nr_threads * sizeof w[0]);
  pthread_barrier_init (&barrier, NULL, nr_threads);
  for (unsigned i = 0; i < nr_threads; ++i)
    w[i] = (struct worker) { .f = &f, .number = i, .barrier = &barrier };
  run_workers (w, nr_threads, table_thread);
  pthread_barrier_destroy (&barrier);
  free (w);
  fixture_reopen (&f);
  fixture_check_clean (&f);
  check_places (&f);
  fixture_tear_down (&f);
}

/* ---- a storage with room for the disk, and not much more ---- */

/* Replace what is in clusters, or free them: each new one takes the space of an
 * old one, which must not stay in the quarantine while somebody needs it.
 */
static void
full_step (struct worker *w)
{
  uint64_t cs = w->f->im->format->info.cluster_size;
  uint64_t o = w->start + random_below (&w->random, (w->end - w->start) / cs)
    * cs;
  struct error e = ERROR_INIT;

  if (random_below (&w->random, 3) == 0) {
    memset (w->model + o, 0, cs);
    CHECK_OK (image_zero (w->f->im, o, cs, IMAGE_MAY_UNMAP, &e), &e);
    return;
  }
  unit_random (w->model + o, cs, random_next (&w->random));
  CHECK_OK (image_write (w->f->im, w->model + o, cs, o, 0, &e), &e);
}

static void *
full_thread (void *opaque)
{
  struct worker *w = opaque;

  for (unsigned r = 0; r < 10 * rounds; ++r)
    full_step (w);
  return NULL;
}

static void
test_full (const struct kind *k, uint64_t cache_size)
{
  struct error e = ERROR_INIT;
  uint64_t size = MiB, part = size / nr_threads, cs;
  struct fixture f;
  struct worker *w;
  uint8_t *model;

  begin ("freed space is used again before the storage is called full", k,
         cache_size);
  fixture_set_up (&f, k, size, cache_size, jitter_new ("top", 0));
  cs = f.im->format->info.cluster_size;
  model = first_model (&f);
  w = new_workers (&f, model);
  for (unsigned i = 0; i < nr_threads; ++i) {
    w[i].start = i * round_down (part, cs);
    w[i].end = w[i].start + round_down (part, cs);
  }
  /* All is written once: the tables are there. */
  unit_random (model, w[nr_threads - 1].end, seed);
  CHECK_OK (image_write (f.im, model, w[nr_threads - 1].end, 0, 0, &e), &e);
  CHECK_OK (harness_close (f.im, &e), &e);
  CHECK_OK (storage_truncate (f.top, round_up (storage_size (f.top), cs)
                              + nr_threads * cs, &e), &e);
  f.top->caps.can_grow = false;
  fixture_open (&f);
  run_workers (w, nr_threads, full_thread);
  free_workers (w);
  check_and_tear_down (&f, model);
}

/* ---- */

static void
run_kind (const struct kind *k, uint64_t cache_size)
{
  test_stripes (k, cache_size);
  test_regions (k, cache_size);
}

int
main (int argc, char **argv)
{
  static const struct kind small = { "compat=1.1,cluster_size=4096", false,
                                     false };
  static const struct kind smallest = {
    "compat=1.1,cluster_size=512,refcount_bits=64", false, false };
  static const struct kind far_qcow = { "qcow:", false, false };
  static const struct kind far_qcow2 = { "compat=1.1", false, false };
  static const struct kind far_qed = { "qed:", false, false };
  static const struct kind new_tables[] = {
    { "qcow:", false, false },
    { "qed:cluster_size=4096,table_size=1", false, false },
    { "compat=1.1,cluster_size=4096", false, false },
  };
  unsigned seconds = 300;
  int c, only = -1;

  harness_add_secret ();
  while ((c = getopt (argc, argv, "n:t:s:k:w:")) != -1)
    switch (c) {
    case 'n': rounds = (unsigned) strtoul (optarg, NULL, 0); break;
    case 't': nr_threads = (unsigned) strtoul (optarg, NULL, 0); break;
    case 's': seed = strtoull (optarg, NULL, 0); break;
    case 'k': only = atoi (optarg); break;
    case 'w': seconds = (unsigned) strtoul (optarg, NULL, 0); break;
    default: return EXIT_FAILURE;
    }
  nr_threads = nr_threads < 1 || nr_threads > 32 ? 8 : nr_threads;
  watchdog (seconds);
  for (int i = 0; i < NR_KINDS; ++i)
    if (only < 0 || only == i) {
      run_kind (&kinds[i], 1);
      run_kind (&kinds[i], 16 * MiB);
    }
  if (only < 0) {
    test_full (&small, 1);
    test_full (&small, 16 * MiB);
    test_full (&smallest, 1);
    test_far (&far_qcow, 200 * GiB);
    test_far (&far_qcow2, 16 * TiB);
    test_far (&far_qed, 64 * TiB);
    for (unsigned i = 0; i < sizeof new_tables / sizeof new_tables[0]; ++i)
      test_new_tables (&new_tables[i]);
  }
  return unit_end ();
}
