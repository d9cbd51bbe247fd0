/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* reserve, link, abandon, unmap: where new clusters and L2 tables go.  Layer:
 * formats.  Locking: cache.mutex, dropped for reads and writes of tables; one
 * thread at a time adds an L2 table.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qcow/qcow.h"

/* ---- space ---- */

/* How far the file may grow is found out when it first has to: 13,000 tables
 * for a disk of 25 GiB, which one who only reads or writes in place need not
 * wait for.  1, 0, -1.
 */
static int
find_limit_locked (struct qcow *q, struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t first_new = q->end, limit = 0;
  int r;

  if (q->limit)
    return 1;
  if (q->growing) {
    mutex_wait (q->cache.mutex, &q->cache.changed);
    return 0;
  }
  q->growing = true;
  mutex_unlock (q->cache.mutex);
  r = qcow_survey (q, first_new, &limit, e);
  mutex_lock (q->cache.mutex);
  q->limit = limit;
  q->growing = false;
  pthread_cond_broadcast (&q->cache.changed);
  return r;
}

/* LENGTH bytes at the end of the file. */
static int
take_locked (struct qcow *q, uint64_t length, uint64_t align, uint64_t max,
             uint64_t *host, struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t start;

  if (!round_up_ok (q->end, align, &start) || length > max
      || start > max - length)
    return error_set (e, EFBIG, "no cluster can lie as far out as 0x%" PRIx64,
                      q->end);
  if (start > q->limit || length > q->limit - start)
    return error_set (e, EIO, "corrupt image: an entry leads to 0x%" PRIx64
                      ", where a new cluster would have to lie; copy the image"
                      " (convert --salvage)", q->limit);
  *host = start;
  q->end = start + length;
  return 0;
}

/* Only what was taken last can be given back; the rest is lost, as all that a
 * qcow image no longer refers to.
 */
static void
give_back_locked (struct qcow *q, uint64_t host, uint64_t length)
  REQUIRES (q->cache.mutex)
{
  if (host + length == q->end)
    q->end = host;
}

/* ---- L2 tables ---- */

/* The table is whole on disk, as zeroes, before an entry names it. */
static int
write_l2 (struct qcow *q, uint64_t host, uint64_t length, struct error *e)
{
  return storage_zero (q->format.storage, host, length, STORAGE_MAY_UNMAP, e);
}

static int
set_l1_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
               uint64_t l2, struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t host = q->l1_table_offset + guest / qcow_l2_reach (q) * 8;
  struct slice *s;
  int r;

  do {
    r = slices_make_room_locked (&q->cache, 1, e);
    if (r == 1)
      r = qcow_slice_locked (q, op, QCOW_L1, host, &s, e);
  } while (r == 0);
  if (r == -1)
    return -1;
  put_be64 (slice_byte (&q->cache, s, host), l2);
  slice_dirty_locked (&q->cache, s);
  return 0;
}

/* Add the L2 table for GUEST.  0 = start over, -1. */
static int
add_l2_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
               struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t length = round_up (UINT64_C (8) << q->l2_bits,
                              q->cache.slice_size), host;
  int r;

  if (q->growing) {
    /* Who grows may have to load a slice, and must not wait for what this
     * operation holds of the cache.
     */
    slice_op_end_locked (&q->cache, op);
    mutex_wait (q->cache.mutex, &q->cache.changed);
    return 0;
  }
  if (take_locked (q, length, q->cluster_size, INT64_MAX, &host, e) == -1)
    return -1;
  q->growing = true;
  mutex_unlock (q->cache.mutex);
  r = write_l2 (q, host, length, e);
  mutex_lock (q->cache.mutex);
  if (r == 0)
    r = set_l1_locked (q, op, guest, host, e);
  if (r == -1)
    give_back_locked (q, host, length);
  q->growing = false;
  pthread_cond_broadcast (&q->cache.changed);
  return r;
}

/* The entry of GUEST, in a table that is there if it was not.  1, 0, -1. */
static int
own_entry_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
                  uint64_t length, struct slice **s, uint8_t **p,
                  uint64_t *nr, struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t l2;
  int r = qcow_find_l2_locked (q, op, guest, &l2, e);

  if (r != 1)
    return r;
  if (l2 == 0)
    return add_l2_locked (q, op, guest, e);
  return qcow_entry_locked (q, op, l2, guest, length, s, p, nr, e);
}

/* ---- reserve ---- */

static bool
has_place (const uint8_t *entry)
{
  uint64_t v = get_be64 (entry);

  return v != 0 && !(v & Q1_COMPRESSED);
}

static int
reserve_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
                uint64_t length, struct placement *p, struct error *e)
  REQUIRES (q->cache.mutex)
{
  uint64_t max = 0, nr = 0;
  struct slice *s;
  uint8_t *entry;
  int r = find_limit_locked (q, e);

  if (r == 1)
    r = own_entry_locked (q, op, guest, length, &s, &entry, &max, e);
  if (r != 1)
    return r;
  while (nr < max && !has_place (entry + nr * 8))
    nr++;
  *p = (struct placement) {
    .guest = round_down (guest, q->cluster_size), .reused = nr == 0,
    .length = max_u64 (nr, 1) * q->cluster_size,
  };
  if (p->reused) {
    p->host = get_be64 (entry);
    return 1;
  }
  if (take_locked (q, p->length, q->cluster_size, INT64_MAX, &p->host,
                   e) == -1)
    return -1;
  return 1;
}

/* Clusters are written whole, so that the file reaches to the end of each: its
 * size is what other programs take for the place of the next one.
 */
int
qcow_reserve (struct format *f, uint64_t guest, uint64_t length,
              struct placement *p, struct error *e)
{
  struct qcow *q = to_qcow (f);
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

/* Streams lie side by side, at any byte. */
static int
reserve_packed_locked (struct qcow *q, struct slice_op *op,
                       struct placement *p, struct error *e)
  REQUIRES (q->cache.mutex)
{
  uint64_t max = (UINT64_C (1) << qcow_offset_bits (q)) - 1, nr;
  struct slice *s;
  uint8_t *entry;
  int r = find_limit_locked (q, e);

  if (r == 1)
    r = own_entry_locked (q, op, p->guest, 1, &s, &entry, &nr, e);
  if (r != 1)
    return r;
  return take_locked (q, p->packed_length, 1, max, &p->host, e) == -1 ? -1 : 1;
}

int
qcow_reserve_packed (struct format *f, uint64_t guest, uint64_t packed_length,
                     struct placement *p, struct error *e)
{
  struct qcow *q = to_qcow (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  *p = (struct placement) {
    .guest = guest, .length = q->cluster_size, .packed = true,
    .packed_length = packed_length,
  };
  if (packed_length >= q->cluster_size)
    return error_set (e, EINVAL, "a compressed cluster of %" PRIu64 " bytes is"
                      " none", packed_length);
  mutex_lock (q->cache.mutex);
  do
    r = reserve_packed_locked (q, &op, p, e);
  while (r == 0);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  return r == 1 ? 0 : -1;
}

void
qcow_abandon (struct format *f, const struct placement *p)
{
  struct qcow *q = to_qcow (f);

  if (p->reused)
    return;
  mutex_lock (q->cache.mutex);
  give_back_locked (q, p->host, p->packed ? p->packed_length : p->length);
  mutex_unlock (q->cache.mutex);
}

/* ---- link ---- */

static uint64_t
new_entry (const struct qcow *q, const struct placement *p, uint64_t i)
{
  if (p->packed)
    return Q1_COMPRESSED | p->packed_length << qcow_offset_bits (q) | p->host;
  return p->host + i * q->cluster_size;
}

static int
link_locked (struct qcow *q, struct slice_op *op, const struct placement *p,
             struct error *e) REQUIRES (q->cache.mutex)
{
  uint64_t nr;
  struct slice *s;
  uint8_t *entry;
  int r = slices_make_room_locked (&q->cache, 1, e);

  if (r == 1)
    r = own_entry_locked (q, op, p->guest, p->length, &s, &entry, &nr, e);
  if (r != 1)
    return r;
  for (uint64_t i = 0; i < nr; ++i)
    put_be64 (entry + i * 8, new_entry (q, p, i));
  slice_dirty_locked (&q->cache, s);
  return 1;
}

int
qcow_link (struct format *f, const struct placement *p, struct error *e)
{
  struct qcow *q = to_qcow (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  mutex_lock (q->cache.mutex);
  do
    r = link_locked (q, &op, p, e);
  while (r == 0);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  return r == 1 ? 0 : -1;
}

/* ---- unmap ---- */

/* The clusters from P on that have no place read as zeroes; a compressed one
 * does when its entry is gone.
 */
static int
unmap_slice_locked (struct qcow *q, struct slice *s, uint8_t *p, uint64_t nr,
                    uint64_t *done) REQUIRES (q->cache.mutex)
{
  bool changed = false;

  *done = 0;
  for (uint64_t i = 0; i < nr && !has_place (p + i * 8); ++i) {
    if (get_be64 (p + i * 8) != 0) {
      put_be64 (p + i * 8, 0);
      changed = true;
    }
    *done += q->cluster_size;
  }
  if (changed)
    slice_dirty_locked (&q->cache, s);
  return 1;
}

static int
unmap_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
              uint64_t length, uint64_t *done, struct error *e)
  REQUIRES (q->cache.mutex)
{
  uint64_t l2, nr, reach = qcow_l2_reach (q);
  struct slice *s;
  uint8_t *p;
  int r = slices_make_room_locked (&q->cache, 1, e);

  if (r == 1)
    r = qcow_find_l2_locked (q, op, guest, &l2, e);
  if (r != 1)
    return r;
  if (l2 == 0) {
    *done = reach - (guest & (reach - 1));
    return 1;
  }
  r = qcow_entry_locked (q, op, l2, guest, length, &s, &p, &nr, e);
  return r == 1 ? unmap_slice_locked (q, s, p, nr, done) : r;
}

/* There is no zero cluster, so over a backing file zeroes are data. */
int
qcow_unmap (struct format *f, uint64_t guest, uint64_t length,
            enum unmap_how how, uint64_t *done, struct error *e)
{
  struct qcow *q = to_qcow (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  *done = 0;
  if (how != UNMAP_ZERO || q->has_backing)
    return 0;
  mutex_lock (q->cache.mutex);
  do
    r = unmap_locked (q, &op, guest, length, done, e);
  while (r == 0);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  *done = min_u64 (*done, length);
  return r == 1 ? 0 : -1;
}
