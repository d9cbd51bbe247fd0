/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the user does to persistent bitmaps.  Layer: formats.  Locking:
 * structural, nobody else is inside.
 *
 * All of it happens in memory, and is stored by close in one step: a crash
 * leaves the directory that was there before.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "formats/qcow2/bitmaps.h"

/* ---- look ---- */

int
qcow2_bitmaps (struct format *f, struct format_bitmap **list, size_t *nr,
               struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  const struct bitmap_set *set;
  const struct dirty_bitmap *b;

  *list = NULL;
  *nr = 0;
  if (bitmap_set_read (q, e) == -1)
    return -1;
  set = q->bitmaps;
  *list = calloc (set->nr + 1, sizeof **list);
  if (!*list)
    return error_nomem (e, "bitmaps", set->nr * sizeof **list);
  for (*nr = 0; *nr < set->nr; ++*nr) {
    b = set->items[*nr];
    (*list)[*nr] = (struct format_bitmap) {
      .name = strdup (b->name),
      .granularity = UINT64_C (1) << b->granularity_bits,
      .enabled = b->flags & BITMAP_AUTO,
      .inconsistent = b->flags & BITMAP_IN_USE,
    };
    if (!(*list)[*nr].name) {
      format_bitmaps_free (*list, *nr);
      return error_nomem (e, "a name", strlen (b->name));
    }
  }
  return 0;
}

static int
find (struct qcow2 *q, const char *name, struct dirty_bitmap **b,
      struct error *e)
{
  if (bitmap_set_read (q, e) == -1)
    return -1;
  *b = bitmap_set_find (q->bitmaps, name);
  if (!*b)
    return error_set (e, ENOENT, "Dirty bitmap '%s' not found", name);
  return 0;
}

/* One whose bits mean something. */
static int
find_usable (struct qcow2 *q, const char *name, struct dirty_bitmap **b,
             struct error *e)
{
  if (find (q, name, b, e) == -1)
    return -1;
  if ((*b)->flags & BITMAP_IN_USE)
    return error_set (e, EINVAL, "Bitmap '%s' is inconsistent and cannot be"
                      " used", name);
  return 0;
}

static int
check_range (const struct qcow2 *q, uint64_t offset, uint64_t length,
             struct error *e)
{
  uint64_t size = q->format.info.size;

  if (offset <= size && length <= size - offset)
    return 0;
  return error_set (e, EINVAL, "%" PRIu64 " bytes at %" PRIu64 " are beyond the"
                    " end of the disk", length, offset);
}

int
qcow2_bitmap_map (struct format *f, const char *name, uint64_t offset,
                  uint64_t length, bool *dirty, uint64_t *done,
                  struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct dirty_bitmap *b;
  uint64_t nr, first, end;

  if (find_usable (q, name, &b, e) == -1 || bitmap_load (q, b, e) == -1)
    return -1;
  if (check_range (q, offset, length, e) == -1)
    return -1;
  if (b->bits.nr == 0) {        /* a disk without a byte */
    *dirty = false;
    *done = 0;
    return 0;
  }
  first = offset >> b->granularity_bits;
  *dirty = bits_run (&b->bits, first, &nr);
  end = (first + nr) << b->granularity_bits;
  *done = min_u64 (end - offset, length);
  return 0;
}

/* ---- change ---- */

/* What other programs take when nothing is said: a cluster, within limits. */
static uint64_t
default_granularity (const struct qcow2 *q)
{
  return min_u64 (max_u64 (q->cluster_size, 4 * KiB), 64 * KiB);
}

static int
check_new (struct qcow2 *q, const char *name, uint64_t granularity,
           struct error *e)
{
  struct bitmap_set *set = q->bitmaps;

  if (!*name)
    return error_set (e, EINVAL, "Bitmap name cannot be empty");
  if (strlen (name) > MAX_BITMAP_NAME)
    return error_set (e, EINVAL, "Name length exceeds maximum (%d"
                      " characters)", MAX_BITMAP_NAME);
  if (granularity < 512 || granularity > 2 * GiB
      || (granularity & (granularity - 1)))
    return error_set (e, EINVAL, "Granularity must be power of 2 and at least"
                      " 512");
  if (bitmap_set_find (set, name))
    return error_set (e, EEXIST, "Bitmap already exists: %s", name);
  if (q->version < 3)
    return error_set (e, ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2"
                      " files");
  if (set->nr >= MAX_BITMAPS
      || bitmap_directory_size (set) + B_EXTRA_DATA + MAX_BITMAP_NAME + 8
      > MAX_BITMAP_DIRECTORY)
    return error_set (e, EFBIG, "Maximum number of persistent bitmaps is"
                      " already reached");
  return 0;
}

static int
add (struct qcow2 *q, const char *name, uint64_t granularity,
     struct error *e)
{
  struct dirty_bitmap *b;
  uint64_t nr;

  if (granularity == 0)
    granularity = default_granularity (q);
  if (bitmap_set_read (q, e) == -1
      || check_new (q, name, granularity, e) == -1)
    return -1;
  nr = div_round_up (q->format.info.size, granularity);
  if (bitmap_check_memory (q, NULL, nr, e) == -1)
    return -1;
  b = calloc (1, sizeof *b);
  if (b)
    b->name = strdup (name);
  if (!b || !b->name) {
    free (b);
    return error_nomem (e, "a bitmap", sizeof *b);
  }
  b->granularity_bits = (unsigned) __builtin_ctzll (granularity);
  b->flags = BITMAP_AUTO;
  if (bits_init (&b->bits, nr, (size_t) q->cluster_size, e) == -1
      || bitmap_set_add (q->bitmaps, b, e) == -1) {
    dirty_bitmap_free (b);
    return -1;
  }
  b->loaded = b->bits.changed = true;
  q->bitmaps->edited = true;
  return 0;
}

/* Its space is freed when the new directory is on disk. */
static int
bury (struct bitmap_set *set, struct dirty_bitmap *b, struct error *e)
{
  size_t bytes = (set->nr_removed + 1) * sizeof set->removed[0];
  struct dirty_bitmap **bigger;

  if (b->table_offset == 0) {
    dirty_bitmap_free (b);      /* it never was on disk */
    return 0;
  }
  bigger = realloc (set->removed, bytes);
  if (!bigger)
    return error_nomem (e, "bitmaps", bytes);
  set->removed = bigger;
  set->removed[set->nr_removed++] = b;
  return 0;
}

static int
remove_bitmap (struct qcow2 *q, const char *name, struct error *e)
{
  struct bitmap_set *set;
  struct dirty_bitmap *b;
  size_t i = 0;

  if (find (q, name, &b, e) == -1)
    return -1;
  set = q->bitmaps;
  while (set->items[i] != b)
    i++;
  if (bury (set, b, e) == -1)
    return -1;
  memmove (set->items + i, set->items + i + 1,
           (set->nr - i - 1) * sizeof set->items[0]);
  set->nr--;
  set->edited = true;
  return 0;
}

static int
clear (struct qcow2 *q, const char *name, struct error *e)
{
  struct dirty_bitmap *b;

  if (find_usable (q, name, &b, e) == -1 || bitmap_load (q, b, e) == -1)
    return -1;
  bits_clear (&b->bits);
  return 0;
}

/* Once it is enabled there may be writes before it is stored. */
static int
enable (struct qcow2 *q, const char *name, struct error *e)
{
  struct dirty_bitmap *b;

  if (find_usable (q, name, &b, e) == -1)
    return -1;
  if (b->flags & BITMAP_AUTO)
    return 0;
  if (bitmap_load (q, b, e) == -1 || bitmap_mark (q, &b, 1, e) == -1)
    return -1;
  b->flags |= BITMAP_AUTO;
  q->bitmaps->edited = true;
  return 0;
}

static int
disable (struct qcow2 *q, const char *name, struct error *e)
{
  struct dirty_bitmap *b;

  if (find_usable (q, name, &b, e) == -1)
    return -1;
  if (!(b->flags & BITMAP_AUTO))
    return 0;
  b->flags &= ~(uint32_t) BITMAP_AUTO;
  q->bitmaps->edited = true;
  return 0;
}

static int
set_range (struct qcow2 *q, const char *name, uint64_t offset,
           uint64_t length, struct error *e)
{
  struct dirty_bitmap *b;
  uint64_t first, end;

  if (find_usable (q, name, &b, e) == -1 || bitmap_load (q, b, e) == -1)
    return -1;
  if (check_range (q, offset, length, e) == -1)
    return -1;
  if (length == 0)
    return 0;
  first = offset >> b->granularity_bits;
  end = ((offset + length - 1) >> b->granularity_bits) + 1;
  return bits_set (&b->bits, first, end - first, e);
}

int
qcow2_bitmap_edit (struct format *f, const struct format_bitmap_edit *edit,
                   struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);

  switch (edit->verb) {
  case BITMAP_ADD: return add (q, edit->name, edit->granularity, e);
  case BITMAP_REMOVE: return remove_bitmap (q, edit->name, e);
  case BITMAP_CLEAR: return clear (q, edit->name, e);
  case BITMAP_ENABLE: return enable (q, edit->name, e);
  case BITMAP_DISABLE: return disable (q, edit->name, e);
  case BITMAP_SET:
    return set_range (q, edit->name, edit->offset, edit->length, e);
  }
  return error_set (e, EINVAL, "bitmap '%s': nothing to do", edit->name);
}
