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
  struct storage *st = v->format.storage;

  if (raise && vdi_write_count (v, count, e) == -1)
    return -1;
  if (storage_flush (st, e) == -1)
    return -1;
  if (b->nr == 0)
    return 0;
  if (slices_write (&v->cache, b, e) == -1)
    return -1;
  return storage_flush (st, e);
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

static bool
is_dirty_locked (struct vdi *v) REQUIRES (v->cache.mutex)
{
  return v->cache.epoch_running || slices_dirty_locked (&v->cache);
}

bool
vdi_metadata_dirty (struct format *f)
{
  struct vdi *v = to_vdi (f);
  bool r;

  mutex_lock (v->cache.mutex);
  r = is_dirty_locked (v);
  mutex_unlock (v->cache.mutex);
  return r;
}

int
vdi_flush (struct format *f, struct error *e)
{
  struct vdi *v = to_vdi (f);
  bool dirty;
  int r = 0;

  mutex_lock (v->cache.mutex);
  dirty = v->writing && is_dirty_locked (v);
  if (dirty)
    r = slices_epoch_locked (&v->cache, e);
  mutex_unlock (v->cache.mutex);
  /* Only guest data may be waiting; several threads do this side by side. */
  return dirty ? r : storage_flush (f->storage, e);
}
