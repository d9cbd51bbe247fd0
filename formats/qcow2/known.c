/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Where L2 tables and refcount blocks lie: the set of their places, so that no
 * guest data are written over one, whatever an L2 entry or a refcount says.
 * Layer: formats.  Locking: qcow2.mutex.
 *
 * It has the tables that the active L1 table and the refcount table name, as
 * QEMU's check does, not those of snapshots.  Who changes an entry of the two
 * tells it; where a table of the two was replaced and nobody did, it says
 * nothing until it is read anew.  A set that is too large is not complete: then
 * there are only the tables in the cache, which are looked at as well.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/qcow2.h"

enum { READ_SIZE = 64 * 1024 };

/* ---- from the tables ---- */

static void
add_entries (struct qcow2 *q, struct known_tables *k, const uint8_t *buf,
             size_t bytes, uint64_t mask)
{
  uint64_t host;

  for (size_t i = 0; i < bytes; i += 8) {
    host = get_be64 (buf + i) & mask;
    if (host != 0 && is_aligned (host, q->cluster_size))
      host_set_add (&k->set, host);
  }
}

static int
read_table (struct qcow2 *q, struct known_tables *k, uint64_t host,
            uint64_t bytes, uint64_t mask, struct error *e)
{
  CLEANUP_FREE uint8_t *buf = malloc (READ_SIZE);
  size_t n;

  if (!buf)
    return error_nomem (e, "a table", READ_SIZE);
  for (uint64_t at = 0; at < bytes; at += n) {
    n = (size_t) min_u64 (READ_SIZE, bytes - at);
    if (storage_pread (q->format.storage, buf, n, host + at, e) == -1)
      return -1;
    add_entries (q, k, buf, n, mask);
  }
  return 0;
}

static void
replace (struct qcow2 *q, struct known_tables *k)
{
  mutex_lock (&q->mutex);
  host_set_clear (&q->known.set);
  q->known = *k;
  mutex_unlock (&q->mutex);
}

int
qcow2_learn_tables (struct qcow2 *q, struct error *e)
{
  struct known_tables k = {
    .l1_table_offset = q->l1_table_offset,
    .refcount_table_offset = q->refcount_table_offset,
  };

  if (read_table (q, &k, q->l1_table_offset, (uint64_t) q->l1_size * 8,
                  ENTRY_OFFSET_MASK, e) == -1
      || read_table (q, &k, q->refcount_table_offset,
                     (uint64_t) q->refcount_table_clusters
                     << q->cluster_bits, ~UINT64_C (0), e) == -1) {
    host_set_clear (&k.set);
    replace (q, &k);
    return -1;
  }
  replace (q, &k);
  return 0;
}

/* ---- for the driver ---- */

void
known_add_locked (struct qcow2 *q, uint64_t host)
{
  host_set_add (&q->known.set, host);
}

void
known_drop_locked (struct qcow2 *q, uint64_t host)
{
  host_set_drop (&q->known.set, host);
}

void
known_moved_locked (struct qcow2 *q)
{
  q->known.l1_table_offset = q->l1_table_offset;
  q->known.refcount_table_offset = q->refcount_table_offset;
}

bool
known_table_locked (const struct qcow2 *q, uint64_t host, uint64_t length)
{
  const struct known_tables *k = &q->known;

  if (k->set.nr_used == 0 || k->l1_table_offset != q->l1_table_offset
      || k->refcount_table_offset != q->refcount_table_offset)
    return false;
  for (uint64_t at = round_down (host, q->cluster_size); at < host + length;
       at += q->cluster_size)
    if (host_set_has (&k->set, at))
      return true;
  return false;
}

void
known_clear (struct qcow2 *q)
{
  host_set_clear (&q->known.set);
  q->known = (struct known_tables) { .l1_table_offset = 0 };
}
