/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Another width of refcounts.  Layer: formats.  Locking: structural.
 * Specification: "Host cluster management".
 *
 * New blocks and a new table are written behind everything, where the old ones
 * count nothing: they count themselves, and the old ones no more.  Barrier,
 * then one write within the header's sector makes them the image's.  A crash
 * before leaves the old refcounts and a longer file, after it the new ones;
 * nothing is leaked.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/qcow2.h"

/* Blocks that the largest refcount table can name. */
#define MAX_BLOCKS (MAX_REFTABLE_BYTES / 8)

struct width {
  struct qcow2 *q;
  unsigned order;               /* the new one */
  unsigned block_bits;          /* log2 of the entries of a new block */

  uint8_t *table;               /* owned; the old table */
  uint64_t nr_old;              /* its entries */
  uint64_t *old_blocks;         /* owned; clusters of the old blocks, sorted */
  size_t nr_old_blocks;
  uint8_t *block;               /* owned; the old block that was read last */
  uint64_t index;               /* its index; UINT64_MAX = none */

  uint8_t *needed;              /* owned; MAX_BLOCKS flags */
  uint64_t first;               /* cluster of the first new block */
  uint64_t nr_blocks, nr_table; /* new clusters */
};

static void
free_width (struct width *w)
{
  free (w->table);
  free (w->old_blocks);
  free (w->block);
  free (w->needed);
}

static int
by_value (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return (*x > *y) - (*x < *y);
}

/* ---- the old refcounts ---- */

/* Entries that lead nowhere are for check -r: what their blocks counted would
 * be lost, or made up from what stands there.
 */
static int
add_old_block (struct width *w, uint64_t i, struct error *e)
{
  struct qcow2 *q = w->q;
  uint64_t host = get_be64 (w->table + i * 8);

  if (host == 0)
    return 0;
  if (!is_aligned (host, q->cluster_size)
      || host >= storage_size (q->format.storage))
    return error_set (e, EIO, "entry %" PRIu64 " of the refcount table is not"
                      " valid: 0x%" PRIx64 "; check and repair the image", i,
                      host);
  w->old_blocks[w->nr_old_blocks++] = host >> q->cluster_bits;
  return 0;
}

static int
load (struct width *w, struct error *e)
{
  struct qcow2 *q = w->q;
  size_t len = (size_t) q->refcount_table_clusters << q->cluster_bits;

  w->table = malloc (len);
  w->old_blocks = malloc (len);
  w->block = malloc (q->cluster_size);
  w->needed = calloc (1, MAX_BLOCKS);
  if (!w->table || !w->old_blocks || !w->block || !w->needed)
    return error_nomem (e, "refcounts", len * 2);
  if (storage_pread (q->format.storage, w->table, len,
                     q->refcount_table_offset, e) == -1)
    return -1;
  w->nr_old = len / 8;
  w->index = UINT64_MAX;
  for (uint64_t i = 0; i < w->nr_old; ++i)
    if (add_old_block (w, i, e) == -1)
      return -1;
  qsort (w->old_blocks, w->nr_old_blocks, sizeof w->old_blocks[0], by_value);
  return 0;
}

/* Is CLUSTER one of those that are replaced? */
static bool
goes (const struct width *w, uint64_t cluster)
{
  const struct qcow2 *q = w->q;

  return cluster - (q->refcount_table_offset >> q->cluster_bits)
    < q->refcount_table_clusters
    || bsearch (&cluster, w->old_blocks, w->nr_old_blocks,
                sizeof w->old_blocks[0], by_value);
}

/* The refcount of CLUSTER that stays. */
static int
get (struct width *w, uint64_t cluster, uint64_t *refcount, struct error *e)
{
  struct qcow2 *q = w->q;
  uint64_t index = cluster >> q->refblock_bits, host;

  *refcount = 0;
  if (index >= w->nr_old)
    return 0;
  host = get_be64 (w->table + index * 8);
  if (host == 0)
    return 0;
  if (w->index != index) {
    if (storage_pread (q->format.storage, w->block, q->cluster_size, host,
                       e) == -1)
      return -1;
    w->index = index;
  }
  *refcount = refcount_get (w->block, cluster
                            & ((UINT64_C (1) << q->refblock_bits) - 1),
                            q->refcount_order);
  if (*refcount && goes (w, cluster))
    *refcount = 0;
  return 0;
}

/* ---- plan ---- */

static int
need (struct width *w, uint64_t cluster, struct error *e)
{
  uint64_t i = cluster >> w->block_bits;

  if (i >= MAX_BLOCKS)
    return error_set (e, EFBIG, "the refcount table would be too large with"
                      " refcount_bits=%u and clusters of %" PRIu64 " bytes",
                      1U << w->order, w->q->cluster_size);
  w->needed[i] = 1;
  return 0;
}

static int
look_at_cluster (struct width *w, uint64_t cluster, struct error *e)
{
  unsigned bits = 1U << w->order;
  uint64_t refcount;

  if (get (w, cluster, &refcount, e) == -1)
    return -1;
  if (refcount == 0)
    return 0;
  if (bits < 64 && refcount >> bits)
    return error_set (e, EINVAL, "Cannot decrease refcount entry width to %u"
                      " bits: Cluster at offset 0x%" PRIx64 " has a refcount"
                      " of %" PRIu64, bits, cluster << w->q->cluster_bits,
                      refcount);
  w->first = max_u64 (w->first, cluster + 1);
  return need (w, cluster, e);
}

static int
look (struct width *w, struct error *e)
{
  struct qcow2 *q = w->q;
  uint64_t per_block = UINT64_C (1) << q->refblock_bits;

  w->first = div_round_up (storage_size (q->format.storage), q->cluster_size);
  for (uint64_t i = 0; i < w->nr_old; ++i)
    for (uint64_t j = 0; j < per_block && get_be64 (w->table + i * 8); ++j)
      if (look_at_cluster (w, (i << q->refblock_bits) + j, e) == -1)
        return -1;
  return 0;
}

/* Entries have 56 bits; a refcount far behind the end of the file, which is
 * wrong, would lead beyond.
 */
static int
check_end (const struct width *w, struct error *e)
{
  uint64_t end = w->first + w->nr_blocks + w->nr_table;

  if (end <= (ENTRY_OFFSET_MASK >> w->q->cluster_bits))
    return 0;
  return error_set (e, EFBIG, "cluster %" PRIu64 " has a refcount, and the file"
                    " cannot become so long; check and repair the image",
                    w->first - 1);
}

/* The new blocks count themselves, which may need more of them. */
static int
plan (struct width *w, struct error *e)
{
  uint64_t total = 0, blocks, top;

  do {
    w->nr_blocks = total;
    for (uint64_t c = w->first; c < w->first + total; ++c)
      if (need (w, c, e) == -1)
        return -1;
    for (blocks = top = 0; top < MAX_BLOCKS; ++top)
      blocks += w->needed[top];
    while (top > 0 && !w->needed[top - 1])
      --top;
    w->nr_table = max_u64 (div_round_up (top * 8, w->q->cluster_size), 1);
    w->nr_blocks = blocks;
    if (blocks + w->nr_table == total)
      return check_end (w, e);
    total = blocks + w->nr_table;
  } while (total < MAX_BLOCKS * 2);
  return error_set (e, EFBIG, "the refcounts would be too large");
}

/* ---- write ---- */

static int
fill_block (struct width *w, uint64_t index, uint8_t *buf, struct error *e)
{
  uint64_t nr = UINT64_C (1) << w->block_bits, refcount;
  uint64_t end = w->first + w->nr_blocks + w->nr_table;

  memset (buf, 0, w->q->cluster_size);
  for (uint64_t j = 0; j < nr; ++j) {
    uint64_t cluster = (index << w->block_bits) + j;

    if (get (w, cluster, &refcount, e) == -1)
      return -1;
    if (cluster >= w->first && cluster < end)
      refcount = 1;
    if (refcount)
      refcount_set (buf, j, w->order, refcount);
  }
  return 0;
}

static int
write_all (struct width *w, struct error *e)
{
  struct qcow2 *q = w->q;
  size_t len = (size_t) (w->nr_table << q->cluster_bits);
  CLEANUP_FREE uint8_t *table = calloc (1, len), *buf = NULL;
  uint64_t host = w->first << q->cluster_bits;

  buf = malloc (q->cluster_size);
  if (!table || !buf)
    return error_nomem (e, "refcounts", len);
  for (uint64_t i = 0; i < MAX_BLOCKS; ++i) {
    if (!w->needed[i])
      continue;
    if (fill_block (w, i, buf, e) == -1
        || storage_pwrite (q->format.storage, buf, q->cluster_size, host, 0,
                           e) == -1)
      return -1;
    put_be64 (table + i * 8, host);
    host += q->cluster_size;
  }
  if (storage_pwrite (q->format.storage, table, len, host, 0, e) == -1)
    return -1;
  return storage_flush (q->format.storage, e);
}

/* refcount_table_offset, refcount_table_clusters and refcount_order. */
static int
switch_over (struct width *w, struct error *e)
{
  uint8_t fields[H_REFCOUNT_ORDER + 4 - H_REFCOUNT_TABLE_OFFSET];
  struct qcow2 *q = w->q;
  uint64_t host = (w->first + w->nr_blocks) << q->cluster_bits;

  if (storage_pread (q->format.storage, fields, sizeof fields,
                     H_REFCOUNT_TABLE_OFFSET, e) == -1)
    return -1;
  put_be64 (fields, host);
  put_be32 (fields + 8, (uint32_t) w->nr_table);
  put_be32 (fields + sizeof fields - 4, w->order);
  if (qcow2_switch_header (q, H_REFCOUNT_TABLE_OFFSET, fields, sizeof fields,
                           e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  q->refcount_table_offset = host;
  q->refcount_table_clusters = (uint32_t) w->nr_table;
  q->refcount_order = w->order;
  q->refblock_bits = w->block_bits;
  q->free_cursor = 0;
  freed_list_clear (&q->known_free);
  mutex_unlock (&q->mutex);
  return 0;
}

static void
punch_old (struct width *w, uint64_t table, uint64_t clusters)
{
  struct qcow2 *q = w->q;
  struct error ignored = ERROR_INIT;

  if (!q->discard)
    return;
  storage_trim (q->format.storage, table, clusters << q->cluster_bits, 0,
                &ignored);
  for (size_t i = 0; i < w->nr_old_blocks; ++i)
    storage_trim (q->format.storage, w->old_blocks[i] << q->cluster_bits,
                  q->cluster_size, 0, &ignored);
}

static int
change (struct width *w, struct error *e)
{
  struct qcow2 *q = w->q;
  uint64_t table = q->refcount_table_offset;
  uint64_t clusters = q->refcount_table_clusters;

  if (load (w, e) == -1 || look (w, e) == -1 || plan (w, e) == -1
      || write_all (w, e) == -1 || switch_over (w, e) == -1)
    return -1;
  punch_old (w, table, clusters);
  return qcow2_learn_tables (q, e);
}

int
qcow2_set_refcount_order (struct qcow2 *q, unsigned order, struct error *e)
{
  struct width w = {
    .q = q, .order = order, .block_bits = q->cluster_bits + 3 - order,
  };
  int r;

  if (qcow2_settle (q, e) == -1)
    return -1;
  r = change (&w, e);
  free_width (&w);
  mutex_lock (&q->mutex);
  qcow2_init_allocation (q);
  mutex_unlock (&q->mutex);
  return r;
}
