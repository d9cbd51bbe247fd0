/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Write-back in epochs, flush, and close.  The order is explained in qed.h.
 * Layer: formats.  Locking: one epoch at a time (formats/slices.h), with the
 * mutex dropped while it writes.
 */

#include <config.h>

#include "formats/qed/qed.h"

struct epoch {
  struct slice_batch l2, l1;
};

/* A crash between the steps leaves entries that nothing points to, or some old
 * and some new ones, each of them complete.
 */
static int
epoch_write (struct qed *q, const struct epoch *ep, struct error *e)
{
  if (storage_flush (q->format.storage, e) == -1)
    return -1;
  if (slices_write_out (&q->cache, &ep->l2, e) == -1)
    return -1;
  return slices_write_out (&q->cache, &ep->l1, e);
}

static int
run_epoch_locked (struct qed *q, struct error *e) REQUIRES (q->cache.mutex)
{
  struct epoch ep = { .l2.nr = 0, .l1.nr = 0 };
  int r;

  r = slices_collect_locked (&q->cache, 1 << SLICE_L2, &ep.l2, e);
  if (r == 0)
    r = slices_collect_locked (&q->cache, 1 << SLICE_L1, &ep.l1, e);
  if (r == 0) {
    mutex_unlock (q->cache.mutex);
    r = epoch_write (q, &ep, e);
    mutex_lock (q->cache.mutex);
  }
  slices_batch_end_locked (&q->cache, &ep.l2, r == -1);
  slices_batch_end_locked (&q->cache, &ep.l1, r == -1);
  return r;
}

/* The cache holds the mutex, through its own name for it. */
int
qed_run_epoch (void *owner, struct error *e) NO_LOCK_CHECK
{
  return run_epoch_locked (owner, e);
}

bool
qed_metadata_dirty (struct format *f)
{
  return slices_pending (&to_qed (f)->cache);
}

int
qed_flush (struct format *f, struct error *e)
{
  return slices_flush (&to_qed (f)->cache, e);
}

/* NEED_CHECK goes last, when all that it warns of is durable.  After any error
 * it stays, and the next writer looks.
 */
static int
finish (struct qed *q, struct error *e)
{
  if (qed_flush (&q->format, e) == -1 || qed_cut (q, e) == -1)
    return -1;
  if (!(q->features & QED_F_NEED_CHECK))
    return 0;
  return qed_write_field (q, H_FEATURES, q->features & ~QED_F_NEED_CHECK, e);
}

int
qed_close (struct format *f, struct error *e)
{
  struct qed *q = to_qed (f);
  int r = q->writing ? finish (q, e) : 0;

  qed_free (q);
  return r;
}
