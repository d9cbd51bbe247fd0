/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Refcounts made anew: see mend.h.  Layer: formats.  Locking: no other call is
 * inside; the mutex is taken only to change what it guards.
 * Specification: "Host cluster management".
 *
 * Blocks and table are written behind the last cluster in use (the old ones are
 * in use), barrier, and the header is switched over to them by one write within
 * a sector, barrier.  A crash before that leaves the old ones, a crash after it
 * the new ones.  How much is written depends on how long the file is, never on
 * what a header claims.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/mend.h"

/* The new blocks lie side by side, in order, so that the refcounts are one
 * array: that of cluster N is entry N.
 */

struct rebuild {
  const struct mending *m;
  uint64_t used;                /* clusters up to the last one in use */
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

  n->used = s->end;
  n->first = max_u64 (s->end, n->m->first + n->m->nr);
  n->blocks = n->table = 1;
  do {
    n->end = n->first + n->blocks + n->table;
    n->blocks = div_round_up (n->end, per_block);
    n->table = div_round_up (n->blocks * 8, q->cluster_size);
  } while (n->end != n->first + n->blocks + n->table);
  if (n->table << q->cluster_bits > MAX_REFTABLE_BYTES)
    return error_set (e, EFBIG, "a refcount table of %" PRIu64 " clusters would"
                      " be too large", n->table);
  if (!c->st->caps.can_grow
      && n->end << q->cluster_bits > storage_size (c->st))
    return error_set (e, ENOSPC, "there is no room for new refcounts: they need"
                      " %" PRIu64 " clusters of %" PRIu64 " bytes",
                      n->end - n->first, q->cluster_size);
  return 0;
}

static uint64_t
new_refcount (const struct checker *c, const struct rebuild *n,
              const struct refpage *p, uint64_t cluster)
{
  uint64_t count = p
    ? refpage_get (p, (unsigned) (cluster & (REF_PAGE - 1))).count : 0;

  if (cluster >= n->first && cluster < n->end)
    count = 1;
  if (n->m->nr && cluster - n->m->first < n->m->nr)
    count = max_u64 (count, n->m->refs);
  return min_u64 (count, refcount_max (c->q));
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
    uint64_t count = new_refcount (c, n, p, first + i);

    if (count)
      refcount_set (n->buf, i, order, count);
  }
  at += first << order >> 3;
  room = ((n->first + n->blocks) << c->q->cluster_bits) - at;
  return storage_pwrite (c->st, n->buf, (size_t) min_u64 (len, room), at, 0,
                         e);
}

static int
write_window (struct checker *c, void *opaque, struct error *e)
{
  const struct rebuild *n = opaque;
  struct refpage **pages = refmap_sorted (&c->refs, e);
  size_t nr = c->refs.nr_pages;
  int r = pages ? 0 : -1;

  for (size_t i = 0; i < nr && r == 0; ++i)
    r = write_page (c, n, pages[i]->index, e);
  free (pages);
  return r;
}

static int
write_blocks (struct checker *c, struct rebuild *n, struct error *e)
{
  if (storage_zero (c->st, n->first << c->q->cluster_bits,
                    (n->end - n->first) << c->q->cluster_bits, 0, e) == -1)
    return -1;
  c->ignore_refcounts = true;
  if (check_each_window (c, n, write_window, e) == -1)
    return -1;
  /* The last window is still in the map, and with it the page in which the
   * clusters in use end and the new ones begin.
   */
  for (uint64_t i = n->used >> REF_PAGE_BITS;
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

int
mend_anew (struct checker *c, const struct survey *s, const struct mending *m,
           struct error *e)
{
  struct rebuild n = { .m = m };
  CLEANUP_FREE uint8_t *buf = malloc (REF_PAGE * sizeof (uint64_t));

  if (!buf)
    return error_nomem (e, "refcounts", REF_PAGE * sizeof (uint64_t));
  n.buf = buf;
  if (plan_rebuild (c, s, &n, e) == -1
      || write_blocks (c, &n, e) == -1
      || write_table (c, &n, e) == -1)
    return -1;
  return switch_table (c, &n, e);
}
