/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* An image of which nothing is left but the header.  Layer: formats.  Locking:
 * structural; cache.mutex for what it guards.
 *
 * Order on disk: the L1 table, barrier; the file is cut, barrier.  A crash
 * leaves some entries, with all that they lead to, or space that is lost.
 */

#include <config.h>

#include "formats/qcow/qcow.h"

/* The name of the backing file may stand anywhere. */
static uint64_t
header_end (const struct qcow *q)
{
  return max_u64 (q->l1_table_offset + q->l1_size * 8, q->name_end);
}

/* Whatever fails, what is cached is what is on disk. */
static int
drop_tables (struct qcow *q, struct error *e)
{
  struct storage *st = q->format.storage;

  if (slices_flush (&q->cache, e) == -1)
    return -1;
  mutex_lock (q->cache.mutex);
  slices_forget_locked (&q->cache);
  mutex_unlock (q->cache.mutex);
  if (storage_zero (st, q->l1_table_offset, q->l1_size * 8, STORAGE_MAY_UNMAP,
                    e) == -1)
    return -1;
  return storage_flush (st, e);
}

int
qcow_empty (struct format *f, struct error *e)
{
  struct qcow *q = to_qcow (f);

  if (drop_tables (q, e) == -1)
    return -1;
  mutex_lock (q->cache.mutex);
  q->end = round_up (max_u64 (header_end (q), q->tables_end),
                     q->cluster_size);
  q->limit = INT64_MAX;         /* there are no entries */
  mutex_unlock (q->cache.mutex);
  if (storage_truncate (f->storage, header_end (q), e) == -1)
    return -1;
  return storage_flush (f->storage, e);
}
