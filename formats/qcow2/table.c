/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The cache of tables (L1, L2, refcount table and blocks): formats/slices.h
 * with qcow2's mutex, kinds and corrupt bit.  Layer: formats.  Locking:
 * qcow2.mutex, which is the cache's own; clang cannot know that the two are
 * one, so these few calls are not checked inside.
 */

#include <config.h>

#include <inttypes.h>

#include "formats/qcow2/qcow2.h"

static const char *const kind_names[NR_SLICE_KINDS] = {
  "L1 table", "L2 table", "refcount table", "refcount block",
};

int
table_cache_init (struct qcow2 *q, uint64_t bytes, struct error *e)
{
  const struct slice_cache_setup setup = {
    .mutex = &q->mutex, .storage = q->format.storage, .kinds = kind_names,
    .nr_kinds = NR_SLICE_KINDS, .unit = q->cluster_size, .bytes = bytes,
    .epoch = qcow2_run_epoch, .owner = q,
  };

  return slices_init (&q->cache, &setup, e);
}

int
table_get_locked (struct qcow2 *q, struct slice_op *op, enum slice_kind kind,
                  uint64_t host, struct slice **s, struct error *e)
  NO_LOCK_CHECK
{
  int r = slices_get_locked (&q->cache, op, kind, host, s, e);

  if (r != SLICE_OTHER_KIND)
    return r;
  return qcow2_corrupt_locked (q, e, "the cluster at 0x%" PRIx64
                               " is used as %s and as %s", (*s)->host,
                               kind_names[(*s)->kind], kind_names[kind]);
}

void
table_op_end_locked (struct qcow2 *q, struct slice_op *op) NO_LOCK_CHECK
{
  slice_op_end_locked (&q->cache, op);
}

int
table_make_room_locked (struct qcow2 *q, size_t nr, struct error *e)
  NO_LOCK_CHECK
{
  return slices_make_room_locked (&q->cache, nr, e);
}

void
table_dirty_locked (struct qcow2 *q, struct slice *s) NO_LOCK_CHECK
{
  slice_dirty_locked (&q->cache, s);
}

void
table_drop_locked (struct qcow2 *q, uint64_t host, uint64_t length)
  NO_LOCK_CHECK
{
  slices_drop_locked (&q->cache, host, length);
}

void
table_drop_all_locked (struct qcow2 *q) NO_LOCK_CHECK
{
  slices_drop_all_locked (&q->cache);
}

bool
table_cached_locked (struct qcow2 *q, uint64_t host, uint64_t length)
  NO_LOCK_CHECK
{
  return slices_cached_locked (&q->cache, host, length);
}
