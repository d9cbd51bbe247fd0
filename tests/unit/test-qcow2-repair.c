/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* check -r that does not come to its end: a crash leaves any part of what was
 * not flushed, and request number k fails, for every k.
 *
 * Whatever is left: the guest reads what it could read before; no refcount is
 * too small that was not so before; the marks in the header are gone only when
 * nothing is wrong; another repair ends as the first one would have, the guest
 * still reads the same, and a third one changes no byte.
 *
 *   -n NR   random subsets of what was not flushed for each crash (8)
 *   -v      a line for each kind of damage
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#include "common/bytes.h"
#include "formats/qcow2/qcow2.h"
#include "storage/wrapper.h"
#include "tests/unit/harness.h"
#include "tests/unit/qcow2-snapshot.h"
#include "tests/unit/storage-bytes.h"
#include "tests/unit/unit.h"

enum { CLUSTER = 4096, GUEST_SIZE = 48 * CLUSTER, SECTOR = 512,
       NR_SECTORS = GUEST_SIZE / SECTOR };

/* ---- kinds of damage ---- */

/* Where the bytes go: an entry of a table, or a place in the header. */
enum place { NOWHERE, HEADER, REFTABLE, REFBLOCK, L1, L2 };

/* Entries of refcount blocks are numbered in bytes.  A VALUE of DATA_OF | N is
 * where guest cluster N lies, TABLE_OF | place where a table does.
 */
#define DATA_OF (UINT64_C (1) << 56)
#define TABLE_OF (UINT64_C (1) << 57)

struct poke {
  enum place place;
  unsigned index;
  unsigned bytes;
  uint64_t value;
};

enum { MAX_POKES = 4 };

static const struct kind {
  const char *name, *options;
  bool snapshot;
  struct poke pokes[MAX_POKES];
} kinds[] = {
  { "refcounts of 0", "cluster_size=4096", false,
    { { REFBLOCK, 0, 8, 0 }, { REFBLOCK, 8, 8, 0 } } },
  { "leaks and errors", "cluster_size=4096", false,
    { { REFBLOCK, 0, 8, 0 }, { L2, 1, 8, 0 }, { L2, 3, 8, 0 } } },
  { "no refcount block", "cluster_size=4096", false,
    { { REFTABLE, 0, 8, 0 } } },
  { "a refcount block that is the L1 table", "cluster_size=4096", false,
    { { REFTABLE, 0, 8, TABLE_OF | L1 } } },
  { "a cluster in use twice", "cluster_size=4096", false,
    { { L2, 0, 8, ENTRY_COPIED | DATA_OF | 2 } } },
  { "twice, with one bit for the refcount", "cluster_size=4096,refcount_bits=1",
    false, { { L2, 0, 8, ENTRY_COPIED | DATA_OF | 2 },
             { L2, 3, 8, ENTRY_COPIED | DATA_OF | 2 } } },
  { "data that are the L2 table", "cluster_size=4096", false,
    { { L2, 2, 8, ENTRY_COPIED | TABLE_OF | L1 } } },
  { "data that are a refcount block", "cluster_size=4096", false,
    { { L2, 2, 8, ENTRY_COPIED | TABLE_OF | L1 },
      { L2, 3, 8, ENTRY_COPIED | TABLE_OF | L1 },
      { REFTABLE, 0, 8, 0x200 } } },
  { "entries behind the end", "cluster_size=4096", false,
    { { L2, 2, 8, UINT64_C (0x8000000ffffff000) } } },
  { "reserved bits", "cluster_size=4096", false,
    { { L2, 20, 8, UINT64_C (0x3f000000000001fe) },
      { L1, 0, 1, 0xff } } },
  { "flags of a snapshot's clusters", "cluster_size=4096", true,
    { { L2, 1, 1, 0x80 }, { L2, 2, 1, 0x80 } } },
  { "a snapshot's refcounts", "cluster_size=4096", true,
    { { REFBLOCK, 0, 8, 0 }, { REFBLOCK, 8, 8, 0 } } },
  { "a snapshot, and no refcount block", "cluster_size=4096", true,
    { { REFTABLE, 0, 8, 0 } } },
  { "dirty", "cluster_size=4096", false,
    { { HEADER, H_INCOMPATIBLE_FEATURES, 8, INCOMPAT_DIRTY },
      { REFBLOCK, 0, 8, 0 } } },
  { "corrupt, and no refcount block", "cluster_size=4096", false,
    { { HEADER, H_INCOMPATIBLE_FEATURES, 8, INCOMPAT_CORRUPT },
      { REFTABLE, 0, 8, 0 } } },
  { "corrupt, and an entry that is lost", "cluster_size=4096", false,
    { { HEADER, H_INCOMPATIBLE_FEATURES, 8, INCOMPAT_CORRUPT },
      { L2, 2, 8, UINT64_C (0x8000000000005200) },
      { REFBLOCK, 8, 2, 0 } } },
  { "clusters of 512 bytes, refcounts of 0", "cluster_size=512", false,
    { { REFBLOCK, 0, 8, 0 }, { REFBLOCK, 16, 8, 0 } } },
  { "version 2", "cluster_size=4096,compat=0.10", false,
    { { L2, 2, 8, 0 }, { REFBLOCK, 8, 8, 0 } } },
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

/* ---- images as bytes ---- */

static uint64_t
be64_at (struct bytes b, uint64_t at)
{
  return get_be64 (b.p + at);
}

static uint64_t
table_at (struct bytes b, enum place place)
{
  switch (place) {
  case REFTABLE: return be64_at (b, H_REFCOUNT_TABLE_OFFSET);
  case REFBLOCK: return be64_at (b, table_at (b, REFTABLE));
  case L1: return be64_at (b, H_L1_TABLE_OFFSET);
  case L2: return be64_at (b, table_at (b, L1)) & ENTRY_OFFSET_MASK;
  default: return 0;
  }
}

static void
damage (struct bytes b, const struct poke *pokes)
{
  static const unsigned entry[] = { 0, 1, 8, 1, 8, 8 };
  uint64_t at[MAX_POKES], value[MAX_POKES];
  unsigned nr = 0;

  /* Where all of it goes, before any of it does. */
  for (; nr < MAX_POKES && pokes[nr].place != NOWHERE; ++nr) {
    const struct poke *p = &pokes[nr];

    at[nr] = table_at (b, p->place) + p->index * entry[p->place];
    value[nr] = p->value & ~(DATA_OF | TABLE_OF);
    if (p->value & TABLE_OF)
      value[nr] = (p->value & ENTRY_COPIED) | table_at (b, p->value & 7);
    else if (p->value & DATA_OF)
      value[nr] = be64_at (b, table_at (b, L2) + (p->value & 0xff) * 8);
  }
  for (unsigned i = 0; i < nr; ++i)
    for (unsigned k = 0; k < pokes[i].bytes; ++k)
      b.p[at[i] + k] = (uint8_t) (value[i] >> (pokes[i].bytes - 1 - k) * 8);
}

/* Every second cluster written, one compressed, and with a snapshot some of it
 * shared.
 */
static struct bytes
make_image (const struct kind *k)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);
  uint8_t *buf = unit_alloc (GUEST_SIZE);
  struct image *im;
  struct bytes b;

  unit_must (harness_create (st, GUEST_SIZE, k->options, NULL, NULL, &e), &e);
  im = harness_open (st, &format_qcow2, NULL, NULL, true, 0, &e);
  unit_must (im ? 0 : -1, &e);
  for (unsigned i = 0; i < GUEST_SIZE; ++i)
    buf[i] = (uint8_t) (i / SECTOR + 1);
  unit_must (image_write (im, buf, 8 * CLUSTER, 0, 0, &e), &e);
  unit_must (image_write (im, buf, 3 * CLUSTER, 20 * CLUSTER, 0, &e), &e);
  memset (buf, 'p', CLUSTER);
  unit_must (image_write_packed (im, buf, im->format->info.cluster_size,
                                 30 * CLUSTER, &e), &e);
  unit_must (harness_close (im, &e), &e);
  if (k->snapshot)
    snapshot_make (st);
  b = bytes_of (st);
  damage (b, k->pokes);
  storage_close (st);
  free (buf);
  return b;
}

/* ---- what the guest reads ---- */

struct content {
  uint8_t bytes[GUEST_SIZE];
  bool readable[NR_SECTORS];
};

static struct content *
content_of (struct bytes b)
{
  struct content *c = unit_alloc (sizeof *c);
  struct error e = ERROR_INIT;
  struct storage *st = storage_of (b);
  struct image *im = harness_open (st, &format_qcow2, NULL, NULL, false, 0,
                                   &e);

  memset (c, 0, sizeof *c);
  unit_must (im ? 0 : -1, &e);
  if (image_read (im, c->bytes, GUEST_SIZE, 0, &e) == 0)
    memset (c->readable, true, sizeof c->readable);
  else
    for (unsigned i = 0; i < NR_SECTORS; ++i) {
      error_clear (&e);
      c->readable[i] = image_read (im, c->bytes + i * SECTOR, SECTOR,
                                   i * SECTOR, &e) == 0;
    }
  error_clear (&e);
  unit_must (harness_close (im, &e), &e);
  storage_close (st);
  return c;
}

static void
check_content (const struct content *before, struct bytes b, const char *when)
{
  struct content *now = content_of (b);

  for (unsigned i = 0; i < NR_SECTORS; ++i)
    if (before->readable[i]
        && (!now->readable[i]
            || memcmp (before->bytes + i * SECTOR, now->bytes + i * SECTOR,
                       SECTOR) != 0)) {
      unit_fail (__FILE__, __LINE__, "%s: sector %u reads otherwise", when,
                 i);
      break;
    }
  free (now);
}

/* ---- check ---- */

enum { MAX_CLUSTERS = 1024 };

struct outcome {
  int status;                   /* of the check */
  struct format_check_result left;
  bool too_small[MAX_CLUSTERS]; /* refcounts */
};

static void
note_finding (void *opaque, const char *text)
{
  uint64_t cluster, refcount, reference;
  struct outcome *x = opaque;

  if (sscanf (text, "ERROR cluster %" SCNu64 " refcount=%" SCNu64
              " reference=%" SCNu64, &cluster, &refcount, &reference) == 3
      && refcount < reference && cluster < MAX_CLUSTERS)
    x->too_small[cluster] = true;
}

static struct format *
open_for_check (struct storage *st, struct error *e)
{
  const struct format_open_options o = { .writable = true, .check = true };
  struct format_needs needs = { .backing = NULL };
  struct format *f = format_qcow2.open (st, &o, &needs, e);

  format_needs_free (&needs);
  unit_must (f ? f->ops->activate (f, NULL, false, e) : -1, e);
  return f;
}

static struct outcome
check (struct storage *st, enum check_repair repair)
{
  struct outcome x = { .status = 0 };
  struct format_check_options o = {
    .repair = repair, .finding = note_finding, .opaque = &x,
  };
  struct error e = ERROR_INIT;
  struct format *f = open_for_check (st, &e);

  x.status = f->ops->check (f, &o, &x.left, &e);
  error_clear (&e);
  unit_must (f->ops->close (f, &e), &e);
  return x;
}

static struct outcome
check_bytes (struct bytes b)
{
  struct storage *st = storage_of (b);
  struct outcome x = check (st, REPAIR_NONE);

  storage_close (st);
  return x;
}

static bool
is_marked (struct bytes b)
{
  return get_be32 (b.p + H_VERSION) >= 3
    && (be64_at (b, H_INCOMPATIBLE_FEATURES)
        & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT));
}

static bool
is_bad (const struct format_check_result *r)
{
  return r->corruptions || r->check_errors;
}

/* ---- a storage that remembers, and fails ---- */

struct event {
  uint64_t offset, length;
  uint8_t *data;                /* owned; NULL with length: zeroes; without: a
                                   flush */
};

struct recorder {
  struct wrapper wrapper;
  struct event *events;         /* owned */
  size_t nr;
  uint64_t requests, fails_at;  /* 0 = none */
};

static bool
fails (struct storage *st, struct error *e)
{
  struct recorder *r = (struct recorder *) st;

  if (++r->requests != r->fails_at)
    return false;
  error_set (e, EIO, "fault of a test");
  return true;
}

static void
remember (struct recorder *r, const void *data, uint64_t length,
          uint64_t offset)
{
  struct event ev = { .offset = offset, .length = length };

  if (data) {
    ev.data = unit_alloc (length);
    memcpy (ev.data, data, length);
  }
  r->events = realloc (r->events, (r->nr + 1) * sizeof ev);
  if (!r->events)
    abort ();
  r->events[r->nr++] = ev;
}

static int
recorder_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
                struct error *e)
{
  return fails (st, e) ? -1
    : storage_pread (wrapper_inner (st), buf, len, offset, e);
}

static int
recorder_flush (struct storage *st, struct error *e)
{
  if (fails (st, e))
    return -1;
  remember ((struct recorder *) st, NULL, 0, 0);
  return 0;
}

static int
recorder_pwrite (struct storage *st, const void *buf, size_t len,
                 uint64_t offset, unsigned flags, struct error *e)
{
  if (fails (st, e))
    return -1;
  remember ((struct recorder *) st, buf, len, offset);
  if (storage_pwrite (wrapper_inner (st), buf, len, offset, 0, e) == -1)
    return -1;
  wrapper_note_growth (st);
  if (flags & STORAGE_FUA)
    remember ((struct recorder *) st, NULL, 0, 0);
  return 0;
}

static int
recorder_zero (struct storage *st, uint64_t offset, uint64_t len,
               unsigned flags, struct error *e)
{
  (void) flags;
  if (fails (st, e))
    return -1;
  remember ((struct recorder *) st, NULL, len, offset);
  if (storage_zero (wrapper_inner (st), offset, len, 0, e) == -1)
    return -1;
  wrapper_note_growth (st);
  return 0;
}

static void
recorder_close (struct storage *st)
{
  struct recorder *r = (struct recorder *) st;

  for (size_t i = 0; i < r->nr; ++i)
    free (r->events[i].data);
  free (r->events);
  wrapper_free (st);
}

static const struct storage_ops recorder_ops = {
  .driver = "recorder", .close = recorder_close, .pread = recorder_pread,
  .pwrite = recorder_pwrite, .zero = recorder_zero, .flush = recorder_flush,
  WRAPPER_OPS,
};

static struct recorder *
recorder_new (struct bytes b, uint64_t fails_at)
{
  struct error e = ERROR_INIT;
  struct recorder *r = wrapper_new (&recorder_ops, sizeof *r, storage_of (b),
                                    &e);

  unit_must (r ? 0 : -1, &e);
  /* Tables are read by several threads where that is of use. */
  r->wrapper.base.caps.is_local_file = false;
  r->fails_at = fails_at;
  return r;
}

/* ---- the promises ---- */

struct test {
  const struct kind *kind;
  struct bytes damaged;
  struct content *content;
  bool bad;                     /* what an undisturbed repair leaves */
  struct outcome before;
  uint64_t nr_states;
  uint64_t random;
  unsigned nr_random;
};

/* B is no worse than the damaged image. */
static void
check_no_worse (struct test *t, struct bytes b, const char *when)
{
  struct outcome x = check_bytes (b);

  check_content (t->content, b, when);
  if (x.status == -1)
    unit_fail (__FILE__, __LINE__, "%s: it cannot be checked", when);
  for (unsigned i = 0; i < MAX_CLUSTERS; ++i)
    if (x.too_small[i] && !t->before.too_small[i])
      unit_fail (__FILE__, __LINE__, "%s: the refcount of cluster %u is too"
                 " small now", when, i);
  if (is_marked (t->damaged) && !is_marked (b) && is_bad (&x.left))
    unit_fail (__FILE__, __LINE__, "%s: not marked any more, and bad", when);
}

/* What a repair that was cut short left: B. */
static void
check_state (struct test *t, struct bytes b, const char *when)
{
  struct storage *st = storage_of (b);
  struct bytes first, second;
  struct outcome x;

  t->nr_states++;
  check_no_worse (t, b, when);
  x = check (st, REPAIR_ALL);
  first = bytes_of (st);
  check (st, REPAIR_ALL);
  second = bytes_of (st);
  if (first.len != second.len || memcmp (first.p, second.p, first.len) != 0)
    unit_fail (__FILE__, __LINE__, "%s: the third repair changes it", when);
  if (x.status == -1)
    unit_fail (__FILE__, __LINE__, "%s: a second repair fails", when);
  check_content (t->content, first, when);
  x = check_bytes (first);
  if (x.status == -1 || is_bad (&x.left) != t->bad
      || (!t->bad && (x.left.leaks || is_marked (first))))
    unit_fail (__FILE__, __LINE__, "%s: a second repair leaves %" PRIu64
               " errors and %" PRIu64 " leaks", when, x.left.corruptions,
               x.left.leaks);
  free (first.p);
  free (second.p);
  storage_close (st);
}

static uint64_t
random_next (struct test *t)
{
  t->random = t->random * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return t->random >> 33;
}

/* Write EV, or the first LENGTH bytes of it, into B, which has room. */
static void
apply (struct bytes *b, const struct event *ev, uint64_t length)
{
  if (ev->data)
    memcpy (b->p + ev->offset, ev->data, length);
  else
    memset (b->p + ev->offset, 0, length);
  b->len = max_u64 (b->len, ev->offset + length);
}

static struct bytes
copy_with_room (struct bytes b, size_t room)
{
  struct bytes c = { .p = unit_alloc (room), .len = b.len };

  memset (c.p, 0, room);
  memcpy (c.p, b.p, b.len);
  return c;
}

/* A crash between two flushes: GROUND, and of the NR events those that WANT
 * says, in order; the last one may be torn.
 */
static void
crash (struct test *t, struct bytes ground, size_t room,
       const struct event *events, size_t nr, uint64_t want, bool torn,
       const char *when)
{
  struct bytes b = copy_with_room (ground, room);

  for (size_t i = 0; i < nr; ++i) {
    uint64_t length = events[i].length;

    if (!(want >> i % 64 & 1))
      continue;
    if (torn && i + 1 == nr)
      length = round_up (length / 2, SECTOR);
    apply (&b, &events[i], min_u64 (length, events[i].length));
  }
  check_state (t, b, when);
  free (b.p);
}

static void
crash_between (struct test *t, struct bytes ground, size_t room,
               const struct event *events, size_t nr)
{
  for (size_t i = 0; i <= nr; ++i)
    crash (t, ground, room, events, i, UINT64_MAX, false, "a prefix");
  for (size_t i = 1; i <= nr; ++i)
    crash (t, ground, room, events, i, UINT64_MAX, true, "a torn write");
  for (size_t i = 0; nr > 1 && i < nr && i < 64; ++i) {
    crash (t, ground, room, events, nr, UINT64_C (1) << i, false, "one alone");
    crash (t, ground, room, events, nr, ~(UINT64_C (1) << i), false,
           "all but one");
  }
  for (unsigned i = 0; nr > 2 && i < t->nr_random; ++i)
    crash (t, ground, room, events, nr, random_next (t) << 32 | random_next (t),
           false, "a subset");
}

/* Every state that a crash leaves. */
static void
test_crashes (struct test *t)
{
  struct recorder *r = recorder_new (t->damaged, 0);
  struct outcome x = check (&r->wrapper.base, REPAIR_ALL);
  size_t room = storage_size (&r->wrapper.base), from = 0;
  struct bytes ground = copy_with_room (t->damaged, room);

  CHECK (x.status == 0);
  CHECK (r->nr > 0);
  x = check (r->wrapper.inner, REPAIR_NONE);
  t->bad = is_bad (&x.left);
  for (size_t i = 0; i <= r->nr; ++i) {
    if (i < r->nr && r->events[i].length)
      continue;
    crash_between (t, ground, room, r->events + from, i - from);
    for (; from < i; ++from)
      apply (&ground, &r->events[from], r->events[from].length);
    from = i + 1;
  }
  free (ground.p);
  storage_close (&r->wrapper.base);
}

/* Request number k fails. */
static void
test_faults (struct test *t)
{
  uint64_t k = 0, requests;

  do {
    struct recorder *r = recorder_new (t->damaged, ++k);
    struct format_check_options o = { .repair = REPAIR_ALL };
    struct format_check_result result;
    struct error e = ERROR_INIT;
    const struct format_open_options open = {
      .writable = true, .check = true,
    };
    struct format_needs needs = { .backing = NULL };
    struct format *f = format_qcow2.open (&r->wrapper.base, &open, &needs, &e);
    struct bytes b;

    format_needs_free (&needs);
    if (f) {
      if (f->ops->activate (f, NULL, false, &e) == 0)
        f->ops->check (f, &o, &result, &e);
      error_clear (&e);
      f->ops->close (f, &e);
    }
    requests = r->requests;
    r->fails_at = 0;
    b = bytes_of (r->wrapper.inner);
    check_state (t, b, "a request failed");
    free (b.p);
    storage_close (&r->wrapper.base);
  } while (k <= requests);
}

static void
test_kind (const struct kind *k, unsigned nr_random, bool verbose)
{
  struct test t = { .kind = k, .nr_random = nr_random, .random = 1 };

  t.damaged = make_image (k);
  t.content = content_of (t.damaged);
  t.before = check_bytes (t.damaged);
  CHECK (t.before.status == 0);
  CHECK (is_bad (&t.before.left) || t.before.left.leaks);
  test_crashes (&t);
  test_faults (&t);
  if (verbose)
    printf ("# %s: %" PRIu64 " states\n", k->name, t.nr_states);
  free (t.content);
  free (t.damaged.p);
}

int
main (int argc, char **argv)
{
  unsigned nr_random = 8;
  bool verbose = false;
  int option;

  while ((option = getopt (argc, argv, "n:v")) != -1)
    switch (option) {
    case 'n': nr_random = (unsigned) atoi (optarg); break;
    case 'v': verbose = true; break;
    default: return EXIT_FAILURE;
    }
  for (unsigned i = 0; i < NR_KINDS; ++i) {
    char promise[128];

    snprintf (promise, sizeof promise, "a repair that is cut short: %s",
              kinds[i].name);
    unit_begin (promise);
    test_kind (&kinds[i], nr_random, verbose);
    unit_finish ();
  }
  return unit_end ();
}
