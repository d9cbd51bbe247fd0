/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Zero clusters for version 2, which has no flag for them.  Layer: formats.
 * Locking: structural.  Specification: "Cluster mapping", bit 0.
 *
 * Without a backing file an unallocated cluster reads as zeroes.  Over one, the
 * entries get a cluster of zero bytes, many of them the same one: a write
 * copies it, as it copies what a snapshot shares.  So it takes neither time nor
 * space for the data, whatever the disk's size.
 *
 * Order on disk: the clusters of zeroes and their refcounts => the entries,
 * table by table in place => what the entries had reserved loses its
 * references.  The disk reads the same all the time; a crash leaks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/reader.h"
#include "formats/qcow2/refs.h"
#include "formats/qcow2/stream.h"

#define STREAM_MEMORY (8 * MiB)

/* References of one zero cluster: 16 bits of refcount have room for as many
 * snapshots.
 */
enum { MAX_ZERO_REFS = 255 };

/* An L2 table, and how many L1 entries name it. */
struct table {
  uint64_t host;
  uint64_t refs;
};

struct expand {
  struct qcow2 *q;
  bool has_backing;
  struct table *tables;         /* owned, sorted */
  size_t nr;
  uint64_t *counts;             /* owned; references of each zero cluster */
  size_t nr_zero, alloc_zero;
  uint64_t zero_host;           /* of the first of them */
  struct freed_list freed;      /* owned; what entries had reserved */

  /* while the entries are walked over */
  size_t zero;                  /* the zero cluster that is being used */
  uint64_t used;                /* its references so far */
};

/* ---- all L2 tables ---- */

static int
by_host (const void *a, const void *b)
{
  const struct table *x = a, *y = b;

  return (x->host > y->host) - (x->host < y->host);
}

static int
add_l1 (struct expand *x, uint64_t l1, uint32_t l1_size, struct error *e)
{
  struct l1_refs r = { .q = x->q };
  struct table *more;
  size_t n = 0;
  int ok = refs_load (&r, x->q, l1, l1_size, e);

  if (ok == 0) {
    more = realloc (x->tables, (x->nr + r.nr_l2 + 1) * sizeof *more);
    if (more)
      x->tables = more;
    else
      ok = error_nomem (e, "L2 tables", (x->nr + r.nr_l2) * sizeof *more);
  }
  for (size_t i = 0; ok == 0 && i < r.nr_l2; ++i)
    x->tables[x->nr++] = (struct table) { .host = r.l2[i], .refs = 1 };
  refs_free (&r);
  if (ok == -1)
    return -1;
  qsort (x->tables, x->nr, sizeof x->tables[0], by_host);
  for (size_t i = 0; i < x->nr; ++i)
    if (n > 0 && x->tables[n - 1].host == x->tables[i].host)
      x->tables[n - 1].refs += x->tables[i].refs;
    else
      x->tables[n++] = x->tables[i];
  x->nr = n;
  return 0;
}

static int
find_tables (struct expand *x, struct error *e)
{
  struct snapshot_iter it;
  struct snapshot_entry s;
  int r;

  if (add_l1 (x, x->q->l1_table_offset, x->q->l1_size, e) == -1
      || snapshot_iter_init (&it, x->q, e) == -1)
    return -1;
  while ((r = snapshot_iter_next (&it, &s, e)) == 1)
    if (qcow2_snapshot_check_l1 (x->q, "", &s, e) == -1
        || add_l1 (x, s.l1_table_offset, s.l1_size, e) == -1) {
      r = -1;
      break;
    }
  snapshot_iter_free (&it);
  return r;
}

/* ---- entries ---- */

static bool
is_zero_entry (uint64_t entry)
{
  return !(entry & L2_COMPRESSED) && (entry & L2_ZERO);
}

/* REFS more references of the zero cluster that is being used, or of the next
 * one.
 */
static int
count_zero (struct expand *x, uint64_t refs, struct error *e)
{
  uint64_t *more;

  if (refs > refcount_max (x->q))
    return error_set (e, EOVERFLOW, "an L2 table has %" PRIu64 " references",
                      refs);
  if (x->nr_zero && x->counts[x->nr_zero - 1] + refs <= MAX_ZERO_REFS) {
    x->counts[x->nr_zero - 1] += refs;
    return 0;
  }
  if (x->nr_zero == x->alloc_zero) {
    x->alloc_zero = x->alloc_zero ? x->alloc_zero * 2 : 16;
    more = realloc (x->counts, x->alloc_zero * sizeof *more);
    if (!more)
      return error_nomem (e, "zero clusters", x->alloc_zero * sizeof *more);
    x->counts = more;
  }
  x->counts[x->nr_zero++] = refs;
  return 0;
}

/* What stands for a zero entry, with the same choices as count_zero. */
static uint64_t
new_entry (struct expand *x, uint64_t refs)
{
  uint64_t host;

  if (!x->has_backing)
    return 0;
  if (x->used + refs > x->counts[x->zero]) {
    x->zero++;
    x->used = 0;
  }
  x->used += refs;
  host = x->zero_host + ((uint64_t) x->zero << x->q->cluster_bits);
  return x->counts[x->zero] == 1 ? host | ENTRY_COPIED : host;
}

static uint64_t
table_host (const void *opaque, size_t i)
{
  const struct expand *x = opaque;

  return x->tables[i].host;
}

/* Run FN for each table that has zero entries. */
static int
each_table (struct expand *x,
            int (*fn) (struct expand *x, const struct table *t,
                       const uint8_t *table, struct error *e),
            struct error *e)
{
  struct qcow2 *q = x->q;
  struct table_stream *s;
  const uint8_t *table;
  size_t i;
  int n;

  s = table_stream_new (q->format.storage, q->cluster_size, x->nr, table_host,
                        x, STREAM_MEMORY, e);
  if (!s)
    return -1;
  while ((n = table_stream_next (s, &i, &table, e)) == 1)
    if (fn (x, &x->tables[i], table, e) == -1) {
      n = -1;
      break;
    }
  table_stream_free (s);
  return n;
}

static int
look_at_table (struct expand *x, const struct table *t, const uint8_t *table,
               struct error *e)
{
  struct qcow2 *q = x->q;

  for (uint64_t at = 0; at < q->cluster_size; at += 8) {
    uint64_t entry = get_be64 (table + at);

    if (!is_zero_entry (entry))
      continue;
    if (q->format.encrypted)
      return error_set (e, ENOTSUP, "encrypted images that have zero clusters"
                        " cannot be downgraded");
    if (!is_aligned (entry & ENTRY_OFFSET_MASK, q->cluster_size))
      return error_set (e, EIO, "L2 table at 0x%" PRIx64 ": entry 0x%" PRIx64
                        " is not valid; check and repair the image", t->host,
                        entry);
    if (x->has_backing && count_zero (x, t->refs, e) == -1)
      return -1;
  }
  return 0;
}

static void
expand_entry (struct expand *x, const struct table *t, uint8_t *p)
{
  uint64_t host = get_be64 (p) & ENTRY_OFFSET_MASK;

  put_be64 (p, new_entry (x, t->refs));
  for (uint64_t i = 0; host && i < t->refs; ++i)
    freed_list_add (&x->freed, host, 1, x->q->cluster_size);
}

static int
expand_table (struct expand *x, const struct table *t, const uint8_t *table,
              struct error *e)
{
  struct qcow2 *q = x->q;
  CLEANUP_FREE uint8_t *copy = NULL;

  for (uint64_t at = 0; at < q->cluster_size; at += 8) {
    if (!is_zero_entry (get_be64 (table + at)))
      continue;
    if (!copy) {
      copy = malloc (q->cluster_size);
      if (!copy)
        return error_nomem (e, "an L2 table", q->cluster_size);
      memcpy (copy, table, q->cluster_size);
    }
    expand_entry (x, t, copy + at);
  }
  return copy ? storage_pwrite (q->format.storage, copy, q->cluster_size,
                                t->host, 0, e) : 0;
}

/* ---- clusters of zeroes ---- */

static int
raise_refcount (struct qcow2 *q, uint64_t cluster, uint64_t by,
                struct error *e)
{
  struct slice_op op = SLICE_OP_INIT;
  int r = 1;

  mutex_lock (&q->mutex);
  for (uint64_t i = 0; i < by && r == 1; ++i)
    do
      r = qcow2_add_refcount_locked (q, &op, cluster, 1, e);
    while (r == 0);
  table_op_end_locked (q, &op);
  mutex_unlock (&q->mutex);
  return r == -1 ? -1 : 0;
}

static int
make_zero_clusters (struct expand *x, struct error *e)
{
  struct qcow2 *q = x->q;

  if (x->nr_zero == 0)
    return 0;
  if (qcow2_alloc_table (q, x->nr_zero, &x->zero_host, e) == -1)
    return -1;
  if (storage_zero (q->format.storage, x->zero_host,
                    x->nr_zero << q->cluster_bits, STORAGE_MAY_UNMAP,
                    e) == -1)
    return -1;
  for (size_t i = 0; i < x->nr_zero; ++i)
    if (raise_refcount (q, (x->zero_host >> q->cluster_bits) + i,
                        x->counts[i] - 1, e) == -1)
      return -1;
  return qcow2_settle (q, e);
}

static int
free_reserved (struct expand *x, struct error *e)
{
  if (storage_flush (x->q->format.storage, e) == -1)
    return -1;
  for (size_t i = 0; i < x->freed.nr; ++i)
    qcow2_give_back (x->q, x->freed.items[i].host, x->freed.items[i].nr);
  return qcow2_settle (x->q, e);
}

static int
expand (struct expand *x, struct error *e)
{
  if (find_tables (x, e) == -1 || each_table (x, look_at_table, e) == -1
      || make_zero_clusters (x, e) == -1)
    return -1;
  if (each_table (x, expand_table, e) == 0)
    return free_reserved (x, e);
  qcow2_undo (x->q);
  return -1;
}

int
qcow2_expand_zeroes (struct qcow2 *q, bool has_backing, struct error *e)
{
  struct expand x = { .q = q, .has_backing = has_backing };
  int r;

  if (qcow2_settle (q, e) == -1)
    return -1;
  r = expand (&x, e);
  free (x.tables);
  free (x.counts);
  freed_list_clear (&x.freed);
  return r;
}
