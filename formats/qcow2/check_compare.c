/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The checker's comparison of references with refcounts: see check.h.
 * Layer: formats.  Locking: the image is frozen, one thread.
 * Specification: "Host cluster management".
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "formats/qcow2/check.h"

/* Refcount blocks that are looked at in one go. */
enum { BATCH = 16384 };

struct batch {
  size_t nr;
  struct {
    uint64_t host, index;       /* index: in the refcount table */
  } blocks[BATCH];
};

struct compare {
  struct checker *c;
  struct refpage **pages;       /* owned; all of the window, in order */
  size_t nr_pages, page;        /* the first page that may still be needed */
  uint64_t cursor;              /* clusters before it were compared */
  uint8_t ones[16 * 8];         /* GROUP refcounts of 1 */
  struct batch *batch;          /* owned */
};

/* ---- one cluster ---- */

static void
compare_cluster (struct compare *k, uint64_t cluster, struct refcell cell,
                 uint64_t refcount)
{
  struct checker *c = k->c;

  if (cell.count || refcount)
    c->end = max_u64 (c->end, cluster + 1);
  c->damage.too_many += cell.count > refcount_max (c->q);
  if (refcount < cell.count)
    check_finding (c, FINDING_REFCOUNT, "ERROR cluster %" PRIu64
                   " refcount=%" PRIu64 " reference=%" PRIu64, cluster,
                   refcount, cell.count);
  else if (refcount > cell.count)
    check_finding (c, FINDING_LEAK, "Leaked cluster %" PRIu64
                   " refcount=%" PRIu64 " reference=%" PRIu64, cluster,
                   refcount, cell.count);
  if ((refcount != cell.count && cell.count > 0)
      || (cell.count == 1 && cell.shared)
      || (cell.count > 1 && cell.copied))
    c->flags_suspect = true;
}

/* Clusters [FIRST, FIRST+NR) of page P (or NULL) against the entries from INDEX
 * on of refcount block BLOCK (or NULL: all are 0).
 */
static void
compare_each (struct compare *k, uint64_t first, unsigned nr,
              struct refpage *p, const uint8_t *block, uint64_t index)
{
  for (unsigned i = 0; i < nr; ++i) {
    unsigned in_page = (unsigned) ((first + i) & (REF_PAGE - 1));
    struct refcell cell = { .count = 0 };
    uint64_t refcount = block
      ? refcount_get (block, index + i, k->c->q->refcount_order) : 0;

    if (p)
      cell = refpage_get (p, in_page);
    if (!cell.count && !refcount)
      continue;
    compare_cluster (k, first + i, cell, refcount);
    /* What is in use twice is not to be called somebody's own in a repair, even
     * if its refcount is too small.
     */
    if (p)
      refpage_put_refcount (p, in_page, k->c->repairing
                            ? max_u64 (refcount, cell.count) : refcount);
  }
}

/* ---- 16 clusters at once ----
 *
 * In an image without snapshots nearly all clusters are alike: one reference by
 * an entry that says COPIED and refcount 1, or free and refcount 0.
 */

enum { GROUP = 16 };
#define GROUP_COPIED (UINT64_C (0x1111111111111111) * (1 + REF_COPIED))
#define GROUP_REFCOUNT_1 UINT64_C (0x1111111111111111)

/* As compare_each for 16 clusters; false = they are not of that kind. */
static bool
compare_group (struct compare *k, uint64_t first, struct refpage *p,
               const uint8_t *entries)
{
  size_t len = (size_t) (GROUP << k->c->q->refcount_order) / 8;
  uint8_t *cells;
  uint64_t v = 0;

  if (p && p->width != REF_4_BITS)
    return false;
  if (p) {
    cells = p->data + (first & (REF_PAGE - 1)) / 2;
    memcpy (&v, cells, sizeof v);
  }
  if (v == 0)
    return is_zero (entries, len);
  if (v != GROUP_COPIED || memcmp (entries, k->ones, len) != 0)
    return false;
  v = GROUP_REFCOUNT_1;
  memcpy (cells, &v, sizeof v);
  k->c->end = max_u64 (k->c->end, first + GROUP);
  return true;
}

/* Clusters [FIRST, FIRST+NR) of one page and one block; see compare_each. */
static void
compare_run (struct compare *k, uint64_t first, unsigned nr,
             struct refpage *p, const uint8_t *block, uint64_t index)
{
  unsigned order = k->c->q->refcount_order, n;

  for (unsigned i = 0; i < nr; i += n) {
    n = nr - i < GROUP ? nr - i : GROUP;
    if (n == GROUP && (first + i) % GROUP == 0 && (index + i) % GROUP == 0
        && compare_group (k, first + i, p,
                          block + ((index + i) << order) / 8))
      continue;
    compare_each (k, first + i, n, p, block, index + i);
  }
}

/* ---- pages and blocks ---- */

/* The page that holds CLUSTER, which is not before any asked for earlier. */
static struct refpage *
next_page (struct compare *k, uint64_t cluster)
{
  uint64_t index = cluster >> REF_PAGE_BITS;

  while (k->page < k->nr_pages && k->pages[k->page]->index < index)
    k->page++;
  return k->page < k->nr_pages ? k->pages[k->page] : NULL;
}

/* No refcount block says anything about the clusters up to END: they are free.
 */
static void
compare_absent (struct compare *k, uint64_t end)
{
  while (k->cursor < end) {
    struct refpage *p = next_page (k, k->cursor);
    uint64_t start, stop;

    if (!p)
      break;
    start = max_u64 (k->cursor, p->index << REF_PAGE_BITS);
    if (start >= end)
      break;
    stop = min_u64 (end, (p->index + 1) << REF_PAGE_BITS);
    compare_each (k, start, (unsigned) (stop - start), p, NULL, 0);
    k->cursor = stop;
  }
  k->cursor = max_u64 (k->cursor, end);
}

/* The refcounts up to END cannot be read: let no flag look wrong for it.  What
 * is referred to is in use all the same.
 */
static void
compare_unknown (struct compare *k, uint64_t end)
{
  for (struct refpage *p; k->cursor < end && (p = next_page (k, k->cursor));) {
    unsigned i = (unsigned) (k->cursor & (REF_PAGE - 1));
    struct refcell cell;

    if (p->index > k->cursor >> REF_PAGE_BITS) {
      k->cursor = p->index << REF_PAGE_BITS;
      continue;
    }
    cell = refpage_get (p, i);
    k->cursor++;
    if (cell.count)
      k->c->end = max_u64 (k->c->end, k->cursor);
    refpage_put_refcount (p, i, cell.copied ? 1 : 2);
  }
  k->cursor = end;
}

/* BLOCK holds the refcounts of all clusters from FIRST on. */
static void
compare_block (struct compare *k, uint64_t first, const uint8_t *block)
{
  uint64_t end = first + (UINT64_C (1) << k->c->q->refblock_bits);

  end = min_u64 (end, min_u64 (k->c->refs.hi, k->c->nr_clusters));
  while (k->cursor < end) {
    uint64_t at = k->cursor;
    struct refpage *p = next_page (k, at);
    uint64_t stop = min_u64 (end, ((at >> REF_PAGE_BITS) + 1)
                             << REF_PAGE_BITS);

    if (p && p->index != at >> REF_PAGE_BITS)
      p = NULL;
    compare_run (k, at, (unsigned) (stop - at), p, block, at - first);
    k->cursor = stop;
  }
}

/* ---- the refcount table ---- */

static uint64_t
batch_host (const void *opaque, size_t i)
{
  const struct batch *b = opaque;

  return b->blocks[i].host;
}

/* What lies before block I (of the refcount table), and then the block.  R is
 * table_stream_next's; a block that it passed over is as good as none.
 */
static void
run_block (struct compare *k, uint64_t i, int r, const uint8_t *block,
           const struct error *read_error)
{
  struct checker *c = k->c;
  uint64_t first = i << c->q->refblock_bits;

  compare_absent (k, first);
  if (r == 1) {
    compare_block (k, first, block);
    return;
  }
  check_finding (c, FINDING_REFBLOCK_ERROR, "ERROR: cannot read refcount"
                 " block %" PRIu64 ": %s", i, read_error->text);
  compare_unknown (k, (i + 1) << c->q->refblock_bits);
}

static int
run_batch (struct compare *k, struct error *e)
{
  struct checker *c = k->c;
  struct error read_error = ERROR_INIT;
  struct table_stream *s;
  const uint8_t *block = NULL;
  size_t i;
  int r;

  if (k->batch->nr == 0)
    return 0;
  s = table_stream_new (c->st, c->q->cluster_size, k->batch->nr, batch_host,
                        k->batch, c->memory / 8, e);
  if (!s)
    return -1;
  while ((r = table_stream_next (s, &i, &block, &read_error)) != 0) {
    run_block (k, k->batch->blocks[i].index, r, block, &read_error);
    error_clear (&read_error);
  }
  table_stream_free (s);
  k->batch->nr = 0;
  return 0;
}

/* Entry I of the refcount table. */
static int
run_entry (struct compare *k, uint64_t i, uint64_t entry, struct error *e)
{
  struct checker *c = k->c;
  uint64_t host = check_refblock (c, entry), place = entry & ~REFTABLE_RESERVED;

  if (host != 0) {
    k->batch->blocks[k->batch->nr].host = host;
    k->batch->blocks[k->batch->nr++].index = i;
    return k->batch->nr == BATCH ? run_batch (k, e) : 0;
  }
  if (is_aligned (place, c->q->cluster_size))
    return 0;
  /* There is a block, but nobody can tell where. */
  if (run_batch (k, e) == -1)
    return -1;
  check_finding (c, FINDING_REFBLOCK_ERROR, "ERROR: the refcounts of the"
                 " clusters of refcount block %" PRIu64 " are not known", i);
  compare_absent (k, i << c->q->refblock_bits);
  compare_unknown (k, (i + 1) << c->q->refblock_bits);
  return 0;
}

static int
run_refcount_table (struct compare *k, struct reader *reader,
                    struct error *e)
{
  struct checker *c = k->c;
  unsigned bits = c->q->refblock_bits;
  uint64_t hi = min_u64 (c->refs.hi, c->nr_clusters);
  uint64_t nr = (uint64_t) c->q->refcount_table_clusters
    << (c->q->cluster_bits - 3);

  for (uint64_t i = c->refs.lo >> bits; i < nr && i << bits < hi; ++i) {
    const uint8_t *p = reader_get (reader, c->q->refcount_table_offset + i * 8,
                                   8, e);

    if (!p)
      return error_prefix (e, "refcount table");
    if (run_entry (k, i, get_be64 (p), e) == -1)
      return -1;
  }
  if (run_batch (k, e) == -1)
    return -1;
  compare_absent (k, hi);
  return 0;
}

int
check_compare (struct checker *c, struct error *e)
{
  struct compare k = { .c = c, .cursor = c->refs.lo };
  struct reader reader = { .buf = NULL };
  int r = -1;

  for (unsigned i = 0; i < GROUP; ++i)
    refcount_set (k.ones, i, c->q->refcount_order, 1);
  k.nr_pages = c->refs.nr_pages;
  k.pages = refmap_sorted (&c->refs, e);
  k.batch = calloc (1, sizeof *k.batch);
  if (!k.batch)
    error_nomem (e, "refcount blocks", sizeof *k.batch);
  if (k.pages && k.batch && reader_init (&reader, c->st, 64 * KiB, e) == 0)
    r = run_refcount_table (&k, &reader, e);
  reader_free (&reader);
  free (k.pages);
  free (k.batch);
  return r;
}
