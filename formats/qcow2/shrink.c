/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Making the virtual disk smaller.  Layer: formats.  Locking: structural.
 *
 * The disk is cut by one write: a new L1 table ends where the smaller disk
 * does, and a new L2 table stands for the one that the end goes through; then
 * the header gets size, l1_size and l1_table_offset, which lie in one sector.
 * So a crash leaves the old disk or the new one, never an old one that lost its
 * tail, and a later growth finds nothing of the tail.  Afterwards the
 * references of the tail are dropped, refcount blocks that are empty go, and
 * the file is cut behind the last cluster in use: a crash meanwhile leaks.
 *
 * Snapshots have tables and references of their own and keep what they have.  A
 * machine's state behind the active disk goes with the tail: its place depends
 * on the disk's size.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/refs.h"

struct shrink {
  struct qcow2 *q;
  uint64_t size;                /* the new one */
  uint32_t entries;             /* of the new L1 table */
  struct l1_refs tail;          /* what the disk loses */
  uint64_t l1, l1_clusters;     /* new; 0 = the old one stays */
  uint64_t l2;                  /* new; 0 = none is needed */
};

/* ---- the L2 table that the end goes through ---- */

/* Cut TABLE behind the new end; false = there is nothing to cut. */
static bool
cut_table (const struct shrink *s, uint64_t from, uint8_t *table)
{
  struct qcow2 *q = s->q;
  uint8_t *tail = table + from * q->l2_entry_size;
  size_t len = (size_t) q->cluster_size - (size_t) (tail - table);

  if (is_zero (tail, len))
    return false;
  memset (tail, 0, len);
  return true;
}

static int
replace_l2 (struct shrink *s, uint8_t *l1, struct error *e)
{
  struct qcow2 *q = s->q;
  uint64_t nr = UINT64_C (1) << q->l2_bits, old, entry;
  uint64_t from = div_round_up (s->size, q->cluster_size) & (nr - 1);
  CLEANUP_FREE uint8_t *table = malloc (q->cluster_size);
  uint8_t *last = l1 + ((uint64_t) s->entries - 1) * 8;

  if (!table)
    return error_nomem (e, "an L2 table", q->cluster_size);
  entry = get_be64 (last);
  old = entry & ENTRY_OFFSET_MASK;
  if (from == 0 || old == 0)
    return 0;
  if (storage_pread (q->format.storage, table, q->cluster_size, old, e) == -1)
    return -1;
  if (!cut_table (s, from, table))
    return 0;
  s->tail.part_l2 = old;
  s->tail.part_from = from;
  if (qcow2_alloc_table (q, 1, &s->l2, e) == -1)
    return -1;
  put_be64 (last, s->l2 | ENTRY_COPIED);
  return storage_pwrite (q->format.storage, table, q->cluster_size, s->l2, 0,
                         e);
}

/* ---- the new tables ---- */

static int
write_tables (struct shrink *s, struct error *e)
{
  struct qcow2 *q = s->q;
  uint64_t clusters = div_round_up ((uint64_t) s->entries * 8,
                                    q->cluster_size);
  size_t bytes = (size_t) (clusters << q->cluster_bits);
  CLEANUP_FREE uint8_t *l1 = calloc (1, bytes);

  if (!l1)
    return error_nomem (e, "an L1 table", bytes);
  if (storage_pread (q->format.storage, l1, (size_t) s->entries * 8,
                     q->l1_table_offset, e) == -1
      || replace_l2 (s, l1, e) == -1)
    return -1;
  if (s->tail.nr_l2 == 0 && s->l2 == 0)
    return 0;
  if (qcow2_alloc_table (q, clusters, &s->l1, e) == -1)
    return -1;
  s->l1_clusters = clusters;
  return storage_pwrite (q->format.storage, l1, bytes, s->l1, 0, e);
}

/* Would the tail's references take something from the rest? */
static int
look (struct shrink *s, struct error *e)
{
  struct l1_refs rest = { .q = s->q };
  int r;

  r = refs_load (&rest, s->q, s->l1, s->entries, e);
  if (r == 0)
    r = refs_each_window (&s->tail, refs_look_at_drop, &rest, e);
  refs_free (&rest);
  return r;
}

static int
prepare (struct shrink *s, struct error *e)
{
  struct qcow2 *q = s->q;
  uint64_t behind = q->l1_table_offset + (uint64_t) s->entries * 8;

  if (refs_load (&s->tail, q, behind, q->l1_size - s->entries, e) == -1)
    return -1;
  if (write_tables (s, e) == 0 && qcow2_settle (q, e) == 0
      && (s->l1 == 0 || look (s, e) == 0))
    return 0;
  qcow2_give_back (q, s->l1, s->l1_clusters);
  qcow2_give_back (q, s->l2, s->l2 != 0);
  return -1;
}

/* ---- what becomes free ---- */

static int
drop_tail (struct shrink *s, uint64_t old_l1, uint64_t old_clusters,
           struct error *e)
{
  struct qcow2 *q = s->q;

  if (s->l1 == 0)
    return 0;
  if (refs_each_window (&s->tail, refs_drop, NULL, e) == -1
      || storage_flush (q->format.storage, e) == -1) {
    qcow2_undo (q);
    return -1;
  }
  qcow2_give_back (q, old_l1, old_clusters);
  return qcow2_settle (q, e);
}

/* ---- the new tables, again ----
 *
 * They were made while the tail was in use, so they lie behind it, and the file
 * could not be cut.  Now there is room in front of them.
 */

/* Copy the L1 table to L1 and, unless L2 is 0, the last L2 table to L2. */
static int
copy_tables (struct shrink *s, uint64_t l1, uint64_t l2, struct error *e)
{
  struct qcow2 *q = s->q;
  struct storage *st = q->format.storage;
  size_t bytes = (size_t) (s->l1_clusters << q->cluster_bits);
  CLEANUP_FREE uint8_t *table = malloc (bytes), *copy = NULL;

  copy = malloc (q->cluster_size);
  if (!table || !copy)
    return error_nomem (e, "tables", bytes + q->cluster_size);
  if (storage_pread (st, table, bytes, s->l1, e) == -1)
    return -1;
  if (l2) {
    put_be64 (table + ((uint64_t) s->entries - 1) * 8, l2 | ENTRY_COPIED);
    if (storage_pread (st, copy, q->cluster_size, s->l2, e) == -1
        || storage_pwrite (st, copy, q->cluster_size, l2, 0, e) == -1)
      return -1;
  }
  return storage_pwrite (st, table, bytes, l1, 0, e);
}

static int
move_down (struct shrink *s, struct error *e)
{
  struct qcow2 *q = s->q;
  uint64_t l1, l2 = 0;

  if (s->l1 == 0)
    return 0;
  if (qcow2_alloc_table (q, s->l1_clusters, &l1, e) == -1)
    return -1;
  if (l1 > s->l1) {
    qcow2_give_back (q, l1, s->l1_clusters);
    return qcow2_settle (q, e);
  }
  if ((s->l2 && qcow2_alloc_table (q, 1, &l2, e) == -1)
      || copy_tables (s, l1, l2, e) == -1 || qcow2_settle (q, e) == -1) {
    qcow2_give_back (q, l1, s->l1_clusters);
    qcow2_give_back (q, l2, l2 != 0);
    return -1;
  }
  if (qcow2_switch_disk (q, s->size, l1, s->entries, e) == -1)
    return -1;
  qcow2_give_back (q, s->l1, s->l1_clusters);
  qcow2_give_back (q, s->l2, l2 != 0);
  return qcow2_settle (q, e);
}

static int
cut_data_file (struct shrink *s, struct error *e)
{
  struct storage *st = s->q->format.data_file;

  if (!st || !st->caps.can_grow || storage_size (st) <= s->size)
    return 0;
  if (storage_truncate (st, s->size, e) == -1)
    return -1;
  return storage_flush (st, e);
}

/* ---- */

static int
shrink (struct shrink *s, struct error *e)
{
  struct qcow2 *q = s->q;
  uint64_t old_l1 = q->l1_table_offset;
  uint64_t old_clusters = div_round_up ((uint64_t) q->l1_size * 8,
                                        q->cluster_size);

  if (prepare (s, e) == -1
      || qcow2_switch_disk (q, s->size, s->l1 ? s->l1 : old_l1,
                            s->l1 ? s->entries : q->l1_size, e) == -1)
    return -1;
  if (drop_tail (s, old_l1, old_clusters, e) == -1
      || cut_data_file (s, e) == -1 || move_down (s, e) == -1
      || qcow2_cut_file (q, e) == -1)
    return error_prefix (e, "the disk was made smaller, but its space could"
                         " not all be freed");
  return 0;
}

int
qcow2_shrink (struct qcow2 *q, uint64_t size, struct error *e)
{
  struct shrink s = {
    .q = q, .size = size,
    .entries = (uint32_t) max_u64 (qcow2_l1_entries_for (q, size), 1),
  };
  struct error ignored = ERROR_INIT;
  int r;

  if (qcow2_settle (q, e) == -1)
    return -1;
  r = shrink (&s, e);
  refs_free (&s.tail);
  if (qcow2_learn_tables (q, r == -1 ? &ignored : e) == -1)
    r = -1;
  return r;
}
