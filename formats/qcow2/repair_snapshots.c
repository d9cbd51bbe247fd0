/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A snapshot table with entries that lack what version 3 wants in them: see
 * repair.h.  Layer: formats.  Locking: the image is frozen, one thread; the
 * mutex is taken to change where the table is.
 * Specification: "Snapshots", extra data.
 *
 * A complete table is written to new clusters, barrier, and the header is
 * switched over to it by one write within a sector, barrier.  A crash leaves
 * the one or the other; the clusters of the old one lose their refcounts later.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/repair.h"

enum {
  X_COMPLETE = X_ICOUNT,        /* what lies before it must be there */
  MAX_ENTRY = S_EXTRA + MAX_SNAPSHOT_EXTRA + 2 * UINT16_MAX + 8,
};

struct new_table {
  struct repair *repair;
  uint64_t host;                /* where it is written; 0 = it is measured */
  uint64_t length;              /* bytes of the entries so far */
  uint8_t *buf;                 /* owned; MAX_ENTRY bytes */
};

/* Make OLD, an entry whose id and name have NAMES bytes, a complete one in BUF.
 * Returns its length.
 */
static size_t
complete_entry (uint8_t *buf, const uint8_t *old, size_t names,
                uint64_t disk_size)
{
  uint32_t extra = get_be32 (old + S_EXTRA_SIZE);
  uint32_t new_extra = extra < X_COMPLETE ? X_COMPLETE : extra;
  size_t len = (size_t) round_up (S_EXTRA + new_extra + names, 8);
  uint8_t *to = buf + S_EXTRA;

  memset (buf, 0, len);
  memcpy (buf, old, S_EXTRA + extra);
  memcpy (to + new_extra, old + S_EXTRA + extra, names);
  if (extra >= X_COMPLETE)
    return len;
  put_be32 (buf + S_EXTRA_SIZE, X_COMPLETE);
  if (extra < X_DISK_SIZE)
    put_be64 (to, get_be32 (old + S_VM_STATE_SIZE));
  put_be64 (to + X_DISK_SIZE, disk_size);
  return len;
}

static int
put_entry (struct new_table *t, const uint8_t *old,
           const struct snapshot_entry *s, struct error *e)
{
  size_t n = complete_entry (t->buf, old,
                             (size_t) s->id_length + s->name_length,
                             t->repair->q->format.info.size);

  if (n > MAX_SNAPSHOT_TABLE_BYTES - t->length)
    return error_set (e, EFBIG, "the snapshot table would be too large");
  if (t->host
      && repair_write (t->repair, t->buf, n, t->host + t->length, e) == -1)
    return -1;
  t->length += n;
  return 0;
}

static int
put_entries (struct new_table *t, struct error *e)
{
  struct snapshot_iter it;
  struct snapshot_entry s;
  const uint8_t *old;
  uint64_t at;
  int r;

  t->length = 0;
  if (snapshot_iter_init (&it, t->repair->q, e) == -1)
    return -1;
  do {
    at = it.length;
    r = snapshot_iter_next (&it, &s, e);
    if (r != 1)
      break;
    old = reader_get (&it.reader, it.offset + at, (size_t) (it.length - at),
                      e);
    if (!old || put_entry (t, old, &s, e) == -1)
      r = -1;
    else if (s.incomplete && t->host) {
      t->repair->result->corruptions_fixed++;
      repair_say (t->repair, "Repairing snapshot table entry %u is incomplete",
                  it.index - 1);
    }
  } while (r == 1);
  snapshot_iter_free (&it);
  return r;
}

static int
switch_table (struct new_table *t, struct error *e)
{
  struct qcow2 *q = t->repair->q;
  uint8_t field[8];

  put_be64 (field, t->host);
  if (repair_flush (t->repair, e) == -1
      || qcow2_write_header (q, H_SNAPSHOTS_OFFSET, field, sizeof field,
                             e) == -1
      || repair_flush (t->repair, e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  q->snapshots_offset = t->host;
  q->snapshots_length = t->length;
  mutex_unlock (&q->mutex);
  return 0;
}

int
repair_snapshots (struct repair *r, struct error *e)
{
  struct new_table t = { .repair = r };
  CLEANUP_FREE uint8_t *buf = calloc (1, MAX_ENTRY);
  unsigned bits = r->q->cluster_bits;
  uint64_t cluster;

  if (!buf)
    return error_nomem (e, "a snapshot table entry", MAX_ENTRY);
  t.buf = buf;
  if (put_entries (&t, e) == -1
      || repair_reserve (r, div_round_up (t.length, r->q->cluster_size), 1,
                         &cluster, e) == -1)
    return -1;
  t.host = cluster << bits;
  return put_entries (&t, e) == -1 ? -1 : switch_table (&t, e);
}
