/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Where the L2 tables lie: the set of their places, so that no guest data are
 * written over one, whatever an L2 entry says.  Layer: formats.  Locking: the
 * mutex; learning has the image for itself.
 *
 * Tables are paged, so the cache does not know of those that nobody has asked
 * for.  Whoever makes one adds it.
 */

#include <config.h>

#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/holes.h"
#include "formats/qed/qed.h"

#define PIECE (64 * KiB)

static void
add_entries (struct qed *q, const uint8_t *buf, size_t n)
{
  uint64_t file_size = storage_size (q->format.storage), host;

  for (size_t i = 0; i < n; i += 8) {
    host = get_le64 (buf + i);
    if (host && qed_valid_host (q, host, true, file_size))
      host_set_add (&q->tables, host);
  }
}

int
qed_learn_tables (struct qed *q, struct error *e)
{
  struct storage *st = q->format.storage;
  uint64_t at = q->l1_table_offset, end = at + q->g.table_bytes;
  CLEANUP_FREE uint8_t *buf = malloc (PIECE);
  size_t n;

  if (!buf)
    return error_nomem (e, "the L1 table", PIECE);
  for (; (at = round_down (skip_hole (st, at, end), 8)) < end; at += n) {
    n = (size_t) min_u64 (PIECE, end - at);
    if (storage_pread (st, buf, n, at, e) == -1)
      return error_prefix (e, "the L1 table");
    add_entries (q, buf, n);
  }
  return 0;
}

/* A table that has a cluster of the range begins in it, or in one of the
 * table_size - 1 clusters before.
 */
bool
qed_on_table_locked (struct qed *q, uint64_t host, uint64_t length)
{
  uint64_t before = q->g.table_bytes - q->g.cluster_size;
  uint64_t from = round_down (host, q->g.cluster_size);

  from -= min_u64 (from, before);
  for (uint64_t at = from; at < host + length; at += q->g.cluster_size)
    if (host_set_has (&q->tables, at))
      return true;
  return false;
}
