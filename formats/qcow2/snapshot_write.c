/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Internal snapshots: create, apply, delete.  Layer: formats.
 * Locking: structural, no other call is inside.
 * Specification: "Snapshots"; bit 63 of L1 and L2 table entries.
 *
 * All that can be refused is found out before the first byte is written.  The
 * order on disk; each step is durable before the next one begins:
 *
 *   create  the copied L1 table and the new snapshot table; dirty bit;
 *           refcounts + 1, COPIED flags cleared; header (table, dirty bit
 *           cleared)
 *   delete  the new snapshot table; header (table, dirty bit); refcounts - 1,
 *           COPIED flags set again; dirty bit cleared
 *   apply   the new L1 table; refcounts + 1, COPIED flags of the snapshot's L2
 *           tables cleared; header (size, L1 table); refcounts - 1
 *
 * Each header write lies within one sector.  A crash before it leaves the old
 * state, one after it the new one, with refcounts that are too large and, under
 * the dirty bit, COPIED flags that do not fit them.  apply needs no dirty bit:
 * what it activates has two references at least, so no flag has to be set.
 * What was active keeps its refcounts until the new L1 table is, and the
 * snapshot's tables are never changed but for flags.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/reader.h"
#include "formats/qcow2/refs.h"

enum {
  MAX_SNAPSHOT_NAME = 255,      /* what QEMU can hold */
  NEW_EXTRA = 24,
};

/* ---- what all have in common ---- */

static int
check_possible (struct qcow2 *q, struct error *e)
{
  if (q->incompatible_features & INCOMPAT_DATA_FILE)
    return error_set (e, ENOTSUP, "images with an external data file cannot"
                      " have internal snapshots");
  if (q->incompatible_features & INCOMPAT_CORRUPT)
    return error_set (e, EIO, "the image is marked corrupt: check and repair"
                      " it");
  return 0;
}

static int
look_at_raise (struct l1_refs *r, void *opaque, struct error *e)
{
  struct refs_change c = { .delta = 1 };

  (void) opaque;
  if (refs_check_metadata (r, e) == -1)
    return -1;
  return refs_change (r, &c, e);
}

static int
raise_refs (struct l1_refs *r, void *opaque, struct error *e)
{
  struct refs_change c = { .delta = 1, .write = true };

  (void) opaque;
  return refs_change (r, &c, e);
}

static uint64_t
l1_clusters (const struct qcow2 *q, uint32_t l1_size)
{
  return div_round_up ((uint64_t) l1_size * 8, q->cluster_size);
}

/* A copy of the first FROM->l1_size entries of an L1 table, without COPIED
 * flags, in a table of ENTRIES at *HOST.
 */
static int
copy_l1 (struct qcow2 *q, const struct l1_refs *from, uint32_t entries,
         uint64_t *host, struct error *e)
{
  uint64_t clusters = l1_clusters (q, entries);
  size_t bytes = (size_t) (clusters << q->cluster_bits);
  CLEANUP_FREE uint8_t *table = calloc (1, bytes);
  int r;

  if (!table)
    return error_nomem (e, "an L1 table", bytes);
  if (storage_pread (q->format.storage, table, (size_t) from->l1_size * 8,
                     from->l1_table_offset, e) == -1
      || qcow2_alloc_table (q, clusters, host, e) == -1)
    return -1;
  for (size_t i = 0; i < (size_t) from->l1_size * 8; i += 8)
    put_be64 (table + i, get_be64 (table + i) & ~ENTRY_COPIED);
  r = storage_pwrite (q->format.storage, table, bytes, *host, 0, e);
  if (r == -1)
    qcow2_give_back (q, *host, clusters);
  return r;
}

/* ---- the snapshot table ---- */

/* A new table, and where it lies. */
struct new_table {
  uint8_t *buf;                 /* owned */
  size_t length;                /* bytes */
  uint32_t nr;                  /* entries */
  uint64_t host, clusters;
};

/* Read the table that is there, with ROOM bytes more behind it. */
static int
read_table (struct qcow2 *q, size_t room, struct new_table *t,
            struct error *e)
{
  t->nr = q->nb_snapshots;
  t->length = (size_t) q->snapshots_length;
  if (t->length + room > MAX_SNAPSHOT_TABLE_BYTES)
    return error_set (e, EFBIG, "the snapshot table would be larger than %"
                      PRIu64 " MiB", MAX_SNAPSHOT_TABLE_BYTES / MiB);
  t->buf = calloc (1, round_up (t->length + room, q->cluster_size));
  if (!t->buf)
    return error_nomem (e, "the snapshot table", t->length + room);
  return storage_pread (q->format.storage, t->buf, t->length,
                        q->snapshots_offset, e);
}

static int
write_table (struct qcow2 *q, struct new_table *t, struct error *e)
{
  uint64_t clusters = div_round_up (t->length, q->cluster_size);

  if (clusters == 0)
    return 0;
  if (qcow2_alloc_table (q, clusters, &t->host, e) == -1)
    return -1;
  t->clusters = clusters;
  return storage_pwrite (q->format.storage, t->buf,
                         (size_t) (clusters << q->cluster_bits), t->host, 0,
                         e);
}

/* nb_snapshots, snapshots_offset and, in version 3, incompatible_features lie
 * side by side in the first sector.
 */
static int
switch_table (struct qcow2 *q, const struct new_table *t, bool dirty,
              struct error *e)
{
  uint64_t features = q->incompatible_features & ~INCOMPAT_DIRTY;
  uint64_t old = q->snapshots_offset;
  uint64_t old_clusters = div_round_up (q->snapshots_length,
                                        q->cluster_size);
  uint8_t field[20];

  if (dirty)
    features |= INCOMPAT_DIRTY;
  put_be32 (field, t->nr);
  put_be64 (field + 4, t->host);
  put_be64 (field + 12, features);
  if (qcow2_switch_header (q, H_NB_SNAPSHOTS, field, q->version < 3 ? 12 : 20,
                           e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  q->nb_snapshots = t->nr;
  q->snapshots_offset = t->host;
  q->snapshots_length = t->length;
  if (q->version >= 3)
    q->incompatible_features = features;
  mutex_unlock (&q->mutex);
  qcow2_give_back (q, old, old_clusters);
  return 0;
}

/* ---- create ---- */

/* The largest id, as a number, that there is. */
static int
largest_id (struct qcow2 *q, uint64_t *largest, struct error *e)
{
  struct snapshot_iter it;
  struct snapshot_entry s;
  int r;

  *largest = 0;
  if (snapshot_iter_init (&it, q, e) == -1)
    return -1;
  while ((r = snapshot_iter_next (&it, &s, e)) == 1) {
    uint64_t id = 0;

    for (unsigned i = 0; i < s.id_length && id < UINT64_MAX / 10
           && s.id[i] >= '0' && s.id[i] <= '9'; ++i)
      id = id * 10 + (uint64_t) (s.id[i] - '0');
    *largest = max_u64 (*largest, id);
  }
  snapshot_iter_free (&it);
  return r;
}

static int
check_create (struct qcow2 *q, const struct format_snapshot *s,
              struct error *e)
{
  if (check_possible (q, e) == -1)
    return -1;
  if (q->nb_snapshots >= MAX_SNAPSHOTS)
    return error_set (e, EFBIG, "there are %u snapshots already",
                      q->nb_snapshots);
  if (strlen (s->name) > MAX_SNAPSHOT_NAME)
    return error_set (e, EINVAL, "a snapshot's name may have %d bytes, this one"
                      " has %zu", MAX_SNAPSHOT_NAME, strlen (s->name));
  return 0;
}

static void
put_entry (uint8_t *p, const struct format_snapshot *s, const char *id,
           uint64_t disk_size, uint64_t l1, uint32_t l1_size)
{
  size_t id_length = strlen (id), name_length = strlen (s->name);

  put_be64 (p + S_L1_TABLE_OFFSET, l1);
  put_be32 (p + S_L1_SIZE, l1_size);
  put_be16 (p + S_ID_LENGTH, (uint16_t) id_length);
  put_be16 (p + S_NAME_LENGTH, (uint16_t) name_length);
  put_be32 (p + S_DATE_SEC, s->date_sec);
  put_be32 (p + S_DATE_NSEC, s->date_nsec);
  put_be64 (p + S_VM_CLOCK, s->vm_clock_nsec);
  put_be32 (p + S_EXTRA_SIZE, NEW_EXTRA);
  put_be64 (p + S_EXTRA + X_DISK_SIZE, disk_size);
  put_be64 (p + S_EXTRA + X_ICOUNT, s->icount);
  memcpy (p + S_EXTRA + NEW_EXTRA, id, id_length);
  memcpy (p + S_EXTRA + NEW_EXTRA + id_length, s->name, name_length);
}

/* The table with one entry more, for the L1 table at L1. */
static int
append_entry (struct qcow2 *q, const struct format_snapshot *s, uint64_t l1,
              uint32_t l1_size, struct new_table *t, struct error *e)
{
  uint64_t largest;
  size_t room;
  char id[24];

  if (largest_id (q, &largest, e) == -1)
    return -1;
  snprintf (id, sizeof id, "%" PRIu64, largest + 1);
  room = round_up (S_EXTRA + NEW_EXTRA + strlen (id) + strlen (s->name), 8);
  if (read_table (q, room, t, e) == -1)
    return -1;
  put_entry (t->buf + t->length, s, id, q->format.info.size, l1, l1_size);
  t->length += room;
  t->nr++;
  return write_table (q, t, e);
}

/* From here on until the header says so nothing refers to what is new, but
 * refcounts and flags are on their way.
 */
static int
share_active (struct qcow2 *q, struct l1_refs *active, struct error *e)
{
  if (qcow2_set_dirty (q, e) == -1)
    return -1;
  if (refs_each_window (active, raise_refs, NULL, e) == 0
      && refs_set_flags (NULL, active, e) == 0
      && storage_flush (q->format.storage, e) == 0)
    return 0;
  qcow2_undo (q);
  return -1;
}

static int
create (struct qcow2 *q, const struct format_snapshot *s,
        struct l1_refs *active, struct new_table *t, struct error *e)
{
  uint32_t l1_size = active->l1_size ? active->l1_size : 1;
  uint64_t l1 = 0;

  if (refs_each_window (active, look_at_raise, NULL, e) == -1
      || copy_l1 (q, active, l1_size, &l1, e) == -1)
    return -1;
  if (append_entry (q, s, l1, l1_size, t, e) == -1
      || qcow2_settle (q, e) == -1) {
    qcow2_give_back (q, l1, l1_clusters (q, l1_size));
    qcow2_give_back (q, t->host, t->clusters);
    return -1;
  }
  if (share_active (q, active, e) == -1)
    return -1;
  if (switch_table (q, t, false, e) == -1)
    return error_prefix (e, "it is not known whether the snapshot was made;"
                         " check the image");
  return qcow2_settle (q, e);
}

int
qcow2_snapshot_create (struct format *f, const struct format_snapshot *s,
                       struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct l1_refs active = { .q = q };
  struct new_table t = { .buf = NULL };
  int r;

  if (check_create (q, s, e) == -1 || qcow2_settle (q, e) == -1)
    return -1;
  r = refs_load (&active, q, q->l1_table_offset, q->l1_size, e);
  if (r == 0)
    r = create (q, s, &active, &t, e);
  refs_free (&active);
  free (t.buf);
  return r;
}

/* ---- find ---- */

/* NAME is looked for as a name and as an id, in this order if NAME_FIRST.
 * apply takes the id first, as QEMU does; delete, which QEMU does by name
 * alone, the name, so that it never takes another one than QEMU would.
 */
static int
find (struct qcow2 *q, const char *name, bool name_first,
      struct snapshot_entry *s, struct error *e)
{
  int r = qcow2_snapshot_find (q, name, name_first, s, e);

  if (r == 0)
    r = qcow2_snapshot_find (q, name, !name_first, s, e);
  if (r == 0)
    return error_set (e, ENOENT, "no snapshot has the id or the name '%s'",
                      name);
  return r == 1 ? qcow2_snapshot_check_l1 (q, name, s, e) : -1;
}

/* ---- delete ---- */

/* The table without the entry S. */
static int
cut_entry (struct qcow2 *q, const struct snapshot_entry *s,
           struct new_table *t, struct error *e)
{
  size_t start = (size_t) s->start, end = (size_t) s->end;

  if (read_table (q, 0, t, e) == -1)
    return -1;
  memmove (t->buf + start, t->buf + end, t->length - end);
  t->length -= end - start;
  memset (t->buf + t->length, 0, end - start);
  t->nr--;
  return write_table (q, t, e);
}

static int
drop_snapshot (struct qcow2 *q, struct l1_refs *snapshot,
               struct l1_refs *active, struct error *e)
{
  if (refs_each_window (snapshot, refs_drop, active, e) == 0
      && storage_flush (q->format.storage, e) == 0
      && qcow2_clear_dirty (q, e) == 0)
    return 0;
  qcow2_undo (q);
  return error_prefix (e, "the snapshot is deleted, but its space could not"
                       " all be freed");
}

static int
delete (struct qcow2 *q, const struct snapshot_entry *s,
        struct l1_refs *snapshot, struct l1_refs *active,
        struct new_table *t, struct error *e)
{
  if (refs_each_window (snapshot, refs_look_at_drop, active, e) == -1)
    return -1;
  if (cut_entry (q, s, t, e) == -1 || qcow2_settle (q, e) == -1) {
    qcow2_give_back (q, t->host, t->clusters);
    return -1;
  }
  if (switch_table (q, t, true, e) == -1)
    return error_prefix (e, "it is not known whether the snapshot was deleted;"
                         " check the image");
  if (drop_snapshot (q, snapshot, active, e) == -1)
    return -1;
  qcow2_give_back (q, s->l1_table_offset, l1_clusters (q, s->l1_size));
  return qcow2_settle (q, e);
}

static bool
is_viewed (struct qcow2 *q, const struct snapshot_entry *s)
{
  bool r = false;

  mutex_lock (&q->mutex);
  for (const struct format_view *v = q->views; v; v = v->next)
    r |= v->l1_table_offset == s->l1_table_offset;
  mutex_unlock (&q->mutex);
  return r;
}

int
qcow2_snapshot_delete (struct format *f, const char *snapshot,
                       struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct l1_refs refs = { .q = q }, active = { .q = q };
  struct new_table t = { .buf = NULL };
  struct snapshot_entry s;
  int r;

  if (check_possible (q, e) == -1 || find (q, snapshot, true, &s, e) == -1)
    return -1;
  if (is_viewed (q, &s))
    return error_set (e, EBUSY, "the snapshot '%s' is in use", snapshot);
  if (qcow2_settle (q, e) == -1)
    return -1;
  r = refs_load (&refs, q, s.l1_table_offset, s.l1_size, e);
  if (r == 0)
    r = refs_load (&active, q, q->l1_table_offset, q->l1_size, e);
  if (r == 0)
    r = delete (q, &s, &refs, &active, &t, e);
  refs_free (&refs);
  refs_free (&active);
  free (t.buf);
  return r;
}

/* ---- apply ---- */

static int
reference_target (struct qcow2 *q, struct l1_refs *target, struct error *e)
{
  if (refs_each_window (target, raise_refs, NULL, e) == 0
      && refs_set_flags (NULL, target, e) == 0
      && storage_flush (q->format.storage, e) == 0)
    return 0;
  qcow2_undo (q);
  return -1;
}

static int
drop_old (struct qcow2 *q, struct l1_refs *old, struct error *e)
{
  if (refs_each_window (old, refs_drop, NULL, e) == 0
      && storage_flush (q->format.storage, e) == 0)
    return 0;
  qcow2_undo (q);
  return error_prefix (e, "the snapshot is applied, but the space of what was"
                       " active could not all be freed");
}

static int
apply (struct qcow2 *q, const struct snapshot_entry *s,
       struct l1_refs *target, struct l1_refs *old, struct error *e)
{
  uint32_t l1_size = s->l1_size ? s->l1_size : 1;
  uint64_t l1;

  if (refs_each_window (target, look_at_raise, NULL, e) == -1
      || refs_each_window (old, refs_look_at_drop, target, e) == -1
      || copy_l1 (q, target, l1_size, &l1, e) == -1)
    return -1;
  if (qcow2_settle (q, e) == -1) {
    qcow2_give_back (q, l1, l1_clusters (q, l1_size));
    return -1;
  }
  if (reference_target (q, target, e) == -1
      || qcow2_switch_disk (q, s->disk_size, l1, l1_size, e) == -1
      || drop_old (q, old, e) == -1)
    return -1;
  qcow2_give_back (q, old->l1_table_offset, l1_clusters (q, old->l1_size));
  return qcow2_settle (q, e) == -1 ? -1 : qcow2_learn_tables (q, e);
}

int
qcow2_snapshot_apply (struct format *f, const char *snapshot,
                      struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct l1_refs target = { .q = q }, old = { .q = q };
  struct snapshot_entry s;
  int r;

  if (check_possible (q, e) == -1)
    return -1;
  if (q->nb_bitmaps)
    return error_set (e, EBUSY, "Device has active dirty bitmaps");
  if (find (q, snapshot, false, &s, e) == -1 || qcow2_settle (q, e) == -1)
    return -1;
  r = refs_load (&target, q, s.l1_table_offset, s.l1_size, e);
  if (r == 0)
    r = refs_load (&old, q, q->l1_table_offset, q->l1_size, e);
  if (r == 0)
    r = apply (q, &s, &target, &old, e);
  refs_free (&target);
  refs_free (&old);
  return r;
}
