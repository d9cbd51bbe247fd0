/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* One look at the whole block map: who has which place.  Layer: formats.
 * Locking: none; the map is read from the disk, and only "wrong" changes it.
 *
 * The map is read in pieces, and the places in use are a bitmap of bounded
 * size: where an image has more of them, the map is read once for each window
 * of places.  8 MiB make one window of 64 TiB.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/vdi/vdi.h"

enum { PIECE = 1 << 20 };       /* bytes of the map that are read at once */

/* NR entries from that of BLOCK on, at most PIECE bytes. */
static int
read_entries (struct vdi *v, uint64_t block, uint64_t nr, uint8_t *buf,
              struct error *e)
{
  if (storage_pread (v->format.storage, buf, nr * 4, vdi_entry_host (v, block),
                     e) == -1)
    return error_prefix (e, "block map");
  return 0;
}

int
vdi_for_each_entry (struct vdi *v, void *opaque,
                    int (*each) (struct vdi *v, void *opaque, uint64_t block,
                                 uint32_t entry, struct error *e),
                    struct error *e)
{
  CLEANUP_FREE uint8_t *buf = malloc (PIECE);
  uint64_t nr;

  if (!buf)
    return error_nomem (e, "a piece of the block map", PIECE);
  for (uint64_t block = 0; block < v->blocks; block += nr) {
    nr = min_u64 (PIECE / 4, v->blocks - block);
    if (read_entries (v, block, nr, buf, e) == -1)
      return -1;
    for (uint64_t i = 0; i < nr; ++i)
      if (each (v, opaque, block + i, get_le32 (buf + i * 4), e) == -1)
        return -1;
  }
  return 0;
}

int
vdi_copy_block (struct vdi *v, uint64_t from, uint64_t to, struct error *e)
{
  struct storage *st = v->format.storage;
  CLEANUP_FREE uint8_t *buf = malloc (VDI_BLOCK_SIZE);

  if (!buf)
    return error_nomem (e, "a block", VDI_BLOCK_SIZE);
  if (storage_pread (st, buf, VDI_BLOCK_SIZE, vdi_host (v, from), e) == -1)
    return -1;
  return storage_pwrite (st, buf, VDI_BLOCK_SIZE, vdi_host (v, to), 0, e);
}

/* ---- who has which place ---- */

struct walk {
  struct vdi *v;
  struct survey *s;
  uint8_t *buf;                 /* PIECE bytes */
  uint8_t *bits;                /* of places first .. first + nr - 1 */
  uint64_t first, nr;
  uint64_t file_size;
};

static bool
test_and_set (uint8_t *bits, uint64_t i)
{
  uint8_t bit = (uint8_t) (1 << (i & 7));
  bool was = bits[i >> 3] & bit;

  bits[i >> 3] |= bit;
  return was;
}

static int
is_wrong (struct walk *w, enum survey_kind kind, uint64_t block,
          uint32_t entry, uint64_t *nr, struct error *e)
{
  ++*nr;
  return w->s->wrong (w->s->opaque, kind, block, entry, e);
}

/* What does not depend on other entries is looked at in the first walk.  1 =
 * the entry is an index of a place in the file; 0, -1.
 */
static int
visit_alone (struct walk *w, uint64_t block, uint32_t entry, struct error *e)
{
  uint64_t host = vdi_host (w->v, entry);
  bool first_walk = w->first == 0;

  if (!vdi_is_index (entry))
    return 0;
  if (host >= w->file_size) {
    if (!first_walk)
      return 0;
    return is_wrong (w, SURVEY_OUTSIDE, block, entry, &w->s->outside, e);
  }
  if (!first_walk)
    return 1;
  w->s->used++;
  w->s->end = max_u64 (w->s->end, (uint64_t) entry + 1);
  if (w->file_size - host < VDI_BLOCK_SIZE
      && is_wrong (w, SURVEY_CUT, block, entry, &w->s->cut, e) == -1)
    return -1;
  return 1;
}

static int
visit (struct walk *w, uint64_t block, uint32_t entry, struct error *e)
{
  int r = visit_alone (w, block, entry, e);

  if (r != 1)
    return r;
  if (entry < w->first || entry - w->first >= w->nr
      || !test_and_set (w->bits, entry - w->first))
    return 0;
  return is_wrong (w, SURVEY_DUPLICATE, block, entry, &w->s->duplicates, e);
}

/* A map in which more than half of a million entries and more share their place
 * is no map; a hole of 2 GiB would take seconds.
 */
enum { MANY_DUPLICATES = 1 << 20 };

static bool
is_hopeless (const struct survey *s)
{
  return s->duplicates >= MANY_DUPLICATES && s->duplicates > s->used / 2;
}

static int
walk_piece (struct walk *w, uint64_t block, uint64_t nr, struct error *e)
{
  for (uint64_t i = 0; i < nr; ++i)
    if (visit (w, block + i, get_le32 (w->buf + i * 4), e) == -1)
      return -1;
  return 0;
}

static int
walk (struct walk *w, struct error *e)
{
  struct vdi *v = w->v;
  uint64_t block, nr;

  for (block = 0; block < v->blocks && !w->s->stopped; block += nr) {
    nr = min_u64 (PIECE / 4, v->blocks - block);
    if (w->s->progress && !w->s->progress (w->s->opaque, block, v->blocks))
      return error_set (e, ECANCELED, "cancelled");
    if (read_entries (v, block, nr, w->buf, e) == -1)
      return -1;
    if (walk_piece (w, block, nr, e) == -1)
      return -1;
    w->s->stopped = is_hopeless (w->s);
  }
  return 0;
}

/* Places of the window that no entry has. */
static void
find_gaps (struct walk *w)
{
  struct survey *s = w->s;

  for (uint64_t i = 0; i < w->nr && w->first + i < s->end; ++i) {
    if (w->bits[i >> 3] & 1 << (i & 7))
      continue;
    s->gaps++;
    if (s->nr_free < VDI_MAX_FREE)
      s->free[s->nr_free++] = (uint32_t) (w->first + i);
  }
}

static int
walk_windows (struct walk *w, struct error *e)
{
  do {
    if (walk (w, e) == -1)
      return -1;
    find_gaps (w);
    memset (w->bits, 0, (w->nr + 7) / 8);
    w->first += w->nr;
  } while (w->first < w->s->end && !w->s->stopped);
  return 0;
}

/* No more places than the file has room for, and than u32 can name. */
static uint64_t
places_in_file (const struct vdi *v, uint64_t file_size)
{
  if (file_size <= v->data_offset)
    return 1;
  return min_u64 (div_round_up (file_size - v->data_offset, VDI_BLOCK_SIZE),
                  VDI_DISCARDED);
}

int
vdi_survey (struct vdi *v, struct survey *s, struct error *e)
{
  CLEANUP_FREE uint8_t *buf = malloc (PIECE), *bits = NULL;
  struct walk w = {
    .v = v, .s = s, .buf = buf, .file_size = storage_size (v->format.storage),
  };

  w.nr = min_u64 (places_in_file (v, w.file_size), s->memory * 8);
  w.bits = bits = calloc (1, (w.nr + 7) / 8);
  if (!buf || !bits)
    return error_nomem (e, "the places of a VDI image", PIECE + w.nr / 8);
  s->used = s->end = s->duplicates = s->outside = s->cut = s->gaps = 0;
  s->nr_free = 0;
  s->stopped = false;
  return walk_windows (&w, e);
}
