/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Changes of the mapping: reserve, link, abandon; unmap is in unmap.c.  Layer:
 * formats.  Locking: qcow2.mutex; the caller holds the guest range, rounded to
 * clusters, EXCLUSIVE.
 *
 * Everything here changes tables in the cache only; epochs write them out.
 * What loses its place goes to the quarantine.  One call stays within one slice
 * of an L2 table.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/qcow2/qcow2.h"

int
qcow2_check_writable_locked (struct qcow2 *q, struct error *e)
  REQUIRES (q->mutex)
{
  if (q->incompatible_features & INCOMPAT_CORRUPT)
    return error_set (e, EIO, "%s: the image is marked corrupt: check and"
                      " repair it", q->format.storage->name);
  return 0;
}

/* ---- L2 tables ---- */

/* The first content of a new L2 table at HOST: zeroes, or a copy of the table
 * at OLD that a snapshot shares.  The entries of a shared table have no COPIED
 * flag, so they are right in the copy.
 */
static int
write_new_l2 (struct qcow2 *q, uint64_t old, uint64_t host, struct error *e)
{
  struct storage *st = q->format.storage;
  CLEANUP_FREE void *buf = NULL;

  if (old == 0)
    return storage_zero (st, host, q->cluster_size, 0, e);
  buf = malloc (q->cluster_size);
  if (!buf)
    return error_nomem (e, "a copy of an L2 table", q->cluster_size);
  if (storage_pread (st, buf, q->cluster_size, old, e) == -1)
    return -1;
  return storage_pwrite (st, buf, q->cluster_size, host, 0, e);
}

static int
set_l1_entry_locked (struct qcow2 *q, struct slice_op *op, uint64_t guest,
                     uint64_t entry, struct error *e) REQUIRES (q->mutex)
{
  uint64_t host = q->l1_table_offset
    + (guest >> (q->cluster_bits + q->l2_bits)) * 8;
  struct slice *s;
  int r;

  do {
    r = table_make_room_locked (q, 1, e);
    if (r == 1)
      r = table_get_locked (q, op, SLICE_L1, host, &s, e);
  } while (r == 0);
  if (r == -1)
    return -1;
  put_be64 (slice_at (q, s, host), entry);
  table_dirty_locked (q, s);
  return 0;
}

/* Make sure that there is an L2 table for GUEST that may be changed in place.
 * "growing" keeps a second thread from making one for the same L1 entry.
 * 1 = *L2 is it; 0 = start over; -1.
 */
static int
own_l2_locked (struct qcow2 *q, struct slice_op *op, uint64_t guest,
               uint64_t *l2, struct error *e) REQUIRES (q->mutex)
{
  uint64_t host, got;
  bool owned, fresh;
  int r;

  r = qcow2_find_l2_locked (q, op, NULL, guest, l2, &owned, e);
  if (r != 1 || owned)
    return r;
  r = qcow2_alloc_locked (q, op, 1, &host, &got, &fresh, e);
  if (r != 1)
    return r;
  q->growing = true;
  mutex_unlock (&q->mutex);
  r = write_new_l2 (q, *l2, host, e);
  mutex_lock (&q->mutex);
  if (r == 0)
    r = set_l1_entry_locked (q, op, guest, host | ENTRY_COPIED, e);
  if (r == 0)
    known_add_locked (q, host);
  if (r == 0 && *l2) {
    known_drop_locked (q, *l2);
    table_drop_locked (q, *l2, q->cluster_size);
    qcow2_free_locked (q, *l2, 1);
  }
  if (r == -1)
    freed_list_add (&q->released, host, 1, q->cluster_size);
  q->growing = false;
  pthread_cond_broadcast (&q->cache.changed);
  return r;
}

int
qcow2_own_slice_locked (struct qcow2 *q, struct slice_op *op, uint64_t guest,
                        struct slice **s, uint8_t **entry, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t l2, host;
  int r;

  r = own_l2_locked (q, op, guest, &l2, e);
  if (r != 1)
    return r;
  r = table_make_room_locked (q, 1, e);
  if (r != 1)
    return r;
  host = l2_entry_host (q, l2, guest);
  r = table_get_locked (q, op, SLICE_L2, host, s, e);
  if (r == 1)
    *entry = slice_at (q, *s, host);
  return r;
}

uint64_t
qcow2_clusters_in_slice (const struct qcow2 *q, const struct slice *s,
                         const uint8_t *entry, uint64_t guest,
                         uint64_t length)
{
  uint64_t left = (q->cache.slice_size - (uint64_t) (entry - s->data))
    / q->l2_entry_size;
  uint64_t first = guest >> q->cluster_bits;
  uint64_t last = (guest + length - 1) >> q->cluster_bits;

  return min_u64 (left, last - first + 1);
}

/* ---- what an entry owns ---- */

bool
qcow2_owned_space (const struct qcow2 *q, struct l2_entry v, uint64_t *host)
{
  *host = v.entry & ENTRY_OFFSET_MASK;
  return *host != 0 && (v.entry & ENTRY_COPIED)
    && !(v.entry & L2_COMPRESSED) && is_aligned (*host, q->cluster_size);
}

int
qcow2_check_freed_locked (struct qcow2 *q, uint64_t guest, struct l2_entry v,
                          struct error *e) REQUIRES (q->mutex)
{
  uint64_t size = round_up (storage_size (q->format.storage),
                            q->cluster_size);
  uint64_t host = v.entry & ENTRY_OFFSET_MASK, length = q->cluster_size;

  if (v.entry & L2_COMPRESSED)
    qcow2_packed_range (q, v.entry, &host, &length);
  else if (host == 0 || q->format.data_file)
    return 0;
  else if (is_aligned (host, q->cluster_size))
    return 0;
  if ((v.entry & L2_COMPRESSED) && host >= q->cluster_size
      && host + length <= size)
    return 0;
  return qcow2_corrupt_locked (q, e, "L2 entry of guest offset %" PRIu64
                               ": 0x%" PRIx64 " is not valid", guest,
                               v.entry);
}

void
qcow2_free_entry_locked (struct qcow2 *q, struct l2_entry v, uint64_t kept)
  REQUIRES (q->mutex)
{
  uint64_t host, length, first, last;

  if (q->format.data_file)
    return;
  if (v.entry & L2_COMPRESSED) {
    qcow2_packed_range (q, v.entry, &host, &length);
    first = host >> q->cluster_bits;
    last = (host + length - 1) >> q->cluster_bits;
    qcow2_free_locked (q, first << q->cluster_bits, last - first + 1);
    return;
  }
  host = v.entry & ENTRY_OFFSET_MASK;
  if (host && host != kept)
    qcow2_free_locked (q, host, 1);
}

/* ---- reserve ---- */

static void
place_in_data_file (const struct qcow2 *q, uint64_t guest, uint64_t clusters,
                    uint64_t length, struct placement *p)
{
  uint64_t end = ((guest >> q->cluster_bits) + clusters) << q->cluster_bits;

  *p = (struct placement) {
    .guest = guest, .length = min_u64 (length, end - guest), .host = guest,
    .storage = MAP_IN_DATA_FILE, .reused = true,
  };
}

/* The clusters from GUEST's on own space that lies side by side: use it. */
static int
place_reused_locked (struct qcow2 *q, const uint8_t *entry,
                     uint64_t clusters, uint64_t guest, uint64_t length,
                     uint64_t host, struct placement *p, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t in_cluster = guest & (q->cluster_size - 1), n, next;
  const char *what;

  for (n = 1; n < clusters; ++n)
    if (!qcow2_owned_space (q, l2_entry_get (q, entry + n * q->l2_entry_size),
                      &next)
        || next != host + n * q->cluster_size)
      break;
  what = qcow2_overlap_locked (q, host, n * q->cluster_size);
  if (what)
    return qcow2_corrupt_locked (q, e, "guest offset %" PRIu64 " is mapped to"
                                 " 0x%" PRIx64 ", but %s is there", guest,
                                 host, what);
  *p = (struct placement) {
    .guest = guest, .host = host + in_cluster, .storage = MAP_IN_IMAGE,
    .length = min_u64 (length, n * q->cluster_size - in_cluster),
    .reused = true,
  };
  return 1;
}

/* Has the cluster data that a new place must hold too? */
static bool
must_copy_all (const struct qcow2 *q, struct l2_entry v)
{
  return !q->extended_l2 || (v.entry & L2_COMPRESSED)
    || (uint32_t) v.bitmap != 0;
}

/* New clusters for GUEST's and those behind it, as many as lie side by side. */
static int
place_new_locked (struct qcow2 *q, struct slice_op *op, const uint8_t *entry,
                  uint64_t clusters, uint64_t guest, uint64_t length,
                  struct placement *p, struct error *e) REQUIRES (q->mutex)
{
  uint64_t first = round_down (guest, q->cluster_size), n, host, got, end;
  struct l2_entry v = l2_entry_get (q, entry), last;
  struct error later = ERROR_INIT;      /* told when its turn comes */
  bool fresh;
  int r;

  if (qcow2_check_freed_locked (q, guest, v, e) == -1)
    return -1;
  for (n = 1; n < clusters; ++n) {
    last = l2_entry_get (q, entry + n * q->l2_entry_size);
    if (qcow2_owned_space (q, last, &host)
        || qcow2_check_freed_locked (q, first + n * q->cluster_size, last,
                                     &later) == -1)
      break;
  }
  r = qcow2_alloc_locked (q, op, n, &host, &got, &fresh, e);
  if (r != 1)
    return r;
  last = l2_entry_get (q, entry + (got - 1) * q->l2_entry_size);
  end = first + got * q->cluster_size;
  if (!must_copy_all (q, last))
    end = min_u64 (end, guest + length);
  p->guest = must_copy_all (q, v) ? first : guest;
  p->length = end - p->guest;
  p->host = host + (p->guest - first);
  p->storage = MAP_IN_IMAGE;
  p->reused = p->packed = false;
  p->reads_zero = fresh;
  return 1;
}

static int
reserve_locked (struct qcow2 *q, struct slice_op *op, uint64_t guest,
                uint64_t length, struct placement *p, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t clusters, host;
  struct slice *s;
  uint8_t *entry;
  int r;

  if (qcow2_check_writable_locked (q, e) == -1)
    return -1;
  r = qcow2_own_slice_locked (q, op, guest, &s, &entry, e);
  if (r != 1)
    return r;
  clusters = qcow2_clusters_in_slice (q, s, entry, guest, length);
  if (q->format.data_file) {
    place_in_data_file (q, guest, clusters, length, p);
    return 1;
  }
  if (qcow2_owned_space (q, l2_entry_get (q, entry), &host))
    return place_reused_locked (q, entry, clusters, guest, length, host, p,
                                e);
  return place_new_locked (q, op, entry, clusters, guest, length, p, e);
}

int
qcow2_reserve (struct format *f, uint64_t guest, uint64_t length,
               struct placement *p, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  mutex_lock (&q->mutex);
  do
    r = reserve_locked (q, &op, guest, length, p, e);
  while (r == 0);
  table_op_end_locked (q, &op);
  mutex_unlock (&q->mutex);
  return r == 1 ? 0 : -1;
}

/* ---- compressed streams ---- */

/* Another stream in the cluster that is being filled: one more reference.
 * *TAKEN = false: its refcount cannot become larger, or nobody has it any
 * more.  1, 0, -1.
 */
static int
share_pack_cluster_locked (struct qcow2 *q, struct slice_op *op, bool *taken,
                           struct error *e) REQUIRES (q->mutex)
{
  uint64_t cluster = q->pack_offset >> q->cluster_bits, refcount;
  int r;

  *taken = false;
  r = qcow2_refcount_locked (q, op, cluster, &refcount, e);
  if (r != 1 || refcount == 0 || refcount == refcount_max (q))
    return r;
  r = qcow2_add_refcount_locked (q, op, cluster, 1, e);
  *taken = r == 1;
  return r;
}

/* The stream fits into what is left of the cluster that is being filled. */
static int
pack_behind_locked (struct qcow2 *q, struct slice_op *op, uint64_t length,
                    uint64_t *host, struct error *e) REQUIRES (q->mutex)
{
  uint64_t here = q->pack_offset;
  bool taken;
  int r = share_pack_cluster_locked (q, op, &taken, e);

  if (r != 1)
    return r;
  if (!taken) {
    q->pack_offset = 0;
    return 0;
  }
  *host = here;
  q->pack_offset = is_aligned (here + length, q->cluster_size)
    ? 0 : here + length;
  return 1;
}

/* A cluster more.  If it lies behind the one that is being filled, the stream
 * begins there; the room it leaves in the new one is for the next stream.
 */
static int
pack_new_locked (struct qcow2 *q, struct slice_op *op, uint64_t length,
                 uint64_t *host, struct error *e) REQUIRES (q->mutex)
{
  uint64_t cluster, got, here = q->pack_offset;
  bool taken = false, fresh;
  int r;

  r = qcow2_alloc_locked (q, op, 1, &cluster, &got, &fresh, e);
  if (r != 1)
    return r;
  while (here && round_up (here, q->cluster_size) == cluster) {
    r = share_pack_cluster_locked (q, op, &taken, e);
    if (r == -1) {
      freed_list_add (&q->released, cluster, 1, q->cluster_size);
      return -1;
    }
    /* Another thread may have used the room meanwhile. */
    if (r == 1 || q->pack_offset != here)
      break;
  }
  *host = taken ? here : cluster;
  q->pack_offset = is_aligned (*host + length, q->cluster_size)
    ? 0 : *host + length;
  return 1;
}

static int
reserve_packed_locked (struct qcow2 *q, struct slice_op *op, uint64_t guest,
                       struct placement *p, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t room, l2;
  int r;

  if (qcow2_check_writable_locked (q, e) == -1)
    return -1;
  r = own_l2_locked (q, op, guest, &l2, e);
  if (r != 1)
    return r;
  room = q->pack_offset
    ? round_up (q->pack_offset, q->cluster_size) - q->pack_offset : 0;
  if (p->packed_length <= room)
    return pack_behind_locked (q, op, p->packed_length, &p->host, e);
  return pack_new_locked (q, op, p->packed_length, &p->host, e);
}

int
qcow2_reserve_packed (struct format *f, uint64_t guest,
                      uint64_t packed_length, struct placement *p,
                      struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  if (!f->info.can_pack)
    return error_set (e, ENOTSUP, "%s: compressed clusters cannot be written"
                      " to this image", f->storage->name);
  *p = (struct placement) {
    .guest = guest, .length = q->cluster_size, .packed = true,
    .packed_length = packed_length, .storage = MAP_IN_IMAGE,
  };
  mutex_lock (&q->mutex);
  do
    r = reserve_packed_locked (q, &op, guest, p, e);
  while (r == 0);
  table_op_end_locked (q, &op);
  mutex_unlock (&q->mutex);
  return r == 1 ? 0 : -1;
}

/* ---- link and abandon ---- */

static struct l2_entry
packed_entry (const struct qcow2 *q, const struct placement *p)
{
  unsigned offset_bits = 62 - (q->cluster_bits - 8);
  uint64_t more = (p->host + p->packed_length - 1) / SECTOR_SIZE
    - p->host / SECTOR_SIZE;

  return (struct l2_entry) {
    .entry = L2_COMPRESSED | more << offset_bits | p->host,
  };
}

uint64_t
qcow2_subcluster_bits (const struct qcow2 *q, uint64_t from, uint64_t to)
{
  unsigned first = (unsigned) (from / q->subcluster_size);
  unsigned end = (unsigned) div_round_up (to, q->subcluster_size);

  return ((UINT64_C (1) << end) - 1) & ~((UINT64_C (1) << first) - 1);
}

/* The entry of a cluster at host cluster HOST of which [from, to) was written;
 * what the rest of it says stays.
 */
static struct l2_entry
data_entry (const struct qcow2 *q, struct l2_entry old, uint64_t host,
            uint64_t from, uint64_t to)
{
  struct l2_entry v = { .entry = host | ENTRY_COPIED };
  uint64_t bits;

  if (!q->extended_l2)
    return v;
  bits = qcow2_subcluster_bits (q, from, to);
  v.bitmap = old.entry & L2_COMPRESSED ? 0 : old.bitmap;
  v.bitmap = (v.bitmap | bits) & ~(bits << 32);
  return v;
}

static void
link_cluster_locked (struct qcow2 *q, const struct placement *p,
                     uint64_t cluster, uint8_t *entry) REQUIRES (q->mutex)
{
  struct l2_entry old = l2_entry_get (q, entry), v;
  uint64_t from = max_u64 (p->guest, cluster) - cluster;
  uint64_t to = min_u64 (p->guest + p->length - cluster, q->cluster_size);
  uint64_t host = p->host - (p->guest & (q->cluster_size - 1))
    + (cluster - round_down (p->guest, q->cluster_size));

  if (p->packed)
    v = packed_entry (q, p);
  else
    v = data_entry (q, old, host, from, to);
  l2_entry_put (q, entry, v);
  qcow2_free_entry_locked (q, old, p->packed ? 0 : host);
}

static int
link_locked (struct qcow2 *q, struct slice_op *op, const struct placement *p,
             struct error *e) REQUIRES (q->mutex)
{
  uint64_t n, first = round_down (p->guest, q->cluster_size);
  struct slice *s;
  uint8_t *entry;
  int r;

  if (qcow2_check_writable_locked (q, e) == -1)
    return -1;
  r = qcow2_own_slice_locked (q, op, p->guest, &s, &entry, e);
  if (r != 1)
    return r;
  n = qcow2_clusters_in_slice (q, s, entry, p->guest, p->length);
  for (uint64_t i = 0; i < n; ++i)
    link_cluster_locked (q, p, first + i * q->cluster_size,
                         entry + i * q->l2_entry_size);
  table_dirty_locked (q, s);
  return 1;
}

int
qcow2_link (struct format *f, const struct placement *p, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  if (p->packed && p->host >> (62 - (q->cluster_bits - 8)))
    return error_set (e, EFBIG, "%s: a compressed cluster cannot lie as far"
                      " out as 0x%" PRIx64, f->storage->name, p->host);
  mutex_lock (&q->mutex);
  do
    r = link_locked (q, &op, p, e);
  while (r == 0);
  table_op_end_locked (q, &op);
  mutex_unlock (&q->mutex);
  return r == 1 ? 0 : -1;
}

/* No table refers to the space, so it need not wait in the quarantine, and the
 * next place is the same one: a file does not get a hole for a place that was
 * of no use.
 */
void
qcow2_abandon (struct format *f, const struct placement *p)
{
  struct qcow2 *q = to_qcow2 (f);
  uint64_t length = p->packed ? p->packed_length : p->length;
  uint64_t first = p->host >> q->cluster_bits;
  uint64_t last = (p->host + length - 1) >> q->cluster_bits;

  if (p->reused)
    return;
  mutex_lock (&q->mutex);
  freed_list_add (&q->released, first << q->cluster_bits, last - first + 1,
                  q->cluster_size);
  qcow2_release_locked (q);
  mutex_unlock (&q->mutex);
}
