/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The end of the file: refcount blocks that count nothing go, and the file ends
 * behind the last cluster in use.  Layer: formats.  Locking: structural.
 * Specification: "Host cluster management".
 *
 * Refcounts say where the last cluster in use is, so they must be right, or
 * what a repair could still have saved is cut off: first comes a check.
 *
 * Order on disk: the refcount table without an empty block => the block's own
 * cluster is free => the file is cut.  A crash leaks blocks at most.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/qcow2.h"

struct cut {
  struct qcow2 *q;
  uint8_t *table;               /* owned; the refcount table */
  size_t len;                   /* bytes */
  uint8_t *block;               /* owned; one cluster */
  uint64_t end;                 /* cluster behind the last one in use */
};

/* Block I: *LAST = one more than the last cluster that has a refcount, 0 =
 * none, or none but the block itself.
 */
static int
look_at_block (struct cut *c, uint64_t i, uint64_t *last, struct error *e)
{
  struct qcow2 *q = c->q;
  uint64_t host = get_be64 (c->table + i * 8);
  uint64_t first = i << q->refblock_bits, n;

  *last = 0;
  if (host == 0)
    return 0;
  if (storage_pread (q->format.storage, c->block, q->cluster_size, host,
                     e) == -1)
    return -1;
  for (n = UINT64_C (1) << q->refblock_bits; n > 0; --n) {
    uint64_t refcount = refcount_get (c->block, n - 1, q->refcount_order);

    if (refcount == 0
        || (refcount == 1 && first + n - 1 == host >> q->cluster_bits))
      continue;
    *last = first + n;
    return 0;
  }
  return 0;
}

/* Take empty blocks out of the table, and find the end.  A block that counts
 * itself is free with its entry; one that is counted by another block is given
 * back.
 */
static int
drop_blocks (struct cut *c, bool *changed, struct error *e)
{
  struct qcow2 *q = c->q;
  uint64_t last, host;

  *changed = false;
  c->end = 0;
  for (uint64_t i = c->len / 8; i-- > 0;) {
    host = get_be64 (c->table + i * 8);
    if (look_at_block (c, i, &last, e) == -1)
      return -1;
    c->end = max_u64 (c->end, last);
    if (last)
      c->end = max_u64 (c->end, (host >> q->cluster_bits) + 1);
    if (last || host == 0)
      continue;
    *changed = true;
    put_be64 (c->table + i * 8, 0);
    mutex_lock (&q->mutex);
    known_drop_locked (q, host);
    mutex_unlock (&q->mutex);
    if (host >> (q->cluster_bits + q->refblock_bits) != i)
      qcow2_give_back (q, host, 1);
  }
  return 0;
}

static int
cut_tables (struct cut *c, struct error *e)
{
  struct qcow2 *q = c->q;
  struct storage *st = q->format.storage;
  bool changed;

  if (storage_pread (st, c->table, c->len, q->refcount_table_offset, e) == -1)
    return -1;
  for (;;) {
    if (drop_blocks (c, &changed, e) == -1)
      return -1;
    if (!changed)
      return 0;
    if (storage_pwrite (st, c->table, c->len, q->refcount_table_offset, 0,
                        e) == -1
        || storage_flush (st, e) == -1 || qcow2_settle (q, e) == -1)
      return -1;
  }
}

static void
cut_storage (struct cut *c)
{
  struct qcow2 *q = c->q;
  struct storage *st = q->format.storage;
  uint64_t end = c->end << q->cluster_bits;
  struct error e = ERROR_INIT;

  if (st->caps.can_grow && end < storage_size (st)
      && storage_truncate (st, end, &e) == -1)
    log_warning ("%s", e.text);
  mutex_lock (&q->mutex);
  freed_list_clear (&q->known_free);
  q->free_cursor = 0;
  qcow2_init_allocation (q);
  mutex_unlock (&q->mutex);
}

static int
cut (struct qcow2 *q, struct error *e)
{
  size_t len = (size_t) q->refcount_table_clusters << q->cluster_bits;
  CLEANUP_FREE uint8_t *table = malloc (len), *block = NULL;
  struct cut c = { .q = q, .table = table, .len = len };

  block = c.block = malloc (q->cluster_size);
  if (!table || !block)
    return error_nomem (e, "the refcount table", len + q->cluster_size);
  if (cut_tables (&c, e) == -1)
    return -1;
  cut_storage (&c);
  return storage_flush (q->format.storage, e);
}

int
qcow2_cut_file (struct qcow2 *q, struct error *e)
{
  bool sound;

  if (qcow2_is_sound (q, &sound, e) == -1)
    return -1;
  if (sound)
    return cut (q, e);
  log_warning ("%s: the file is not cut behind the last cluster in use, since"
               " the image has errors: check and repair it",
               q->format.storage->name);
  return 0;
}
