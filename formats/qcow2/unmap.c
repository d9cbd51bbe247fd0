/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Changes of the mapping: zeroes and trims, as far as an entry can say them.
 * Layer: formats.  Locking: qcow2.mutex; the caller holds the guest range,
 * rounded to clusters, EXCLUSIVE.
 *
 * As in place.c only tables in the cache change, what loses its place goes to
 * the quarantine, and one call stays within one slice of an L2 table.
 */

#include <config.h>

#include "formats/qcow2/qcow2.h"

#define ALL_SUBCLUSTERS UINT64_C (0xffffffff)

/* The entry for a cluster that reads as zeroes; version 2 has none, and is only
 * asked where there is no backing file.
 */
static struct l2_entry
zero_entry (const struct qcow2 *q)
{
  if (q->version < 3)
    return (struct l2_entry) { .entry = 0 };
  if (q->extended_l2)
    return (struct l2_entry) { .bitmap = ALL_SUBCLUSTERS << 32 };
  return (struct l2_entry) { .entry = L2_ZERO };
}

static bool
is_unallocated (struct l2_entry v)
{
  return (v.entry & ~ENTRY_COPIED & ~L2_RESERVED) == 0 && v.bitmap == 0;
}

static bool
keeps_space (const struct qcow2 *q, struct l2_entry v)
{
  uint64_t host;

  if (q->format.data_file)
    return v.entry & ENTRY_COPIED;
  return qcow2_owned_space (q, v, &host);
}

/* [from, to) of one cluster: *NEW = its entry afterwards.  false: the format
 * cannot say it.
 */
static bool
unmapped_entry (const struct qcow2 *q, struct l2_entry old, uint64_t from,
                uint64_t to, enum unmap_how how, struct l2_entry *new)
{
  bool whole = from == 0 && to == q->cluster_size;
  uint64_t bits;

  *new = old;
  if (how == UNMAP_KEEP && (q->version < 3 || !keeps_space (q, old)))
    return false;
  if (whole && how != UNMAP_KEEP) {
    if (how == UNMAP_TRANSPARENT || (is_unallocated (old) && !q->has_backing))
      *new = (struct l2_entry) { .entry = 0 };
    else
      *new = zero_entry (q);
    return true;
  }
  if (!q->extended_l2) {        /* whole: cow_size is the cluster */
    new->entry |= L2_ZERO;
    return true;
  }
  if (old.entry & L2_COMPRESSED)
    return false;
  /* Subclusters of a shared cluster may be dropped too: only our entry says
   * so, and the reference to the cluster stays.
   */
  bits = qcow2_subcluster_bits (q, from, to);
  new->bitmap &= ~(bits | bits << 32);
  if (how != UNMAP_TRANSPARENT)
    new->bitmap |= bits << 32;
  return true;
}

/* 1 = done, 0 = the format cannot say it, -1. */
static int
unmap_cluster_locked (struct qcow2 *q, uint64_t guest, uint8_t *entry,
                      uint64_t from, uint64_t to, enum unmap_how how,
                      bool *changed, struct error *e) REQUIRES (q->mutex)
{
  struct l2_entry old = l2_entry_get (q, entry), new;

  if (qcow2_check_freed_locked (q, guest, old, e) == -1)
    return -1;
  if (!unmapped_entry (q, old, from, to, how, &new))
    return 0;
  if (new.entry == old.entry && new.bitmap == old.bitmap)
    return 1;
  l2_entry_put (q, entry, new);
  qcow2_free_entry_locked (q, old, new.entry & ENTRY_OFFSET_MASK);
  *changed = true;
  return 1;
}

/* Can version 2, or an image whose data file must stay readable as raw, say it?
 */
static bool
unmap_possible (const struct qcow2 *q, enum unmap_how how)
{
  if (q->data_file_raw)
    return false;
  return q->version >= 3 || how == UNMAP_TRANSPARENT
    || (how == UNMAP_ZERO && !q->has_backing);
}

/* How much of [guest, guest+length) needs no change, because there is no L2
 * table, or cannot be said (*DONE = 0 and 2 is returned), because there is none
 * of our own?  1 = go on; 0, -1.
 */
static int
unmap_no_table_locked (struct qcow2 *q, struct slice_op *op, uint64_t guest,
                       uint64_t length, enum unmap_how how, uint64_t *done,
                       struct error *e) REQUIRES (q->mutex)
{
  uint64_t l2, reach = UINT64_C (1) << (q->cluster_bits + q->l2_bits);
  bool owned;
  int r;

  r = qcow2_find_l2_locked (q, op, NULL, guest, &l2, &owned, e);
  if (r != 1)
    return r;
  if (how == UNMAP_KEEP)
    return owned ? 1 : 2;
  if (l2 == 0 && (how == UNMAP_TRANSPARENT || !q->has_backing)) {
    *done = min_u64 (length, reach - (guest & (reach - 1)));
    return 2;
  }
  return 1;
}

static int
unmap_slice_locked (struct qcow2 *q, struct slice *s, uint8_t *entry,
                    uint64_t guest, uint64_t length, enum unmap_how how,
                    uint64_t *done, struct error *e) REQUIRES (q->mutex)
{
  uint64_t cluster = round_down (guest, q->cluster_size), from, to;
  uint64_t end = guest + length;
  uint64_t n = qcow2_clusters_in_slice (q, s, entry, guest, length);
  bool changed = false;
  int r = 1;

  for (; n > 0; --n, cluster += q->cluster_size, entry += q->l2_entry_size) {
    from = max_u64 (guest, cluster) - cluster;
    to = min_u64 (end - cluster, q->cluster_size);
    if (cluster + to >= q->format.info.size)
      to = q->cluster_size;     /* the last cluster's tail is no guest data */
    r = unmap_cluster_locked (q, cluster, entry, from, to, how, &changed, e);
    if (r != 1)
      break;
    *done = min_u64 (cluster + to, end) - guest;
  }
  if (changed)
    table_dirty_locked (q, s);
  return r == -1 ? -1 : 1;
}

static int
unmap_locked (struct qcow2 *q, struct slice_op *op, uint64_t guest,
              uint64_t length, enum unmap_how how, uint64_t *done,
              struct error *e) REQUIRES (q->mutex)
{
  struct slice *s;
  uint8_t *entry;
  int r;

  if (qcow2_check_writable_locked (q, e) == -1)
    return -1;
  r = unmap_no_table_locked (q, op, guest, length, how, done, e);
  if (r != 1)
    return r == 2 ? 1 : r;
  r = qcow2_own_slice_locked (q, op, guest, &s, &entry, e);
  if (r != 1)
    return r;
  return unmap_slice_locked (q, s, entry, guest, length, how, done, e);
}

/* A guest may trim and never flush nor write: what epochs have released
 * meanwhile is freed beyond this many pieces, 64 KiB of memory.
 */
enum { MAX_RELEASED = 4096 };

int
qcow2_unmap (struct format *f, uint64_t guest, uint64_t length,
             enum unmap_how how, uint64_t *done, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  *done = 0;
  if (!unmap_possible (q, how))
    return 0;
  mutex_lock (&q->mutex);
  do
    r = unmap_locked (q, &op, guest, length, how, done, e);
  while (r == 0);
  table_op_end_locked (q, &op);
  if (q->released.nr >= MAX_RELEASED)
    qcow2_release_locked (q);
  mutex_unlock (&q->mutex);
  return r == 1 ? 0 : -1;
}
