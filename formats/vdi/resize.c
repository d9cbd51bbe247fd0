/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Growing the virtual disk.  Layer: formats.  Locking: structural, nobody else
 * is inside; the mutex is taken for the tables all the same.
 *
 * A longer map needs room.  Where there is none between the old map and the
 * first block, the first places of the data area become its room: what lies
 * there moves to the end of the file, the new map is written into them, and the
 * data area begins behind it, so that every index gets smaller by the number of
 * places that the map took.
 *
 * Order on disk: copies of the blocks that move => their entries in the old
 * map => the new map => one sector of the header {bmap, data, size, blocks}.
 * The old map is whole and in force until that sector is written.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/vdi/vdi.h"

/* What the header is going to say. */
struct growth {
  uint64_t size, blocks;        /* of the new disk */
  uint64_t places;              /* that the new map takes; 0 = none, it stays
                                   where it is */
  uint64_t bmap_offset, data_offset;
  uint64_t next;                /* index behind all that are in use; from
                                   make_way on counted from the new
                                   data_offset */
};

static int
check_size (const struct vdi *v, uint64_t size, struct error *e)
{
  uint64_t max = VDI_MAX_BLOCKS * VDI_BLOCK_SIZE;

  if (!is_aligned (size, SECTOR_SIZE))
    return error_set (e, EINVAL, "The new size must be a multiple of 512");
  if (size < v->format.info.size)
    return error_set (e, ENOTSUP, "VDI images cannot be made smaller");
  if (size > max)
    return error_set (e, EFBIG, "Unsupported VDI image size (size is 0x%"
                      PRIx64 ", max supported is 0x%" PRIx64 ")", size, max);
  return 0;
}

static int
make_plan (const struct vdi *v, uint64_t size, struct growth *g,
           struct error *e)
{
  uint64_t room = v->data_offset - v->bmap_offset;

  *g = (struct growth) {
    .size = size, .bmap_offset = v->bmap_offset,
    .blocks = max_u64 (div_round_up (size, VDI_BLOCK_SIZE), v->blocks),
    .data_offset = v->data_offset,
  };
  if (vdi_map_bytes (g->blocks) <= room)
    return 0;
  g->places = div_round_up (vdi_map_bytes (g->blocks), VDI_BLOCK_SIZE);
  g->bmap_offset = v->data_offset;
  g->data_offset = v->data_offset + g->places * VDI_BLOCK_SIZE;
  if (g->data_offset > UINT32_MAX)
    return error_set (e, EFBIG, "%s: the blocks cannot begin as far out as"
                      " 0x%" PRIx64, v->format.storage->name, g->data_offset);
  return 0;
}

/* ---- entries of the old map ---- */

/* Change the entry of BLOCK, in the cache. */
static int
set_entry (struct vdi *v, uint64_t block, uint32_t entry, struct error *e)
{
  struct slice_op op = SLICE_OP_INIT;
  uint64_t host = vdi_entry_host (v, block);
  struct slice *s;
  int r;

  mutex_lock (v->cache.mutex);
  do {
    r = slices_make_room_locked (&v->cache, 1, e);
    if (r == 1)
      r = slices_get_locked (&v->cache, &op, 0, host, &s, e);
  } while (r == 0);
  if (r == 1) {
    put_le32 (slice_byte (&v->cache, s, host), entry);
    slice_dirty_locked (&v->cache, s);
  }
  slice_op_end_locked (&v->cache, &op);
  mutex_unlock (v->cache.mutex);
  return r == 1 ? 0 : -1;
}

/* ---- 1: what is in the way ---- */

/* The place behind all others, at least FIRST.  It is taken before anything is
 * written to it: whatever fails later, it is never handed out as a new one, and
 * no epoch writes an entry with it below a number of blocks that is too small.
 */
static int
take_place (struct vdi *v, uint64_t first, uint64_t *place, struct error *e)
{
  mutex_lock (v->cache.mutex);
  *place = max_u64 (v->next, first);
  if (*place < VDI_DISCARDED) {
    v->next = *place + 1;
    if (v->fresh_from != UINT64_MAX)
      v->fresh_from = max_u64 (v->fresh_from, v->next);
  }
  mutex_unlock (v->cache.mutex);
  if (*place >= VDI_DISCARDED)
    return vdi_no_index (v, e);
  return 0;
}

/* A block that lies behind the old end of the disk (another program may leave
 * one) would show up in the new part: it becomes zero.  One that stands where
 * the new map is to be moves to the end.
 */
static int
move_block (struct vdi *v, void *opaque, uint64_t block, uint32_t entry,
            struct error *e)
{
  const struct growth *g = opaque;
  uint64_t disk = div_round_up (v->format.info.size, VDI_BLOCK_SIZE), place;

  if (!vdi_is_index (entry))
    return 0;
  if (block >= disk
      && storage_zero (v->format.storage, vdi_host (v, entry), VDI_BLOCK_SIZE,
                       STORAGE_MAY_UNMAP, e) == -1)
    return -1;
  if (entry >= g->places)
    return 0;
  if (take_place (v, g->places, &place, e) == -1
      || vdi_copy_block (v, entry, place, e) == -1)
    return -1;
  return set_entry (v, block, (uint32_t) place, e);
}

/* The first places are not given to anybody any more. */
static void
forget_free_locked (struct vdi *v, uint64_t places)
  REQUIRES (v->cache.mutex)
{
  size_t nr = 0;

  for (size_t i = 0; i < v->nr_free; ++i)
    if (v->free[i] >= places)
      v->free[nr++] = v->free[i];
  v->nr_free = nr;
}

/* Afterwards the disk reads as before, and the old map names none of the first
 * places.
 */
static int
make_way (struct vdi *v, struct growth *g, struct error *e)
{
  if (vdi_for_each_entry (v, g, move_block, e) == -1)
    return -1;
  mutex_lock (v->cache.mutex);
  v->next = max_u64 (v->next, g->places);
  forget_free_locked (v, g->places);
  if (v->fresh_from != UINT64_MAX)
    v->fresh_from = max_u64 (v->fresh_from, v->next);
  g->next = v->next - g->places;
  mutex_unlock (v->cache.mutex);
  return vdi_flush (&v->format, e);
}

/* ---- 2: the new map ---- */

/* Pieces of the new map on their way to the disk. */
struct writer {
  const struct growth *g;
  uint64_t block;               /* of the first entry in buf */
  size_t nr;
  uint8_t *buf;
};
enum { WRITER_ENTRIES = 1 << 18 };

static int
write_out (struct vdi *v, struct writer *w, struct error *e)
{
  if (w->nr == 0)
    return 0;
  if (storage_pwrite (v->format.storage, w->buf, w->nr * 4,
                      w->g->bmap_offset + w->block * 4, 0, e) == -1)
    return error_prefix (e, "new block map");
  w->block += w->nr;
  w->nr = 0;
  return 0;
}

static int
append (struct vdi *v, struct writer *w, uint32_t entry, struct error *e)
{
  put_le32 (w->buf + w->nr * 4, entry);
  w->nr++;
  return w->nr < WRITER_ENTRIES ? 0 : write_out (v, w, e);
}

static int
append_old (struct vdi *v, void *opaque, uint64_t block, uint32_t entry,
            struct error *e)
{
  struct writer *w = opaque;

  (void) block;
  if (vdi_is_index (entry))
    entry -= (uint32_t) w->g->places;
  return append (v, w, entry, e);
}

/* In a static image the new blocks have places too. */
static int
append_new (struct vdi *v, struct writer *w, struct growth *g,
            struct error *e)
{
  for (uint64_t block = v->blocks; block < g->blocks; ++block) {
    bool place = v->image_type == VDI_STATIC;

    if (place && g->next >= VDI_DISCARDED)
      return vdi_no_index (v, e);
    if (append (v, w, place ? (uint32_t) g->next++ : VDI_UNALLOCATED,
                e) == -1)
      return -1;
  }
  return write_out (v, w, e);
}

/* The places of a static image's new blocks read as zeroes. */
static int
clear_places (struct vdi *v, const struct growth *g, uint64_t from,
              struct error *e)
{
  if (from == g->next)
    return 0;
  return storage_zero (v->format.storage,
                       g->data_offset + from * VDI_BLOCK_SIZE,
                       (g->next - from) * VDI_BLOCK_SIZE, STORAGE_MAY_UNMAP,
                       e);
}

/* Where the map stays, only what is behind its old end is written. */
static int
write_map (struct vdi *v, struct growth *g, struct error *e)
{
  CLEANUP_FREE uint8_t *buf = malloc (WRITER_ENTRIES * 4);
  struct writer w = { .g = g, .buf = buf };
  uint64_t first = g->next;

  if (!buf)
    return error_nomem (e, "a piece of the block map", WRITER_ENTRIES * 4);
  if (g->places == 0)
    w.block = v->blocks;
  else if (vdi_for_each_entry (v, &w, append_old, e) == -1)
    return -1;
  if (append_new (v, &w, g, e) == -1 || clear_places (v, g, first, e) == -1)
    return -1;
  return storage_flush (v->format.storage, e);
}

/* ---- 3: the header ---- */

static int
switch_header (struct vdi *v, const struct growth *g, struct error *e)
{
  struct storage *st = v->format.storage;
  uint8_t h[V_LENGTH];

  if (storage_pread (st, h, sizeof h, 0, e) == -1)
    return -1;
  put_le32 (h + V_BMAP_OFFSET, (uint32_t) g->bmap_offset);
  put_le32 (h + V_DATA_OFFSET, (uint32_t) g->data_offset);
  put_le64 (h + V_DISK_SIZE, g->size);
  put_le32 (h + V_BLOCKS_IN_IMAGE, (uint32_t) g->blocks);
  put_le32 (h + V_BLOCKS_ALLOCATED, (uint32_t) g->next);
  if (storage_pwrite (st, h, sizeof h, 0, 0, e) == -1)
    return error_prefix (e, "header");
  return storage_flush (st, e);
}

static void
adopt (struct vdi *v, const struct growth *g)
{
  mutex_lock (v->cache.mutex);
  slices_drop_locked (&v->cache,
                      round_down (v->bmap_offset, v->cache.slice_size),
                      vdi_map_bytes (v->blocks));
  if (v->fresh_from != UINT64_MAX)
    v->fresh_from = max_u64 (v->fresh_from - g->places, g->next);
  for (size_t i = 0; i < v->nr_free; ++i)
    v->free[i] -= (uint32_t) g->places;
  v->next = v->recorded = g->next;
  v->bmap_offset = g->bmap_offset;
  v->data_offset = g->data_offset;
  v->blocks = g->blocks;
  v->format.info.size = g->size;
  mutex_unlock (v->cache.mutex);
}

int
vdi_resize (struct format *f, uint64_t size, uint64_t zero_until,
            struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct growth g;

  (void) zero_until;            /* VDI has no backing file */
  if (check_size (v, size, e) == -1)
    return -1;
  if (size == f->info.size)
    return 0;
  if (make_plan (v, size, &g, e) == -1 || make_way (v, &g, e) == -1
      || write_map (v, &g, e) == -1 || switch_header (v, &g, e) == -1)
    return -1;
  adopt (v, &g);
  return 0;
}
