/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Guest -> host.  Layer: formats.  Locking: qcow2.mutex, dropped when a slice
 * must be read; the caller's range lock keeps the answer true.
 * Specification: "Cluster mapping", "Extended L2 Entries".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qcow2/qcow2.h"

struct l2_entry
l2_entry_get (const struct qcow2 *q, const uint8_t *p)
{
  struct l2_entry v = { .entry = get_be64 (p) };

  if (q->extended_l2)
    v.bitmap = get_be64 (p + 8);
  return v;
}

void
l2_entry_put (const struct qcow2 *q, uint8_t *p, struct l2_entry v)
{
  put_be64 (p, v.entry);
  if (q->extended_l2)
    put_be64 (p + 8, v.bitmap);
}

/* The stream's size is given in sectors: the one it begins in, and the number
 * of further ones.
 */
void
qcow2_packed_range (const struct qcow2 *q, uint64_t entry, uint64_t *host,
                    uint64_t *length)
{
  unsigned offset_bits = 62 - (q->cluster_bits - 8);
  uint64_t more = (entry & ~(ENTRY_COPIED | L2_COMPRESSED)) >> offset_bits;

  *host = entry & ((UINT64_C (1) << offset_bits) - 1);
  *length = (more + 1) * SECTOR_SIZE - *host % SECTOR_SIZE;
}

static int
check_l2_offset_locked (struct qcow2 *q, uint64_t guest, uint64_t entry,
                        struct error *e) REQUIRES (q->mutex)
{
  uint64_t l2 = entry & ENTRY_OFFSET_MASK;

  if (is_aligned (l2, q->cluster_size) && l2 >= q->cluster_size
      && l2 < storage_size (q->format.storage))
    return 1;
  return qcow2_corrupt_locked (q, e, "L1 entry of guest offset %" PRIu64
                               ": 0x%" PRIx64 " is not the place of an L2"
                               " table", guest, entry);
}

int
qcow2_find_l2_locked (struct qcow2 *q, struct slice_op *op,
                      struct format_view *view, uint64_t guest, uint64_t *l2,
                      bool *owned, struct error *e)
{
  uint64_t index = guest >> (q->cluster_bits + q->l2_bits), host, entry;
  uint64_t l1_size = view ? view->l1_size : q->l1_size;
  struct slice *s;
  int r;

  *l2 = 0;
  *owned = false;
  if (index >= l1_size)
    return 1;
  host = (view ? view->l1_table_offset : q->l1_table_offset) + index * 8;
  if (host >= storage_size (q->format.storage))
    return error_set (e, EIO, "the L1 entry at 0x%" PRIx64 " lies behind the"
                      " end of the file (%" PRIu64 " bytes): the file was cut"
                      " off", host, storage_size (q->format.storage));
  r = table_get_locked (q, op, SLICE_L1, host, &s, e);
  if (r != 1)
    return r;
  entry = get_be64 (slice_at (q, s, host));
  if ((entry & ENTRY_OFFSET_MASK) == 0)
    return 1;
  *l2 = entry & ENTRY_OFFSET_MASK;
  *owned = !view && (entry & ENTRY_COPIED);
  return check_l2_offset_locked (q, guest, entry, e);
}

/* ---- one entry ---- */

/* What one unit (a cluster, or a subcluster with extended L2) is. */
struct unit {
  enum map_kind kind;
  uint64_t host;                /* of the unit; 0 where there is none */
};

/* HAS_HOST: the cluster has space of its own at HOST.  Space that a snapshot
 * shares is of no use for a write, so it does not count as reserved.
 */
static struct unit
subcluster_unit (uint64_t bitmap, unsigned i, bool has_host, bool owned,
                 uint64_t host)
{
  bool allocated = bitmap & (UINT64_C (1) << i);
  bool zero = bitmap & (UINT64_C (1) << (32 + i));

  if (allocated)
    return (struct unit) { owned ? MAP_DATA : MAP_DATA_COW, host };
  if (zero)
    return (struct unit) { has_host && owned ? MAP_ZERO_ALLOC : MAP_ZERO,
                           host };
  return (struct unit) { has_host && owned ? MAP_BACKING_ALLOC : MAP_BACKING,
                         host };
}

static int
entry_corrupt_locked (struct qcow2 *q, uint64_t guest, struct l2_entry v,
                      const char *why, struct error *e) REQUIRES (q->mutex)
{
  return qcow2_corrupt_locked (q, e, "L2 entry of guest offset %" PRIu64
                               ": 0x%" PRIx64 " (bitmap 0x%" PRIx64 "): %s",
                               guest, v.entry, v.bitmap, why);
}

/* Decode the unit at GUEST.  OWNED: the L2 table is ours alone.  1, -1. */
static int
decode_locked (struct qcow2 *q, uint64_t guest, struct l2_entry v, bool owned,
               struct unit *u, struct error *e) REQUIRES (q->mutex)
{
  uint64_t in_cluster = guest & (q->cluster_size - 1);
  uint64_t host = v.entry & ENTRY_OFFSET_MASK;
  bool has_host = host != 0
    || (q->format.data_file && (v.entry & ENTRY_COPIED));

  owned = owned && (v.entry & ENTRY_COPIED);
  if (!is_aligned (host, q->cluster_size))
    return entry_corrupt_locked (q, guest, v, "the host offset is not"
                                 " aligned to clusters", e);
  if (has_host && q->format.data_file && host != guest - in_cluster)
    return entry_corrupt_locked (q, guest, v, "the host offset in an external"
                                 " data file must be the guest offset", e);
  if (q->extended_l2) {
    if (v.bitmap & (v.bitmap >> 32) & UINT32_MAX)
      return entry_corrupt_locked (q, guest, v, "subclusters are allocated and"
                                   " zero at once", e);
    if ((uint32_t) v.bitmap && !has_host)
      return entry_corrupt_locked (q, guest, v, "subclusters are allocated, but"
                                   " there is no host cluster", e);
    *u = subcluster_unit (v.bitmap,
                          (unsigned) (in_cluster / q->subcluster_size),
                          has_host, owned,
                          host + round_down (in_cluster, q->subcluster_size));
  }
  else if (q->version >= 3 && (v.entry & L2_ZERO))
    *u = (struct unit) { has_host && owned ? MAP_ZERO_ALLOC : MAP_ZERO,
                         host };
  else if (has_host)
    *u = (struct unit) { owned ? MAP_DATA : MAP_DATA_COW, host };
  else
    *u = (struct unit) { MAP_BACKING, 0 };
  return 1;
}

static bool
has_host_space (enum map_kind kind)
{
  return kind == MAP_DATA || kind == MAP_DATA_COW || kind == MAP_ZERO_ALLOC
    || kind == MAP_BACKING_ALLOC;
}

static int
map_packed_locked (struct qcow2 *q, uint64_t guest, struct l2_entry v,
                   uint64_t length, struct mapping *m, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t in_cluster = guest & (q->cluster_size - 1);

  if (q->format.data_file)
    return entry_corrupt_locked (q, guest, v, "compressed clusters cannot be"
                                 " in an external data file", e);
  qcow2_packed_range (q, v.entry, &m->host, &m->packed_length);
  if (m->host < q->cluster_size
      || m->host >= storage_size (q->format.storage))
    return entry_corrupt_locked (q, guest, v, "the compressed cluster lies"
                                 " outside the file", e);
  m->kind = MAP_PACKED;
  m->storage = MAP_IN_IMAGE;
  m->cluster = guest - in_cluster;
  m->codec = q->codec;
  m->length = min_u64 (length, q->cluster_size - in_cluster);
  return 1;
}

/* ---- runs ---- */

/* Bytes from GUEST that one L2 table covers. */
static uint64_t
l2_reach (const struct qcow2 *q, uint64_t guest)
{
  uint64_t reach = UINT64_C (1) << (q->cluster_bits + q->l2_bits);

  return reach - (guest & (reach - 1));
}

/* Is the unit of GUEST + O, where O is the distance to the beginning of a unit,
 * the continuation of FIRST, the unit that holds GUEST?
 */
static bool
continues (const struct qcow2 *q, struct unit first, uint64_t guest,
           uint64_t o, struct unit u)
{
  uint64_t in_unit = guest & (q->subcluster_size - 1);

  return u.kind == first.kind
    && (!has_host_space (u.kind) || u.host == first.host + in_unit + o);
}

/* How far from GUEST, whose unit is FIRST and whose entry is at ENTRY_HOST in
 * the slice S, does it go on alike?
 */
static uint64_t
run_length_locked (struct qcow2 *q, struct slice *s, uint64_t guest,
                   uint64_t length, bool owned, uint64_t entry_host,
                   struct unit first) REQUIRES (q->mutex)
{
  uint64_t unit = q->subcluster_size, o, at;
  uint64_t in_slice = entry_host & (q->cache.slice_size - 1);
  uint64_t in_cluster = guest & (q->cluster_size - 1);
  struct error later = ERROR_INIT;  /* told when that offset is asked for */
  struct l2_entry v;
  struct unit u;

  for (o = unit - (guest & (unit - 1)); o < length; o += unit) {
    at = in_slice + ((in_cluster + o) >> q->cluster_bits) * q->l2_entry_size;
    if (at >= q->cache.slice_size)
      break;
    v = l2_entry_get (q, s->data + at);
    if ((v.entry & L2_COMPRESSED)
        || decode_locked (q, guest + o, v, owned, &u, &later) == -1
        || !continues (q, first, guest, o, u))
      break;
  }
  return min_u64 (o, length);
}

static int
map_locked (struct qcow2 *q, struct slice_op *op, struct format_view *view,
            uint64_t guest, uint64_t length, struct mapping *m,
            struct error *e) REQUIRES (q->mutex)
{
  uint64_t l2, host;
  bool owned;
  struct l2_entry v;
  struct slice *s;
  struct unit u;
  int r;

  r = qcow2_find_l2_locked (q, op, view, guest, &l2, &owned, e);
  if (r != 1)
    return r;
  *m = (struct mapping) { .kind = MAP_BACKING };
  if (l2 == 0) {
    m->length = min_u64 (length, l2_reach (q, guest));
    return 1;
  }
  host = l2_entry_host (q, l2, guest);
  r = table_get_locked (q, op, SLICE_L2, host, &s, e);
  if (r != 1)
    return r;
  v = l2_entry_get (q, slice_at (q, s, host));
  if (v.entry & L2_COMPRESSED)
    return map_packed_locked (q, guest, v, length, m, e);
  if (decode_locked (q, guest, v, owned, &u, e) == -1)
    return -1;
  m->kind = u.kind;
  m->storage = q->format.data_file ? MAP_IN_DATA_FILE : MAP_IN_IMAGE;
  m->host = u.host + (guest & (q->subcluster_size - 1));
  m->length = run_length_locked (q, s, guest, length, owned, host, u);
  return 1;
}

/* Does the cluster of M begin behind the end of the file?  One that begins
 * before it may reach over it: zeroes at its end need not have been written,
 * and be they whole subclusters.
 */
static bool
is_cut_off (const struct qcow2 *q, const struct mapping *m)
{
  return (m->kind == MAP_DATA || m->kind == MAP_DATA_COW)
    && m->storage == MAP_IN_IMAGE
    && round_down (m->host, q->cluster_size)
      >= storage_size (q->format.storage);
}

/* Data are in the file before a table refers to them, so a file that ends
 * before them was cut off, and they are lost; zeroes in their place would pass
 * for the disk.  The file may have grown since it was opened, where another
 * program writes to it (-U).
 */
static int
check_end (struct qcow2 *q, struct mapping *m, struct error *e)
{
  uint64_t size, unit = q->cluster_size;

  if (is_cut_off (q, m)) {
    if (storage_refresh_size (q->format.storage, e) == -1)
      return -1;
    if (is_cut_off (q, m))
      return error_set (e, EIO, "its data at 0x%" PRIx64 " lie behind the end"
                        " of the file (%" PRIu64 " bytes): the file was cut"
                        " off", m->host, storage_size (q->format.storage));
  }
  size = storage_size (q->format.storage);
  if ((m->kind == MAP_DATA || m->kind == MAP_DATA_COW)
      && m->storage == MAP_IN_IMAGE && m->host + m->length > size)
    m->length = min_u64 (m->length, round_up (size, unit) - m->host);
  return 0;
}

int
qcow2_map (struct format *f, struct format_view *view, uint64_t guest,
           uint64_t length, struct mapping *m, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  mutex_lock (&q->mutex);
  do
    r = map_locked (q, &op, view, guest, length, m, e);
  while (r == 0);
  table_op_end_locked (q, &op);
  /* Data that lie on metadata may be read, but never written in place: reserve
   * finds the overlap again and says what is wrong.
   */
  if (r == 1 && q->writing && m->kind == MAP_DATA
      && m->storage == MAP_IN_IMAGE
      && qcow2_overlap_locked (q, m->host, m->length))
    m->kind = MAP_DATA_COW;
  mutex_unlock (&q->mutex);
  return r == 1 ? check_end (q, m, e) : -1;
}
