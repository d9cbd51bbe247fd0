/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Check and repair.  Layer: formats.  Locking: structural, nobody else is
 * inside.  Specification: "Consistency checking".
 *
 * Who refers to which cluster is counted in a map of bounded memory, one window
 * of clusters after the other (formats/refmap.h); an image that fits the
 * memory, and nearly all do, has one window.  Each L2 table is read once in a
 * window, however many L1 entries point to it, and holes of the file are not
 * read: the cost depends on what there is, not on what an image claims.
 *
 * What can be mended: an entry that is no place for a cluster becomes 0 (what
 * it stood for could not be read), a last cluster that is not whole becomes so,
 * and the file is cut behind the last cluster in use.  Clusters with two owners
 * stay as they are: which of them is right is not known, and both can still be
 * read.  So nothing is written into a table that has a second owner: a damaged
 * L1 entry may take guest data for a table.  Hence L2 entries are mended in a
 * walk of its own, when all owners are known.
 * Nothing is cut while anything is in doubt.  Order on disk: NEED_CHECK;
 * entries, barrier; the cut, barrier; NEED_CHECK goes.  A repair that ends in
 * the middle is gone on with by the next.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/holes.h"
#include "formats/refmap.h"
#include "formats/qed/qed.h"

#define DEFAULT_MEMORY (64 * MiB)
#define MIN_MEMORY (1 * MiB)
#define PIECE (256 * KiB)       /* of a table, read at once */

enum { MAX_FINDINGS = 10000 };  /* more are counted, not told */

/* An L1 entry that is the place of a table. */
struct table {
  uint64_t host;
  uint32_t index;               /* in the L1 table: at most 2^21 */
  bool overlaps;                /* another one, which counts */
  bool shared;                  /* a cluster of it has another owner */
};

struct checker {
  struct qed *q;
  struct storage *st;
  const struct format_check_options *opts;
  struct format_check_result *result;
  uint64_t file_size;
  uint64_t nr_clusters;         /* whole ones of the file; what is behind them
                                   is nobody's, or a cluster that is cut */
  bool cut_short;               /* the last cluster in use is not whole */
  uint8_t *buf;                 /* owned, PIECE bytes */
  struct table *tables;         /* owned, in order of index */
  size_t nr_tables, alloc_tables;
  struct refmap refs;
  bool first;                   /* the first window: entries are looked at */
  bool fixing;                  /* NEED_CHECK and autoclear are taken care of */
  bool marked;                  /* NEED_CHECK was not there before */
  bool bad_l2;                  /* there are L2 entries to be mended */
  bool unsure;                  /* there may be owners that are not counted */
  const struct table *table;    /* whose entries are mended */
  uint64_t used;                /* clusters, of the windows so far */
  uint64_t used_end;            /* bytes up to the end of the last one */
  uint64_t last_host;           /* of the data cluster before; 0 = none */
  uint64_t nr_findings;
};

/* ---- findings ---- */

static void __attribute__ ((format (printf, 2, 3)))
finding (struct checker *c, const char *fmt, ...)
{
  char text[512];
  va_list ap;

  if (!c->opts->finding || ++c->nr_findings > MAX_FINDINGS + 1)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  c->opts->finding (c->opts->opaque, c->nr_findings <= MAX_FINDINGS ? text
                    : "There is more; it is counted, but not listed.");
}

static int
progress (const struct checker *c, uint64_t done, uint64_t total,
          struct error *e)
{
  if (!c->opts->progress
      || c->opts->progress (c->opts->opaque, done, total))
    return 0;
  return error_set (e, ECANCELED, "the check was cancelled");
}

/* ---- repair ---- */

/* Before the first change. */
static int
begin_fix (struct checker *c, struct error *e)
{
  struct qed *q = c->q;

  if (c->fixing)
    return 0;
  if (q->autoclear_features
      && qed_write_field (q, H_AUTOCLEAR_FEATURES, 0, e) == -1)
    return -1;
  q->autoclear_features = 0;
  c->marked = !(q->features & QED_F_NEED_CHECK);
  if (c->marked
      && qed_write_field (q, H_FEATURES, q->features | QED_F_NEED_CHECK,
                          e) == -1)
    return -1;
  q->features |= QED_F_NEED_CHECK;
  c->fixing = true;
  return 0;
}

/* V, the entry at HOST, is the place of nothing, which was counted. */
static int
bad_entry (struct checker *c, enum slice_kind kind, uint64_t host, uint64_t v,
           bool mend, struct error *e)
{
  static const uint8_t zero[8];

  finding (c, "%s %s entry at 0x%" PRIx64 ": 0x%" PRIx64 " is not the place"
           " of a %s", mend ? "Repairing" : "ERROR:",
           kind == SLICE_L1 ? "L1" : "L2", host, v,
           kind == SLICE_L1 ? "table" : "cluster");
  if (!mend)
    return 0;
  if (begin_fix (c, e) == -1
      || storage_pwrite (c->st, zero, sizeof zero, host, 0, e) == -1)
    return -1;
  c->result->corruptions--;
  c->result->corruptions_fixed++;
  return 0;
}

static void
unreadable (struct checker *c, uint64_t host, const struct error *why)
{
  c->unsure = true;
  if (!c->first && c->result->check_errors)
    return;                     /* told in the first window */
  c->result->check_errors++;
  finding (c, "ERROR: cannot read the table at 0x%" PRIx64 ": %s", host,
           why->text);
}

/* ---- counting ---- */

static int
add_range (struct checker *c, uint64_t host, uint64_t length,
           struct error *e)
{
  uint64_t first = host >> c->q->g.cluster_bits;
  uint64_t n = length >> c->q->g.cluster_bits;

  for (uint64_t i = 0; i < n; ++i)
    if (refmap_add (&c->refs, first + i, 1, REF_PLAIN, e) == -1)
      return -1;
  c->used_end = max_u64 (c->used_end, host + length);
  return 0;
}

/* Run FN for each entry of a table at HOST that is not 0; it gets the entry's
 * own place too.
 */
static int
each_entry (struct checker *c, uint64_t host,
            int (*fn) (struct checker *c, uint64_t at, uint64_t v,
                       struct error *e), struct error *e)
{
  uint64_t end = host + c->q->g.table_bytes, at = host;
  struct error bad = ERROR_INIT;
  size_t n;

  while ((at = round_down (skip_hole (c->st, at, end), 8)) < end) {
    n = (size_t) min_u64 (PIECE, end - at);
    if (storage_pread (c->st, c->buf, n, at, &bad) == -1) {
      unreadable (c, at, &bad);
      error_clear (&bad);
    }
    else
      for (size_t i = 0; i < n; i += 8) {
        uint64_t v = get_le64 (c->buf + i);

        if (v && fn (c, at + i, v, e) == -1)
          return -1;
      }
    at += n;
  }
  return 0;
}

/* ---- L1 ---- */

static int
look_at_l1_entry (struct checker *c, uint64_t at, uint64_t v,
                  struct error *e)
{
  struct table *bigger;
  size_t alloc;

  if (!qed_valid_host (c->q, v, true, c->file_size)) {
    c->result->corruptions++;
    return bad_entry (c, SLICE_L1, at, v, c->opts->repair == REPAIR_ALL, e);
  }
  if (c->nr_tables == c->alloc_tables) {
    alloc = c->alloc_tables ? 2 * c->alloc_tables : 64;
    bigger = realloc (c->tables, alloc * sizeof bigger[0]);
    if (!bigger)
      return error_nomem (e, "a list of tables", alloc * sizeof bigger[0]);
    c->tables = bigger;
    c->alloc_tables = alloc;
  }
  c->tables[c->nr_tables++] = (struct table) {
    .host = v, .index = (uint32_t) ((at - c->q->l1_table_offset) / 8),
  };
  return 0;
}

static int
by_host (const void *a, const void *b)
{
  const struct table *x = a, *y = b;

  if (x->host != y->host)
    return x->host < y->host ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

static int
by_index (const void *a, const void *b)
{
  const struct table *x = a, *y = b;

  return x->index < y->index ? -1 : x->index > y->index;
}

/* Tables that share a byte: the first one in the file counts.  What the others
 * own is not known then, and it may lie anywhere.
 */
static void
find_overlaps (struct checker *c)
{
  uint64_t end = 0, host = 0;

  if (c->nr_tables == 0)
    return;
  qsort (c->tables, c->nr_tables, sizeof c->tables[0], by_host);
  for (size_t i = 0; i < c->nr_tables; ++i) {
    struct table *t = &c->tables[i];

    t->overlaps = t->host < end;
    if (!t->overlaps) {
      host = t->host;
      end = host + c->q->g.table_bytes;
      continue;
    }
    c->unsure |= t->host != host;
    c->result->corruptions++;
    finding (c, "ERROR: the L2 table of L1 entry %" PRIu32 " at 0x%" PRIx64
             " overlaps another one", t->index, t->host);
  }
  qsort (c->tables, c->nr_tables, sizeof c->tables[0], by_index);
}

/* ---- L2 ---- */

static int
look_at_l2_entry (struct checker *c, uint64_t at, uint64_t v,
                  struct error *e)
{
  if (v == QED_ZERO)
    return 0;
  if (c->first) {
    c->result->allocated_clusters++;
    if (c->last_host && v != c->last_host + c->q->g.cluster_size)
      c->result->fragmented_clusters++;
    c->last_host = v;
  }
  if (qed_valid_host (c->q, v, false, c->file_size))
    return add_range (c, v, c->q->g.cluster_size, e);
  if (!c->first)
    return 0;
  c->result->corruptions++;
  c->bad_l2 = true;
  return c->opts->repair == REPAIR_ALL ? 0
    : bad_entry (c, SLICE_L2, at, v, false, e);
}

static int
mend_l2_entry (struct checker *c, uint64_t at, uint64_t v, struct error *e)
{
  if (v == QED_ZERO || qed_valid_host (c->q, v, false, c->file_size))
    return 0;
  return bad_entry (c, SLICE_L2, at, v,
                    !c->unsure && !c->table->shared, e);
}

/* ---- one window ---- */

static int
walk (struct checker *c, struct error *e)
{
  const struct qed *q = c->q;

  for (size_t i = 0; i < c->nr_tables; ++i) {
    const struct table *t = &c->tables[i];

    c->last_host = 0;
    if (!t->overlaps && (add_range (c, t->host, q->g.table_bytes, e) == -1
                         || each_entry (c, t->host, look_at_l2_entry,
                                        e) == -1))
      return -1;
    if (progress (c, i + 1, c->nr_tables, e) == -1)
      return -1;
  }
  return 0;
}

/* Which tables have a second owner, as far as this window tells. */
static void
find_shared (struct checker *c)
{
  for (size_t i = 0; i < c->nr_tables; ++i) {
    struct table *t = &c->tables[i];
    uint64_t first = t->host >> c->q->g.cluster_bits;

    for (uint64_t n = 0; n < c->q->g.table_size; ++n)
      if (first + n < c->refs.hi && refmap_get (&c->refs, first + n).count > 1)
        t->shared = true;
  }
}

static void
compare_page (struct checker *c, const struct refpage *p)
{
  for (unsigned i = 0; i < REF_PAGE; ++i) {
    uint64_t cluster = p->index * REF_PAGE + i;
    uint64_t count = refpage_get (p, i).count;

    if (count == 0 || cluster >= c->refs.hi)
      continue;
    if (cluster < c->nr_clusters)
      c->used++;
    else
      c->cut_short = true;
    if (count == 1)
      continue;
    c->result->corruptions += count - 1;
    finding (c, "ERROR: the cluster at 0x%" PRIx64 " is referred to %" PRIu64
             " times", cluster << c->q->g.cluster_bits, count);
  }
}

static int
compare (struct checker *c, struct error *e)
{
  struct refpage **pages;

  if (c->refs.nr_pages == 0)
    return 0;
  pages = refmap_sorted (&c->refs, e);
  if (!pages)
    return -1;
  for (size_t i = 0; i < c->refs.nr_pages; ++i)
    compare_page (c, pages[i]);
  free (pages);
  return 0;
}

/* Other programs give the last cluster out once more where it is not whole. */
static int
complete (struct checker *c, struct error *e)
{
  if (!c->cut_short)
    return 0;
  finding (c, "%s the last cluster, at 0x%" PRIx64 ": the file ends within it",
           c->opts->repair == REPAIR_ALL ? "Repairing" : "ERROR:",
           c->nr_clusters << c->q->g.cluster_bits);
  if (c->opts->repair != REPAIR_ALL || !c->st->caps.can_grow) {
    c->result->corruptions++;
    return 0;
  }
  if (begin_fix (c, e) == -1
      || storage_truncate (c->st, round_up (c->file_size,
                                            c->q->g.cluster_size), e) == -1)
    return -1;
  c->result->corruptions_fixed++;
  return 0;
}

static int
mend_tables (struct checker *c, struct error *e)
{
  for (size_t i = 0; i < c->nr_tables; ++i) {
    c->table = &c->tables[i];
    if (!c->table->overlaps
        && each_entry (c, c->table->host, mend_l2_entry, e) == -1)
      return -1;
    if (progress (c, i + 1, c->nr_tables, e) == -1)
      return -1;
  }
  return 0;
}

static int
check_windows (struct checker *c, struct error *e)
{
  uint64_t lo = 0;

  if (each_entry (c, c->q->l1_table_offset, look_at_l1_entry, e) == -1)
    return -1;
  find_overlaps (c);
  do {
    refmap_begin (&c->refs, lo, c->nr_clusters + 1);
    if (walk (c, e) == -1 || compare (c, e) == -1)
      return -1;
    if (c->bad_l2 && c->opts->repair == REPAIR_ALL)
      find_shared (c);
    c->first = false;
    lo = c->refs.hi;
  } while (lo <= c->nr_clusters);
  c->result->leaks = c->nr_clusters - c->used;
  if (c->bad_l2 && c->opts->repair == REPAIR_ALL && mend_tables (c, e) == -1)
    return -1;
  return complete (c, e);
}

/* ---- after the walk ---- */

/* Cut off the leaks at the end of the file; those in the middle stay. */
static int
cut (struct checker *c, struct error *e)
{
  uint64_t nr = c->nr_clusters
    - min_u64 (c->nr_clusters, c->used_end >> c->q->g.cluster_bits);

  if (nr == 0 || !c->st->caps.can_grow)
    return 0;
  finding (c, "Repairing %" PRIu64 " leaked clusters at the end of the file",
           nr);
  if (begin_fix (c, e) == -1
      || storage_truncate (c->st, c->used_end, e) == -1
      || storage_flush (c->st, e) == -1)
    return -1;
  c->result->leaks -= nr;
  c->result->leaks_fixed += nr;
  return 0;
}

/* An image that could be written to before, whatever is wrong with it, can be
 * after a repair.
 */
static int
finish_repair (struct checker *c, struct error *e)
{
  struct qed *q = c->q;
  bool good = c->result->corruptions == 0 && c->result->check_errors == 0;

  if (c->fixing && storage_flush (c->st, e) == -1)
    return -1;
  if (good && cut (c, e) == -1)
    return -1;
  if (!(q->features & QED_F_NEED_CHECK) || (!good && !c->marked))
    return 0;
  if (qed_write_field (q, H_FEATURES, q->features & ~QED_F_NEED_CHECK,
                       e) == -1)
    return -1;
  q->features &= ~QED_F_NEED_CHECK;
  return 0;
}

/* ---- */

static int
init (struct checker *c, struct qed *q,
      const struct format_check_options *opts,
      struct format_check_result *result, struct error *e)
{
  uint64_t memory = max_u64 (opts->memory ? opts->memory : DEFAULT_MEMORY,
                             MIN_MEMORY);

  memset (c, 0, sizeof *c);
  memset (result, 0, sizeof *result);
  c->q = q;
  c->st = q->format.storage;
  c->opts = opts;
  c->result = result;
  c->first = true;
  /* Nothing valid can refer to these two, so they need no place in the map. */
  c->used = (q->header_bytes + q->g.table_bytes) >> q->g.cluster_bits;
  c->used_end = q->l1_table_offset + q->g.table_bytes;
  c->file_size = q->writing ? q->end : storage_size (c->st);
  c->nr_clusters = c->file_size >> q->g.cluster_bits;
  c->buf = malloc (PIECE);
  if (!c->buf)
    return error_nomem (e, "tables", PIECE);
  return refmap_init (&c->refs, (size_t) (memory / 2), e);
}

int
qed_check (struct format *f, const struct format_check_options *opts,
           struct format_check_result *result, struct error *e)
{
  struct qed *q = to_qed (f);
  struct error ignored = ERROR_INIT;
  struct checker c;
  int r;

  /* What cannot be flushed is not on the disk, and that is what is checked. */
  if (q->writing)
    qed_flush (f, &ignored);
  r = init (&c, q, opts, result, e);
  if (r == 0)
    r = check_windows (&c, e);
  if (r == 0 && opts->repair != REPAIR_NONE)
    r = finish_repair (&c, e);
  result->total_clusters = div_round_up (f->info.size, q->g.cluster_size);
  refmap_free (&c.refs);
  free (c.tables);
  free (c.buf);
  return r == -1 ? error_prefix (e, "%s: check", f->storage->name) : 0;
}

/* ---- NEED_CHECK ---- */

/* OPAQUE is the name of the image. */
static void
log_finding (void *opaque, const char *text)
{
  log_warning ("%s: %s", (const char *) opaque, text);
}

int
qed_mend (struct qed *q, struct error *e)
{
  const struct format_check_options opts = {
    .repair = REPAIR_ALL, .finding = log_finding,
    .opaque = q->format.storage->name,
  };
  struct format_check_result r;

  int result = qed_check (&q->format, &opts, &r, e);

  /* Readers were here before, and have slices with what was mended. */
  mutex_lock (q->cache.mutex);
  slices_forget_locked (&q->cache);
  mutex_unlock (q->cache.mutex);
  if (result == -1)
    return -1;
  if (r.corruptions == 0 && r.check_errors == 0)
    return 0;
  return error_set (e, EIO, "%s: the image was not closed cleanly, and %"
                    PRIu64 " errors cannot be repaired; it may be read, or"
                    " converted to a new image", q->format.storage->name,
                    r.corruptions + r.check_errors);
}
