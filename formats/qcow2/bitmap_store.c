/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Persistent bitmaps are written: marked in use before the first write, stored
 * by a clean close.  Layer: formats.  Locking: structural, nobody else is
 * inside.
 * Specification: "Bitmaps extension", "Bitmap directory", "Bitmap table".
 *
 * The flags of an entry lie within one sector, and are written where they are.
 * The order of a store:
 *
 *   guest data, bits, tables, new directory, refcounts of these; barrier
 *   the header's extension, with the autoclear bit
 *   what was there before is freed
 *
 * Nothing that the old directory refers to is written to.  A crash before the
 * header is on disk leaves the old directory, which says in_use, and leaks; one
 * after it the new directory and leaks.  What failed before the header is given
 * back; when the header itself fails nobody knows which one is on disk, and
 * neither the old nor the new clusters are freed.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/bitmaps.h"
#include "formats/qcow2/header_rewrite.h"

enum { TABLE_ALL_ONES = 1, TABLE_BUFFER = 64 * 1024 };

/* ---- marks ---- */

static int
write_flags (struct qcow2 *q, const struct dirty_bitmap *b, uint32_t flags,
             struct error *e)
{
  uint8_t field[4];

  put_be32 (field, flags);
  if (storage_pwrite (q->format.storage, field, sizeof field,
                      b->entry_host + B_FLAGS, 0, e) == -1)
    return error_prefix (e, "flags of the bitmap '%s'", b->name);
  return 0;
}

static bool
is_to_be_marked (const struct dirty_bitmap *b)
{
  return b->loaded && !b->marked && b->entry_host
    && !(b->flags & BITMAP_IN_USE);
}

/* No guest data have changed, so that a bitmap without the mark is right. */
static void
take_marks_back (struct qcow2 *q, struct dirty_bitmap **items, size_t nr)
{
  struct error ignored = ERROR_INIT;

  for (size_t i = 0; i < nr; ++i)
    if (is_to_be_marked (items[i])
        && write_flags (q, items[i], items[i]->flags, &ignored) == -1)
      log_warning ("%s", ignored.text);
}

int
bitmap_mark (struct qcow2 *q, struct dirty_bitmap **items, size_t nr,
             struct error *e)
{
  bool any = false;

  for (size_t i = 0; i < nr; ++i) {
    if (!is_to_be_marked (items[i]))
      continue;
    any = true;
    if (write_flags (q, items[i], items[i]->flags | BITMAP_IN_USE, e) == -1) {
      take_marks_back (q, items, i + 1);
      return -1;
    }
  }
  if (!any)
    return 0;
  if (storage_flush (q->format.storage, e) == -1) {
    take_marks_back (q, items, nr);
    return -1;
  }
  for (size_t i = 0; i < nr; ++i)
    items[i]->marked |= is_to_be_marked (items[i]);
  return 0;
}

static bool
is_changed (const struct dirty_bitmap *b)
{
  return b->loaded && b->bits.changed;
}

/* Those of ITEMS that are as they were: what is on disk is complete. */
static int
unmark (struct qcow2 *q, struct dirty_bitmap **items, size_t nr, bool *any,
        struct error *e)
{
  struct dirty_bitmap *b;

  for (size_t i = 0; i < nr; ++i) {
    b = items[i];
    if (!b->marked || is_changed (b))
      continue;
    if (write_flags (q, b, b->disk_flags, e) == -1)
      return -1;
    b->marked = false;
    *any = true;
  }
  return 0;
}

static int
unmark_all (struct qcow2 *q, struct bitmap_set *set, struct error *e)
{
  bool any = false;

  if (unmark (q, set->items, set->nr, &any, e) == -1
      || unmark (q, set->removed, set->nr_removed, &any, e) == -1)
    return -1;
  return any ? storage_flush (q->format.storage, e) : 0;
}

/* The directory on disk is the old one, so that what was to be done is not.
 * Bitmaps that have all their bits there need not suffer with the others.
 */
static void
spare_unchanged (struct qcow2 *q, struct bitmap_set *set)
{
  struct error e = ERROR_INIT;

  if (unmark_all (q, set, &e) == -1)
    log_warning ("%s", e.text);
}

/* ---- bits and tables ---- */

/* Where a bitmap is going to be. */
struct place {
  uint64_t table_offset;
  uint32_t table_size;
};

struct store {
  struct qcow2 *q;
  struct bitmap_set *set;
  struct place *places;         /* owned; one for each item */
  struct freed_list old, new;   /* clusters that lose, or got, their owner */
  uint64_t directory, directory_size;
};

static int
alloc (struct store *s, uint64_t nr, uint64_t *host, struct error *e)
{
  *host = 0;
  if (qcow2_alloc_table (s->q, nr, host, e) == -1)
    return -1;
  freed_list_add (&s->new, *host, nr, s->q->cluster_size);
  return 0;
}

/* One table entry, and the cluster that it refers to. */
static int
store_piece (struct store *s, const struct bits *bits, uint64_t i,
             uint64_t *entry, struct error *e)
{
  switch (bits_kind (bits, i)) {
  case BITS_CLEAR:
    *entry = 0;
    return 0;
  case BITS_SET:
    *entry = TABLE_ALL_ONES;
    return 0;
  case BITS_MIXED:
    break;
  }
  if (alloc (s, 1, entry, e) == -1)
    return -1;
  return storage_pwrite (s->q->format.storage, bits->pieces[i],
                         bits->piece_size, *entry, 0, e);
}

static int
store_bits (struct store *s, const struct bits *bits, struct place *p,
            struct error *e)
{
  struct qcow2 *q = s->q;
  uint64_t nr = bits->nr_pieces, entry;
  uint64_t clusters = max_u64 (div_round_up (nr * 8, q->cluster_size), 1);
  size_t bytes = (size_t) (clusters << q->cluster_bits);
  CLEANUP_FREE uint8_t *table = calloc (1, bytes);

  if (!table)
    return error_nomem (e, "a bitmap table", bytes);
  for (uint64_t i = 0; i < nr; ++i) {
    if (store_piece (s, bits, i, &entry, e) == -1)
      return -1;
    put_be64 (table + i * 8, entry);
  }
  p->table_size = (uint32_t) nr;
  if (alloc (s, clusters, &p->table_offset, e) == -1)
    return -1;
  return storage_pwrite (q->format.storage, table, bytes, p->table_offset, 0,
                         e);
}

/* A table that is damaged may lead to metadata; data it can lead to as well,
 * hence is_sound.
 */
static bool
is_ours (struct store *s, uint64_t host, uint64_t clusters)
{
  struct qcow2 *q = s->q;
  bool r;

  mutex_lock (&q->mutex);
  r = !qcow2_overlap_locked (q, host, clusters << q->cluster_bits);
  mutex_unlock (&q->mutex);
  return r;
}

/* The clusters of B as it is on disk.  A table that cannot be read, or is
 * damaged, leaks what it refers to.
 */
static void
collect_old (struct store *s, const struct dirty_bitmap *b)
{
  struct qcow2 *q = s->q;
  struct error bad = ERROR_INIT;
  struct reader reader;
  const uint8_t *p;
  uint64_t host, clusters;

  if (b->table_offset == 0)
    return;
  if (b->table_offset > storage_size (q->format.storage)
      || (uint64_t) b->table_size * 8
      > round_up (storage_size (q->format.storage), q->cluster_size)
      - b->table_offset
      || reader_init (&reader, q->format.storage, TABLE_BUFFER, &bad) == -1) {
    log_warning ("bitmap '%s': its clusters are leaked", b->name);
    return;
  }
  for (uint64_t i = 0; i < b->table_size; ++i) {
    p = reader_get (&reader, b->table_offset + i * 8, 8, &bad);
    if (!p) {
      log_warning ("bitmap '%s': its clusters are leaked: %s", b->name,
                   bad.text);
      break;
    }
    host = get_be64 (p) & ENTRY_OFFSET_MASK;
    if (host && is_aligned (host, q->cluster_size)
        && host < storage_size (q->format.storage) && is_ours (s, host, 1))
      freed_list_add (&s->old, host, 1, q->cluster_size);
  }
  reader_free (&reader);
  clusters = max_u64 (div_round_up ((uint64_t) b->table_size * 8,
                                    q->cluster_size), 1);
  if (is_ours (s, b->table_offset, clusters))
    freed_list_add (&s->old, b->table_offset, clusters, q->cluster_size);
}

/* One that was removed may have been so because it is damaged. */
static int
collect_removed (struct store *s, struct error *e)
{
  struct qcow2 *q = s->q;
  bool sound;

  if (s->set->nr_removed == 0)
    return 0;
  if (qcow2_is_sound (q, &sound, e) == -1)
    return -1;
  if (!sound)
    log_warning ("%s: the image has errors, so that clusters of bitmaps that"
                 " are removed are leaked: check and repair it",
                 q->format.storage->name);
  for (size_t i = 0; sound && i < s->set->nr_removed; ++i)
    collect_old (s, s->set->removed[i]);
  return 0;
}

static int
store_all_bits (struct store *s, struct error *e)
{
  struct dirty_bitmap *b;

  for (size_t i = 0; i < s->set->nr; ++i) {
    b = s->set->items[i];
    s->places[i] = (struct place) { b->table_offset, b->table_size };
    if (!is_changed (b))
      continue;
    if (store_bits (s, &b->bits, &s->places[i], e) == -1)
      return error_prefix (e, "bitmap '%s'", b->name);
    collect_old (s, b);
  }
  return collect_removed (s, e);
}

/* ---- directory ---- */

static size_t
entry_size (const struct dirty_bitmap *b)
{
  return round_up (B_EXTRA_DATA + strlen (b->name), 8);
}

uint64_t
bitmap_directory_size (const struct bitmap_set *set)
{
  uint64_t size = 0;

  for (size_t i = 0; i < set->nr; ++i)
    size += entry_size (set->items[i]);
  return size;
}

static void
put_entry (uint8_t *p, const struct dirty_bitmap *b, const struct place *at)
{
  size_t len = strlen (b->name);

  put_be64 (p + B_TABLE_OFFSET, at->table_offset);
  put_be32 (p + B_TABLE_SIZE, at->table_size);
  put_be32 (p + B_FLAGS, b->flags);
  p[B_TYPE] = BITMAP_DIRTY_TRACKING;
  p[B_GRANULARITY_BITS] = (uint8_t) b->granularity_bits;
  put_be16 (p + B_NAME_SIZE, (uint16_t) len);
  memcpy (p + B_EXTRA_DATA, b->name, len);
}

static int
store_directory (struct store *s, struct error *e)
{
  struct qcow2 *q = s->q;
  uint64_t clusters;
  size_t bytes, at = 0;
  CLEANUP_FREE uint8_t *buf = NULL;

  s->directory_size = bitmap_directory_size (s->set);
  clusters = div_round_up (s->directory_size, q->cluster_size);
  if (clusters == 0)
    return 0;
  bytes = (size_t) (clusters << q->cluster_bits);
  buf = calloc (1, bytes);
  if (!buf)
    return error_nomem (e, "the bitmap directory", bytes);
  for (size_t i = 0; i < s->set->nr; ++i) {
    put_entry (buf + at, s->set->items[i], &s->places[i]);
    at += entry_size (s->set->items[i]);
  }
  if (alloc (s, clusters, &s->directory, e) == -1)
    return -1;
  return storage_pwrite (q->format.storage, buf, bytes, s->directory, 0, e);
}

/* ---- the switch ---- */

static void
give_back (struct qcow2 *q, const struct freed_list *l)
{
  for (size_t i = 0; i < l->nr; ++i)
    qcow2_give_back (q, l->items[i].host, l->items[i].nr);
}

static int
switch_directory (struct store *s, struct error *e)
{
  uint8_t data[BITMAPS_EXTENSION] = { 0 };
  const struct header_change change = {
    .set_bitmaps = true, .bitmaps = s->set->nr ? data : NULL,
  };

  put_be32 (data, (uint32_t) s->set->nr);
  put_be64 (data + 8, s->directory_size);
  put_be64 (data + 16, s->directory);
  return qcow2_rewrite_header (s->q, &change, e);
}

/* The disk says so already. */
static void
adopt (struct store *s)
{
  struct qcow2 *q = s->q;
  struct bitmap_set *set = s->set;
  uint64_t at = s->directory;

  mutex_lock (&q->mutex);
  q->nb_bitmaps = (uint32_t) set->nr;
  q->bitmap_directory_offset = s->directory;
  q->bitmap_directory_size = s->directory_size;
  q->autoclear_features &= ~AUTOCLEAR_BITMAPS;
  if (set->nr)
    q->autoclear_features |= AUTOCLEAR_BITMAPS;
  mutex_unlock (&q->mutex);
  for (size_t i = 0; i < set->nr; ++i) {
    struct dirty_bitmap *b = set->items[i];

    b->entry_host = at;
    b->table_offset = s->places[i].table_offset;
    b->table_size = s->places[i].table_size;
    b->disk_flags = b->flags;
    b->marked = false;
    b->bits.changed = false;
    at += entry_size (b);
  }
  set->edited = false;
}

static int
store (struct store *s, struct error *e)
{
  struct qcow2 *q = s->q;

  if (store_all_bits (s, e) == -1 || store_directory (s, e) == -1
      || qcow2_settle (q, e) == -1) {
    give_back (q, &s->new);
    spare_unchanged (q, s->set);
    return -1;
  }
  if (q->bitmap_directory_size)
    freed_list_add (&s->old, q->bitmap_directory_offset,
                    div_round_up (q->bitmap_directory_size, q->cluster_size),
                    q->cluster_size);
  if (switch_directory (s, e) == -1)
    return -1;
  adopt (s);
  give_back (q, &s->old);
  return 0;
}

static bool
is_dirty (const struct bitmap_set *set)
{
  bool r = set->edited;

  for (size_t i = 0; i < set->nr; ++i)
    r |= is_changed (set->items[i]);
  return r;
}

int
qcow2_bitmaps_store (struct qcow2 *q, struct error *e)
{
  struct store s = { .q = q, .set = q->bitmaps };
  int r;

  /* With the corrupt bit nothing may be allocated: they stay in use. */
  if (!s.set || (q->incompatible_features & INCOMPAT_CORRUPT))
    return 0;
  if (!is_dirty (s.set))
    r = unmark_all (q, s.set, e);
  else {
    s.places = calloc (s.set->nr + 1, sizeof s.places[0]);
    r = s.places ? store (&s, e)
      : error_nomem (e, "bitmaps", s.set->nr * sizeof s.places[0]);
  }
  free (s.places);
  freed_list_clear (&s.old);
  freed_list_clear (&s.new);
  return r == 0 ? 0
    : error_prefix (e, "the persistent bitmaps could not be stored, and those"
                    " that have changed stay marked as in use");
}
