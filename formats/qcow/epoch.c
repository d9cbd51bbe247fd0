/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Write-back of the tables in order (see qcow.h), and flush.  Layer: formats.
 * Locking: one epoch at a time (formats/slices.h), with the mutex dropped
 * while it writes copies.
 */

#include <config.h>

#include "formats/qcow/qcow.h"

/* L1 entries may reach the disk before the L2 entries behind them: the table
 * that they name is there, with older entries or with zeroes, which all tell
 * the truth of before.
 */
static int
write_out (struct qcow *q, const struct slice_batch *b, struct error *e)
{
  struct storage *st = q->format.storage;

  if (storage_flush (st, e) == -1)
    return -1;
  if (b->nr == 0)
    return 0;
  if (slices_write (&q->cache, b, e) == -1)
    return -1;
  return storage_flush (st, e);
}

/* Called with the mutex, which is dropped and taken again. */
int
qcow_run_epoch (void *owner, struct error *e) NO_LOCK_CHECK
{
  struct qcow *q = owner;
  struct slice_batch b;
  int r = slices_collect_locked (&q->cache, 1 << QCOW_L1 | 1 << QCOW_L2, &b,
                                 e);

  if (r == 0) {
    mutex_unlock (q->cache.mutex);
    r = write_out (q, &b, e);
    mutex_lock (q->cache.mutex);
  }
  slices_batch_end_locked (&q->cache, &b, r == -1);
  return r;
}

static bool
is_dirty_locked (struct qcow *q) REQUIRES (q->cache.mutex)
{
  return q->cache.epoch_running || slices_dirty_locked (&q->cache);
}

bool
qcow_metadata_dirty (struct format *f)
{
  struct qcow *q = to_qcow (f);
  bool r;

  mutex_lock (q->cache.mutex);
  r = is_dirty_locked (q);
  mutex_unlock (q->cache.mutex);
  return r;
}

int
qcow_flush (struct format *f, struct error *e)
{
  struct qcow *q = to_qcow (f);
  bool dirty;
  int r = 0;

  mutex_lock (q->cache.mutex);
  dirty = q->writing && is_dirty_locked (q);
  if (dirty)
    r = slices_epoch_locked (&q->cache, e);
  mutex_unlock (q->cache.mutex);
  /* Only guest data may be waiting; several threads do this side by side. */
  return dirty ? r : storage_flush (f->storage, e);
}
