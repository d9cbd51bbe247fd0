/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The checker's walk over L1 and L2 tables: see check.h.
 * Layer: formats.  Locking: the image is frozen, one thread.
 * Specification: "Cluster mapping", "Extended L2 Entries".
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>

#include "formats/qcow2/check.h"

/* ---- the list of L2 tables ---- */

static int
compare_items (const void *a, const void *b)
{
  const struct l2_item *ia = a, *ib = b;

  return (ia->host > ib->host) - (ia->host < ib->host);
}

static uint32_t
add_saturated (uint32_t a, uint32_t b)
{
  return a > UINT32_MAX - b ? UINT32_MAX : a + b;
}

/* Sort the items, and make one of those for the same table. */
static void
merge_items (struct checker *c)
{
  size_t n = 0;

  if (c->nr_l2 == 0)
    return;
  qsort (c->l2, c->nr_l2, sizeof *c->l2, compare_items);
  for (size_t i = 0; i < c->nr_l2; ++i) {
    struct l2_item *to = n > 0 ? &c->l2[n - 1] : NULL;
    const struct l2_item *from = &c->l2[i];

    if (!to || to->host != from->host) {
      c->l2[n++] = *from;
      continue;
    }
    to->refs = add_saturated (to->refs, from->refs);
    if (from->active_refs)
      to->l1_index = from->l1_index;
    to->active_refs = add_saturated (to->active_refs, from->active_refs);
    to->copied |= from->copied;
  }
  c->nr_l2 = n;
}

/* Room for one more item: more memory, or fewer items, or, when both are used
 * up, a shorter part of the image.
 */
static int
make_room (struct checker *c, struct error *e)
{
  struct l2_item *items;
  size_t alloc = c->alloc_l2 ? c->alloc_l2 * 2 : 1024;

  if (c->alloc_l2 < c->max_l2) {
    alloc = min_u64 (alloc, c->max_l2);
    items = realloc (c->l2, alloc * sizeof *items);
    if (!items)
      return error_nomem (e, "L2 tables", alloc * sizeof *items);
    c->l2 = items;
    c->alloc_l2 = alloc;
    return 0;
  }
  merge_items (c);
  if (c->nr_l2 > c->max_l2 / 4 * 3) {
    c->l2_hi = c->l2[c->max_l2 / 2].host;
    c->nr_l2 = c->max_l2 / 2;
  }
  return 0;
}

static void
report_l1_entry (struct checker *c, const char *what, uint64_t entry)
{
  if (!c->l2_reported)
    check_finding (c, FINDING_ENTRY, "ERROR %s: %" PRIx64, what, entry);
}

static int
collect_l1_entry (struct checker *c, const struct segment *s, uint64_t host,
                  uint64_t entry, struct error *e)
{
  uint64_t offset = entry & ENTRY_OFFSET_MASK;
  struct l2_item item = { .host = offset, .refs = s->nr };

  if (entry & L1_RESERVED & ~ENTRY_OFFSET_MASK)
    report_l1_entry (c, "found L1 entry with reserved bits set", entry);
  if (offset == 0) {
    report_l1_entry (c, "found L1 entry without an L2 table", entry);
    return 0;
  }
  if (!is_aligned (offset, c->q->cluster_size)) {
    c->damage.lost_l2++;
    if (!c->l2_reported)
      check_finding (c, FINDING_LOST, "ERROR l2_offset=%" PRIx64
                     ": Table is not cluster aligned; L1 entry corrupted",
                     offset);
    return 0;
  }
  if (offset >> c->q->cluster_bits >= c->nr_clusters) {
    c->damage.lost_l2++;
    c->flags_suspect |= s->active;
    if (!c->l2_reported)
      check_outside (c, FINDING_LOST, offset, c->q->cluster_size);
    return 0;
  }
  if (offset < c->l2_lo || offset >= c->l2_hi)
    return 0;
  if (s->active) {
    item.active_refs = 1;
    item.l1_index = (uint32_t) ((host - c->q->l1_table_offset) / 8);
    item.copied = entry & ENTRY_COPIED;
  }
  if (c->nr_l2 == c->alloc_l2 && make_room (c, e) == -1)
    return -1;
  if (offset < c->l2_hi)
    c->l2[c->nr_l2++] = item;
  return 0;
}

int
check_each_l2_part (struct checker *c, void *opaque,
                    int (*fn) (struct checker *c, void *opaque,
                               struct error *e),
                    struct error *e)
{
  if (c->l2_complete)
    return fn (c, opaque, e);
  c->l2_hi = 0;
  do {
    c->l2_lo = c->l2_hi;
    c->l2_hi = UINT64_MAX;
    c->nr_l2 = 0;
    if (check_each_entry (c, &c->l1, collect_l1_entry, e) == -1)
      return -1;
    merge_items (c);
    c->l2_complete = c->l2_lo == 0 && c->l2_hi == UINT64_MAX;
    c->l2_reported = true;
    if (fn (c, opaque, e) == -1)
      return -1;
  } while (c->l2_hi != UINT64_MAX);
  return 0;
}

static uint64_t
l2_host (const void *opaque, size_t i)
{
  const struct checker *c = opaque;

  return c->l2[i].host;
}

/* ---- one L2 table ---- */

/* A table while its entries are looked at. */
struct walk {
  const struct l2_item *item;
  uint64_t guest;               /* of the entry; active tables only */
  struct l2_entry v;
  uint64_t next;                /* host offset behind the last plain cluster;
                                   0 = none yet */
};

static void
count_allocated (struct checker *c, struct walk *w, bool fragmented,
                 bool compressed)
{
  uint32_t n = c->first ? w->item->active_refs : 0;

  c->result->allocated_clusters += n;
  if (fragmented)
    c->result->fragmented_clusters += n;
  if (compressed)
    c->result->compressed_clusters += n;
}

static void
count_plain (struct checker *c, struct walk *w, uint64_t host)
{
  count_allocated (c, w, w->next != 0 && host != w->next, false);
  w->next = host + c->q->cluster_size;
}

static int
walk_compressed (struct checker *c, struct walk *w, struct error *e)
{
  uint64_t host, length, entry = w->v.entry;
  bool inside;

  if (c->q->incompatible_features & INCOMPAT_DATA_FILE) {
    if (c->first)
      check_finding (c, FINDING_LOST, "ERROR compressed cluster %" PRIu64
                     " with data file, entry=0x%" PRIx64,
                     w->guest >> c->q->cluster_bits, entry);
    return 0;
  }
  qcow2_packed_range (c->q, entry, &host, &length);
  if (c->first && (entry & ENTRY_COPIED))
    check_finding (c, FINDING_ENTRY, "ERROR: coffset=0x%" PRIx64
                   ": copied flag must never be set for compressed clusters",
                   host);
  if (c->first && w->v.bitmap)
    check_finding (c, FINDING_ENTRY, "ERROR compressed cluster %" PRIu64
                   " with non-zero subcluster allocation bitmap, entry=0x%"
                   PRIx64, w->guest >> c->q->cluster_bits, entry);
  count_allocated (c, w, true, true);
  if (c->first && host < c->q->cluster_size)
    check_finding (c, FINDING_LOST, "ERROR compressed cluster at 0x%" PRIx64
                   ", where the header is", host);
  if (c->repairing && host < c->q->cluster_size)
    return 0;
  if (check_add_range (c, host, length, w->item->refs, REF_PLAIN, &inside,
                       e) == -1)
    return -1;
  if (!inside && c->first)
    check_outside (c, FINDING_LOST, host, length);
  return 0;
}

uint64_t
check_l2_reserved (const struct qcow2 *q)
{
  uint64_t reserved = L2_RESERVED & ~ENTRY_OFFSET_MASK;

  return q->version < 3 || q->extended_l2 ? reserved | L2_ZERO : reserved;
}

bool
check_needs_no_host (const struct qcow2 *q, struct l2_entry v)
{
  if (v.entry & check_l2_reserved (q))
    return false;
  if (q->extended_l2)
    return (uint32_t) v.bitmap == 0;
  return q->version >= 3 && (v.entry & L2_ZERO);
}

bool
check_can_drop_host (const struct checker *c, struct l2_entry v)
{
  if ((uint32_t) v.bitmap & (v.bitmap >> 32))
    return false;
  return c->q->version >= 3 || !c->names_backing;
}

/* What is wrong with an entry in itself. */
static void
report_entry (struct checker *c, const struct walk *w, uint64_t host)
{
  const struct qcow2 *q = c->q;
  uint64_t entry = w->v.entry;
  bool data_file = q->incompatible_features & INCOMPAT_DATA_FILE;

  if (entry & check_l2_reserved (q))
    check_finding (c, FINDING_ENTRY,
                   "ERROR found l2 entry with reserved bits set: %" PRIx64,
                   entry);
  if ((uint32_t) w->v.bitmap & (w->v.bitmap >> 32))
    check_finding (c, FINDING_CORRUPTION, "ERROR offset=%" PRIx64 ": Allocated"
                   " cluster has corrupted subcluster allocation bitmap",
                   host);
  if (host == 0 && (uint32_t) w->v.bitmap && !data_file)
    check_finding (c, FINDING_LOST, "ERROR: Unallocated cluster has"
                   " non-zero subcluster allocation map");
  if (!is_aligned (host, q->cluster_size))
    check_finding (c, check_needs_no_host (q, w->v) ? FINDING_ENTRY
                   : FINDING_LOST, "ERROR offset=%" PRIx64 ": %s cluster"
                   " is not properly aligned; L2 entry corrupted.", host,
                   entry & L2_ZERO ? "Preallocated" : "Data");
}

/* In an external data file an entry says that a cluster is there, and its place
 * must be the guest's.  Nothing there has a refcount, so COPIED must be set.
 */
static void
walk_data_file_entry (struct checker *c, struct walk *w, uint64_t host)
{
  uint64_t entry = w->v.entry;

  if (host == 0 && !(entry & ENTRY_COPIED)) {
    if (c->first && (uint32_t) w->v.bitmap)
      check_finding (c, FINDING_CORRUPTION, "ERROR: Unallocated cluster has"
                     " non-zero subcluster allocation map");
    return;
  }
  /* A cluster that reads as zeroes may leave its place out. */
  if (host == 0 && w->guest != 0 && (entry & L2_ZERO))
    return;
  count_plain (c, w, host);
  if (!c->first)
    return;
  if (host != w->guest)
    check_finding (c, FINDING_CORRUPTION, "ERROR offset=%" PRIx64 ": the"
                   " cluster of guest offset %" PRIx64 " has another place in"
                   " the data file", host, w->guest);
  if (!(entry & ENTRY_COPIED))
    check_finding (c, host == w->guest ? FINDING_FLAG : FINDING_ENTRY,
                   "ERROR OFLAG_COPIED data cluster: l2_entry=%" PRIx64
                   " refcount=1", entry);
}

static enum ref_kind
entry_kind (const struct walk *w)
{
  if (!w->item->active_refs)
    return REF_PLAIN;
  return w->v.entry & ENTRY_COPIED ? REF_COPIED : REF_SHARED;
}

/* What points behind the end of the file reads as zeroes, and an entry without
 * a place can say so, but not in version 2 where there is a backing file.
 */
static enum finding
outside_kind (const struct checker *c, struct l2_entry v)
{
  uint64_t host = v.entry & ENTRY_OFFSET_MASK;

  if (!is_aligned (host, c->q->cluster_size))
    return FINDING_CORRUPTION;
  return check_can_drop_host (c, v) ? FINDING_ENTRY : FINDING_LOST;
}

static int
walk_entry (struct checker *c, struct walk *w, struct error *e)
{
  uint64_t host = w->v.entry & ENTRY_OFFSET_MASK;
  bool inside;

  if (w->v.entry & L2_COMPRESSED)
    return walk_compressed (c, w, e);
  if (c->first)
    report_entry (c, w, host);
  if (c->q->incompatible_features & INCOMPAT_DATA_FILE) {
    walk_data_file_entry (c, w, host);
    return 0;
  }
  if (host == 0 || (c->repairing && !is_aligned (host, c->q->cluster_size)))
    return 0;
  count_plain (c, w, host);
  if (check_add_range (c, host, c->q->cluster_size, w->item->refs,
                       entry_kind (w), &inside, e) == -1)
    return -1;
  if (!inside && c->first)
    check_outside (c, outside_kind (c, w->v), host, c->q->cluster_size);
  c->flags_suspect |= !inside && w->item->active_refs;
  return 0;
}

/* An aligned place inside the file, and no other bit but COPIED. */
static bool
is_simple (const struct checker *c, uint64_t entry)
{
  uint64_t host = entry & ~ENTRY_COPIED;

  return host != 0 && is_aligned (host, c->q->cluster_size)
    && host >> c->q->cluster_bits < c->nr_clusters;
}

static int
walk_table (struct checker *c, const struct l2_item *item,
            const uint8_t *table, struct error *e)
{
  const struct qcow2 *q = c->q;
  uint64_t nr = UINT64_C (1) << q->l2_bits;
  struct walk w = { .item = item };
  bool simple = !q->extended_l2
    && !(q->incompatible_features & INCOMPAT_DATA_FILE);

  for (uint64_t i = 0; i < nr; ++i, table += q->l2_entry_size) {
    w.v.entry = get_be64 (table);
    if (w.v.entry == 0 && !q->extended_l2)
      continue;
    if (simple && is_simple (c, w.v.entry)) {
      uint64_t host = w.v.entry & ~ENTRY_COPIED;

      count_plain (c, &w, host);
      if (refmap_add (&c->refs, host >> q->cluster_bits, item->refs,
                      entry_kind (&w), e) == -1)
        return -1;
      continue;
    }
    w.guest = (((uint64_t) item->l1_index << q->l2_bits) + i)
      << q->cluster_bits;
    w.v.bitmap = q->extended_l2 ? get_be64 (table + 8) : 0;
    if ((w.v.entry || w.v.bitmap) && walk_entry (c, &w, e) == -1)
      return -1;
  }
  return 0;
}

/* ---- all of a part ---- */

static int
add_l2_tables (struct checker *c, struct error *e)
{
  for (size_t i = 0; i < c->nr_l2; ++i) {
    const struct l2_item *item = &c->l2[i];
    enum ref_kind kind = item->copied ? REF_COPIED
      : item->active_refs ? REF_SHARED : REF_PLAIN;

    if (refmap_add (&c->refs, item->host >> c->q->cluster_bits, item->refs,
                    kind, e) == -1)
      return -1;
  }
  return 0;
}

static int
walk_stream (struct checker *c, struct table_stream *s, struct error *e)
{
  struct error read_error = ERROR_INIT;
  const uint8_t *table;
  size_t i;
  int r;

  while ((r = table_stream_next (s, &i, &table, &read_error)) != 0) {
    if (r == -1 && c->strict)
      return error_set (e, read_error.err, "%s", read_error.text);
    if (r == -1 && c->first)
      check_finding (c, FINDING_ERROR, "ERROR: cannot read the L2 table at 0x%"
                     PRIx64 ": %s", c->l2[i].host, read_error.text);
    error_clear (&read_error);
    if (r == 1 && walk_table (c, &c->l2[i], table, e) == -1)
      return -1;
    if (i % 64 == 0 && check_progress (c, i, c->nr_l2, e) == -1)
      return -1;
  }
  return 0;
}

int
check_walk_l2 (struct checker *c, void *opaque, struct error *e)
{
  struct table_stream *s;
  int r;

  (void) opaque;
  if (add_l2_tables (c, e) == -1)
    return -1;
  if (c->metadata_only)
    return 0;
  s = table_stream_new (c->st, c->q->cluster_size, c->nr_l2, l2_host, c,
                        c->memory / 8, e);
  if (!s)
    return -1;
  r = walk_stream (c, s, e);
  table_stream_free (s);
  return r;
}

int
check_each_l2_table (struct checker *c, void *opaque,
                     int (*fn) (struct checker *c, void *opaque,
                                const struct l2_item *item,
                                const uint8_t *table, struct error *e),
                     struct error *e)
{
  struct error read_error = ERROR_INIT;
  struct table_stream *s;
  const uint8_t *table;
  size_t i;
  int r, result = 0;

  s = table_stream_new (c->st, c->q->cluster_size, c->nr_l2, l2_host, c,
                        c->memory / 8, e);
  if (!s)
    return -1;
  while (result == 0
         && (r = table_stream_next (s, &i, &table, &read_error)) != 0) {
    if (r == 1)
      result = fn (c, opaque, &c->l2[i], table, e);
    else if (c->strict)
      result = error_set (e, read_error.err, "%s", read_error.text);
    error_clear (&read_error);
  }
  table_stream_free (s);
  return result;
}
