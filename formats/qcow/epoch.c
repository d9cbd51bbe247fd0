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
  if (storage_flush (q->format.storage, e) == -1)
    return -1;
  return slices_write_out (&q->cache, b, e);
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

bool
qcow_metadata_dirty (struct format *f)
{
  return slices_pending (&to_qcow (f)->cache);
}

int
qcow_flush (struct format *f, struct error *e)
{
  return slices_flush (&to_qcow (f)->cache, e);
}
