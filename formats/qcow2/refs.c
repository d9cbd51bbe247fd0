/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The references that one L1 table stands for, counted and applied to the
 * refcounts: see refs.h.  Layer: formats.  Locking: structural.
 * Specification: "Host cluster management", "Cluster mapping".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/refs.h"
#include "formats/qcow2/stream.h"

/* 4 bits a cluster: 6 TiB of clusters of 64 KiB in one window. */
#define MAP_MEMORY (48 * MiB)
#define STREAM_MEMORY (8 * MiB)

static int
damaged (struct error *e, const char *what, uint64_t host, uint64_t entry)
{
  return error_set (e, EIO, "%s at 0x%" PRIx64 ": entry 0x%" PRIx64 " is not"
                    " valid; check and repair the image", what, host, entry);
}

/* ---- the L1 table ---- */

static int
by_value (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return (*x > *y) - (*x < *y);
}

/* One cluster inside the file, behind the header. */
static bool
is_place (const struct l1_refs *r, uint64_t host)
{
  return is_aligned (host, r->q->cluster_size) && host > 0
    && host >> r->q->cluster_bits < r->nr_clusters;
}

/* The entries, in the buffer that the list of tables takes over. */
static int
parse_l1 (struct l1_refs *r, struct error *e)
{
  for (uint32_t i = 0; i < r->l1_size; ++i) {
    uint64_t entry = get_be64 (&r->l2[i]), host = entry & ENTRY_OFFSET_MASK;

    if (host == 0)
      continue;
    if (!is_place (r, host))
      return damaged (e, "L1 table", r->l1_table_offset, entry);
    r->l2[r->nr_l2++] = host;
  }
  qsort (r->l2, r->nr_l2, sizeof r->l2[0], by_value);
  for (size_t i = 1; i < r->nr_l2; ++i)
    if (r->l2[i] == r->l2[i - 1])
      return error_set (e, EIO, "L1 table at 0x%" PRIx64 ": two entries name"
                        " the L2 table at 0x%" PRIx64 "; check and repair the"
                        " image", r->l1_table_offset, r->l2[i]);
  return 0;
}

int
refs_load (struct l1_refs *r, struct qcow2 *q, uint64_t l1_table_offset,
           uint32_t l1_size, struct error *e)
{
  size_t bytes = (size_t) l1_size * 8;

  *r = (struct l1_refs) {
    .q = q, .l1_table_offset = l1_table_offset, .l1_size = l1_size,
    .nr_clusters = div_round_up (storage_size (q->format.storage),
                                 q->cluster_size),
  };
  r->l2 = malloc (bytes ? bytes : 1);
  if (!r->l2)
    return error_nomem (e, "an L1 table", bytes);
  if (refmap_init (&r->map, MAP_MEMORY, e) == -1
      || storage_pread (q->format.storage, r->l2, bytes, l1_table_offset,
                        e) == -1)
    return -1;
  return parse_l1 (r, e);
}

void
refs_free (struct l1_refs *r)
{
  free (r->l2);
  r->l2 = NULL;
  refmap_free (&r->map);
}

/* ---- counting ---- */

static int
count_packed (struct l1_refs *r, uint64_t l2, uint64_t entry, struct error *e)
{
  struct qcow2 *q = r->q;
  uint64_t host, length, last;

  qcow2_packed_range (q, entry, &host, &length);
  last = (host + length - 1) >> q->cluster_bits;
  if (host < q->cluster_size || last >= r->nr_clusters)
    return damaged (e, "L2 table", l2, entry);
  for (uint64_t c = host >> q->cluster_bits; c <= last; ++c)
    if (refmap_add (&r->map, c, 1, REF_PLAIN, e) == -1)
      return -1;
  return 0;
}

/* Clusters of an external data file have no refcounts. */
static int
count_table (struct l1_refs *r, uint64_t l2, uint64_t from,
             const uint8_t *table, struct error *e)
{
  struct qcow2 *q = r->q;
  uint64_t nr = UINT64_C (1) << q->l2_bits, entry, host;

  if (q->incompatible_features & INCOMPAT_DATA_FILE)
    return 0;
  for (uint64_t i = from; i < nr; ++i) {
    entry = get_be64 (table + i * q->l2_entry_size);
    if (entry & L2_COMPRESSED) {
      if (count_packed (r, l2, entry, e) == -1)
        return -1;
      continue;
    }
    host = entry & ENTRY_OFFSET_MASK;
    if (host == 0)
      continue;
    if (!is_place (r, host))
      return damaged (e, "L2 table", l2, entry);
    if (refmap_add (&r->map, host >> q->cluster_bits, 1, REF_PLAIN, e) == -1)
      return -1;
  }
  return 0;
}

static int
count_part (struct l1_refs *r, struct error *e)
{
  struct qcow2 *q = r->q;
  CLEANUP_FREE uint8_t *table = NULL;

  if (r->part_l2 == 0)
    return 0;
  if (!is_place (r, r->part_l2))
    return damaged (e, "L1 table", r->l1_table_offset, r->part_l2);
  table = malloc (q->cluster_size);
  if (!table)
    return error_nomem (e, "an L2 table", q->cluster_size);
  if (storage_pread (q->format.storage, table, q->cluster_size, r->part_l2,
                     e) == -1
      || refmap_add (&r->map, r->part_l2 >> q->cluster_bits, 1, REF_PLAIN,
                     e) == -1)
    return -1;
  return count_table (r, r->part_l2, r->part_from, table, e);
}

static uint64_t
l2_host (const void *opaque, size_t i)
{
  const struct l1_refs *r = opaque;

  return r->l2[i];
}

static int
count (struct l1_refs *r, struct error *e)
{
  struct table_stream *s;
  const uint8_t *table;
  size_t i;
  int n;

  for (i = 0; i < r->nr_l2; ++i)
    if (refmap_add (&r->map, r->l2[i] >> r->q->cluster_bits, 1, REF_PLAIN,
                    e) == -1)
      return -1;
  if (count_part (r, e) == -1)
    return -1;
  s = table_stream_new (r->q->format.storage, r->q->cluster_size, r->nr_l2,
                        l2_host, r, STREAM_MEMORY, e);
  if (!s)
    return -1;
  while ((n = table_stream_next (s, &i, &table, e)) == 1)
    if (count_table (r, r->l2[i], 0, table, e) == -1) {
      n = -1;
      break;
    }
  table_stream_free (s);
  return n;
}

int
refs_each_window (struct l1_refs *r,
                  int (*fn) (struct l1_refs *r, void *opaque,
                             struct error *e),
                  void *opaque, struct error *e)
{
  uint64_t lo = 0;
  bool counted;

  if (r->counted)
    return fn (r, opaque, e);
  do {
    refmap_begin (&r->map, lo, r->nr_clusters);
    if (count (r, e) == -1)
      return -1;
    counted = lo == 0 && r->map.hi >= r->nr_clusters;
    r->counted = counted;
    if (fn (r, opaque, e) == -1)
      return -1;
    lo = r->map.hi;
  } while (!counted && lo < r->nr_clusters);
  return 0;
}

/* ---- refcounts ---- */

/* The refcount block that is being changed, and the clusters that became free
 * and are not punched yet.
 */
struct change_run {
  struct l1_refs *r;
  struct refs_change *c;
  uint8_t *table;               /* owned; the refcount table */
  uint8_t *block;               /* owned; one refcount block */
  uint64_t index, host;         /* of the block; host 0 = there is none */
  bool loaded, dirty;
  uint64_t free_start, free_nr; /* clusters */
};

static int
write_block (struct change_run *k, struct error *e)
{
  struct qcow2 *q = k->r->q;

  if (!k->dirty)
    return 0;
  k->dirty = false;
  return storage_pwrite (q->format.storage, k->block, q->cluster_size, k->host,
                         0, e);
}

static int
load_block (struct change_run *k, uint64_t cluster, struct error *e)
{
  struct qcow2 *q = k->r->q;
  uint64_t index = cluster >> q->refblock_bits;
  uint64_t nr = (uint64_t) q->refcount_table_clusters
    << (q->cluster_bits - 3);

  if (k->loaded && k->index == index)
    return 0;
  if (write_block (k, e) == -1)
    return -1;
  k->index = index;
  k->host = index < nr ? get_be64 (k->table + index * 8) : 0;
  if (k->host && !is_place (k->r, k->host))
    return damaged (e, "refcount table", q->refcount_table_offset, k->host);
  k->loaded = true;
  return k->host ? storage_pread (q->format.storage, k->block, q->cluster_size,
                                  k->host, e) : 0;
}

static void
punch (struct change_run *k)
{
  struct qcow2 *q = k->r->q;
  struct error ignored = ERROR_INIT;

  if (k->free_nr && k->c->punch
      && storage_trim (q->format.storage, k->free_start << q->cluster_bits,
                       k->free_nr << q->cluster_bits, 0, &ignored) == -1)
    log_debug ("%s", ignored.text);
  k->free_nr = 0;
}

static void
note_free (struct change_run *k, uint64_t cluster)
{
  k->c->first_free = min_u64 (k->c->first_free, cluster);
  if (k->free_nr && k->free_start + k->free_nr == cluster) {
    k->free_nr++;
    return;
  }
  punch (k);
  k->free_start = cluster;
  k->free_nr = 1;
}

/* CLUSTER has N references of the window: *NEW = its refcount afterwards. */
static int
new_refcount (struct change_run *k, uint64_t cluster, uint64_t n,
              uint64_t old, uint64_t *new, struct error *e)
{
  struct qcow2 *q = k->r->q;
  int delta = k->c->delta;

  if (old < n)
    return error_set (e, EIO, "the refcount of the cluster at 0x%" PRIx64
                      " is %" PRIu64 ", which is too small; check and repair"
                      " the image", cluster << q->cluster_bits, old);
  if (delta > 0 && n > refcount_max (q) - old)
    return error_set (e, EOVERFLOW, "the refcount of the cluster at 0x%" PRIx64
                      " cannot become larger than %" PRIu64 " with"
                      " refcount_bits=%u (amend can widen it)",
                      cluster << q->cluster_bits, refcount_max (q),
                      1U << q->refcount_order);
  *new = delta > 0 ? old + n : delta < 0 ? old - n : old;
  return 0;
}

static int
change_cluster (struct change_run *k, struct refpage *p, uint64_t cluster,
                struct error *e)
{
  struct qcow2 *q = k->r->q;
  unsigned i = (unsigned) (cluster & (REF_PAGE - 1));
  uint64_t in_block = cluster & ((UINT64_C (1) << q->refblock_bits) - 1);
  uint64_t n = refpage_get (p, i).count, old, new = 0;

  if (n == 0) {
    if (k->c->keep)
      refpage_put_refcount (p, i, 0);
    return 0;
  }
  if (load_block (k, cluster, e) == -1)
    return -1;
  old = k->host ? refcount_get (k->block, in_block, q->refcount_order) : 0;
  if (new_refcount (k, cluster, n, old, &new, e) == -1)
    return -1;
  if (k->c->write && new != old) {
    refcount_set (k->block, in_block, q->refcount_order, new);
    k->dirty = true;
    if (new == 0)
      note_free (k, cluster);
  }
  if (k->c->keep)
    refpage_put_refcount (p, i, new == UINT64_MAX ? new : new + 1);
  return 0;
}

static int
change_pages (struct change_run *k, struct error *e)
{
  struct refpage **pages = refmap_sorted (&k->r->map, e);
  size_t nr = k->r->map.nr_pages;
  int r = pages ? 0 : -1;

  for (size_t i = 0; i < nr && r == 0; ++i)
    for (unsigned j = 0; j < REF_PAGE && r == 0; ++j)
      r = change_cluster (k, pages[i], (pages[i]->index << REF_PAGE_BITS) + j,
                          e);
  free (pages);
  if (r == 0)
    r = write_block (k, e);
  punch (k);
  return r;
}

int
refs_change (struct l1_refs *r, struct refs_change *c, struct error *e)
{
  struct qcow2 *q = r->q;
  size_t len = (size_t) q->refcount_table_clusters << q->cluster_bits;
  CLEANUP_FREE uint8_t *table = malloc (len), *block = NULL;
  struct change_run k = { .r = r, .c = c, .table = table };

  block = k.block = malloc (q->cluster_size);
  if (!table || !block)
    return error_nomem (e, "refcounts", len + q->cluster_size);
  if (c->keep)
    r->counted = false;
  if (storage_pread (q->format.storage, table, len, q->refcount_table_offset,
                     e) == -1)
    return -1;
  return change_pages (&k, e);
}

uint64_t
refs_of (const struct l1_refs *r, uint64_t cluster)
{
  const struct refpage *p = refmap_page (&r->map, cluster);
  uint64_t v;
  bool exact;

  if (cluster < r->map.lo || cluster >= r->map.hi || !p)
    return UINT64_MAX;
  v = refpage_refcount (p, (unsigned) (cluster & (REF_PAGE - 1)), &exact);
  return v == 0 ? UINT64_MAX : v - 1;
}
