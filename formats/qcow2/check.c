/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The checker: entry point, findings, and the metadata that are not L1 or L2
 * tables: see check.h.  Layer: formats.  Locking: the image is frozen, one
 * thread.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "formats/holes.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/repair.h"

#define DEFAULT_MEMORY (64 * MiB)
#define MIN_MEMORY (1 * MiB)

/* More than that are counted, not told: a small image can claim 2^32 leaks. */
enum { MAX_FINDINGS = 10000 };

/* ---- findings ---- */

static void
tell (struct checker *c, const char *text)
{
  c->nr_findings++;
  if (!c->opts || !c->opts->finding || c->repairing)
    return;
  c->opts->finding (c->opts->opaque, c->nr_findings <= MAX_FINDINGS ? text
                    : "There is more; it is counted, but not listed.");
}

/* *REASON: its text is the one to give as the reason. */
static bool
count_finding (struct checker *c, enum finding kind, bool *reason)
{
  struct damage *d = &c->damage;

  *reason = false;
  switch (kind) {
  case FINDING_NOTE: return false;
  case FINDING_LEAK: c->result->leaks++; return false;
  case FINDING_ERROR:
    *reason = d->unreadable++ == 0;
    c->result->check_errors++;
    return false;
  case FINDING_REFBLOCK_ERROR:
    d->anew++;
    c->result->check_errors++;
    return false;
  case FINDING_LOST: *reason = d->lost++ + d->unreadable == 0; break;
  case FINDING_SHARED: d->shared++; break;
  case FINDING_AUTOCLEAR: d->autoclear++; break;
  case FINDING_ENTRY: d->entries++; break;
  case FINDING_SNAPSHOT: d->snapshots++; break;
  case FINDING_REFCOUNT: d->refcounts++; break;
  case FINDING_REFCOUNTS: d->anew++; break;
  case FINDING_FLAG: d->flags++; break;
  case FINDING_CORRUPTION: d->left++; break;
  }
  return c->result->corruptions++ == 0;
}

void
check_finding (struct checker *c, enum finding kind, const char *fmt, ...)
{
  bool reason, first = count_finding (c, kind, &reason);
  char text[512];
  va_list ap;

  if (check_is_flooded (c) && !first && !reason)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  if (reason)
    snprintf (c->damage.text, sizeof c->damage.text, "%.*s",
              (int) sizeof c->damage.text - 1, text);
  if (first)
    snprintf (c->first_corruption, sizeof c->first_corruption, "%.*s",
              (int) sizeof c->first_corruption - 1, text);
  tell (c, text);
}

bool
check_is_flooded (const struct checker *c)
{
  return c->nr_findings > MAX_FINDINGS;
}

void
check_outside (struct checker *c, enum finding kind, uint64_t host,
               uint64_t length)
{
  check_finding (c, kind, "ERROR: counting reference for region"
                 " exceeding the end of the file by one cluster or more: offset"
                 " 0x%" PRIx64 " size 0x%" PRIx64, host, length);
}

/* The steps of a window are spread over its clusters.  A window that becomes
 * shorter on the way must not make the number fall.
 */
int
check_progress (struct checker *c, uint64_t done, uint64_t total,
                struct error *e)
{
  uint64_t hi = min_u64 (c->refs.hi, c->nr_clusters), at;

  if (!c->opts || !c->opts->progress || total == 0)
    return 0;
  at = c->refs.lo + (uint64_t) ((double) (hi - c->refs.lo)
                                * ((double) done / (double) total));
  c->progress = max_u64 (c->progress, min_u64 (at, c->nr_clusters));
  if (c->opts->progress (c->opts->opaque, c->progress, c->nr_clusters))
    return 0;
  return error_set (e, ECANCELED, "the check was cancelled");
}

/* ---- reading entries ---- */

uint64_t
check_skip_hole (const struct checker *c, uint64_t at, uint64_t end)
{
  return skip_hole (c->st, at, end);
}

static int
each_in_piece (struct checker *c, const struct segment *s, uint64_t host,
               const uint8_t *p, size_t len,
               int (*fn) (struct checker *c, const struct segment *s,
                          uint64_t host, uint64_t entry, struct error *e),
               struct error *e)
{
  for (size_t i = 0; i + 8 <= len; i += 8) {
    uint64_t entry = get_be64 (p + i);

    if (entry && fn (c, s, host + i, entry, e) == -1)
      return -1;
  }
  return 0;
}

int
check_each_entry (struct checker *c, const struct segments *l,
                  int (*fn) (struct checker *c, const struct segment *s,
                             uint64_t host, uint64_t entry, struct error *e),
                  struct error *e)
{
  struct error read_error = ERROR_INIT;
  struct reader reader;
  int r = 0;

  if (reader_init (&reader, c->st, 256 * KiB, e) == -1)
    return -1;
  for (size_t i = 0; i < l->nr && r == 0; ++i) {
    const struct segment *s = &l->items[i];
    uint64_t at = s->start;

    while (r == 0 && (at = round_down (check_skip_hole (c, at, s->end), 8))
           < s->end) {
      size_t len = (size_t) min_u64 (reader.size, s->end - at);
      const uint8_t *p = reader_get (&reader, at, len, &read_error);

      if (p)
        r = each_in_piece (c, s, at, p, len, fn, e);
      else if (c->strict)
        r = error_set (e, read_error.err, "%s", read_error.text);
      else if (c->first)
        check_finding (c, FINDING_ERROR, "ERROR: cannot read the table at 0x%"
                       PRIx64 ": %s", at, read_error.text);
      error_clear (&read_error);
      at += len;
    }
  }
  reader_free (&reader);
  return r;
}

/* ---- snapshots and bitmaps: where their tables are ---- */

static bool
in_file (const struct checker *c, uint64_t host, uint64_t length)
{
  uint64_t file = c->nr_clusters << c->q->cluster_bits;

  return host <= file && length <= file - host;
}

static int
add_l1 (struct checker *c, struct segments *l, uint64_t host, uint32_t entries,
        bool active, struct error *e)
{
  uint64_t length = (uint64_t) entries * 8;

  if (!in_file (c, host, length)) {
    check_outside (c, FINDING_LOST, host, length);
    return 0;
  }
  return segments_add (l, host, host + length, active, e);
}

static int
add_snapshot (struct checker *c, struct segments *l, uint32_t index,
              const struct snapshot_entry *s, struct error *e)
{
  char raw[256], *name;
  const char *what = NULL;

  if (s->incomplete)
    check_finding (c, FINDING_SNAPSHOT,
                   "ERROR snapshot table entry %u is incomplete", index);
  if (!is_aligned (s->l1_table_offset, c->q->cluster_size))
    what = "L1 table is not cluster aligned";
  else if (s->l1_size > MAX_L1_BYTES / 8)
    what = "L1 table is too large";
  if (!what)
    return add_l1 (c, l, s->l1_table_offset, s->l1_size, false, e);
  snprintf (raw, sizeof raw, "snapshot %.*s (%.*s)", s->id_length, s->id,
            s->name_length, s->name);
  name = printable (raw);
  if (!name)
    return error_nomem (e, "a name", sizeof raw);
  check_finding (c, FINDING_LOST, "ERROR %s l1_offset=0x%" PRIx64
                 " l1_size=0x%" PRIx32 ": %s; snapshot table entry corrupted",
                 name, s->l1_table_offset, s->l1_size, what);
  free (name);
  return 0;
}

static int
find_l1_tables (struct checker *c, struct segments *l, struct error *e)
{
  const struct qcow2 *q = c->q;
  struct snapshot_iter it;
  struct snapshot_entry s;
  int r;

  if (add_l1 (c, l, q->l1_table_offset, q->l1_size, true, e) == -1
      || snapshot_iter_init (&it, c->q, e) == -1)
    return -1;
  while ((r = snapshot_iter_next (&it, &s, e)) == 1)
    if (add_snapshot (c, l, it.index - 1, &s, e) == -1) {
      r = -1;
      break;
    }
  c->snapshots_length = it.length;
  snapshot_iter_free (&it);
  return r;
}

/* What is wrong with the directory is a finding; what was read of it before
 * still counts.
 */
static int
find_bitmap_tables (struct checker *c, struct segments *l, struct error *e)
{
  struct error bad = ERROR_INIT;
  struct bitmap_iter it = { .nr = 0 };
  struct bitmap_entry b;
  int r;

  if (!qcow2_has_bitmaps (c->q))
    return 0;
  r = bitmap_iter_init (&it, c->q, &bad) == -1 ? -1 : 1;
  while (r == 1 && (r = bitmap_iter_next (&it, &b, &bad)) == 1) {
    uint64_t length = (uint64_t) b.table_size * 8;

    if (!in_file (c, b.table_offset, length))
      check_outside (c, FINDING_LOST, b.table_offset, length);
    else if (segments_add (l, b.table_offset, b.table_offset + length, false,
                           e) == -1)
      break;
  }
  bitmap_iter_free (&it);
  if (r == -1 && bad.err == ENOMEM)
    return error_set (e, ENOMEM, "%s", bad.text);
  if (r == -1)
    check_finding (c, FINDING_LOST, "ERROR: %s", bad.text);
  return e->err ? -1 : 0;
}

int
check_find_tables (struct checker *c, struct error *e)
{
  struct segments l1 = { .nr = 0 }, bitmaps = { .nr = 0 };
  uint64_t cluster = c->q->cluster_size;
  int r = -1;

  if (find_l1_tables (c, &l1, e) == 0
      && find_bitmap_tables (c, &bitmaps, e) == 0
      && segments_cut (&l1, 8, &c->l1, e) == 0
      && segments_cut (&l1, cluster, &c->l1_clusters, e) == 0
      && segments_cut (&bitmaps, 8, &c->bitmap_tables, e) == 0
      && segments_cut (&bitmaps, cluster, &c->bitmap_clusters, e) == 0)
    r = 0;
  segments_clear (&l1);
  segments_clear (&bitmaps);
  return r;
}

/* ---- metadata clusters ---- */

int
check_add_range (struct checker *c, uint64_t host, uint64_t length,
                 uint32_t nr, enum ref_kind kind, bool *inside,
                 struct error *e)
{
  unsigned bits = c->q->cluster_bits;
  uint64_t last = (host + length - 1) >> bits;

  *inside = true;
  if (length == 0)
    return 0;
  if (last >= c->nr_clusters) {
    *inside = false;
    return 0;
  }
  for (uint64_t i = host >> bits; i <= last; ++i)
    if (refmap_add (&c->refs, i, nr, kind, e) == -1)
      return -1;
  return 0;
}

/* Metadata at [host, host+length), NR times referred to. */
struct metadata {
  uint64_t host, length;
  uint32_t nr;
  const char *what;
  bool refcounts;               /* the refcount table, or a refcount block */
  uint64_t index;               /* of a refcount block */
};
typedef int (*visit_fn) (struct checker *c, const struct metadata *m,
                         struct error *e);

static int
visit_segments (struct checker *c, const struct segments *l, visit_fn visit,
                const char *what, struct error *e)
{
  for (size_t i = 0; i < l->nr; ++i) {
    const struct segment *s = &l->items[i];
    struct metadata m = {
      .host = s->start, .length = s->end - s->start, .nr = s->nr,
      .what = what,
    };

    if (visit (c, &m, e) == -1)
      return -1;
  }
  return 0;
}

static void
report_reftable_entry (struct checker *c, uint64_t i, uint64_t entry)
{
  uint64_t place = entry & ~REFTABLE_RESERVED;

  if (entry & REFTABLE_RESERVED)
    check_finding (c, FINDING_REFCOUNTS, "ERROR refcount table entry %" PRIu64
                   " has reserved bits set", i);
  if (!is_aligned (place, c->q->cluster_size))
    check_finding (c, FINDING_REFCOUNTS, "ERROR refcount block %" PRIu64
                   " is not cluster aligned; refcount table entry corrupted",
                   i);
  else if (place && !check_refblock (c, entry))
    check_finding (c, FINDING_REFCOUNTS, "ERROR refcount block %" PRIu64
                   " is outside image", i);
}

static const char refblock_name[] = "refcount block";

static int
visit_refblocks (struct checker *c, visit_fn visit, bool report,
                 struct error *e)
{
  uint64_t length = (uint64_t) c->q->refcount_table_clusters
    << c->q->cluster_bits;
  uint64_t at = 0, start = c->q->refcount_table_offset;
  struct metadata m = {
    .length = c->q->cluster_size, .nr = 1, .what = refblock_name,
    .refcounts = true,
  };
  struct reader reader;
  int r = 0;

  if (reader_init (&reader, c->st, 64 * KiB, e) == -1)
    return -1;
  for (; at < length && r == 0; at += 8) {
    const uint8_t *p;
    uint64_t entry;

    if (at % reader.size == 0)
      at = round_down (check_skip_hole (c, start + at, start + length)
                       - start, 8);
    p = at < length ? reader_get (&reader, start + at, 8, e) : NULL;
    if (!p)
      break;
    entry = get_be64 (p);
    if (report && entry)
      report_reftable_entry (c, at / 8, entry);
    m.host = check_refblock (c, entry);
    m.index = at / 8;
    if (m.host)
      r = visit (c, &m, e);
  }
  reader_free (&reader);
  return e->err ? -1 : r;
}

static int
visit_metadata (struct checker *c, visit_fn visit, bool report,
                struct error *e)
{
  const struct qcow2 *q = c->q;
  const struct metadata header = {
    .length = q->cluster_size, .nr = 1, .what = "header",
  }, reftable = {
    .host = q->refcount_table_offset, .nr = 1, .what = "refcount table",
    .length = (uint64_t) q->refcount_table_clusters << q->cluster_bits,
    .refcounts = true,
  }, snapshots = {
    .host = q->snapshots_offset, .length = c->snapshots_length, .nr = 1,
    .what = "snapshot table",
  }, bitmaps = {
    .host = q->bitmap_directory_offset, .length = q->bitmap_directory_size,
    .nr = 1, .what = "bitmap directory",
  }, crypto = {
    .host = q->crypto_header_offset, .length = q->crypto_header_length,
    .nr = 1, .what = "encryption header",
  };

  if (visit (c, &header, e) == -1
      || visit_segments (c, &c->l1_clusters, visit, "L1 table", e) == -1)
    return -1;
  if (!c->ignore_refcounts
      && (visit (c, &reftable, e) == -1
          || visit_refblocks (c, visit, report, e) == -1))
    return -1;
  if ((q->nb_snapshots > 0 && visit (c, &snapshots, e) == -1)
      || (q->crypto_header_length && visit (c, &crypto, e) == -1))
    return -1;
  if (!qcow2_has_bitmaps (c->q))
    return 0;
  if (visit (c, &bitmaps, e) == -1)
    return -1;
  return visit_segments (c, &c->bitmap_clusters, visit, "bitmap table", e);
}

static int
visit_add (struct checker *c, const struct metadata *m, struct error *e)
{
  bool inside;

  if (check_add_range (c, m->host, m->length, m->nr, REF_PLAIN, &inside,
                       e) == -1)
    return -1;
  if (!inside && c->first)
    check_outside (c, m->refcounts ? FINDING_REFCOUNTS : FINDING_LOST,
                   m->host, m->length);
  return 0;
}

/* Bits 1 to 8 and 56 to 63; bit 0 too when there is an offset. */
#define BITMAP_RESERVED UINT64_C (0xff000000000001fe)

static int
add_bitmap_data (struct checker *c, const struct segment *s, uint64_t host,
                 uint64_t entry, struct error *e)
{
  uint64_t place = entry & ENTRY_OFFSET_MASK;
  bool inside;

  (void) host;
  if (c->first && ((entry & BITMAP_RESERVED) || (place && (entry & 1))))
    check_finding (c, FINDING_CORRUPTION, "ERROR bitmap table entry %" PRIx64
                   " has reserved bits set", entry);
  if (c->first && !is_aligned (place, c->q->cluster_size))
    check_finding (c, FINDING_LOST, "ERROR bitmap data offset=%" PRIx64
                   " is not properly aligned", place);
  if (place == 0)
    return 0;
  if (check_add_range (c, place, c->q->cluster_size, s->nr, REF_PLAIN,
                       &inside, e) == -1)
    return -1;
  if (!inside && c->first)
    check_outside (c, FINDING_LOST, place, c->q->cluster_size);
  return 0;
}

int
check_walk (struct checker *c, struct error *e)
{
  c->flags_suspect = false;
  if (visit_metadata (c, visit_add, c->first, e) == -1
      || check_each_entry (c, &c->bitmap_tables, add_bitmap_data, e) == -1)
    return -1;
  return check_each_l2_part (c, NULL, check_walk_l2, e);
}

/* ---- overlaps ---- */

static int
visit_overlap (struct checker *c, const struct metadata *m, struct error *e)
{
  unsigned bits = c->q->cluster_bits;
  char index[32] = "";

  (void) e;
  if (m->length == 0 || (m->host + m->length - 1) >> bits >= c->nr_clusters)
    return 0;
  for (uint64_t i = m->host >> bits; i <= (m->host + m->length - 1) >> bits;
       ++i) {
    uint64_t count = refmap_get (&c->refs, i).count;

    if (count <= 1)
      continue;
    if (m->what == refblock_name)
      snprintf (index, sizeof index, " %" PRIu64, m->index);
    check_finding (c, m->refcounts ? FINDING_REFCOUNTS : FINDING_SHARED,
                   "ERROR %s%s refcount=%" PRIu64 " (cluster %" PRIu64 ")",
                   m->what, index, count, i);
  }
  return 0;
}

/* L1 entries may share an L2 table, but nothing else may be there. */
static int
l2_overlaps (struct checker *c, void *opaque, struct error *e)
{
  (void) opaque;
  (void) e;
  for (size_t i = 0; i < c->nr_l2; ++i) {
    uint64_t cluster = c->l2[i].host >> c->q->cluster_bits;
    uint64_t count = refmap_get (&c->refs, cluster).count;

    if (count > c->l2[i].refs)
      check_finding (c, FINDING_SHARED, "ERROR L2 table refcount=%" PRIu64
                     " (cluster %" PRIu64 "), of these %u by L1 entries",
                     count, cluster, c->l2[i].refs);
  }
  return 0;
}

int
check_overlaps (struct checker *c, struct error *e)
{
  if (visit_metadata (c, visit_overlap, false, e) == -1)
    return -1;
  return check_each_l2_part (c, NULL, l2_overlaps, e);
}

/* ---- entry point ---- */

static int
find_backing (struct checker *c, struct error *e)
{
  uint8_t field[8];

  if (storage_pread (c->st, field, sizeof field, H_BACKING_FILE_OFFSET,
                     e) == -1)
    return -1;
  c->names_backing = get_be64 (field) != 0;
  return 0;
}

int
checker_init (struct checker *c, struct qcow2 *q,
              const struct format_check_options *opts,
              struct format_check_result *result, uint64_t memory,
              struct error *e)
{
  memset (c, 0, sizeof *c);
  memset (result, 0, sizeof *result);
  c->q = q;
  c->st = q->format.storage;
  c->opts = opts;
  c->result = result;
  c->nr_clusters = div_round_up (storage_size (c->st), q->cluster_size);
  c->memory = (size_t) max_u64 (memory ? memory : DEFAULT_MEMORY, MIN_MEMORY);
  c->max_l2 = c->memory / 8 / sizeof *c->l2;
  c->first = true;
  if (q->version < 3 && find_backing (c, e) == -1)
    return -1;
  return refmap_init (&c->refs, c->memory / 8 * 5, e);
}

void
checker_free (struct checker *c)
{
  refmap_free (&c->refs);
  segments_clear (&c->l1);
  segments_clear (&c->l1_clusters);
  segments_clear (&c->bitmap_tables);
  segments_clear (&c->bitmap_clusters);
  free (c->l2);
}

int
check_each_window (struct checker *c, void *opaque,
                   int (*fn) (struct checker *c, void *opaque,
                              struct error *e), struct error *e)
{
  uint64_t lo = 0;

  do {
    refmap_begin (&c->refs, lo, c->nr_clusters);
    if (check_walk (c, e) == -1 || fn (c, opaque, e) == -1)
      return -1;
    c->first = false;
    lo = c->refs.hi;
  } while (lo < c->nr_clusters);
  return 0;
}

static int
check_window (struct checker *c, void *opaque, struct error *e)
{
  (void) opaque;
  if (check_overlaps (c, e) == -1 || check_compare (c, e) == -1)
    return -1;
  return c->flags_suspect ? check_flags (c, e) : 0;
}

int
check_run (struct checker *c, struct error *e)
{
  const struct qcow2 *q = c->q;

  if (q->version >= 3 && q->header_length % 8)
    check_finding (c, FINDING_NOTE, "Warning: the header length %" PRIu32
                   " is not a multiple of 8", q->header_length);
  if ((q->autoclear_features & AUTOCLEAR_DATA_FILE_RAW)
      && !(q->incompatible_features & INCOMPAT_DATA_FILE))
    check_finding (c, FINDING_AUTOCLEAR, "ERROR the external data file is"
                   " called raw, and there is none");
  if (check_find_tables (c, e) == -1
      || check_each_window (c, NULL, check_window, e) == -1)
    return -1;
  return check_progress (c, 1, 1, e);
}

int
qcow2_check (struct format *f, const struct format_check_options *opts,
             struct format_check_result *result, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct checker c;
  int r;

  r = checker_init (&c, q, opts, result, opts->memory, e);
  if (r == 0)
    r = check_run (&c, e);
  result->total_clusters = div_round_up (f->info.size, q->cluster_size);
  result->image_end_offset = c.end << q->cluster_bits;
  checker_free (&c);
  if (r == 0 && opts->repair != REPAIR_NONE)
    return qcow2_repair (q, opts, &c.damage, c.end, result, e);
  return r == -1 ? error_prefix (e, "%s: check", f->storage->name) : 0;
}
