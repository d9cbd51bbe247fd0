/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Refcounts of an image with the dirty bit: another program postponed them and
 * did not come to write them.  Layer: formats.  Locking: no other call is
 * inside; the mutex is taken only to change what it guards.
 * Specification: "Dirty bit", "Lazy refcounts bit".
 *
 * The tables say what is in use.  Where refcount blocks exist for all of it
 * they are put right in place: until the dirty bit is cleared, behind a
 * barrier, a crash only means that it is done again.  Where a block is missing
 * all refcounts are written anew behind the last cluster in use, barrier, and
 * the header is switched over to them by one write within a sector, barrier.
 * A crash before that leaves the old ones and the dirty bit, a crash after it
 * the new ones and the dirty bit.
 *
 * An image whose tables are damaged is refused: what they say cannot be
 * trusted, and new refcounts would hand their clusters out again.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/refs.h"

/* ---- survey ---- */

struct survey {
  uint64_t end;                 /* clusters up to the last one in use */
  bool rebuild;                 /* a refcount block is missing */
  bool one_window;              /* the counts are still in the map */
};

/* Is there a refcount block for CLUSTER? */
static int
has_refblock (struct checker *c, struct reader *reader, uint64_t cluster,
              bool *yes, struct error *e)
{
  uint64_t i = cluster >> c->q->refblock_bits;
  const uint8_t *p;

  *yes = false;
  if (i >= (uint64_t) c->q->refcount_table_clusters
      << (c->q->cluster_bits - 3))
    return 0;
  p = reader_get (reader, c->q->refcount_table_offset + i * 8, 8, e);
  if (!p)
    return -1;
  *yes = check_refblock (c, get_be64 (p)) != 0;
  return 0;
}

static int
survey_page (struct checker *c, struct reader *reader,
             const struct refpage *p, struct survey *s, struct error *e)
{
  uint64_t first = p->index << REF_PAGE_BITS, known = UINT64_MAX;
  bool yes;

  for (unsigned i = 0; i < REF_PAGE; ++i) {
    struct refcell cell = refpage_get (p, i);
    uint64_t block = (first + i) >> c->q->refblock_bits;

    if (cell.count == 0)
      continue;
    s->end = max_u64 (s->end, first + i + 1);
    if (cell.count > refcount_max (c->q))
      return error_set (e, EIO, "cluster %" PRIu64 " has %" PRIu64
                        " references, its refcount cannot say that",
                        first + i, cell.count);
    if (cell.count > 1 && cell.copied)
      return error_set (e, EIO, "cluster %" PRIu64 " has %" PRIu64
                        " references, one of them is marked as the only one",
                        first + i, cell.count);
    if (block == known)
      continue;
    known = block;
    if (has_refblock (c, reader, first + i, &yes, e) == -1)
      return -1;
    s->rebuild |= !yes;
  }
  return 0;
}

static int
survey_window (struct checker *c, struct survey *s, struct error *e)
{
  struct refpage **pages = refmap_sorted (&c->refs, e);
  struct reader reader = { .buf = NULL };
  size_t nr = c->refs.nr_pages;
  int r = -1;

  if (pages && reader_init (&reader, c->st, 64 * KiB, e) == 0) {
    r = 0;
    for (size_t i = 0; i < nr && r == 0; ++i)
      r = survey_page (c, &reader, pages[i], s, e);
  }
  reader_free (&reader);
  free (pages);
  return r;
}

/* Run FN for each window, after a walk. */
static int
each_window (struct checker *c, struct survey *s,
             int (*fn) (struct checker *, struct survey *, struct error *),
             struct error *e)
{
  uint64_t lo = 0;

  do {
    refmap_begin (&c->refs, lo, c->nr_clusters);
    if (check_walk (c, e) == -1 || check_overlaps (c, e) == -1
        || fn (c, s, e) == -1)
      return -1;
    c->first = false;
    s->one_window = lo == 0;
    lo = c->refs.hi;
  } while (lo < c->nr_clusters);
  return 0;
}

static int
survey (struct checker *c, struct survey *s, struct error *e)
{
  if (check_find_tables (c, e) == -1
      || each_window (c, s, survey_window, e) == -1)
    return -1;
  if (c->result->corruptions || c->result->check_errors)
    return error_set (e, EIO, "its tables are damaged: %s",
                      c->first_corruption[0] ? c->first_corruption
                      : "a table cannot be read");
  return 0;
}

/* ---- in place ---- */

/* Make the refcounts of the block for clusters FIRST.. what the map says, as
 * far as they belong to the window.  Behind the file everything is free.
 */
static bool
mend_block (const struct checker *c, uint64_t first, uint8_t *block)
{
  unsigned order = c->q->refcount_order;
  uint64_t nr = UINT64_C (1) << c->q->refblock_bits;
  uint64_t hi = c->refs.hi >= c->nr_clusters ? UINT64_MAX : c->refs.hi;
  const struct refpage *p = NULL;
  bool changed = false;

  for (uint64_t i = 0; i < nr; ++i) {
    uint64_t cluster = first + i, want;

    if (i == 0 || cluster % REF_PAGE == 0)
      p = refmap_page (&c->refs, cluster);
    if (cluster < c->refs.lo || cluster >= hi)
      continue;
    want = p ? refpage_get (p, (unsigned) (cluster & (REF_PAGE - 1))).count
      : 0;
    if (refcount_get (block, i, order) != want) {
      refcount_set (block, i, order, want);
      changed = true;
    }
  }
  return changed;
}

static int
mend_block_at (struct checker *c, uint64_t first, uint64_t host,
               uint8_t *block, struct error *e)
{
  size_t len = (size_t) c->q->cluster_size;

  if (storage_pread (c->st, block, len, host, e) == -1)
    return -1;
  if (!mend_block (c, first, block))
    return 0;
  mutex_lock (&c->q->mutex);
  table_drop_locked (c->q, host, len);
  mutex_unlock (&c->q->mutex);
  return storage_pwrite (c->st, block, len, host, 0, e);
}

static int
mend_window (struct checker *c, struct survey *s, struct error *e)
{
  unsigned bits = c->q->refblock_bits;
  uint64_t nr = (uint64_t) c->q->refcount_table_clusters
    << (c->q->cluster_bits - 3);
  CLEANUP_FREE uint8_t *block = malloc ((size_t) c->q->cluster_size);
  struct reader reader;
  int r = 0;

  (void) s;
  if (!block)
    return error_nomem (e, "a refcount block", (size_t) c->q->cluster_size);
  if (reader_init (&reader, c->st, 64 * KiB, e) == -1)
    return -1;
  for (uint64_t i = c->refs.lo >> bits;
       i < nr && i << bits < c->refs.hi && r == 0; ++i) {
    const uint8_t *p = reader_get (&reader, c->q->refcount_table_offset
                                   + i * 8, 8, e);
    uint64_t host = p ? check_refblock (c, get_be64 (p)) : 0;

    r = !p ? -1 : host ? mend_block_at (c, i << bits, host, block, e) : 0;
  }
  reader_free (&reader);
  return r;
}

/* ---- anew ----
 *
 * The new blocks lie side by side, in order, so that the refcounts are one
 * array: that of cluster N is entry N.
 */

struct rebuild {
  uint64_t blocks, table;       /* clusters */
  uint64_t first;               /* cluster of the first block */
  uint64_t end;                 /* cluster behind the table */
  uint8_t *buf;                 /* owned; REF_PAGE refcounts */
};

static int
plan_rebuild (const struct checker *c, const struct survey *s,
              struct rebuild *n, struct error *e)
{
  const struct qcow2 *q = c->q;
  uint64_t per_block = UINT64_C (1) << q->refblock_bits;

  n->first = s->end;
  n->blocks = n->table = 1;
  do {
    n->end = n->first + n->blocks + n->table;
    n->blocks = div_round_up (n->end, per_block);
    n->table = div_round_up (n->blocks * 8, q->cluster_size);
  } while (n->end != n->first + n->blocks + n->table);
  if (n->table << q->cluster_bits > MAX_REFTABLE_BYTES)
    return error_set (e, EFBIG, "a refcount table of %" PRIu64 " clusters would"
                      " be too large", n->table);
  return 0;
}

/* The refcounts of the clusters of page INDEX: of those in use, and of the new
 * blocks and table.
 */
static int
write_page (struct checker *c, const struct rebuild *n, uint64_t index,
            struct error *e)
{
  unsigned order = c->q->refcount_order;
  size_t len = (size_t) REF_PAGE << order >> 3;
  uint64_t first = index << REF_PAGE_BITS;
  const struct refpage *p = refmap_page (&c->refs, first);
  uint64_t at = n->first << c->q->cluster_bits, room;

  memset (n->buf, 0, len);
  for (unsigned i = 0; i < REF_PAGE; ++i) {
    uint64_t count = p ? refpage_get (p, i).count : 0;

    if (first + i >= n->first && first + i < n->end)
      count = 1;
    if (count)
      refcount_set (n->buf, i, order, count);
  }
  at += first << order >> 3;
  room = ((n->first + n->blocks) << c->q->cluster_bits) - at;
  return storage_pwrite (c->st, n->buf, (size_t) min_u64 (len, room), at, 0,
                         e);
}

static int
write_window (struct checker *c, const struct rebuild *n, struct error *e)
{
  struct refpage **pages = refmap_sorted (&c->refs, e);
  size_t nr = c->refs.nr_pages;
  int r = pages ? 0 : -1;

  for (size_t i = 0; i < nr && r == 0; ++i)
    r = write_page (c, n, pages[i]->index, e);
  free (pages);
  return r;
}

static int
write_blocks (struct checker *c, struct survey *s, const struct rebuild *n,
              struct error *e)
{
  uint64_t lo = 0;

  if (storage_zero (c->st, n->first << c->q->cluster_bits,
                    (n->end - n->first) << c->q->cluster_bits, 0, e) == -1)
    return -1;
  (void) s;
  c->ignore_refcounts = true;
  do {
    refmap_begin (&c->refs, lo, c->nr_clusters);
    if (check_walk (c, e) == -1 || write_window (c, n, e) == -1)
      return -1;
    lo = c->refs.hi;
  } while (lo < c->nr_clusters);
  /* The last window is still in the map, and with it the page in which the
   * clusters in use end and the new ones begin.
   */
  for (uint64_t i = n->first >> REF_PAGE_BITS;
       i <= (n->end - 1) >> REF_PAGE_BITS; ++i)
    if (write_page (c, n, i, e) == -1)
      return -1;
  return 0;
}

static int
write_table (struct checker *c, const struct rebuild *n, struct error *e)
{
  unsigned bits = c->q->cluster_bits;
  size_t len = (size_t) n->table << bits;
  CLEANUP_FREE uint8_t *table = calloc (1, len);

  if (!table)
    return error_nomem (e, "the refcount table", len);
  for (uint64_t i = 0; i < n->blocks; ++i)
    put_be64 (table + i * 8, (n->first + i) << bits);
  return storage_pwrite (c->st, table, len, (n->first + n->blocks) << bits, 0,
                         e);
}

/* refcount_table_offset and refcount_table_clusters, side by side in one
 * sector.
 */
static int
switch_table (struct checker *c, const struct rebuild *n, struct error *e)
{
  uint64_t host = (n->first + n->blocks) << c->q->cluster_bits;
  struct qcow2 *q = c->q;
  uint8_t field[12];

  put_be64 (field, host);
  put_be32 (field + 8, (uint32_t) n->table);
  if (storage_flush (c->st, e) == -1
      || qcow2_write_header (q, H_REFCOUNT_TABLE_OFFSET, field, sizeof field,
                             e) == -1
      || storage_flush (c->st, e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  table_drop_locked (q, q->refcount_table_offset,
                     (uint64_t) q->refcount_table_clusters << q->cluster_bits);
  q->refcount_table_offset = host;
  q->refcount_table_clusters = (uint32_t) n->table;
  mutex_unlock (&q->mutex);
  return 0;
}

static int
rebuild (struct checker *c, struct survey *s, struct error *e)
{
  struct rebuild n = { .buf = NULL };
  CLEANUP_FREE uint8_t *buf = malloc (REF_PAGE * sizeof (uint64_t));

  if (!buf)
    return error_nomem (e, "refcounts", REF_PAGE * sizeof (uint64_t));
  n.buf = buf;
  if (plan_rebuild (c, s, &n, e) == -1
      || write_blocks (c, s, &n, e) == -1
      || write_table (c, &n, e) == -1)
    return -1;
  return switch_table (c, &n, e);
}

/* ---- entry point ---- */

static int
mend (struct checker *c, struct error *e)
{
  struct survey s = { .end = 0 };

  if (survey (c, &s, e) == -1)
    return -1;
  if (s.rebuild)
    return rebuild (c, &s, e);
  return s.one_window ? mend_window (c, &s, e)
    : each_window (c, &s, mend_window, e);
}

/* The COPIED flags come last: they follow from the refcounts. */
int
qcow2_mend (struct qcow2 *q, struct error *e)
{
  struct format_check_result result;
  struct checker c;
  int r;

  r = checker_init (&c, q, NULL, &result, 0, e);
  if (r == 0)
    r = mend (&c, e);
  checker_free (&c);
  if (r == 0 && !(q->incompatible_features & INCOMPAT_DATA_FILE))
    r = qcow2_rebuild_flags (q, e);
  return r == -1 ? -1 : storage_flush (q->format.storage, e);
}

int
qcow2_mend_dirty (struct qcow2 *q, struct error *e)
{
  int r = qcow2_mend (q, e);

  if (r == 0)
    r = qcow2_clear_dirty (q, e);
  return r == -1 ? error_prefix (e, "%s: the image was not closed cleanly, and"
                                 " its refcounts cannot be rebuilt",
                                 q->format.storage->name) : 0;
}
