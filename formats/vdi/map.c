/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Guest -> host, and places for new blocks.  Layer: formats.  Locking:
 * cache.mutex, dropped when a slice of the map must be read; the caller's range
 * lock keeps the answer true.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/vdi/vdi.h"

/* The entry of BLOCK is at *P, in the slice S.  1, 0 (start over), -1. */
static int
entry_locked (struct vdi *v, struct slice_op *op, uint64_t block,
              struct slice **s, uint8_t **p, struct error *e)
  REQUIRES (v->cache.mutex)
{
  uint64_t host = vdi_entry_host (v, block);
  int r = slices_get_locked (&v->cache, op, 0, host, s, e);

  if (r == 1)
    *p = slice_byte (&v->cache, *s, host);
  return r;
}

/* How many of the blocks that [guest, guest+length) touches have their entry in
 * the slice of the first one?
 */
static uint64_t
blocks_in_slice (const struct vdi *v, uint64_t guest, uint64_t length)
{
  uint64_t block = guest / VDI_BLOCK_SIZE;
  uint64_t in_slice = vdi_entry_host (v, block) & (v->cache.slice_size - 1);
  uint64_t nr = div_round_up (guest % VDI_BLOCK_SIZE + length, VDI_BLOCK_SIZE);

  return min_u64 (nr, (v->cache.slice_size - in_slice) / 4);
}

static int
map_locked (struct vdi *v, struct slice_op *op, uint64_t guest,
            uint64_t length, struct mapping *m, struct error *e)
  REQUIRES (v->cache.mutex)
{
  uint64_t in_block = guest % VDI_BLOCK_SIZE, n, max;
  uint32_t first, entry;
  struct slice *s;
  uint8_t *p;
  int r = entry_locked (v, op, guest / VDI_BLOCK_SIZE, &s, &p, e);

  if (r != 1)
    return r;
  first = get_le32 (p);
  max = blocks_in_slice (v, guest, length);
  for (n = 1; n < max; ++n) {
    entry = get_le32 (p + n * 4);
    if (vdi_is_index (first) ? entry != first + n : vdi_is_index (entry))
      break;
  }
  *m = (struct mapping) {
    .kind = vdi_is_index (first) ? MAP_DATA : MAP_ZERO,
    .length = min_u64 (length, n * VDI_BLOCK_SIZE - in_block),
  };
  if (vdi_is_index (first))
    m->host = vdi_host (v, first) + in_block;
  return 1;
}

/* A place behind the end of the file was never written; one that the file's end
 * cuts reads as zeroes there.
 */
static int
check_place (const struct vdi *v, uint64_t guest, struct mapping *m,
             struct error *e)
{
  uint64_t in_block = guest % VDI_BLOCK_SIZE;
  uint64_t size = storage_size (v->format.storage), inside;

  if (m->kind != MAP_DATA)
    return 0;
  if (m->host - in_block >= size)
    return error_set (e, EIO, "the entry of block %" PRIu64 " names the place"
                      " at 0x%" PRIx64 ", behind the end of the file (0x%"
                      PRIx64 ")", guest / VDI_BLOCK_SIZE, m->host - in_block,
                      size);
  inside = round_up (size - (m->host - in_block), VDI_BLOCK_SIZE) - in_block;
  m->length = min_u64 (m->length, inside);
  return 0;
}

int
vdi_map (struct format *f, struct format_view *view, uint64_t guest,
         uint64_t length, struct mapping *m, struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  (void) view;
  mutex_lock (v->cache.mutex);
  do
    r = map_locked (v, &op, guest, length, m, e);
  while (r == 0);
  slice_op_end_locked (&v->cache, &op);
  mutex_unlock (v->cache.mutex);
  return r == 1 ? check_place (v, guest, m, e) : -1;
}

/* ---- reserve ---- */

int
vdi_no_index (const struct vdi *v, struct error *e)
{
  return error_set (e, EFBIG, "%s: there is no index left for a block",
                    v->format.storage->name);
}

/* Places for NR blocks or for fewer, in a row.  One that nobody has any more is
 * taken first: while there are some, not all blocks below next are in use, and
 * no index gets larger than the number of blocks.
 */
static int
take_places_locked (struct vdi *v, uint64_t *nr, uint64_t *index,
                    struct error *e) REQUIRES (v->cache.mutex)
{
  if (v->nr_free > 0) {
    *index = v->free[--v->nr_free];
    *nr = 1;
    return 0;
  }
  if (*nr > VDI_DISCARDED - v->next)
    return vdi_no_index (v, e);
  *index = v->next;
  v->next += *nr;
  return 0;
}

static int
reserve_locked (struct vdi *v, struct slice_op *op, uint64_t guest,
                uint64_t length, struct placement *p, struct error *e)
  REQUIRES (v->cache.mutex)
{
  uint64_t nr = 0, index = 0, max = blocks_in_slice (v, guest, length);
  struct slice *s;
  uint8_t *entry;
  int r = entry_locked (v, op, guest / VDI_BLOCK_SIZE, &s, &entry, e);

  if (r != 1)
    return r;
  while (nr < max && !vdi_is_index (get_le32 (entry + nr * 4)))
    nr++;
  *p = (struct placement) {
    .guest = round_down (guest, VDI_BLOCK_SIZE), .reused = nr == 0,
    .length = VDI_BLOCK_SIZE,
  };
  if (p->reused) {
    p->host = vdi_host (v, get_le32 (entry));
    return 1;
  }
  if (take_places_locked (v, &nr, &index, e) == -1)
    return -1;
  p->length = nr * VDI_BLOCK_SIZE;
  p->host = vdi_host (v, index);
  p->reads_zero = index >= v->fresh_from;
  return 1;
}

/* The file reaches to the end of each block that its map names, although the
 * end of the last one may be a hole: other programs take the size of the file
 * for what it says.
 */
static int
extend (struct vdi *v, const struct placement *p, struct error *e)
{
  struct storage *st = v->format.storage;
  uint64_t end = p->host + p->length;

  if (!p->reads_zero || storage_size (st) >= end)
    return 0;
  return storage_zero (st, end - SECTOR_SIZE, SECTOR_SIZE, STORAGE_MAY_UNMAP,
                       e);
}

int
vdi_reserve (struct format *f, uint64_t guest, uint64_t length,
             struct placement *p, struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  mutex_lock (v->cache.mutex);
  do
    r = reserve_locked (v, &op, guest, length, p, e);
  while (r == 0);
  slice_op_end_locked (&v->cache, &op);
  mutex_unlock (v->cache.mutex);
  if (r == -1)
    return -1;
  if (extend (v, p, e) == 0)
    return 0;
  vdi_abandon (f, p);
  return -1;
}

/* Places that nobody has: the last ones are given out again as if nothing had
 * been, but for what was written there; others are remembered.  One that finds
 * no room is lost until the image is opened again.
 */
void
vdi_abandon (struct format *f, const struct placement *p)
{
  struct vdi *v = to_vdi (f);
  uint64_t index = (p->host - v->data_offset) / VDI_BLOCK_SIZE;
  uint64_t nr = p->length / VDI_BLOCK_SIZE;

  if (p->reused)
    return;
  mutex_lock (v->cache.mutex);
  if (v->fresh_from != UINT64_MAX)
    v->fresh_from = max_u64 (v->fresh_from, index + nr);
  if (index + nr == v->next)
    v->next = index;
  else
    for (uint64_t i = 0; i < nr && v->nr_free < VDI_MAX_FREE; ++i)
      v->free[v->nr_free++] = (uint32_t) (index + i);
  mutex_unlock (v->cache.mutex);
}

/* ---- link ---- */

static int
link_locked (struct vdi *v, struct slice_op *op, const struct placement *p,
             struct error *e) REQUIRES (v->cache.mutex)
{
  uint64_t index = (p->host - v->data_offset) / VDI_BLOCK_SIZE;
  uint64_t nr = p->length / VDI_BLOCK_SIZE;
  struct slice *s;
  uint8_t *entry;
  int r = slices_make_room_locked (&v->cache, 1, e);

  if (r == 1)
    r = entry_locked (v, op, p->guest / VDI_BLOCK_SIZE, &s, &entry, e);
  if (r != 1)
    return r;
  for (uint64_t i = 0; i < nr; ++i)
    put_le32 (entry + i * 4, (uint32_t) (index + i));
  slice_dirty_locked (&v->cache, s);
  return 1;
}

int
vdi_link (struct format *f, const struct placement *p, struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  mutex_lock (v->cache.mutex);
  do
    r = link_locked (v, &op, p, e);
  while (r == 0);
  slice_op_end_locked (&v->cache, &op);
  mutex_unlock (v->cache.mutex);
  return r == 1 ? 0 : -1;
}

/* ---- unmap ---- */

/* Blocks from GUEST on that have no place need no change.  1, 0, -1. */
static int
unmap_locked (struct vdi *v, struct slice_op *op, uint64_t guest,
              uint64_t length, uint64_t *done, struct error *e)
  REQUIRES (v->cache.mutex)
{
  uint64_t nr = 0, max = blocks_in_slice (v, guest, length);
  struct slice *s;
  uint8_t *entry;
  int r = entry_locked (v, op, guest / VDI_BLOCK_SIZE, &s, &entry, e);

  if (r != 1)
    return r;
  while (nr < max && !vdi_is_index (get_le32 (entry + nr * 4)))
    nr++;
  *done = min_u64 (length, nr * VDI_BLOCK_SIZE);
  return 1;
}

/* What has a place keeps it (see vdi.h), and there is nothing below to show. */
int
vdi_unmap (struct format *f, uint64_t guest, uint64_t length,
           enum unmap_how how, uint64_t *done, struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  *done = 0;
  if (how == UNMAP_KEEP)
    return 0;
  mutex_lock (v->cache.mutex);
  do
    r = unmap_locked (v, &op, guest, length, done, e);
  while (r == 0);
  slice_op_end_locked (&v->cache, &op);
  mutex_unlock (v->cache.mutex);
  return r == 1 ? 0 : -1;
}
