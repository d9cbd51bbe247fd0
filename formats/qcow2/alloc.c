/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Free clusters: those that were released lately, or a search through the
 * refcounts.  Layer: formats.  Locking: qcow2.mutex.
 * Specification: "Host cluster management".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qcow2/refcount.h"

/* How much may wait to be free again before an allocation that would make the
 * file grow waits for it instead: enough to make an epoch's two barriers cheap.
 */
#define QUARANTINE_BYTES (64 * MiB)

/* A crash leaves this many clusters in use behind the end of the file at most:
 * what was reserved and not yet written, 64 requests of 32 MiB in clusters of
 * 512 bytes, and as much again.  More is a refcount table that names a few full
 * blocks again and again, to keep us searching.
 */
#define MAX_USED_BEHIND_END (UINT64_C (1) << 23)

/* Take the run of at most NR free clusters that begins at entry INDEX. */
static uint64_t
take_run_locked (struct qcow2 *q, struct slice *s, uint64_t index,
                 uint64_t nr) REQUIRES (q->mutex)
{
  uint64_t per_slice = qcow2_refcounts_in_slice (q), n;

  for (n = 0; n < nr && index + n < per_slice; ++n) {
    if (refcount_get (s->data, index + n, q->refcount_order) != 0)
      break;
    refcount_set (s->data, index + n, q->refcount_order, 1);
  }
  if (n)
    table_dirty_locked (q, s);
  return n;
}

/* Clusters that were released lately: no search.  1 = some were found (or
 * *GOT = 0: the list is empty), 0, -1.
 */
static int
alloc_known_locked (struct qcow2 *q, struct slice_op *op, uint64_t nr,
                    uint64_t *host, uint64_t *got, struct error *e)
  REQUIRES (q->mutex)
{
  struct freed *f;
  struct slice *s;
  uint64_t index = 0;
  int r;

  *got = 0;
  while (q->known_free.nr > 0) {
    f = &q->known_free.items[q->known_free.nr - 1];
    r = qcow2_find_refcount_locked (q, op, f->host >> q->cluster_bits, &s,
                                    &index, e);
    if (r != 1)
      return r;
    if (s)
      *got = take_run_locked (q, s, index, min_u64 (nr, f->nr));
    *host = f->host;
    uint64_t gone = max_u64 (*got, 1);
    f->host += gone << q->cluster_bits;
    f->nr -= gone;
    q->known_free.clusters -= gone;
    if (f->nr == 0)
      q->known_free.nr--;
    if (*got)
      break;
  }
  return 1;
}

/* Clusters that were freed and are not free yet. */
static uint64_t
waiting_clusters (const struct qcow2 *q)
{
  return q->quarantine.clusters + q->released.clusters;
}

/* Make them free, or wait until another thread that is at it has done so.
 * 0 = start over, -1.
 */
static int
reclaim_locked (struct qcow2 *q, struct slice_op *op, struct error *e)
  REQUIRES (q->mutex)
{
  table_op_end_locked (q, op);
  if (q->releasing) {
    mutex_wait (&q->mutex, &q->cache.changed);
    return 0;
  }
  if (qcow2_epoch_locked (q, e) == -1)
    return -1;
  qcow2_release_locked (q);
  return 0;
}

/* The storage ends here and cannot grow.  0 = start over, -1 = it is full. */
static int
no_space_locked (struct qcow2 *q, struct slice_op *op, struct error *e)
  REQUIRES (q->mutex)
{
  if (waiting_clusters (q) > 0 || q->epoch_frees || q->releasing)
    return reclaim_locked (q, op, e);
  return error_set (e, ENOSPC, "%s: no free cluster left, and the storage (%"
                    PRIu64 " bytes) cannot grow", q->format.storage->name,
                    storage_size (q->format.storage));
}

/* The search goes up only, so what it has passed behind the end is in use. */
static int
check_search_locked (struct qcow2 *q, struct error *e) REQUIRES (q->mutex)
{
  uint64_t end = q->end >> q->cluster_bits;

  if (q->free_cursor <= end + MAX_USED_BEHIND_END)
    return 0;
  return qcow2_corrupt_locked (q, e, "the refcounts call %" PRIu64 " clusters"
                               " behind the end of the file used",
                               q->free_cursor - end);
}

static int
alloc_search_locked (struct qcow2 *q, struct slice_op *op, uint64_t nr,
                     uint64_t *host, uint64_t *got, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t per_slice = qcow2_refcounts_in_slice (q), index = 0, room;
  struct slice *s;
  int r;

  for (;;) {
    room = qcow2_room_at (q, q->free_cursor);
    if (room == 0)
      return no_space_locked (q, op, e);
    if (check_search_locked (q, e) == -1)
      return -1;
    r = qcow2_find_refcount_locked (q, op, q->free_cursor, &s, &index, e);
    if (r != 1)
      return r;
    if (!s)
      return qcow2_grow_refcounts_locked (q, op, q->free_cursor, e);
    for (; index < per_slice && room > 0; ++index, --room) {
      *got = take_run_locked (q, s, index, min_u64 (nr, room));
      if (*got) {
        *host = q->free_cursor << q->cluster_bits;
        q->free_cursor += *got;
        return 1;
      }
      q->free_cursor++;
    }
  }
}

int
qcow2_alloc_locked (struct qcow2 *q, struct slice_op *op, uint64_t nr,
                    uint64_t *host, uint64_t *got, bool *fresh,
                    struct error *e)
{
  int r;

  if (q->growing) {
    /* Who grows may need the token that this operation has. */
    table_op_end_locked (q, op);
    mutex_wait (&q->mutex, &q->cache.changed);
    return 0;
  }
  if (q->known_free.nr == 0
      && waiting_clusters (q) << q->cluster_bits >= QUARANTINE_BYTES)
    return reclaim_locked (q, op, e);
  r = table_make_room_locked (q, 1, e);
  if (r != 1)
    return r;
  r = alloc_known_locked (q, op, nr, host, got, e);
  if (r == 1 && *got == 0)
    r = alloc_search_locked (q, op, nr, host, got, e);
  if (r != 1)
    return r;
  if (qcow2_claim_locked (q, *host >> q->cluster_bits, *got, fresh, e) == -1)
    return -1;
  return 1;
}
