/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What must be true before references are given or taken: see refs.h.  A
 * damaged or hostile image must not lose what it has of good tables and data.
 * Layer: formats.  Locking: structural.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/qcow2/refs.h"
#include "formats/qcow2/stream.h"

#define STREAM_MEMORY (8 * MiB)

/* ---- metadata ---- */

static int
not_referred_to (const struct l1_refs *r, uint64_t host, uint64_t length,
                 const char *what, struct error *e)
{
  unsigned bits = r->q->cluster_bits;

  if (length == 0)
    return 0;
  for (uint64_t c = host >> bits; c <= (host + length - 1) >> bits; ++c)
    if (refmap_get (&r->map, c).count)
      return error_set (e, EIO, "the L1 table at 0x%" PRIx64 " leads to the"
                        " cluster at 0x%" PRIx64 ", but %s is there; check and"
                        " repair the image", r->l1_table_offset, c << bits,
                        what);
  return 0;
}

static int
check_refblocks (const struct l1_refs *r, struct error *e)
{
  struct qcow2 *q = r->q;
  size_t len = (size_t) q->refcount_table_clusters << q->cluster_bits;
  CLEANUP_FREE uint8_t *table = malloc (len);

  if (!table)
    return error_nomem (e, "the refcount table", len);
  if (storage_pread (q->format.storage, table, len, q->refcount_table_offset,
                     e) == -1)
    return -1;
  for (size_t i = 0; i < len; i += 8)
    if (get_be64 (table + i)
        && not_referred_to (r, get_be64 (table + i), q->cluster_size,
                            "a refcount block", e) == -1)
      return -1;
  return 0;
}

int
refs_check_metadata (const struct l1_refs *r, struct error *e)
{
  struct qcow2 *q = r->q;

  if (not_referred_to (r, 0, q->cluster_size, "the header", e) == -1
      || not_referred_to (r, r->l1_table_offset, (uint64_t) r->l1_size * 8,
                          "that L1 table", e) == -1
      || not_referred_to (r, q->l1_table_offset, (uint64_t) q->l1_size * 8,
                          "the active L1 table", e) == -1
      || not_referred_to (r, q->refcount_table_offset,
                          q->refcount_table_clusters * q->cluster_size,
                          "the refcount table", e) == -1
      || not_referred_to (r, q->snapshots_offset, q->snapshots_length,
                          "the snapshot table", e) == -1
      || not_referred_to (r, q->bitmap_directory_offset,
                          q->bitmap_directory_size, "the bitmap directory",
                          e) == -1
      || not_referred_to (r, q->crypto_header_offset,
                          q->crypto_header_length, "the encryption header",
                          e) == -1)
    return -1;
  return check_refblocks (r, e);
}

/* ---- the disk that stays ---- */

static int
must_stay (const struct l1_refs *r, uint64_t host, uint64_t length,
           const char *what, struct error *e)
{
  unsigned bits = r->q->cluster_bits;

  if (length == 0)
    return 0;
  for (uint64_t c = host >> bits; c <= (host + length - 1) >> bits; ++c)
    if (refs_of (r, c) == 0)
      return error_set (e, EIO, "the cluster at 0x%" PRIx64 " would become"
                        " free, but %s is there; check and repair the image",
                        c << bits, what);
  return 0;
}

static int
check_table (const struct l1_refs *r, const uint8_t *table, struct error *e)
{
  struct qcow2 *q = r->q;
  uint64_t nr = UINT64_C (1) << q->l2_bits, host, length;

  if (q->incompatible_features & INCOMPAT_DATA_FILE)
    return 0;
  for (uint64_t i = 0; i < nr; ++i, table += q->l2_entry_size) {
    uint64_t entry = get_be64 (table);

    host = entry & ENTRY_OFFSET_MASK;
    length = host ? q->cluster_size : 0;
    if (entry & L2_COMPRESSED)
      qcow2_packed_range (q, entry, &host, &length);
    if (must_stay (r, host, length, "data of the disk that stays", e) == -1)
      return -1;
  }
  return 0;
}

static uint64_t
l2_host (const void *opaque, size_t i)
{
  const struct l1_refs *r = opaque;

  return r->l2[i];
}

int
refs_verify (const struct l1_refs *r, struct l1_refs *stays, struct error *e)
{
  struct qcow2 *q = r->q;
  struct table_stream *s;
  const uint8_t *table;
  size_t i;
  int n;

  for (i = 0; i < stays->nr_l2; ++i)
    if (must_stay (r, stays->l2[i], q->cluster_size,
                   "an L2 table of the disk that stays", e) == -1)
      return -1;
  s = table_stream_new (q->format.storage, q->cluster_size, stays->nr_l2,
                        l2_host, stays, STREAM_MEMORY, e);
  if (!s)
    return -1;
  while ((n = table_stream_next (s, &i, &table, e)) == 1)
    if (check_table (r, table, e) == -1) {
      n = -1;
      break;
    }
  table_stream_free (s);
  return n;
}

/* ---- drop ---- */

int
refs_look_at_drop (struct l1_refs *r, void *opaque, struct error *e)
{
  struct refs_change c = { .delta = -1, .keep = true };

  if (refs_check_metadata (r, e) == -1 || refs_change (r, &c, e) == -1)
    return -1;
  return refs_verify (r, opaque, e);
}

int
refs_drop (struct l1_refs *r, void *opaque, struct error *e)
{
  struct refs_change c = {
    .delta = -1, .write = true, .keep = opaque, .punch = r->q->discard,
    .first_free = UINT64_MAX,
  };

  if (refs_change (r, &c, e) == -1)
    return -1;
  qcow2_note_free (r->q, c.first_free);
  return opaque ? refs_set_flags (r, opaque, e) : 0;
}
