/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Reads beside writes that allocate, compress, zero and discard: a reader sees
 * a version of each sector that is not older than the last write that was
 * answered before, and not newer than any that had begun.  Never a third value,
 * such as what stood in a cluster that was freed and is used again.
 *
 * No write here goes to a place that a reader may be reading (a file promises
 * nothing about that): each needs a new place, and frees the old one.
 *
 * With -n ROUNDS, -s SEED, -k KIND, -w SECONDS for longer runs.
 */

#include <config.h>

#include <pthread.h>

#include "tests/unit/qcow2-fixture.h"

static const struct kind kinds[] = {
  { "compat=1.1", true, false },
  { "compat=1.1,cluster_size=512", true, false },
  { "compat=1.1,cluster_size=512,refcount_bits=64", false, false },
  { "compat=1.1,cluster_size=4096,refcount_bits=1", true, false },
  { "compat=0.10,cluster_size=4096", false, false },
  { "compat=1.1,cluster_size=16384,extended_l2=on", true, false },
  { "compat=1.1,cluster_size=2097152,extended_l2=on", true, false },
  { "compat=1.1,cluster_size=4096,data_file=d", false, true },
  { "compat=1.1,cluster_size=4096,compression_type=zstd", false, false },
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

enum { NR_WRITERS = 3, NR_READERS = 4 };
static unsigned rounds = 120;
static uint64_t seed = 1;

/* What a sector holds: 0, a stamp in each of its words, or what the disk had at
 * first.
 */
#define FIRST UINT64_MAX

struct history {
  struct fixture f;
  uint64_t cs, unit;            /* bytes of a cluster, of a "sector" */
  uint64_t nr_clusters, nr_units, nr_versions;  /* units of a cluster */
  uint64_t *values;             /* [cluster][version][unit] */
  uint8_t *kept;                /* [cluster][version]: units may also be as in
                                   the version before (a trim) */
  uint64_t *started, *completed;        /* atomic: versions of a cluster */
  uint8_t *first;               /* of the disk */
  int stop;                     /* atomic */
  uint64_t nr_reads;            /* atomic */
};

static uint64_t *
values_of (struct history *h, uint64_t cluster, uint64_t version)
{
  return h->values + (cluster * h->nr_versions + version) * h->nr_units;
}

/* ---- writers ---- */

struct writer {
  struct history *h;
  unsigned number;
  uint64_t random;
  uint8_t *buf;                 /* one cluster */
  bool *allocated;              /* [cluster]: a write would go in place */
};

enum what { WRITE, PACK, ZERO, KEEP, TRIM };

static uint64_t
stamp (uint64_t cluster, uint64_t version)
{
  return (cluster + 1) << 32 | version << 8 | 1;
}

static void
fill_words (uint8_t *buf, uint64_t len, uint64_t word)
{
  for (uint64_t i = 0; i < len; i += 8)
    memcpy (buf + i, &word, 8);
}

/* What VERSION will be, told to the readers before it begins. */
static void
announce (struct history *h, uint64_t cluster, uint64_t version,
          uint64_t from, uint64_t to, uint64_t value, bool may_keep)
{
  uint64_t *old = values_of (h, cluster, version - 1);
  uint64_t *new = values_of (h, cluster, version);

  for (uint64_t u = 0; u < h->nr_units; ++u)
    new[u] = u >= from && u < to ? value : old[u];
  h->kept[cluster * h->nr_versions + version] = may_keep;
  __atomic_store_n (&h->started[cluster], version, __ATOMIC_RELEASE);
}

/* What did a trim leave?  The next version goes on from there. */
static void
look_after_trim (struct writer *w, uint64_t cluster, uint64_t version)
{
  struct history *h = w->h;
  uint64_t *old = values_of (h, cluster, version - 1);
  struct error e = ERROR_INIT;

  CHECK_OK (image_read (h->f.im, w->buf, h->cs, cluster * h->cs, &e), &e);
  for (uint64_t u = 0; u < h->nr_units; ++u)
    if (!is_zero (w->buf + u * h->unit, h->unit) && old[u] != 0) {
      unit_fail (__FILE__, __LINE__, "a whole cluster was not trimmed");
      return;
    }
}

static int
write_version (struct writer *w, enum what what, uint64_t cluster,
               uint64_t from, uint64_t to, uint64_t value, struct error *e)
{
  struct history *h = w->h;
  uint64_t offset = cluster * h->cs;

  fill_words (w->buf, h->cs, value);
  switch (what) {
  case WRITE:
    return image_write (h->f.im, w->buf, (to - from) * h->unit,
                        offset + from * h->unit, 0, e);
  case PACK:
    return image_write_packed (h->f.im, w->buf, h->cs, offset, e);
  case ZERO:
    return image_zero (h->f.im, offset, h->cs, IMAGE_MAY_UNMAP, e);
  case KEEP:
    return image_zero (h->f.im, offset, h->cs, 0, e);
  default:
    return image_trim (h->f.im, offset, h->cs, 0, e);
  }
}

static enum what
choose (struct writer *w, bool allocated)
{
  struct history *h = w->h;
  uint64_t n = random_below (&w->random, 10);

  if (!allocated && n < 6)
    return WRITE;
  if (n < 8 && h->f.im->format->info.can_pack)
    return PACK;
  /* Version 2 would write these zeroes in place. */
  if (n == 8 && h->f.im->format->info.zero_is_fast)
    return KEEP;
  return random_below (&w->random, 2) ? ZERO : TRIM;
}

static void
next_version (struct writer *w, uint64_t cluster)
{
  struct history *h = w->h;
  uint64_t version = h->started[cluster] + 1, from = 0, to = h->nr_units;
  enum what what = choose (w, w->allocated[cluster]);
  uint64_t value = what == WRITE || what == PACK
    ? stamp (cluster, version) : 0;
  struct error e = ERROR_INIT;

  if (version >= h->nr_versions)
    return;
  if (what == WRITE) {
    from = random_below (&w->random, h->nr_units);
    to = from + 1 + random_below (&w->random, h->nr_units - from);
  }
  announce (h, cluster, version, from, to, value, what == TRIM);
  CHECK_OK (write_version (w, what, cluster, from, to, value, &e), &e);
  if (what == TRIM)
    look_after_trim (w, cluster, version);
  __atomic_store_n (&h->completed[cluster], version, __ATOMIC_RELEASE);
  /* A stream that does not get smaller is stored plain, and so are zeroes that
   * must keep space where there is none.
   */
  w->allocated[cluster] = what == WRITE || (what == PACK && h->cs <= 512)
    || (what == KEEP && !w->allocated[cluster]);
}

static void *
writer_thread (void *opaque)
{
  struct writer *w = opaque;
  struct history *h = w->h;

  for (unsigned r = 0; r < rounds; ++r) {
    uint64_t each = h->nr_clusters / NR_WRITERS;

    next_version (w, random_below (&w->random, each) * NR_WRITERS
                  + w->number);
  }
  return NULL;
}

/* ---- readers ---- */

struct reader {
  struct history *h;
  uint64_t random;
  uint8_t *buf;                 /* the disk */
  uint64_t *completed;          /* as it was before the read */
};

/* Does [at, at+len), inside one unit, hold VALUE? */
static bool
holds (struct history *h, const uint8_t *buf, uint64_t at, uint64_t len,
       uint64_t value)
{
  if (value == FIRST)
    return memcmp (buf + at, h->first + at, len) == 0;
  for (uint64_t i = 0; i < len; i += 8)
    if (memcmp (buf + at + i, &value, 8) != 0)
      return false;
  return true;
}

static bool
allowed (struct history *h, const uint8_t *buf, uint64_t at, uint64_t len,
         uint64_t before, uint64_t after)
{
  uint64_t cluster = at / h->cs, unit = at % h->cs / h->unit;

  for (uint64_t v = before; v <= after; ++v)
    if (holds (h, buf, at, len, values_of (h, cluster, v)[unit])
        || (h->kept[cluster * h->nr_versions + v]
            && holds (h, buf, at, len, values_of (h, cluster, v - 1)[unit])))
      return true;
  return false;
}

static void
check_unit (struct reader *r, uint64_t at, uint64_t len)
{
  uint64_t cluster = at / r->h->cs, before = r->completed[cluster], word;
  uint64_t after = __atomic_load_n (&r->h->started[cluster],
                                    __ATOMIC_ACQUIRE);

  if (allowed (r->h, r->buf, at, len, before, after))
    return;
  memcpy (&word, r->buf + at, 8);
  unit_fail (__FILE__, __LINE__, "offset %" PRIu64 " of cluster %" PRIu64
             ": 0x%016" PRIx64 " is none of the versions %" PRIu64 " to %"
             PRIu64, at, cluster, word, before, after);
}

static void
read_some (struct reader *r)
{
  struct history *h = r->h;
  uint64_t start = random_below (&r->random, h->f.size / 8) * 8;
  uint64_t max = random_below (&r->random, 4) ? h->cs * 2 : h->unit * 4;
  uint64_t end = start + 8 + random_below (&r->random, max / 8) * 8, n;
  struct error e = ERROR_INIT;

  end = min_u64 (end, h->f.size);
  for (uint64_t c = start / h->cs; c <= (end - 1) / h->cs; ++c)
    r->completed[c] = __atomic_load_n (&h->completed[c], __ATOMIC_ACQUIRE);
  CHECK_OK (image_read (h->f.im, r->buf + start, end - start, start, &e), &e);
  for (; start < end; start += n) {
    n = min_u64 (end - start, h->unit - start % h->unit);
    check_unit (r, start, n);
  }
  __atomic_add_fetch (&h->nr_reads, 1, __ATOMIC_RELAXED);
}

static void *
reader_thread (void *opaque)
{
  struct reader *r = opaque;

  while (!__atomic_load_n (&r->h->stop, __ATOMIC_RELAXED))
    read_some (r);
  return NULL;
}

/* So that freed clusters are used again soon. */
static void *
flusher_thread (void *opaque)
{
  struct history *h = opaque;
  struct error e = ERROR_INIT;

  while (!__atomic_load_n (&h->stop, __ATOMIC_RELAXED)) {
    CHECK_OK (image_flush (h->f.im, &e), &e);
    usleep (200);
  }
  return NULL;
}

/* ---- */

static void
history_init (struct history *h, const struct kind *k, uint64_t cache_size)
{
  const char *option = strstr (k->options, "cluster_size=");
  size_t nr;

  *h = (struct history) { .cs = 65536, .nr_versions = rounds + 1 };
  if (option)
    h->cs = strtoull (option + strlen ("cluster_size="), NULL, 10);
  /* Few large clusters, many small ones; a multiple of the writers. */
  h->nr_clusters = h->cs > MiB ? NR_WRITERS : 8 * NR_WRITERS;
  h->unit = max_u64 (h->cs / 128, 64);
  h->nr_units = h->cs / h->unit;
  fixture_set_up (&h->f, k, h->nr_clusters * h->cs, cache_size,
                  jitter_new ("top", 0));
  nr = h->nr_clusters * h->nr_versions;
  h->values = calloc (nr * h->nr_units, sizeof h->values[0]);
  h->kept = calloc (nr, 1);
  h->started = calloc (h->nr_clusters, sizeof h->started[0]);
  h->completed = calloc (h->nr_clusters, sizeof h->completed[0]);
  h->first = unit_alloc (h->f.size);
  if (!h->values || !h->kept || !h->started || !h->completed)
    abort ();
  fixture_first_bytes (&h->f, h->first, 0, h->f.size);
  for (uint64_t c = 0; c < h->nr_clusters; ++c)
    for (uint64_t u = 0; u < h->nr_units; ++u)
      values_of (h, c, 0)[u] = FIRST;
}

static void
history_free (struct history *h)
{
  fixture_tear_down (&h->f);
  free (h->values);
  free (h->kept);
  free (h->started);
  free (h->completed);
  free (h->first);
}

static void
start_thread (pthread_t *id, void *(*f) (void *), void *opaque)
{
  if (pthread_create (id, NULL, f, opaque) != 0)
    abort ();
}

static void
run_threads (struct history *h)
{
  pthread_t writer_ids[NR_WRITERS], reader_ids[NR_READERS], flusher_id;
  struct writer writers[NR_WRITERS];
  struct reader readers[NR_READERS];

  for (unsigned i = 0; i < NR_WRITERS; ++i) {
    writers[i] = (struct writer) {
      .h = h, .number = i, .random = seed * 100 + i,
      .buf = unit_alloc (h->cs),
      .allocated = calloc (h->nr_clusters, sizeof (bool)),
    };
    start_thread (&writer_ids[i], writer_thread, &writers[i]);
  }
  for (unsigned i = 0; i < NR_READERS; ++i) {
    readers[i] = (struct reader) {
      .h = h, .random = seed * 200 + i, .buf = unit_alloc (h->f.size),
      .completed = calloc (h->nr_clusters, sizeof (uint64_t)),
    };
    start_thread (&reader_ids[i], reader_thread, &readers[i]);
  }
  start_thread (&flusher_id, flusher_thread, h);
  for (unsigned i = 0; i < NR_WRITERS; ++i)
    pthread_join (writer_ids[i], NULL);
  __atomic_store_n (&h->stop, 1, __ATOMIC_RELAXED);
  for (unsigned i = 0; i < NR_READERS; ++i)
    pthread_join (reader_ids[i], NULL);
  pthread_join (flusher_id, NULL);

  for (unsigned i = 0; i < NR_WRITERS; ++i) {
    free (writers[i].buf);
    free (writers[i].allocated);
  }
  for (unsigned i = 0; i < NR_READERS; ++i) {
    free (readers[i].buf);
    free (readers[i].completed);
  }
}

/* All versions have been answered: one reader looks at the whole disk. */
static void
read_all (struct history *h)
{
  struct reader r = {
    .h = h, .buf = unit_alloc (h->f.size), .completed = h->completed,
  };
  struct error e = ERROR_INIT;

  CHECK_OK (image_read (h->f.im, r.buf, h->f.size, 0, &e), &e);
  for (uint64_t at = 0; at < h->f.size; at += h->unit)
    check_unit (&r, at, h->unit);
  free (r.buf);
}

static void
test_readers (const struct kind *k, uint64_t cache_size)
{
  static char name[300];
  struct history h;

  unit_finish ();
  snprintf (name, sizeof name, "readers see no third value: %s%s, cache of %"
            PRIu64 " KiB", k->options,
            k->backing ? " over a backing file" : "", cache_size / KiB);
  unit_begin (name);
  history_init (&h, k, cache_size);
  run_threads (&h);
  CHECK (h.nr_reads > 0);
  fixture_reopen (&h.f);
  fixture_check_clean (&h.f);
  read_all (&h);
  history_free (&h);
}

int
main (int argc, char **argv)
{
  unsigned seconds = 300;
  int c, only = -1;

  while ((c = getopt (argc, argv, "n:s:k:w:")) != -1)
    switch (c) {
    case 'n': rounds = (unsigned) strtoul (optarg, NULL, 0); break;
    case 's': seed = strtoull (optarg, NULL, 0); break;
    case 'k': only = atoi (optarg); break;
    case 'w': seconds = (unsigned) strtoul (optarg, NULL, 0); break;
    default: return EXIT_FAILURE;
    }
  watchdog (seconds);
  for (int i = 0; i < NR_KINDS; ++i)
    if (only < 0 || only == i) {
      test_readers (&kinds[i], 1);
      test_readers (&kinds[i], 16 * MiB);
    }
  return unit_end ();
}
