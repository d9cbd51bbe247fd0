/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Write-back in epochs, flush, the quarantine of freed clusters, and close.
 * The order is explained in qcow2.h.  Layer: formats.  Locking: one epoch at a
 * time (formats/slices.h), with the mutex dropped while it writes.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/qcow2.h"

/* ---- lists of freed clusters ---- */

/* Beyond this many pieces of known free space the search finds it again: the
 * list only saves searching.
 */
enum { MAX_KNOWN_FREE = 4096 };

/* Out of memory loses the piece: its clusters leak, which check mends. */
void
freed_list_add (struct freed_list *l, uint64_t host, uint64_t nr,
                uint64_t cluster_size)
{
  struct freed *last = l->nr ? &l->items[l->nr - 1] : NULL;
  struct freed *bigger;
  size_t alloc;

  if (last && last->host + last->nr * cluster_size == host) {
    last->nr += nr;
    l->clusters += nr;
    return;
  }
  if (l->nr == l->alloc) {
    alloc = l->alloc ? 2 * l->alloc : 64;
    bigger = realloc (l->items, alloc * sizeof bigger[0]);
    if (!bigger) {
      log_warning ("out of memory: freed clusters are leaked");
      return;
    }
    l->items = bigger;
    l->alloc = alloc;
  }
  l->items[l->nr++] = (struct freed) { .host = host, .nr = nr };
  l->clusters += nr;
}

void
freed_list_clear (struct freed_list *l)
{
  free (l->items);
  *l = (struct freed_list) { .items = NULL };
}

void
qcow2_free_locked (struct qcow2 *q, uint64_t host, uint64_t nr)
{
  freed_list_add (&q->quarantine, host, nr, q->cluster_size);
}

/* ---- one epoch ---- */

struct epoch {
  struct slice_batch blocks, table, entries;    /* P1, P1b, P2 */
  struct freed_list freed;                      /* P3 */
};

/* Copy all that is dirty.  From here on, changes belong to the next epoch. */
static int
collect_locked (struct qcow2 *q, struct epoch *ep, struct error *e)
  REQUIRES (q->mutex) NO_LOCK_CHECK
{
  struct slice_cache *c = &q->cache;

  if (slices_collect_locked (c, 1 << SLICE_REFBLOCK, &ep->blocks, e) == -1
      || slices_collect_locked (c, 1 << SLICE_REFTABLE, &ep->table, e) == -1
      || slices_collect_locked (c, 1 << SLICE_L1 | 1 << SLICE_L2,
                                &ep->entries, e) == -1)
    return -1;
  ep->freed = q->quarantine;
  q->epoch_frees = ep->freed.nr > 0;
  q->quarantine = (struct freed_list) { .items = NULL };
  return 0;
}

static int
barrier (struct qcow2 *q, struct error *e)
{
  return storage_flush (q->format.storage, e);
}

/* A crash in P1 leaves refcounts that are too large (leaks); in P1b blocks that
 * nothing refers to yet; in P2 some entries old and some new, each of them
 * complete.
 */
static int
epoch_write (struct qcow2 *q, const struct epoch *ep, struct error *e)
{
  struct storage *data_file = q->format.data_file;

  if (slices_write (&q->cache, &ep->blocks, e) == -1)
    return -1;
  if (data_file && storage_flush (data_file, e) == -1)
    return -1;
  if (barrier (q, e) == -1)
    return -1;
  if (ep->table.nr
      && (slices_write (&q->cache, &ep->table, e) == -1
          || barrier (q, e) == -1))
    return -1;
  if (ep->entries.nr
      && (slices_write (&q->cache, &ep->entries, e) == -1
          || barrier (q, e) == -1))
    return -1;
  return 0;
}

static void
move_list (struct freed_list *from, struct freed_list *to,
           uint64_t cluster_size)
{
  if (to->nr == 0) {
    freed_list_clear (to);
    *to = *from;
    return;
  }
  for (size_t i = 0; i < from->nr; ++i)
    freed_list_add (to, from->items[i].host, from->items[i].nr, cluster_size);
  freed_list_clear (from);
}

/* What failed is dirty again and still in the quarantine: the next epoch tries
 * once more, in the same order.
 */
static void
epoch_end_locked (struct qcow2 *q, struct epoch *ep, bool failed)
  REQUIRES (q->mutex) NO_LOCK_CHECK
{
  slices_batch_end_locked (&q->cache, &ep->blocks, failed);
  slices_batch_end_locked (&q->cache, &ep->table, failed);
  slices_batch_end_locked (&q->cache, &ep->entries, failed);
  move_list (&ep->freed, failed ? &q->quarantine : &q->released,
             q->cluster_size);
}

/* The cache calls this: one epoch at a time, with the mutex. */
static int
run_epoch_locked (struct qcow2 *q, struct error *e) REQUIRES (q->mutex)
{
  struct epoch ep = { .freed.items = NULL };
  int r;

  r = collect_locked (q, &ep, e);
  if (r == 0) {
    mutex_unlock (&q->mutex);
    r = epoch_write (q, &ep, e);
    mutex_lock (&q->mutex);
  }
  epoch_end_locked (q, &ep, r == -1);
  q->epoch_frees = false;
  return r;
}

int
qcow2_run_epoch (void *owner, struct error *e) NO_LOCK_CHECK
{
  return run_epoch_locked (owner, e);
}

int
qcow2_epoch_locked (struct qcow2 *q, struct error *e) NO_LOCK_CHECK
{
  return slices_epoch_locked (&q->cache, e);
}

/* ---- release ---- */

/* The run of clusters from F->host on that nobody else refers to: *NR of them,
 * 0 = the first one is shared.  All are in one refcount slice, so that the
 * mutex is not dropped between the first look and the last: nobody packs into
 * one of them meanwhile.
 */
static int
count_last_locked (struct qcow2 *q, struct slice_op *op,
                   const struct freed *f, uint64_t *nr, struct error *e)
  REQUIRES (q->mutex)
{
  uint64_t first = f->host >> q->cluster_bits, refcount;
  uint64_t max = qcow2_refcounts_left (q, first);
  int r;

  max = min_u64 (max, f->nr);
  for (*nr = 0; *nr < max; ++*nr) {
    r = qcow2_refcount_locked (q, op, first + *nr, &refcount, e);
    if (r != 1)
      return r;
    if (refcount != 1)
      break;
  }
  return 1;
}

/* Holes are punched while the clusters are still allocated, so that none can
 * hit a cluster that was given out again.
 */
static void
punch_locked (struct qcow2 *q, uint64_t host, uint64_t nr)
  REQUIRES (q->mutex)
{
  uint64_t length = nr << q->cluster_bits;
  struct error ignored = ERROR_INIT;

  if (q->pack_offset >= host && q->pack_offset < host + length)
    q->pack_offset = 0;
  if (!q->discard)
    return;
  mutex_unlock (&q->mutex);
  if (storage_trim (q->format.storage, host, length, 0, &ignored) == -1)
    log_debug ("%s", ignored.text);
  mutex_lock (&q->mutex);
}

static int
drop_refcounts_locked (struct qcow2 *q, struct slice_op *op,
                       const struct freed *f, uint64_t nr, struct error *e)
  REQUIRES (q->mutex)
{
  int r;

  for (uint64_t i = 0; i < nr; ++i) {
    do
      r = qcow2_add_refcount_locked (q, op, (f->host >> q->cluster_bits) + i,
                                     -1, e);
    while (r == 0);
    if (r == -1)
      return -1;
  }
  return 0;
}

/* Release the beginning of F. */
static int
release_some_locked (struct qcow2 *q, struct freed *f, struct error *e)
  REQUIRES (q->mutex)
{
  struct slice_op op = SLICE_OP_INIT;
  uint64_t nr = 0, done;
  const char *what;
  int r;

  do
    r = count_last_locked (q, &op, f, &nr, e);
  while (r == 0);
  done = max_u64 (nr, 1);
  what = nr ? qcow2_overlap_locked (q, f->host, nr << q->cluster_bits) : NULL;
  if (r == 1 && what)
    r = qcow2_corrupt_locked (q, e, "the clusters at 0x%" PRIx64 " were freed,"
                              " but %s is there", f->host, what);
  if (r == 1 && nr)
    punch_locked (q, f->host, nr);
  if (r == 1)
    r = drop_refcounts_locked (q, &op, f, done, e);
  table_op_end_locked (q, &op);
  if (r == -1)
    return -1;
  if (nr && q->known_free.nr < MAX_KNOWN_FREE)
    freed_list_add (&q->known_free, f->host, nr, q->cluster_size);
  else if (nr)
    q->free_cursor = min_u64 (q->free_cursor, f->host >> q->cluster_bits);
  f->host += done << q->cluster_bits;
  f->nr -= done;
  return 0;
}

/* The disk no longer refers to these clusters.  What cannot be released (the
 * refcount block cannot be read) stays leaked.
 */
void
qcow2_release_locked (struct qcow2 *q)
{
  struct freed_list list;
  struct error e = ERROR_INIT;

  if (q->releasing)
    return;
  q->releasing = true;
  while (q->released.nr > 0) {
    list = q->released;
    q->released = (struct freed_list) { .items = NULL };
    for (size_t i = 0; i < list.nr; ++i)
      while (list.items[i].nr > 0)
        if (release_some_locked (q, &list.items[i], &e) == -1) {
          log_warning ("%s: clusters are leaked: %s",
                       q->format.storage->name, e.text);
          error_clear (&e);
          break;
        }
    freed_list_clear (&list);
  }
  q->releasing = false;
  pthread_cond_broadcast (&q->cache.changed);
}

/* ---- flush and close ---- */

static bool
is_dirty_locked (struct qcow2 *q) REQUIRES (q->mutex) NO_LOCK_CHECK
{
  return slices_dirty_locked (&q->cache) || q->quarantine.nr > 0
    || q->released.nr > 0;
}

bool
qcow2_metadata_dirty (struct format *f)
{
  struct qcow2 *q = to_qcow2 (f);
  bool r;

  mutex_lock (&q->mutex);
  r = q->cache.epoch_running || is_dirty_locked (q);
  mutex_unlock (&q->mutex);
  return r;
}

static int
flush_locked (struct qcow2 *q, struct error *e) REQUIRES (q->mutex)
{
  if (qcow2_epoch_locked (q, e) == -1)
    return -1;
  qcow2_release_locked (q);
  return 0;
}

int
qcow2_flush (struct format *f, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  int r = 0;
  bool data_only;

  mutex_lock (&q->mutex);
  data_only = q->writing && !q->cache.epoch_running && !is_dirty_locked (q);
  if (q->writing && !data_only)
    r = flush_locked (q, e);
  mutex_unlock (&q->mutex);
  if (!data_only)
    return r;
  /* Only guest data may be waiting; several threads do this side by side. */
  if (f->data_file && storage_flush (f->data_file, e) == -1)
    return -1;
  return storage_flush (f->storage, e);
}

/* Each epoch releases clusters, which dirties refcounts for one more; the
 * second or third finds nothing.
 */
static int
flush_all (struct qcow2 *q, struct error *e)
{
  int r;

  mutex_lock (&q->mutex);
  do
    r = flush_locked (q, e);
  while (r == 0 && is_dirty_locked (q));
  mutex_unlock (&q->mutex);
  return r;
}

/* Bitmaps are stored when all that they tell of is on disk. */
int
qcow2_close (struct format *f, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  int r = 0;

  if (q->writing
      && (flush_all (q, e) == -1 || qcow2_bitmaps_store (q, e) == -1
          || flush_all (q, e) == -1))
    r = -1;
  qcow2_free (q);
  return r;
}
