/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* COPIED flags of the active tables: see refs.h.  Layer: formats.
 * Locking: structural.  Specification: bit 63 of L1 and L2 table entries.
 *
 * Tables are changed in place.  A flag that is missing costs a copy; one that
 * is set on a cluster with more than one reference lets a write reach a
 * snapshot.
 * So flags are cleared before the second reference counts, and set after it is
 * gone.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/qcow2/refs.h"
#include "formats/qcow2/stream.h"

#define STREAM_MEMORY (8 * MiB)

static uint64_t
l2_host (const void *opaque, size_t i)
{
  const struct l1_refs *r = opaque;

  return r->l2[i];
}

/* ---- one entry ---- */

/* ENTRY, of a table or a cluster at HOST, as it should be. */
static uint64_t
flagged (const struct l1_refs *r, uint64_t entry, uint64_t host)
{
  uint64_t refcount = r ? refs_of (r, host >> r->q->cluster_bits) : 0;

  if (refcount == UINT64_MAX)
    return entry;
  return refcount == 1 ? entry | ENTRY_COPIED : entry & ~ENTRY_COPIED;
}

/* true = some entry of the L2 table TABLE should be another. */
static bool
table_changes (const struct l1_refs *r, const struct qcow2 *q,
               const uint8_t *table)
{
  uint64_t nr = UINT64_C (1) << q->l2_bits;

  for (uint64_t i = 0; i < nr; ++i, table += q->l2_entry_size) {
    uint64_t entry = get_be64 (table), host = entry & ENTRY_OFFSET_MASK;

    if (host && !(entry & L2_COMPRESSED) && flagged (r, entry, host) != entry)
      return true;
  }
  return false;
}

static void
flag_table (const struct l1_refs *r, const struct qcow2 *q, uint8_t *table)
{
  uint64_t nr = UINT64_C (1) << q->l2_bits;

  for (uint64_t i = 0; i < nr; ++i, table += q->l2_entry_size) {
    uint64_t entry = get_be64 (table), host = entry & ENTRY_OFFSET_MASK;

    if (host && !(entry & L2_COMPRESSED))
      put_be64 (table, flagged (r, entry, host));
  }
}

/* ---- L2 tables ---- */

/* Tables side by side go out in one write. */
#define OUT_SIZE (2 * MiB)

struct table_out {
  struct qcow2 *q;
  uint8_t *buf;                 /* owned; OUT_SIZE bytes */
  uint64_t host;
  size_t len;
};

static int
out_flush (struct table_out *o, struct error *e)
{
  size_t len = o->len;

  o->len = 0;
  return len ? storage_pwrite (o->q->format.storage, o->buf, len, o->host, 0,
                               e) : 0;
}

/* Room for the table at HOST. */
static uint8_t *
out_table (struct table_out *o, uint64_t host, struct error *e)
{
  size_t size = (size_t) o->q->cluster_size;

  if ((host != o->host + o->len || o->len + size > OUT_SIZE)
      && out_flush (o, e) == -1)
    return NULL;
  if (o->len == 0)
    o->host = host;
  o->len += size;
  return o->buf + o->len - size;
}

static int
flag_stream (const struct l1_refs *r, struct l1_refs *active,
             struct table_stream *s, struct table_out *out, struct error *e)
{
  struct qcow2 *q = active->q;
  const uint8_t *table;
  uint8_t *copy;
  size_t i;
  int n;

  while ((n = table_stream_next (s, &i, &table, e)) == 1) {
    if (!table_changes (r, q, table))
      continue;
    copy = out_table (out, active->l2[i], e);
    if (!copy)
      return -1;
    memcpy (copy, table, q->cluster_size);
    flag_table (r, q, copy);
  }
  return n == -1 ? -1 : out_flush (out, e);
}

static int
flag_l2_tables (const struct l1_refs *r, struct l1_refs *active,
                struct error *e)
{
  struct qcow2 *q = active->q;
  CLEANUP_FREE uint8_t *buf = malloc (OUT_SIZE);
  struct table_out out = { .q = q, .buf = buf };
  struct table_stream *s;
  int n;

  if (!buf)
    return error_nomem (e, "L2 tables", OUT_SIZE);
  s = table_stream_new (q->format.storage, q->cluster_size, active->nr_l2,
                        l2_host, active, STREAM_MEMORY, e);
  if (!s)
    return -1;
  n = flag_stream (r, active, s, &out, e);
  table_stream_free (s);
  return n;
}

/* ---- the L1 table ---- */

static int
flag_l1_part (const struct l1_refs *r, struct qcow2 *q, uint64_t host,
              uint8_t *part, size_t len, struct error *e)
{
  bool changed = false;

  if (storage_pread (q->format.storage, part, len, host, e) == -1)
    return -1;
  for (size_t i = 0; i < len; i += 8) {
    uint64_t entry = get_be64 (part + i), at = entry & ENTRY_OFFSET_MASK;
    uint64_t new = at ? flagged (r, entry, at) : entry;

    changed |= new != entry;
    put_be64 (part + i, new);
  }
  return changed ? storage_pwrite (q->format.storage, part, len, host, 0, e)
    : 0;
}

static int
flag_l1 (const struct l1_refs *r, struct l1_refs *active, struct error *e)
{
  uint64_t bytes = (uint64_t) active->l1_size * 8;
  CLEANUP_FREE uint8_t *part = malloc (OUT_SIZE);

  if (!part)
    return error_nomem (e, "the L1 table", OUT_SIZE);
  for (uint64_t at = 0; at < bytes; at += OUT_SIZE)
    if (flag_l1_part (r, active->q, active->l1_table_offset + at, part,
                      (size_t) min_u64 (OUT_SIZE, bytes - at), e) == -1)
      return -1;
  return 0;
}

int
refs_set_flags (const struct l1_refs *r, struct l1_refs *active,
                struct error *e)
{
  if (flag_l2_tables (r, active, e) == -1)
    return -1;
  return flag_l1 (r, active, e);
}

/* ---- all of them ---- */

static int
rebuild_window (struct l1_refs *active, void *opaque, struct error *e)
{
  struct refs_change look = { .delta = 0, .keep = true };

  (void) opaque;
  if (refs_change (active, &look, e) == -1)
    return -1;
  return refs_set_flags (active, active, e);
}

int
qcow2_rebuild_flags (struct qcow2 *q, struct error *e)
{
  struct l1_refs active;
  int r = refs_load (&active, q, q->l1_table_offset, q->l1_size, e);

  if (r == 0)
    r = refs_each_window (&active, rebuild_window, NULL, e);
  refs_free (&active);
  return r;
}
