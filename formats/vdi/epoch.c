/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Write-back of the block map in order (see vdi.h), and flush.  Layer: formats.
 * Locking: one epoch at a time (formats/slices.h), with the mutex dropped
 * while it writes copies.
 */

#include <config.h>

#include "formats/vdi/vdi.h"

/* A crash in P1 leaves a number of blocks that is too large; in P2 some entries
 * old and some new, each of which names a block that is complete.
 */
static int
write_out (struct vdi *v, const struct slice_batch *b, uint64_t count,
           bool raise, struct error *e)
{
  if (raise && vdi_write_count (v, count, e) == -1)
    return -1;
  if (storage_flush (v->format.storage, e) == -1)
    return -1;
  return slices_write_out (&v->cache, b, e);
}

/* Called with the mutex, which is dropped and taken again. */
int
vdi_run_epoch (void *owner, struct error *e) NO_LOCK_CHECK
{
  struct vdi *v = owner;
  struct slice_batch b;
  uint64_t count = v->next;
  bool raise;
  int r = slices_collect_locked (&v->cache, 1, &b, e);

  raise = b.nr > 0 && count > v->recorded;
  if (r == 0) {
    mutex_unlock (v->cache.mutex);
    r = write_out (v, &b, count, raise, e);
    mutex_lock (v->cache.mutex);
  }
  slices_batch_end_locked (&v->cache, &b, r == -1);
  return r;
}

bool
vdi_metadata_dirty (struct format *f)
{
  return slices_pending (&to_vdi (f)->cache);
}

int
vdi_flush (struct format *f, struct error *e)
{
  return slices_flush (&to_vdi (f)->cache, e);
}
