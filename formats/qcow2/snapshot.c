/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The snapshot table, and internal snapshots as read-only views.
 * Layer: formats.  Locking: the place of the table is read under the mutex;
 * what the table holds changes only while the image is frozen.
 * Specification: "Snapshots".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "formats/qcow2/reader.h"

/* More than the longest entry: 40 + MAX_SNAPSHOT_EXTRA + 2 * 65535 bytes. */
#define SNAPSHOT_BUFFER (256 * KiB)

/* ---- the table ---- */

int
snapshot_iter_init (struct snapshot_iter *it, struct qcow2 *q,
                    struct error *e)
{
  it->version = q->version;
  it->length = 0;
  it->index = 0;
  mutex_lock (&q->mutex);
  it->image_size = q->format.info.size;
  it->offset = q->snapshots_offset;
  it->nr = q->nb_snapshots;
  mutex_unlock (&q->mutex);
  if (it->nr > MAX_SNAPSHOTS)
    return error_set (e, EFBIG, "Snapshot table too large: %u snapshots, at"
                      " most %u", it->nr, MAX_SNAPSHOTS);
  if (it->nr > 0
      && (!is_aligned (it->offset, q->cluster_size)
          || it->offset > INT64_MAX - MAX_SNAPSHOT_TABLE_BYTES))
    return error_set (e, EINVAL, "Snapshot table offset 0x%" PRIx64
                      " is invalid", it->offset);
  return reader_init (&it->reader, q->format.storage, SNAPSHOT_BUFFER, e);
}

void
snapshot_iter_free (struct snapshot_iter *it)
{
  reader_free (&it->reader);
}

static void
parse_fixed (const uint8_t *p, struct snapshot_entry *s)
{
  s->l1_table_offset = get_be64 (p + S_L1_TABLE_OFFSET);
  s->l1_size = get_be32 (p + S_L1_SIZE);
  s->id_length = get_be16 (p + S_ID_LENGTH);
  s->name_length = get_be16 (p + S_NAME_LENGTH);
  s->date_sec = get_be32 (p + S_DATE_SEC);
  s->date_nsec = get_be32 (p + S_DATE_NSEC);
  s->vm_clock_nsec = get_be64 (p + S_VM_CLOCK);
  s->vm_state_size = get_be32 (p + S_VM_STATE_SIZE);
}

static void
parse_extra (const struct snapshot_iter *it, const uint8_t *p, uint32_t size,
             struct snapshot_entry *s)
{
  s->disk_size = it->image_size;
  s->icount = UINT64_MAX;
  s->incomplete = it->version >= 3 && size < X_ICOUNT;
  if (size >= X_VM_STATE_SIZE + 8)
    s->vm_state_size = get_be64 (p + X_VM_STATE_SIZE);
  if (size >= X_DISK_SIZE + 8)
    s->disk_size = get_be64 (p + X_DISK_SIZE);
  if (size >= X_ICOUNT + 8)
    s->icount = get_be64 (p + X_ICOUNT);
}

int
snapshot_iter_next (struct snapshot_iter *it, struct snapshot_entry *s,
                    struct error *e)
{
  uint64_t at = it->offset + it->length, len;
  uint32_t extra_size;
  const uint8_t *p;

  if (it->index == it->nr)
    return 0;
  p = reader_get (&it->reader, at, S_EXTRA, e);
  if (!p)
    return error_prefix (e, "snapshot table");
  parse_fixed (p, s);
  extra_size = get_be32 (p + S_EXTRA_SIZE);
  if (extra_size > MAX_SNAPSHOT_EXTRA)
    return error_set (e, EFBIG, "Too much extra metadata in snapshot table"
                      " entry %u: %u bytes, at most %d", it->index,
                      extra_size, MAX_SNAPSHOT_EXTRA);
  len = round_up (S_EXTRA + extra_size + s->id_length + s->name_length, 8);
  if (len > MAX_SNAPSHOT_TABLE_BYTES - it->length)
    return error_set (e, EFBIG, "Snapshot table too large: entry %u ends"
                      " behind %" PRIu64 " MiB", it->index,
                      MAX_SNAPSHOT_TABLE_BYTES / MiB);
  p = reader_get (&it->reader, at, (size_t) len, e);
  if (!p)
    return error_prefix (e, "snapshot table");
  parse_extra (it, p + S_EXTRA, extra_size, s);
  s->id = (const char *) p + S_EXTRA + extra_size;
  s->name = s->id + s->id_length;
  it->length += len;
  it->index++;
  return 1;
}

/* Walk over all entries; LENGTH = bytes of the table. */
static int
measure_table (struct qcow2 *q, uint64_t *length, struct error *e)
{
  struct snapshot_iter it;
  struct snapshot_entry s;
  int r;

  if (snapshot_iter_init (&it, q, e) == -1)
    return -1;
  do
    r = snapshot_iter_next (&it, &s, e);
  while (r == 1);
  *length = it.length;
  snapshot_iter_free (&it);
  return r;
}

/* Entries that are wrong in themselves (a place of the L1 table, a size) do not
 * keep the active disk from being used; open_view and check look at them.
 */
int
qcow2_snapshots_check (struct qcow2 *q, struct error *e)
{
  uint64_t length = 0, file;
  int r = 0;

  if (q->nb_snapshots > 0)
    r = measure_table (q, &length, e);
  file = round_up (storage_size (q->format.storage), q->cluster_size);
  if (r == 0 && !q->for_check && length > 0
      && (q->snapshots_offset > file || length > file - q->snapshots_offset))
    r = error_set (e, EINVAL, "Snapshot table (%" PRIu64 " bytes at 0x%" PRIx64
                   ") lies outside of the file", length, q->snapshots_offset);
  mutex_lock (&q->mutex);
  q->snapshots_length = length;
  mutex_unlock (&q->mutex);
  return r;
}

/* ---- list ---- */

/* Names are printed as strings: they end at a NUL inside. */
static int
copy_entry (const struct snapshot_entry *s, struct format_snapshot *f,
            struct error *e)
{
  f->id = strndup (s->id, s->id_length);
  f->name = strndup (s->name, s->name_length);
  f->vm_state_size = s->vm_state_size;
  f->disk_size = s->disk_size;
  f->date_sec = s->date_sec;
  f->date_nsec = s->date_nsec;
  f->vm_clock_nsec = s->vm_clock_nsec;
  f->icount = s->icount;
  if (!f->id || !f->name)
    return error_nomem (e, "a snapshot's name",
                        (size_t) s->id_length + s->name_length);
  return 0;
}

int
qcow2_snapshots (struct format *f, struct format_snapshot **list, size_t *nr,
                 struct error *e)
{
  struct snapshot_iter it;
  struct snapshot_entry s;
  int r;

  *list = NULL;
  *nr = 0;
  if (snapshot_iter_init (&it, to_qcow2 (f), e) == -1)
    return -1;
  *list = calloc (it.nr ? it.nr : 1, sizeof **list);
  r = *list ? 1 : error_nomem (e, "snapshots", it.nr * sizeof **list);
  while (r == 1 && (r = snapshot_iter_next (&it, &s, e)) == 1) {
    if (copy_entry (&s, &(*list)[*nr], e) == -1)
      r = -1;
    ++*nr;
  }
  if (r == -1 && *list) {
    format_snapshots_free (*list, *nr);
    *list = NULL;
    *nr = 0;
  }
  snapshot_iter_free (&it);
  return r;
}

/* ---- views ---- */

static bool
equals (const char *text, const char *p, uint16_t length)
{
  return strlen (text) == length && memcmp (text, p, length) == 0;
}

int
qcow2_snapshot_find (struct qcow2 *q, const char *id, bool by_name,
                     struct snapshot_entry *found, struct error *e)
{
  struct snapshot_iter it;
  int r;

  if (snapshot_iter_init (&it, q, e) == -1)
    return -1;
  found->end = 0;
  do {
    found->start = found->end;
    r = snapshot_iter_next (&it, found, e);
    found->end = it.length;
  } while (r == 1 && !(by_name ? equals (id, found->name, found->name_length)
                       : equals (id, found->id, found->id_length)));
  snapshot_iter_free (&it);
  found->id = found->name = NULL;
  return r;
}

int
qcow2_snapshot_check_l1 (const struct qcow2 *q, const char *snapshot,
                         const struct snapshot_entry *s, struct error *e)
{
  uint64_t bytes = (uint64_t) s->l1_size * 8, needed;
  uint64_t file = round_up (storage_size (q->format.storage),
                            q->cluster_size);

  if (bytes > MAX_L1_BYTES)
    return error_set (e, EFBIG, "snapshot '%s': its L1 table is too large: %"
                      PRIu64 " bytes, at most %" PRIu64, snapshot, bytes,
                      MAX_L1_BYTES);
  if (!is_aligned (s->l1_table_offset, q->cluster_size)
      || s->l1_table_offset > file || bytes > file - s->l1_table_offset)
    return error_set (e, EINVAL, "snapshot '%s': the offset of its L1 table is"
                      " invalid: 0x%" PRIx64, snapshot, s->l1_table_offset);
  if (s->disk_size > INT64_MAX - (q->cluster_size - 1))
    return error_set (e, EFBIG, "snapshot '%s': its disk size %" PRIu64
                      " is too large", snapshot, s->disk_size);
  needed = div_round_up (div_round_up (s->disk_size, q->cluster_size),
                         UINT64_C (1) << q->l2_bits);
  if (s->l1_size < needed)
    return error_set (e, EINVAL, "snapshot '%s': its L1 table is too small: %u"
                      " entries, its disk size needs %" PRIu64, snapshot,
                      s->l1_size, needed);
  return 0;
}

struct format_view *
qcow2_open_view (struct format *f, const char *snapshot, uint64_t *size,
                 struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct snapshot_entry s;
  struct format_view *view;
  int r = qcow2_snapshot_find (q, snapshot, false, &s, e);

  if (r == 0)
    r = qcow2_snapshot_find (q, snapshot, true, &s, e);
  if (r == 0)
    error_set (e, ENOENT, "no snapshot has the id or the name '%s'",
               snapshot);
  if (r != 1 || qcow2_snapshot_check_l1 (q, snapshot, &s, e) == -1)
    return NULL;
  view = malloc (sizeof *view);
  if (!view) {
    error_nomem (e, "a snapshot", sizeof *view);
    return NULL;
  }
  view->l1_table_offset = s.l1_table_offset;
  view->l1_size = s.l1_size;
  view->size = *size = s.disk_size;
  mutex_lock (&q->mutex);
  view->next = q->views;
  q->views = view;
  mutex_unlock (&q->mutex);
  return view;
}

void
qcow2_close_view (struct format *f, struct format_view *view)
{
  struct qcow2 *q = to_qcow2 (f);
  struct format_view **link = &q->views;

  mutex_lock (&q->mutex);
  while (*link != view)
    link = &(*link)->next;
  *link = view->next;
  mutex_unlock (&q->mutex);
  free (view);
}
