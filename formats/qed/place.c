/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Changes of the mapping: reserve, link, abandon, unmap.  Layer: formats.
 * Locking: the mutex; the caller holds the guest range, rounded to clusters,
 * EXCLUSIVE.
 *
 * Everything here changes tables in the cache only; epochs write them out.  One
 * call stays within one slice of an L2 table.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qed/qed.h"

/* ---- L2 tables ---- */

static int
set_l1_entry_locked (struct qed *q, struct slice_op *op, uint64_t guest,
                     uint64_t l2, struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t host = q->l1_table_offset
    + (guest >> (q->g.cluster_bits + q->g.table_bits)) * 8;
  struct slice *s;
  int r;

  do {
    r = slices_make_room_locked (&q->cache, 1, e);
    if (r == 1)
      r = qed_slice_locked (q, op, SLICE_L1, host, &s, e);
  } while (r == 0);
  if (r == -1)
    return -1;
  put_le64 (slice_byte (&q->cache, s, host), l2);
  slice_dirty_locked (&q->cache, s);
  return 0;
}

/* The L2 table for GUEST, a new one if need be; "linking" keeps a second thread
 * from making one for the same L1 entry.  NEED_CHECK is set on return.  1 =
 * *L2 is it; 0 = start over; -1.
 */
static int
own_l2_locked (struct qed *q, struct slice_op *op, uint64_t guest,
               uint64_t *l2, struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t host, length = q->g.table_bytes;
  bool fresh;
  int r;

  r = qed_need_check_locked (q, e);
  if (r == 1)
    r = qed_find_l2_locked (q, op, guest, l2, e);
  if (r != 1 || *l2)
    return r;
  if (q->linking) {
    /* Who links may have to load a slice, and must not wait for what this
     * operation holds of the cache.
     */
    slice_op_end_locked (&q->cache, op);
    mutex_wait (q->cache.mutex, &q->cache.changed);
    return 0;
  }
  r = qed_alloc_locked (q, length, &length, &host, &fresh, e);
  if (r != 1)
    return r;
  q->linking = true;
  /* A fresh place too: its zeroes take space, so that a full disk fails the
   * write that wants the table, and not the flush of all that it maps.
   */
  mutex_unlock (q->cache.mutex);
  r = storage_zero (q->format.storage, host, q->g.table_bytes, 0, e);
  mutex_lock (q->cache.mutex);
  if (r == 0)
    r = set_l1_entry_locked (q, op, guest, host, e);
  if (r == -1)
    qed_spare_locked (q, host, q->g.table_bytes);
  else
    host_set_add (&q->tables, host);
  q->linking = false;
  pthread_cond_broadcast (&q->cache.changed);
  return r;
}

/* GUEST's entries in a table that may be made dirty.  1, 0, -1. */
static int
own_entries_locked (struct qed *q, struct slice_op *op, uint64_t guest,
                    uint64_t length, struct qed_entries *entries,
                    struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t l2;
  int r = own_l2_locked (q, op, guest, &l2, e);

  if (r == 1)
    r = slices_make_room_locked (&q->cache, 1, e);
  if (r == 1)
    r = qed_entries_locked (q, op, l2, guest, length, entries, e);
  return r;
}

/* ---- reserve ---- */

/* GUEST's cluster has a place already.  This is asked for where a table lies in
 * what map told of; those clusters of it that are none of the table's are
 * written to.
 */
static int
place_reused_locked (struct qed *q, uint64_t guest, uint64_t host,
                     struct placement *p, struct error *e)
  REQUIRES (q->cache.mutex)
{
  if (qed_on_table_locked (q, host, q->g.cluster_size))
    return error_set (e, EIO, "%s: corrupt image: guest offset %" PRIu64
                      " is mapped to 0x%" PRIx64 ", but a table is there:"
                      " check the image", q->format.storage->name, guest,
                      host);
  *p = (struct placement) {
    .guest = round_down (guest, q->g.cluster_size), .host = host,
    .length = q->g.cluster_size, .storage = MAP_IN_IMAGE, .reused = true,
  };
  return 1;
}

static bool
is_placed (uint64_t v)
{
  return v != 0 && v != QED_ZERO;
}

static int
place_new_locked (struct qed *q, const struct qed_entries *entries,
                  uint64_t guest, struct placement *p, struct error *e)
  REQUIRES (q->cache.mutex)
{
  uint64_t host, n, length;
  bool fresh;
  int r;

  for (n = 1; n < entries->nr; ++n)
    if (is_placed (get_le64 (entries->p + 8 * n)))
      break;
  length = n << q->g.cluster_bits;
  r = qed_alloc_locked (q, q->g.cluster_size, &length, &host, &fresh, e);
  if (r != 1)
    return r;
  *p = (struct placement) {
    .guest = round_down (guest, q->g.cluster_size), .host = host,
    .length = length, .storage = MAP_IN_IMAGE, .reads_zero = fresh,
  };
  return 1;
}

static int
reserve_locked (struct qed *q, struct slice_op *op, uint64_t guest,
                uint64_t length, struct placement *p, struct error *e)
  REQUIRES (q->cache.mutex)
{
  struct qed_entries entries;
  uint64_t v;
  int r = own_entries_locked (q, op, guest, length, &entries, e);

  if (r != 1)
    return r;
  v = get_le64 (entries.p);
  if (qed_check_entry (q, guest, v, e) == -1)
    return -1;
  if (!is_placed (v))
    return place_new_locked (q, &entries, guest, p, e);
  return place_reused_locked (q, guest, v, p, e);
}

int
qed_reserve (struct format *f, uint64_t guest, uint64_t length,
             struct placement *p, struct error *e)
{
  struct qed *q = to_qed (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  mutex_lock (q->cache.mutex);
  do
    r = reserve_locked (q, &op, guest, length, p, e);
  while (r == 0);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  return r == 1 ? 0 : -1;
}

/* ---- link and abandon ---- */

static int
link_locked (struct qed *q, struct slice_op *op, const struct placement *p,
             struct error *e) REQUIRES (q->cache.mutex)
{
  struct qed_entries entries;
  int r = own_entries_locked (q, op, p->guest, p->length, &entries, e);

  if (r != 1)
    return r;
  for (uint64_t i = 0; i < entries.nr; ++i)
    put_le64 (entries.p + 8 * i, p->host + i * q->g.cluster_size);
  slice_dirty_locked (&q->cache, entries.slice);
  return 1;
}

int
qed_link (struct format *f, const struct placement *p, struct error *e)
{
  struct qed *q = to_qed (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  if (p->reused)
    return 0;
  mutex_lock (q->cache.mutex);
  do
    r = link_locked (q, &op, p, e);
  while (r == 0);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  return r == 1 ? 0 : -1;
}

void
qed_abandon (struct format *f, const struct placement *p)
{
  struct qed *q = to_qed (f);

  if (p->reused)
    return;
  mutex_lock (q->cache.mutex);
  qed_spare_locked (q, p->host, p->length);
  mutex_unlock (q->cache.mutex);
}

/* ---- unmap ---- */

/* Make entries say V as far as they refer to no data; *N = how many do.  A zero
 * entry reads as zeroes as it is, so only UNMAP_TRANSPARENT changes it.
 */
static bool
set_entries (const struct qed_entries *entries, uint64_t v,
             enum unmap_how how, bool data_too, uint64_t *n)
{
  bool changed = false;

  for (*n = 0; *n < entries->nr; ++*n) {
    uint8_t *p = entries->p + 8 * *n;
    uint64_t old = get_le64 (p);

    if (is_placed (old) && !data_too)
      break;
    if (old == QED_ZERO && how == UNMAP_ZERO)
      continue;
    if (old != v)
      put_le64 (p, v);
    changed |= old != v;
  }
  return changed;
}

/* The entry that a cluster without data gets.  The backing file that the image
 * names may not be followed now, but another time.
 */
static uint64_t
empty_entry_locked (const struct qed *q, enum unmap_how how)
  REQUIRES (q->cache.mutex)
{
  bool backing = q->has_backing || (q->features & QED_F_BACKING_FILE);

  return how == UNMAP_ZERO && backing ? QED_ZERO : 0;
}

/* DATA_TOO: data clusters are forgotten as well. */
static int
unmap_locked (struct qed *q, struct slice_op *op, uint64_t guest,
              uint64_t length, enum unmap_how how, bool data_too,
              uint64_t *done, struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t v = empty_entry_locked (q, how), l2, n;
  struct qed_entries entries;
  int r = qed_find_l2_locked (q, op, guest, &l2, e);

  if (r != 1)
    return r;
  if (l2 == 0 && v == 0) {      /* without a table all entries are 0 */
    *done = min_u64 (length, qed_reach (q, guest));
    return 1;
  }
  r = own_entries_locked (q, op, guest, length, &entries, e);
  if (r != 1)
    return r;
  if (set_entries (&entries, v, how, data_too, &n))
    slice_dirty_locked (&q->cache, entries.slice);
  *done = min_u64 (length, (n << q->g.cluster_bits));
  return 1;
}

static int
unmap (struct qed *q, uint64_t guest, uint64_t length, enum unmap_how how,
       bool data_too, uint64_t *done, struct error *e)
{
  struct slice_op op = SLICE_OP_INIT;
  int r;

  *done = 0;
  mutex_lock (q->cache.mutex);
  do
    r = unmap_locked (q, &op, guest, length, how, data_too, done, e);
  while (r == 0);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  return r == 1 ? 0 : -1;
}

/* Nothing can be kept (an entry has a place, or none), and no data cluster is
 * dropped: the core writes zeroes there.
 */
int
qed_unmap (struct format *f, uint64_t guest, uint64_t length,
           enum unmap_how how, uint64_t *done, struct error *e)
{
  *done = 0;
  if (how == UNMAP_KEEP)
    return 0;
  return unmap (to_qed (f), guest, length, how, false, done, e);
}

int
qed_forget (struct qed *q, uint64_t guest, uint64_t length, struct error *e)
{
  uint64_t end = guest + length, done;

  for (; guest < end; guest += done)
    if (unmap (q, guest, end - guest, UNMAP_TRANSPARENT, true, &done,
               e) == -1)
      return -1;
  return 0;
}
