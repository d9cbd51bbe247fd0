/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Growing the virtual disk.  Layer: formats.  Locking: structural, nobody else
 * is inside; the mutex is taken for the tables all the same.
 *
 * Order on disk: the new L1 table with its refcounts => the header's l1_size
 * and l1_table_offset (12 bytes of one sector) => the old table is free; what
 * stood in entries behind the old end is dropped => the header's size.  A crash
 * leaves the old size, with a larger table at most, and leaks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/qcow2/qcow2.h"

static uint64_t
l1_entries_for (const struct qcow2 *q, uint64_t size)
{
  return div_round_up (div_round_up (size, q->cluster_size),
                       UINT64_C (1) << q->l2_bits);
}

static int
check_size (struct qcow2 *q, uint64_t size, struct error *e)
{
  const char *name = q->format.storage->name;

  if (!is_aligned (size, SECTOR_SIZE))
    return error_set (e, EINVAL, "The new size must be a multiple of 512");
  if (size < q->format.info.size)
    return error_set (e, ENOTSUP, "%s: shrinking qcow2 images is not built"
                      " yet", name);
  if (q->nb_snapshots && q->version < 3)
    return error_set (e, ENOTSUP, "%s: Can't resize a version 2 image which"
                      " has snapshots", name);
  if (size > (uint64_t) INT64_MAX - q->cluster_size
      || l1_entries_for (q, size) * 8 > MAX_L1_BYTES)
    return error_set (e, EFBIG, "%s: %" PRIu64 " bytes are too large with"
                      " clusters of %" PRIu64 " bytes", name, size,
                      q->cluster_size);
  return 0;
}

/* The old entries and as many empty ones as there is room for, at HOST. */
static int
write_l1 (struct qcow2 *q, uint64_t host, uint64_t clusters, struct error *e)
{
  size_t bytes = (size_t) (clusters << q->cluster_bits);
  CLEANUP_FREE uint8_t *table = calloc (1, bytes);

  if (!table)
    return error_nomem (e, "a larger L1 table", bytes);
  if (storage_pread (q->format.storage, table, (size_t) q->l1_size * 8,
                     q->l1_table_offset, e) == -1)
    return -1;
  return storage_pwrite (q->format.storage, table, bytes, host, 0, e);
}

static int
switch_l1 (struct qcow2 *q, uint64_t host, uint32_t entries, struct error *e)
{
  uint64_t old = q->l1_table_offset;
  uint64_t old_clusters = div_round_up ((uint64_t) q->l1_size * 8,
                                        q->cluster_size);
  uint8_t field[12];

  put_be32 (field, entries);
  put_be64 (field + 4, host);
  if (qcow2_write_header (q, H_L1_SIZE, field, sizeof field, e) == -1
      || storage_flush (q->format.storage, e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  q->l1_table_offset = host;
  q->l1_size = entries;
  known_moved_locked (q);
  table_drop_locked (q, old, old_clusters << q->cluster_bits);
  if (old_clusters)
    freed_list_add (&q->released, old, old_clusters, q->cluster_size);
  mutex_unlock (&q->mutex);
  return 0;
}

/* Make the L1 table reach SIZE. */
static int
grow_l1 (struct qcow2 *q, uint64_t size, struct error *e)
{
  uint64_t entries = l1_entries_for (q, size), clusters, host;

  if (entries <= q->l1_size)
    return 0;
  clusters = div_round_up (entries * 8, q->cluster_size);
  /* What is dirty of the old table must be in its copy; the second flush
   * brings the refcounts of the new one, and the copy, to the disk.
   */
  if (qcow2_flush (&q->format, e) == -1
      || qcow2_alloc_run (q, clusters, &host, e) == -1
      || write_l1 (q, host, clusters, e) == -1
      || qcow2_flush (&q->format, e) == -1)
    return -1;
  return switch_l1 (q, host, (uint32_t) entries, e);
}

/* Drop the mapping of [from, to), which lies behind the old end. */
static int
clear (struct qcow2 *q, uint64_t from, uint64_t to, enum unmap_how how,
       struct error *e)
{
  uint64_t done;

  for (; from < to; from += done) {
    if (qcow2_unmap (&q->format, from, to - from, how, &done, e) == -1)
      return -1;
    if (done == 0)
      return error_set (e, ENOTSUP, "%s: version 2 images cannot grow where"
                        " their backing file is longer than they are",
                        q->format.storage->name);
  }
  return 0;
}

int
qcow2_resize (struct format *f, uint64_t size, uint64_t zero_until,
              struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  uint64_t from = round_up (f->info.size, q->cluster_size);
  uint64_t to = round_up (size, q->cluster_size);
  uint8_t field[8];

  if (check_size (q, size, e) == -1)
    return -1;
  if (size == f->info.size)
    return 0;
  if (grow_l1 (q, size, e) == -1
      || (!q->data_file_raw
          && clear (q, from, to, UNMAP_TRANSPARENT, e) == -1)
      || clear (q, from, min_u64 (to, round_up (zero_until,
                                                q->cluster_size)),
                UNMAP_ZERO, e) == -1
      || qcow2_flush (f, e) == -1)
    return -1;
  if (f->data_file && storage_size (f->data_file) < size
      && storage_truncate (f->data_file, size, e) == -1)
    return -1;
  put_be64 (field, size);
  if (qcow2_write_header (q, H_SIZE, field, sizeof field, e) == -1
      || storage_flush (f->storage, e) == -1)
    return -1;
  f->info.size = size;
  return 0;
}
