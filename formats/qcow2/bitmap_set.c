/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The persistent bitmaps of an open image: read from disk, told of writes,
 * fitted to another size.  Layer: formats.  Locking: qcow2_changed comes from
 * any thread and uses atomic bits alone; everything else is structural.
 * Specification: "Bitmaps".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/bitmaps.h"

#define TABLE_RESERVED UINT64_C (0xff000000000001fe)
enum { TABLE_ALL_ONES = 1, TABLE_BUFFER = 64 * 1024 };

/* ---- the set ---- */

void
dirty_bitmap_free (struct dirty_bitmap *b)
{
  if (!b)
    return;
  bits_free (&b->bits);
  free (b->name);
  free (b);
}

void
bitmap_set_free (struct qcow2 *q)
{
  struct bitmap_set *set = q->bitmaps;

  if (!set)
    return;
  for (size_t i = 0; i < set->nr; ++i)
    dirty_bitmap_free (set->items[i]);
  for (size_t i = 0; i < set->nr_removed; ++i)
    dirty_bitmap_free (set->removed[i]);
  free (set->items);
  free (set->removed);
  free (set);
  q->bitmaps = NULL;
}

int
bitmap_set_add (struct bitmap_set *set, struct dirty_bitmap *b,
                struct error *e)
{
  size_t alloc = set->alloc ? 2 * set->alloc : 16;
  struct dirty_bitmap **bigger;

  if (set->nr == set->alloc) {
    bigger = realloc (set->items, alloc * sizeof bigger[0]);
    if (!bigger)
      return error_nomem (e, "bitmaps", alloc * sizeof bigger[0]);
    set->items = bigger;
    set->alloc = alloc;
  }
  set->items[set->nr++] = b;
  return 0;
}

struct dirty_bitmap *
bitmap_set_find (const struct bitmap_set *set, const char *name)
{
  for (size_t i = 0; i < set->nr; ++i)
    if (strcmp (set->items[i]->name, name) == 0)
      return set->items[i];
  return NULL;
}

uint64_t
bitmap_bits (uint64_t size, unsigned granularity_bits)
{
  return div_round_up (size, UINT64_C (1) << granularity_bits);
}

static uint64_t
bitmap_bytes (const struct qcow2 *q, uint64_t nr)
{
  return round_up (div_round_up (nr, 8), q->cluster_size);
}

/* ---- the directory ---- */

static int
add_entry (struct bitmap_set *set, const struct bitmap_entry *entry,
           uint64_t host, struct error *e)
{
  struct dirty_bitmap *b;

  if (memchr (entry->name, '\0', entry->name_length))
    return error_set (e, EINVAL, "the name of bitmap %zu contains a NUL byte",
                      set->nr);
  b = calloc (1, sizeof *b);
  if (b)
    b->name = strndup (entry->name, entry->name_length);
  if (!b || !b->name) {
    free (b);
    return error_nomem (e, "bitmaps", sizeof *b);
  }
  b->granularity_bits = entry->granularity_bits;
  b->flags = b->disk_flags = entry->flags;
  b->entry_host = host;
  b->table_offset = entry->table_offset;
  b->table_size = entry->table_size;
  if (bitmap_set_add (set, b, e) == 0)
    return 0;
  dirty_bitmap_free (b);
  return -1;
}

static int
compare_names (const void *a, const void *b)
{
  const struct dirty_bitmap *const *x = a, *const *y = b;

  return strcmp ((*x)->name, (*y)->name);
}

/* A bitmap that has another's name could not be told from it. */
static int
check_names (const struct bitmap_set *set, struct error *e)
{
  size_t bytes = set->nr * sizeof set->items[0];
  CLEANUP_FREE struct dirty_bitmap **sorted = malloc (bytes + 1);

  if (!sorted)
    return error_nomem (e, "bitmaps", bytes);
  if (set->nr)
    memcpy (sorted, set->items, bytes);
  qsort (sorted, set->nr, sizeof sorted[0], compare_names);
  for (size_t i = 1; i < set->nr; ++i)
    if (strcmp (sorted[i - 1]->name, sorted[i]->name) == 0)
      return error_set (e, EINVAL, "bitmap directory: two bitmaps are called"
                        " '%s'", sorted[i]->name);
  return 0;
}

static int
read_directory (struct qcow2 *q, struct bitmap_set *set, struct error *e)
{
  struct bitmap_entry entry;
  struct bitmap_iter it;
  uint64_t host;
  int r;

  if (bitmap_iter_init (&it, q, e) == -1)
    return -1;
  do {
    host = it.offset + it.used;
    r = bitmap_iter_next (&it, &entry, e);
    if (r == 1 && add_entry (set, &entry, host, e) == -1)
      r = -1;
  } while (r == 1);
  bitmap_iter_free (&it);
  return r == 0 ? check_names (set, e) : -1;
}

int
bitmap_set_read (struct qcow2 *q, struct error *e)
{
  if (q->bitmaps)
    return 0;
  q->bitmaps = calloc (1, sizeof *q->bitmaps);
  if (!q->bitmaps)
    return error_nomem (e, "bitmaps", sizeof *q->bitmaps);
  if (!qcow2_has_bitmaps (q) || read_directory (q, q->bitmaps, e) == 0)
    return 0;
  bitmap_set_free (q);
  return -1;
}

/* ---- load ---- */

int
bitmap_check_memory (const struct qcow2 *q, const struct dirty_bitmap *b,
                     uint64_t nr, struct error *e)
{
  const struct bitmap_set *set = q->bitmaps;
  uint64_t sum = bitmap_bytes (q, nr);

  if (sum > MAX_BITMAP_BYTES)
    return error_set (e, EFBIG, "Too much space will be occupied by the bitmap."
                      " Use larger granularity");
  for (size_t i = 0; i < set->nr; ++i)
    if (set->items[i] != b && set->items[i]->loaded)
      sum += bitmap_bytes (q, set->items[i]->bits.nr);
  if (sum > MAX_BITMAPS_MEMORY)
    return error_set (e, EFBIG, "the bitmaps of the image could take more than"
                      " %" PRIu64 " MiB of memory; remove or disable some, or"
                      " use a larger granularity", MAX_BITMAPS_MEMORY / MiB);
  return 0;
}

/* Piece I of the bits, as the table says. */
static int
load_piece (struct qcow2 *q, struct bits *bits, uint64_t i, uint64_t entry,
            struct error *e)
{
  uint64_t host = entry & ENTRY_OFFSET_MASK;
  uint8_t *p;

  if ((entry & TABLE_RESERVED) || (host && (entry & TABLE_ALL_ONES))
      || !is_aligned (host, q->cluster_size)
      || host >= storage_size (q->format.storage))
    return error_set (e, EINVAL, "entry %" PRIu64 " of its table is not valid:"
                      " 0x%" PRIx64, i, entry);
  if (entry == 0)
    return 0;
  p = bits_piece (bits, i, e);
  if (!p)
    return -1;
  if (host)
    return storage_pread (q->format.storage, p, (size_t) q->cluster_size,
                          host, e);
  memset (p, 0xff, (size_t) q->cluster_size);
  return 0;
}

static int
load_pieces (struct qcow2 *q, const struct dirty_bitmap *b,
             struct bits *bits, struct error *e)
{
  struct reader reader;
  const uint8_t *p;
  int r = 0;

  if (bits->nr_pieces > b->table_size)
    return error_set (e, EINVAL, "its table has %u entries; the disk needs %"
                      PRIu64, b->table_size, bits->nr_pieces);
  if (reader_init (&reader, q->format.storage, TABLE_BUFFER, e) == -1)
    return -1;
  for (uint64_t i = 0; r == 0 && i < bits->nr_pieces; ++i) {
    p = reader_get (&reader, b->table_offset + i * 8, 8, e);
    r = p ? load_piece (q, bits, i, get_be64 (p), e) : -1;
  }
  reader_free (&reader);
  bits_trim (bits);
  bits->changed = false;
  return r;
}

int
bitmap_load (struct qcow2 *q, struct dirty_bitmap *b, struct error *e)
{
  uint64_t nr = bitmap_bits (q->format.info.size, b->granularity_bits);

  if (b->loaded)
    return 0;
  if (bitmap_check_memory (q, b, nr, e) == 0
      && bits_init (&b->bits, nr, (size_t) q->cluster_size, e) == 0
      && load_pieces (q, b, &b->bits, e) == 0) {
    b->loaded = true;
    return 0;
  }
  bits_free (&b->bits);
  return error_prefix (e, "bitmap '%s'", b->name);
}

/* ---- writes ---- */

int
qcow2_bitmaps_begin (struct qcow2 *q, struct error *e)
{
  struct bitmap_set *set;

  if (!qcow2_has_bitmaps (q))
    return 0;
  bitmap_set_free (q);          /* what was read without the locks */
  if (bitmap_set_read (q, e) == -1)
    return -1;
  set = q->bitmaps;
  for (size_t i = 0; i < set->nr; ++i)
    if ((set->items[i]->flags & (BITMAP_AUTO | BITMAP_IN_USE)) == BITMAP_AUTO
        && bitmap_load (q, set->items[i], e) == -1) {
      bitmap_set_free (q);
      return -1;
    }
  if (bitmap_mark (q, set->items, set->nr, e) == 0)
    return 0;
  bitmap_set_free (q);
  return -1;
}

int
qcow2_changed (struct format *f, uint64_t guest, uint64_t length,
               struct error *e)
{
  const struct bitmap_set *set = to_qcow2 (f)->bitmaps;
  struct dirty_bitmap *b;
  uint64_t first, end;

  for (size_t i = 0; set && length > 0 && i < set->nr; ++i) {
    b = set->items[i];
    if (!bitmap_is_tracking (b))
      continue;
    first = guest >> b->granularity_bits;
    end = ((guest + length - 1) >> b->granularity_bits) + 1;
    if (bits_set (&b->bits, first, end - first, e) == -1)
      return -1;
  }
  return 0;
}

/* ---- another size ---- */

/* Bits for the larger of the two sizes: a disk that grows is clean where it
 * did.  What is disabled must have the right length all the same, so all are
 * in use from here on.
 */
int
qcow2_bitmaps_prepare_size (struct qcow2 *q, uint64_t size, struct error *e)
{
  struct bitmap_set *set = q->bitmaps;
  struct dirty_bitmap *b;
  uint64_t nr;

  if (!set)
    return 0;
  for (size_t i = 0; i < set->nr; ++i)
    if (set->items[i]->flags & BITMAP_IN_USE)
      return error_set (e, EINVAL, "Bitmap '%s' is inconsistent and cannot be"
                        " used; remove it: nbdimg bitmap --remove",
                        set->items[i]->name);
  size = max_u64 (size, q->format.info.size);
  for (size_t i = 0; i < set->nr; ++i) {
    b = set->items[i];
    nr = bitmap_bits (size, b->granularity_bits);
    if (bitmap_load (q, b, e) == -1
        || bitmap_check_memory (q, b, nr, e) == -1
        || bits_resize (&b->bits, nr, e) == -1)
      return -1;
  }
  return bitmap_mark (q, set->items, set->nr, e);
}

void
qcow2_bitmaps_finish_size (struct qcow2 *q)
{
  struct bitmap_set *set = q->bitmaps;
  struct error none = ERROR_INIT;
  struct dirty_bitmap *b;

  for (size_t i = 0; set && i < set->nr; ++i) {
    b = set->items[i];
    if (b->loaded)
      bits_resize (&b->bits, bitmap_bits (q->format.info.size,
                                          b->granularity_bits), &none);
  }
}
