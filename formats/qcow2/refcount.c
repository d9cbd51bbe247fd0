/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Refcounts, and growth of the refcount table; alloc.c finds free clusters.
 * Layer: formats.  Locking: qcow2.mutex; while a refcount block or a larger
 * table is being added, "growing" keeps all other allocations waiting.
 * Specification: "Host cluster management".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/qcow2/refcount.h"

/* Offsets in table entries have 56 bits. */
#define MAX_HOST (UINT64_C (1) << 56)

uint64_t
refcount_get (const uint8_t *block, uint64_t i, unsigned order)
{
  unsigned bits = 1U << order;

  switch (order) {
  case 3: return block[i];
  case 4: return get_be16 (block + 2 * i);
  case 5: return get_be32 (block + 4 * i);
  case 6: return get_be64 (block + 8 * i);
  default:
    return (uint64_t) (block[i * bits / 8] >> (i * bits % 8))
      & ((1U << bits) - 1);
  }
}

void
refcount_set (uint8_t *block, uint64_t i, unsigned order, uint64_t value)
{
  unsigned bits = 1U << order, shift = (unsigned) (i * bits % 8), mask;
  uint8_t *p;

  switch (order) {
  case 3: block[i] = (uint8_t) value; break;
  case 4: put_be16 (block + 2 * i, (uint16_t) value); break;
  case 5: put_be32 (block + 4 * i, (uint32_t) value); break;
  case 6: put_be64 (block + 8 * i, value); break;
  default:
    p = &block[i * bits / 8];
    mask = ((1U << bits) - 1) << shift;
    *p = (uint8_t) ((*p & ~mask) | (((unsigned) value << shift) & mask));
  }
}

static uint64_t
reftable_entries (const struct qcow2 *q)
{
  return (uint64_t) q->refcount_table_clusters << (q->cluster_bits - 3);
}

uint64_t
qcow2_refcounts_in_slice (const struct qcow2 *q)
{
  return (uint64_t) q->cache.slice_size * 8 >> q->refcount_order;
}

uint64_t
qcow2_refcounts_left (const struct qcow2 *q, uint64_t cluster)
{
  return qcow2_refcounts_in_slice (q) - cluster % qcow2_refcounts_in_slice (q);
}

int
qcow2_find_refcount_locked (struct qcow2 *q, struct slice_op *op,
                            uint64_t cluster, struct slice **s,
                            uint64_t *index, struct error *e)
{
  uint64_t table_index = cluster >> q->refblock_bits;
  uint64_t host, block, in_block;
  int r;

  *s = NULL;
  if (table_index >= reftable_entries (q))
    return 1;
  host = q->refcount_table_offset + table_index * 8;
  r = table_get_locked (q, op, SLICE_REFTABLE, host, s, e);
  if (r != 1)
    return r;
  block = get_be64 (slice_at (q, *s, host));
  *s = NULL;
  if (block == 0)
    return 1;
  if (!is_aligned (block, q->cluster_size)
      || block >= storage_size (q->format.storage))
    return qcow2_corrupt_locked (q, e, "refcount table entry %" PRIu64
                                 ": 0x%" PRIx64 " is not the place of a"
                                 " refcount block", table_index, block);
  in_block = cluster & ((UINT64_C (1) << q->refblock_bits) - 1);
  *index = in_block % qcow2_refcounts_in_slice (q);
  return table_get_locked (q, op, SLICE_REFBLOCK,
                           block + (in_block << q->refcount_order) / 8,
                           s, e);
}

int
qcow2_refcount_locked (struct qcow2 *q, struct slice_op *op,
                       uint64_t cluster, uint64_t *refcount, struct error *e)
{
  struct slice *s;
  uint64_t index = 0;
  int r = qcow2_find_refcount_locked (q, op, cluster, &s, &index, e);

  if (r == 1)
    *refcount = s ? refcount_get (s->data, index, q->refcount_order) : 0;
  return r;
}

int
qcow2_add_refcount_locked (struct qcow2 *q, struct slice_op *op,
                           uint64_t cluster, int delta, struct error *e)
{
  struct slice *s;
  uint64_t index = 0, old;
  int r;

  r = table_make_room_locked (q, 1, e);
  if (r != 1)
    return r;
  r = qcow2_find_refcount_locked (q, op, cluster, &s, &index, e);
  if (r != 1)
    return r;
  old = s ? refcount_get (s->data, index, q->refcount_order) : 0;
  if (old == 0 || (delta > 0 && old == refcount_max (q)))
    return qcow2_corrupt_locked (q, e, "the refcount of the cluster at 0x%"
                                 PRIx64 " is %" PRIu64 " and cannot change"
                                 " by %d", cluster << q->cluster_bits, old,
                                 delta);
  refcount_set (s->data, index, q->refcount_order,
                delta > 0 ? old + 1 : old - 1);
  table_dirty_locked (q, s);
  return 1;
}

const char *
qcow2_overlap_locked (struct qcow2 *q, uint64_t host, uint64_t length)
{
  uint64_t cs = q->cluster_size;

  if (host < cs)
    return "the header";
  if (ranges_overlap (host, length, q->l1_table_offset,
                      round_up ((uint64_t) q->l1_size * 8, cs)))
    return "the L1 table";
  if (ranges_overlap (host, length, q->refcount_table_offset,
                      q->refcount_table_clusters * cs))
    return "the refcount table";
  if (ranges_overlap (host, length, q->snapshots_offset,
                      q->snapshots_length))
    return "the snapshot table";
  if (ranges_overlap (host, length, q->bitmap_directory_offset,
                      q->bitmap_directory_size))
    return "the bitmap directory";
  if (ranges_overlap (host, length, q->crypto_header_offset,
                      q->crypto_header_length))
    return "the encryption header";
  if (table_cached_locked (q, host, length)
      || known_table_locked (q, host, length))
    return "an L2 table or a refcount block";
  return NULL;
}

int
qcow2_claim_locked (struct qcow2 *q, uint64_t cluster, uint64_t nr,
                    bool *fresh, struct error *e)
{
  uint64_t host = cluster << q->cluster_bits, length = nr << q->cluster_bits;
  const char *what = qcow2_overlap_locked (q, host, length);

  if (what)
    return qcow2_corrupt_locked (q, e, "the refcounts call the clusters at 0x%"
                                 PRIx64 " free, but %s is there", host, what);
  *fresh = host >= q->fresh_from;
  if (q->fresh_from != UINT64_MAX)
    q->fresh_from = max_u64 (q->fresh_from, host + length);
  q->end = max_u64 (q->end, host + length);
  return 0;
}

/* ---- growth ---- */

/* What a new table says about itself: K refcount blocks at BASE, then the
 * table; together they are NR clusters and have refcount 1.
 */
struct new_table {
  uint64_t base;                /* cluster index; begins a block's range */
  uint64_t nr_blocks, table_clusters, nr;
  uint8_t *blocks, *table;      /* owned */
};

static void
free_new_table (struct new_table *t)
{
  free (t->blocks);
  free (t->table);
}

/* A table that reaches NEED_INDEX, with room for half as many again. */
static int
plan_table (const struct qcow2 *q, uint64_t cluster, struct new_table *t,
            struct error *e)
{
  uint64_t per_block = UINT64_C (1) << q->refblock_bits;
  uint64_t old = reftable_entries (q), need;

  t->base = round_up (max_u64 (cluster, old << q->refblock_bits), per_block);
  t->nr_blocks = 1;
  for (;;) {
    need = (t->base >> q->refblock_bits) + t->nr_blocks;
    t->table_clusters = div_round_up ((need + need / 2) * 8, q->cluster_size);
    t->nr = t->nr_blocks + t->table_clusters;
    if (t->nr <= t->nr_blocks * per_block)
      break;
    t->nr_blocks++;
  }
  if (t->table_clusters * q->cluster_size > MAX_REFTABLE_BYTES) {
    t->table_clusters = div_round_up (need * 8, q->cluster_size);
    t->nr = t->nr_blocks + t->table_clusters;
  }
  if (t->table_clusters * q->cluster_size > MAX_REFTABLE_BYTES)
    return error_set (e, EFBIG, "the image file cannot become larger than %"
                      PRIu64 " bytes with clusters of %" PRIu64 " bytes",
                      t->base << q->cluster_bits, q->cluster_size);
  return 0;
}

static int
build_table (struct qcow2 *q, struct new_table *t, struct error *e)
{
  size_t blocks_size = (size_t) (t->nr_blocks << q->cluster_bits);
  size_t table_size = (size_t) (t->table_clusters << q->cluster_bits);
  uint64_t host = t->base << q->cluster_bits;

  t->blocks = calloc (1, blocks_size);
  t->table = calloc (1, table_size);
  if (!t->blocks || !t->table)
    return error_nomem (e, "a larger refcount table",
                        blocks_size + table_size);
  if (storage_pread (q->format.storage, t->table,
                     (size_t) q->refcount_table_clusters << q->cluster_bits,
                     q->refcount_table_offset, e) == -1)
    return -1;
  for (uint64_t i = 0; i < t->nr; ++i)
    refcount_set (t->blocks, i, q->refcount_order, 1);
  for (uint64_t i = 0; i < t->nr_blocks; ++i)
    put_be64 (t->table + ((t->base >> q->refblock_bits) + i) * 8,
              host + (i << q->cluster_bits));
  return 0;
}

/* Blocks and table => header.  A crash before the header leaves the old table,
 * and the new clusters beyond everything that it knows.
 */
static int
write_table (struct qcow2 *q, const struct new_table *t, struct error *e)
{
  struct storage *st = q->format.storage;
  uint64_t host = t->base << q->cluster_bits;
  uint64_t table_host = host + (t->nr_blocks << q->cluster_bits);
  uint8_t field[12];

  if (storage_pwrite (st, t->blocks,
                      (size_t) (t->nr_blocks << q->cluster_bits), host, 0,
                      e) == -1
      || storage_pwrite (st, t->table,
                         (size_t) (t->table_clusters << q->cluster_bits),
                         table_host, 0, e) == -1
      || storage_flush (st, e) == -1)
    return -1;
  put_be64 (field, table_host);
  put_be32 (field + 8, (uint32_t) t->table_clusters);
  if (qcow2_write_header (q, H_REFCOUNT_TABLE_OFFSET, field, sizeof field,
                          e) == -1)
    return -1;
  return storage_flush (st, e);
}

/* Make the refcount table reach CLUSTER.  The mutex is dropped; "growing" is
 * set, so that no entry of the old table changes after the epoch.
 */
static int
grow_table_locked (struct qcow2 *q, uint64_t cluster, struct error *e)
  REQUIRES (q->mutex)
{
  struct new_table t = { .blocks = NULL };
  uint64_t old_offset = q->refcount_table_offset;
  uint64_t old_clusters = q->refcount_table_clusters;
  bool fresh;
  int r;

  if (qcow2_epoch_locked (q, e) == -1
      || plan_table (q, cluster, &t, e) == -1
      || qcow2_claim_locked (q, t.base, t.nr, &fresh, e) == -1)
    return -1;
  mutex_unlock (&q->mutex);
  r = build_table (q, &t, e);
  if (r == 0)
    r = write_table (q, &t, e);
  mutex_lock (&q->mutex);
  if (r == 0) {
    q->refcount_table_offset =
      (t.base + t.nr_blocks) << q->cluster_bits;
    q->refcount_table_clusters = (uint32_t) t.table_clusters;
    known_moved_locked (q);
    for (uint64_t i = 0; i < t.nr_blocks; ++i)
      known_add_locked (q, (t.base + i) << q->cluster_bits);
    table_drop_locked (q, old_offset, old_clusters << q->cluster_bits);
    freed_list_add (&q->released, old_offset, old_clusters, q->cluster_size);
  }
  free_new_table (&t);
  return r;
}

/* The block for CLUSTER's range is put at CLUSTER itself.  Its zeroes are in
 * place before an epoch can write the table entry.
 */
static int
add_block_locked (struct qcow2 *q, struct slice_op *op, uint64_t cluster,
                  struct error *e) REQUIRES (q->mutex)
{
  uint64_t table_host = q->refcount_table_offset
    + (cluster >> q->refblock_bits) * 8;
  uint64_t host = cluster << q->cluster_bits;
  uint64_t in_block = cluster & ((UINT64_C (1) << q->refblock_bits) - 1);
  uint64_t entry_host = host + (in_block << q->refcount_order) / 8;
  struct slice *table, *block;
  bool fresh;
  int r;

  if (qcow2_claim_locked (q, cluster, 1, &fresh, e) == -1)
    return -1;
  mutex_unlock (&q->mutex);
  r = storage_zero (q->format.storage, host, q->cluster_size, 0, e);
  mutex_lock (&q->mutex);
  if (r == -1)
    return -1;
  do {
    r = table_make_room_locked (q, 2, e);
    if (r == 1)
      r = table_get_locked (q, op, SLICE_REFTABLE, table_host, &table, e);
    if (r == 1)
      r = table_get_locked (q, op, SLICE_REFBLOCK, entry_host, &block, e);
  } while (r == 0);
  if (r == -1) {
    /* Nothing refers to the block: the cluster is free again. */
    table_drop_locked (q, host, q->cluster_size);
    return -1;
  }
  refcount_set (block->data, in_block % qcow2_refcounts_in_slice (q),
                q->refcount_order, 1);
  table_dirty_locked (q, block);
  put_be64 (slice_at (q, table, table_host), host);
  table_dirty_locked (q, table);
  known_add_locked (q, host);
  return 0;
}

/* ---- a run of any length ---- */

uint64_t
qcow2_room_at (const struct qcow2 *q, uint64_t cluster)
{
  uint64_t limit = MAX_HOST;

  if (!q->format.storage->caps.can_grow)
    limit = storage_size (q->format.storage);
  limit >>= q->cluster_bits;
  return cluster < limit ? limit - cluster : 0;
}

/* [base, base+nr_blocks) are refcount blocks for themselves and for the run
 * behind them, so that no block of a range in the middle can be in its way.
 */
struct run {
  uint64_t base, nr_blocks, nr; /* cluster index; clusters */
};

/* *END = the first range behind all that have a refcount block.  Blocks for
 * what lies behind the end of the file are odd, but allowed.
 */
static int
find_last_block_locked (struct qcow2 *q, uint64_t *end, struct error *e)
  REQUIRES (q->mutex)
{
  struct slice_op op = SLICE_OP_INIT;
  uint64_t host;
  struct slice *s;
  int r = 1;

  for (*end = reftable_entries (q); r == 1 && *end > 0; --*end) {
    host = q->refcount_table_offset + (*end - 1) * 8;
    do
      r = table_get_locked (q, &op, SLICE_REFTABLE, host, &s, e);
    while (r == 0);
    if (r == 1 && get_be64 (slice_at (q, s, host)) != 0)
      break;
  }
  table_op_end_locked (q, &op);
  return r == -1 ? -1 : 0;
}

static int
plan_run_locked (struct qcow2 *q, struct run *run, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t per_block = UINT64_C (1) << q->refblock_bits, ranges;

  if (find_last_block_locked (q, &ranges, e) == -1)
    return -1;
  run->base = max_u64 (round_up (q->end >> q->cluster_bits, per_block),
                       ranges << q->refblock_bits);
  run->nr_blocks = 1;
  while (run->nr_blocks + run->nr > run->nr_blocks * per_block)
    run->nr_blocks++;
  return 0;
}

/* Enter the blocks of RUN into the refcount table; none has a predecessor. */
static int
enter_blocks_locked (struct qcow2 *q, const struct run *run, struct error *e)
  REQUIRES (q->mutex)
{
  struct slice_op op = SLICE_OP_INIT;
  uint64_t first = run->base >> q->refblock_bits, host;
  struct slice *s;
  int r = 1;

  for (uint64_t i = 0; r == 1 && i < run->nr_blocks; ++i) {
    host = q->refcount_table_offset + (first + i) * 8;
    do {
      r = table_make_room_locked (q, 1, e);
      if (r == 1)
        r = table_get_locked (q, &op, SLICE_REFTABLE, host, &s, e);
    } while (r == 0);
    if (r == -1)
      break;
    put_be64 (slice_at (q, s, host), (run->base + i) << q->cluster_bits);
    table_dirty_locked (q, s);
    known_add_locked (q, (run->base + i) << q->cluster_bits);
  }
  table_op_end_locked (q, &op);
  return r == -1 ? -1 : 0;
}

static int
write_blocks (struct qcow2 *q, const struct run *run, struct error *e)
{
  size_t bytes = (size_t) (run->nr_blocks << q->cluster_bits);
  CLEANUP_FREE uint8_t *blocks = calloc (1, bytes);

  if (!blocks)
    return error_nomem (e, "refcount blocks", bytes);
  for (uint64_t i = 0; i < run->nr_blocks + run->nr; ++i)
    refcount_set (blocks, i, q->refcount_order, 1);
  return storage_pwrite (q->format.storage, blocks, bytes,
                         run->base << q->cluster_bits, 0, e);
}

static int
alloc_run_locked (struct qcow2 *q, struct run *run, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t last;
  bool fresh;
  int r;

  for (;;) {
    if (plan_run_locked (q, run, e) == -1)
      return -1;
    last = run->base + run->nr_blocks + run->nr - 1;
    if (last >> q->refblock_bits < reftable_entries (q))
      break;
    if (grow_table_locked (q, last, e) == -1)
      return -1;
  }
  if (qcow2_room_at (q, run->base) < run->nr_blocks + run->nr)
    return error_set (e, ENOSPC, "%s: no room for %" PRIu64 " clusters side by"
                      " side, and the storage cannot grow",
                      q->format.storage->name, run->nr);
  if (qcow2_claim_locked (q, run->base, run->nr_blocks + run->nr, &fresh,
                          e) == -1)
    return -1;
  mutex_unlock (&q->mutex);
  r = write_blocks (q, run, e);
  mutex_lock (&q->mutex);
  return r == -1 ? -1 : enter_blocks_locked (q, run, e);
}

int
qcow2_alloc_run (struct qcow2 *q, uint64_t nr, uint64_t *host,
                 struct error *e)
{
  struct run run = { .nr = nr };
  int r;

  mutex_lock (&q->mutex);
  r = alloc_run_locked (q, &run, e);
  *host = (run.base + run.nr_blocks) << q->cluster_bits;
  mutex_unlock (&q->mutex);
  return r;
}

int
qcow2_grow_refcounts_locked (struct qcow2 *q, struct slice_op *op,
                             uint64_t cluster, struct error *e)
{
  int r;

  q->growing = true;
  if (cluster >> q->refblock_bits >= reftable_entries (q))
    r = grow_table_locked (q, cluster, e);
  else
    r = add_block_locked (q, op, cluster, e);
  q->growing = false;
  pthread_cond_broadcast (&q->cache.changed);
  return r;
}
