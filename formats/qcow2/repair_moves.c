/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Clusters that may not be shared: see repair.h.  Layer: formats.
 * Locking: the image is frozen, one thread.
 *
 * A guest's cluster that is metadata too is read by the guest and changed by
 * us, and a cluster that is referred to more often than its refcount can say is
 * freed too early.  Each such entry gets a cluster of its own with the same
 * bytes.  The order: refcounts of the new clusters, barrier, their bytes,
 * barrier, the entries.  A crash leaks the new ones, or leaves some entries
 * moved; the old clusters lose their references at last.
 *
 * The work is counted first, in the same order, so that it can be refused.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "formats/qcow2/repair.h"

/* A small image can name one cluster millions of times. */
#define MAX_MOVED_BYTES (64 * MiB)

struct moves {
  bool too_many;                /* which entries: see repair_moves */
  bool counting;                /* nothing is written */
  uint64_t nr, refs;            /* counted: clusters, references to one of them
                                   at most */
  uint64_t next, end;           /* the clusters to give out */
  uint8_t *buf;                 /* owned; of one entry's clusters */
  struct repair *repair;
};

/* The most clusters that one entry can refer to: its compressed stream of up to
 * two of them may begin anywhere.
 */
enum { MAX_ENTRY_CLUSTERS = 3 };

/* ---- metadata on metadata ---- */

static int
check_shared_window (struct checker *c, void *opaque, struct error *e)
{
  (void) opaque;
  return check_overlaps (c, e);
}

int
repair_check_shared (struct repair *r, struct error *e)
{
  struct checker c;
  int result = repair_look (r, &c, e);

  c.metadata_only = true;
  c.ignore_refcounts = r->anew;
  c.result->corruptions = 0;    /* of entries of the snapshot table */
  if (result == 0)
    result = check_each_window (&c, NULL, check_shared_window, e);
  if (result == 0 && c.result->corruptions)
    result = error_set (e, EIO, "nothing is repaired: metadata lie on other"
                        " metadata: %s", c.first_corruption);
  checker_free (&c);
  return result;
}

/* ---- one entry ---- */

/* The clusters that V refers to; *NR = 0: none, or none that could move. */
static void
clusters_of (const struct checker *c, struct l2_entry v, uint64_t *first,
             uint64_t *nr)
{
  unsigned bits = c->q->cluster_bits;
  uint64_t host = v.entry & ENTRY_OFFSET_MASK, length = 1;

  *nr = 0;
  if (v.entry & L2_COMPRESSED)
    qcow2_packed_range (c->q, v.entry, &host, &length);
  else if (host == 0 || !is_aligned (host, c->q->cluster_size))
    return;
  *first = host >> bits;
  *nr = ((host + length - 1) >> bits) - *first + 1;
}

static bool
must_move (const struct checker *c, const struct moves *m, uint64_t first,
           uint64_t nr)
{
  uint64_t most = m->too_many ? refcount_max (c->q) : 0;

  for (uint64_t i = first; i < first + nr; ++i)
    if (refmap_get (&c->refs, i).count > most)
      return true;
  return false;
}

static int
copy_clusters (struct repair *r, struct moves *m, uint64_t first, uint64_t nr,
               struct error *e)
{
  unsigned bits = r->q->cluster_bits;

  if (m->end - m->next < nr)
    return error_set (e, EIO, "the tables changed meanwhile");
  if (storage_pread (r->q->format.storage, m->buf, (size_t) (nr << bits),
                     first << bits, e) == -1)
    return -1;
  return repair_write (r, m->buf, (size_t) (nr << bits), m->next << bits, e);
}

/* V with the clusters from FIRST on at TO. */
static struct l2_entry
moved_entry (const struct qcow2 *q, struct l2_entry v, uint64_t first,
             uint64_t to)
{
  uint64_t from_host = first << q->cluster_bits;
  uint64_t to_host = to << q->cluster_bits;

  v.entry = (v.entry & ~ENTRY_COPIED) - from_host + to_host;
  return v;
}

/* An entry that points there for nothing. */
static struct l2_entry
without_host (const struct qcow2 *q, struct l2_entry v)
{
  v.entry &= q->extended_l2 ? 0 : L2_ZERO;
  return v;
}

static int
move_entry (struct repair *r, struct moves *m, struct l2_entry *v,
            uint64_t first, uint64_t nr, struct error *e)
{
  struct l2_entry old = *v;

  if (!(v->entry & L2_COMPRESSED) && check_needs_no_host (r->q, *v)) {
    if (m->counting)
      return 0;
    *v = without_host (r->q, *v);
  }
  else {
    m->nr += nr;
    if (m->counting)
      return 0;
    if (copy_clusters (r, m, first, nr, e) == -1)
      return -1;
    *v = moved_entry (r->q, *v, first, m->next);
    m->next += nr;
  }
  r->result->corruptions_fixed++;
  repair_say (r, "Repairing cluster %" PRIu64 ": L2 entry %" PRIx64 " is now %"
              PRIx64, first, old.entry, v->entry);
  return 0;
}

/* ---- all of them ---- */

static int
move_in_table (struct checker *c, struct repair *r, void *opaque,
               const struct l2_item *item, struct table_edit *t,
               struct error *e)
{
  struct moves *m = opaque;
  uint64_t table_len = UINT64_C (1) << c->q->l2_bits, first, nr;

  for (uint64_t i = 0; i < table_len; ++i) {
    struct l2_entry v = table_edit_get (c->q, t, i);

    clusters_of (c, v, &first, &nr);
    if (nr == 0 || !must_move (c, m, first, nr))
      continue;
    if (move_entry (r, m, &v, first, nr, e) == -1)
      return -1;
    m->refs = max_u64 (m->refs, item->refs);
    for (uint64_t k = first; m->too_many && k < first + nr; ++k)
      refmap_take (&c->refs, k, item->refs);
    if (!m->counting)
      table_edit_put (c->q, t, i, v);
  }
  /* The bytes are durable before the table is written. */
  return t->hi ? repair_flush (r, e) : 0;
}

/* What is no L2 entry cannot give way. */
static int
check_tables (struct checker *c, void *opaque, struct error *e)
{
  uint64_t max = refcount_max (c->q);

  (void) opaque;
  for (size_t i = 0; i < c->nr_l2; ++i)
    if (c->l2[i].refs > max)
      return error_set (e, EIO, "the L2 table at 0x%" PRIx64 " has %" PRIu32
                        " references, its refcount cannot say that",
                        c->l2[i].host, c->l2[i].refs);
  return 0;
}

static int
move_window (struct checker *c, void *opaque, struct error *e)
{
  struct moves *m = opaque;

  if (m->too_many && check_each_l2_part (c, NULL, check_tables, e) == -1)
    return -1;
  return repair_l2 (c, m->repair, m, move_in_table, e);
}

static int
run (struct repair *r, struct moves *m, struct error *e)
{
  struct checker c;
  int result = repair_look (r, &c, e);

  m->repair = r;
  c.metadata_only = !m->too_many;
  c.ignore_refcounts = r->anew;
  if (result == 0)
    result = check_each_window (&c, m, move_window, e);
  checker_free (&c);
  return result == 0 ? repair_flush (r, e) : -1;
}

static int
refuse (const struct repair *r, const struct moves *m, struct error *e)
{
  const struct qcow2 *q = r->q;
  uint64_t most = max_u64 (MAX_MOVED_BYTES,
                           storage_size (q->format.storage));

  if (q->crypt_method == CRYPT_LUKS)
    return error_set (e, EIO, "clusters of an image with LUKS encryption cannot"
                      " move: their place is part of what they are encrypted"
                      " with");
  /* As far as the entry of a compressed cluster can say. */
  if ((r->end + m->nr) >> (62 - (q->cluster_bits - 8) - q->cluster_bits))
    return error_set (e, EFBIG, "the image is too large for clusters to move");
  if (m->nr > most >> q->cluster_bits)
    return error_set (e, EFBIG, "%" PRIu64 " clusters would have to move, more"
                      " than the file has", m->nr);
  return 0;
}

/* Count what must move, and see whether it can. */
static int
count (struct repair *r, struct moves *m, struct error *e)
{
  m->counting = true;
  if ((r->q->incompatible_features & INCOMPAT_DATA_FILE)
      || (m->too_many && refcount_max (r->q) > UINT32_MAX))
    return 0;
  if (run (r, m, e) == -1)
    return -1;
  return m->nr > 0 ? refuse (r, m, e) : 0;
}

int
repair_check_moves (struct repair *r, bool too_many, struct error *e)
{
  struct moves m = { .too_many = too_many };

  return count (r, &m, e);
}

static int
move_all (struct repair *r, struct moves *m, struct error *e)
{
  size_t len = (size_t) r->q->cluster_size * MAX_ENTRY_CLUSTERS;
  int result;

  m->end = m->next + m->nr;
  m->counting = false;
  m->buf = malloc (len);
  if (!m->buf)
    return error_nomem (e, "clusters", len);
  result = run (r, m, e);
  free (m->buf);
  return result;
}

int
repair_moves (struct repair *r, bool too_many, struct error *e)
{
  struct moves m = { .too_many = too_many };

  if (count (r, &m, e) == -1)
    return -1;
  if (m.nr > 0 && repair_reserve (r, m.nr, m.refs, &m.next, e) == -1)
    return -1;
  return move_all (r, &m, e);
}
