/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Growing the virtual disk, with preallocation; shrink.c makes it smaller.
 * Layer: formats.  Locking: structural, nobody else is inside; the mutex is
 * taken for the tables all the same.
 *
 * Order on disk: the L1 table with room for more => the header's l1_size and
 * l1_table_offset (12 bytes of one sector) => the old table is free; what stood
 * in entries behind the old end is dropped, and new clusters take its place =>
 * the header's size.  A crash leaves the old size, with a larger table,
 * clusters behind the end, and leaks at most.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/preallocation.h"
#include "formats/qcow2/qcow2.h"

uint64_t
qcow2_l1_entries_for (const struct qcow2 *q, uint64_t size)
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
  if (q->nb_snapshots && q->version < 3)
    return error_set (e, ENOTSUP, "Can't resize a v2 image which has"
                      " snapshots");
  if (size > (uint64_t) INT64_MAX - q->cluster_size
      || qcow2_l1_entries_for (q, size) * 8 > MAX_L1_BYTES)
    return error_set (e, EFBIG, "%s: %" PRIu64 " bytes are too large with"
                      " clusters of %" PRIu64 " bytes", name, size,
                      q->cluster_size);
  return 0;
}

/* ---- the L1 table ---- */

static int
switch_l1 (struct qcow2 *q, uint64_t host, uint64_t entries, struct error *e)
{
  uint8_t field[12];

  put_be32 (field, (uint32_t) entries);
  put_be64 (field + 4, host);
  if (qcow2_switch_header (q, H_L1_SIZE, field, sizeof field, e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  q->l1_table_offset = host;
  q->l1_size = (uint32_t) entries;
  known_moved_locked (q);
  mutex_unlock (&q->mutex);
  return 0;
}

/* The last cluster of the table has room for the new entries.  What another
 * program left there goes first.
 */
static int
grow_l1_in_place (struct qcow2 *q, uint64_t entries, struct error *e)
{
  uint64_t host = q->l1_table_offset + (uint64_t) q->l1_size * 8;

  if (storage_zero (q->format.storage, host, (entries - q->l1_size) * 8, 0,
                    e) == -1
      || qcow2_settle (q, e) == -1)
    return -1;
  return switch_l1 (q, q->l1_table_offset, entries, e);
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
move_l1 (struct qcow2 *q, uint64_t entries, uint64_t old_clusters,
         struct error *e)
{
  uint64_t clusters = div_round_up (entries * 8, q->cluster_size), host;
  uint64_t old = q->l1_table_offset;

  if (qcow2_alloc_table (q, clusters, &host, e) == -1)
    return -1;
  if (write_l1 (q, host, clusters, e) == -1 || qcow2_settle (q, e) == -1) {
    qcow2_give_back (q, host, clusters);
    return -1;
  }
  if (switch_l1 (q, host, entries, e) == -1)
    return -1;
  qcow2_give_back (q, old, old_clusters);
  return 0;
}

/* Make the L1 table reach SIZE. */
static int
grow_l1 (struct qcow2 *q, uint64_t size, struct error *e)
{
  uint64_t entries = qcow2_l1_entries_for (q, size);
  uint64_t clusters = div_round_up (entries * 8, q->cluster_size);
  uint64_t old = div_round_up ((uint64_t) q->l1_size * 8, q->cluster_size);

  if (entries <= q->l1_size)
    return 0;
  /* What is dirty of the old table must be in its copy. */
  if (qcow2_settle (q, e) == -1)
    return -1;
  return clusters == old ? grow_l1_in_place (q, entries, e)
    : move_l1 (q, entries, old, e);
}

/* The state of a machine: the L1 table may be larger than the disk needs. */
int
qcow2_reach (struct format *f, uint64_t end, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);

  if (q->format.data_file)
    return error_set (e, ENOTSUP, "images with an external data file cannot"
                      " keep the state of a machine");
  if (end > (uint64_t) INT64_MAX - q->cluster_size
      || qcow2_l1_entries_for (q, end) * 8 > MAX_L1_BYTES)
    return error_set (e, EFBIG, "the state of a machine would end at %" PRIu64
                      ", which is too far", end);
  return grow_l1 (q, end, e);
}

/* ---- what is behind the old end ---- */

/* Drop the mapping of [from, to). */
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
                        " their backing file is longer than they are, unless"
                        " with preallocation", q->format.storage->name);
  }
  return 0;
}

/* The data file holds the disk at the guest's offsets, and what is new of it is
 * zero there too.
 */
static int
grow_data_file (struct qcow2 *q, uint64_t size, struct error *e)
{
  struct storage *st = q->format.data_file;
  uint64_t old = q->format.info.size, end;

  if (!st)
    return 0;
  end = min_u64 (storage_size (st), size);
  if (end > old && storage_zero (st, old, end - old, STORAGE_MAY_UNMAP,
                                 e) == -1)
    return -1;
  if (storage_size (st) < size && storage_truncate (st, size, e) == -1)
    return -1;
  return storage_flush (st, e);
}

/* ---- preallocation ---- */

/* Make the space of P read as zeroes, and as solid as MODE says. */
static int
prepare_space (struct qcow2 *q, const struct placement *p,
               enum preallocation mode, struct error *e)
{
  struct storage *st = p->storage == MAP_IN_DATA_FILE ? q->format.data_file
    : q->format.storage;

  if (mode >= PREALLOCATION_FALLOC)
    return preallocate (st, p->host, p->host + p->length, mode, e);
  if (p->storage == MAP_IN_DATA_FILE)
    return 0;                   /* grow_data_file did */
  if (p->reads_zero && p->host + p->length <= storage_size (st))
    return 0;
  return storage_zero (st, p->host, p->length, STORAGE_MAY_UNMAP, e);
}

/* Zero bytes of an encrypted image are no zeroes: its clusters have their
 * space, and say that they read as zeroes.
 */
static int
say_zero (struct qcow2 *q, const struct placement *p, struct error *e)
{
  uint64_t done, at;

  for (at = p->guest; at < p->guest + p->length; at += done) {
    if (qcow2_unmap (&q->format, at, p->guest + p->length - at, UNMAP_KEEP,
                     &done, e) == -1)
      return -1;
    if (done == 0)
      return error_set (e, ENOTSUP, "%s: encrypted images of version 2 cannot"
                        " be preallocated", q->format.storage->name);
  }
  return 0;
}

static int
preallocate_some (struct qcow2 *q, uint64_t guest, uint64_t length,
                  enum preallocation mode, uint64_t *done, struct error *e)
{
  struct placement p;

  if (qcow2_reserve (&q->format, guest, length, &p, e) == -1)
    return -1;
  if (prepare_space (q, &p, mode, e) == -1
      || qcow2_link (&q->format, &p, e) == -1) {
    qcow2_abandon (&q->format, &p);
    return -1;
  }
  if (q->format.encrypted && say_zero (q, &p, e) == -1)
    return -1;
  *done = p.guest + p.length - guest;
  return 0;
}

static int
preallocate_range (struct qcow2 *q, uint64_t from, uint64_t to,
                   enum preallocation mode, struct error *e)
{
  struct error ignored = ERROR_INIT;
  uint64_t done;

  for (uint64_t at = from; at < to; at += done) {
    if (preallocate_some (q, at, to - at, mode, &done, e) == 0)
      continue;
    if (!q->data_file_raw)
      clear (q, from, at, UNMAP_TRANSPARENT, &ignored);
    return -1;
  }
  return 0;
}

/* ---- all of it ---- */

static int
prepare_growth (struct qcow2 *q, uint64_t size, uint64_t zero_until,
                enum preallocation mode, struct error *e)
{
  uint64_t from = round_up (q->format.info.size, q->cluster_size);
  uint64_t to = round_up (size, q->cluster_size);

  if (grow_l1 (q, size, e) == -1 || grow_data_file (q, size, e) == -1)
    return -1;
  if (!q->data_file_raw && clear (q, from, to, UNMAP_TRANSPARENT, e) == -1)
    return -1;
  if (mode != PREALLOCATION_OFF)
    return preallocate_range (q, from, to, mode, e);
  to = min_u64 (to, round_up (zero_until, q->cluster_size));
  return clear (q, from, to, UNMAP_ZERO, e);
}

/* On failure the data file gives the new space back: it may be what filled the
 * disk.
 */
static int
prepare_or_undo (struct qcow2 *q, uint64_t size, uint64_t zero_until,
                 enum preallocation mode, struct error *e)
{
  struct storage *st = q->format.data_file;
  uint64_t old = st ? storage_size (st) : 0;
  struct error ignored = ERROR_INIT;

  if (prepare_growth (q, size, zero_until, mode, e) == 0)
    return 0;
  if (st && storage_size (st) > old)
    storage_truncate (st, old, &ignored);
  return -1;
}

static int
grow (struct qcow2 *q, uint64_t size, uint64_t zero_until,
      enum preallocation mode, struct error *e)
{
  uint8_t field[8];

  /* A raw data file is all mapped, as create does it. */
  if (q->data_file_raw && mode == PREALLOCATION_OFF)
    mode = PREALLOCATION_METADATA;
  if (prepare_or_undo (q, size, zero_until, mode, e) == -1
      || qcow2_settle (q, e) == -1)
    return -1;
  put_be64 (field, size);
  if (qcow2_switch_header (q, H_SIZE, field, sizeof field, e) == -1)
    return -1;
  q->format.info.size = size;
  return 0;
}

int
qcow2_resize (struct format *f, uint64_t size, uint64_t zero_until,
              struct error *e)
{
  return qcow2_resize_preallocated (f, size, zero_until, PREALLOCATION_OFF,
                                    e);
}

int
qcow2_resize_preallocated (struct format *f, uint64_t size,
                           uint64_t zero_until, enum preallocation mode,
                           struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  int r;

  if (check_size (q, size, e) == -1)
    return -1;
  if (size == f->info.size)
    return 0;
  r = qcow2_bitmaps_prepare_size (q, size, e);
  if (r == 0 && size < f->info.size)
    r = qcow2_shrink (q, size, e);
  else if (r == 0)
    r = grow (q, size, zero_until, mode, e);
  qcow2_bitmaps_finish_size (q);
  return r;
}
