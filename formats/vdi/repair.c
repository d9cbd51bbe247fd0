/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Repair of the block map.  Layer: formats.  Locking: the image is frozen, one
 * thread.
 *
 * An entry that names a place behind the end of the file, where no content can
 * be, becomes unallocated, before the file gets longer and something else is
 * there.  A block that shares its place gets a place of its own, with a copy of
 * the content; a file that ends within a block is made longer.  Places that no
 * entry has are filled with the last blocks, so that the header's number of
 * blocks, which is set then, is both the next index and the number of entries
 * that have a place: QEMU takes it for both.
 *
 * Order on disk: entries that are given up => copies, and the number of blocks
 * if it is too small for them => entries => the number.  A repair that is cut
 * short leaves places that no entry has, and is gone on with by another.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "formats/vdi/vdi.h"

/* An entry that is to be changed once its block's copy is durable. */
struct mend {
  uint64_t block;
  uint32_t entry;
};
enum { MAX_MENDS = 256 };

struct repair {
  struct vdi *v;
  const struct format_check_options *opts;
  const struct survey *found;   /* by the check before */
  struct format_check_result *result;
  struct survey survey;         /* the one that is under way, or the last */
  uint64_t next;                /* index behind all in use, copies too */
  size_t taken;                 /* of the free places of found or survey */
  struct mend mends[MAX_MENDS];
  size_t nr_mends;
};

/* ---- entries ---- */

/* The copies become durable, then the entries that name them. */
static int
apply_mends (struct repair *r, struct error *e)
{
  struct storage *st = r->v->format.storage;
  uint8_t field[4];

  if (r->nr_mends == 0)
    return 0;
  if (r->next > r->v->recorded && vdi_write_count (r->v, r->next, e) == -1)
    return -1;
  if (storage_flush (st, e) == -1)
    return -1;
  for (size_t i = 0; i < r->nr_mends; ++i) {
    put_le32 (field, r->mends[i].entry);
    if (storage_pwrite (st, field, sizeof field,
                        vdi_entry_host (r->v, r->mends[i].block), 0, e) == -1)
      return error_prefix (e, "block map");
  }
  r->nr_mends = 0;
  return storage_flush (st, e);
}

static int
add_mend (struct repair *r, uint64_t block, uint32_t entry, struct error *e)
{
  if (r->nr_mends == MAX_MENDS && apply_mends (r, e) == -1)
    return -1;
  r->mends[r->nr_mends++] = (struct mend) { block, entry };
  return 0;
}

static void
count_fixed (struct repair *r)
{
  r->result->corruptions--;
  r->result->corruptions_fixed++;
}

/* ---- what is wrong ---- */

static int
give_up (struct vdi *v, void *opaque, uint64_t block, uint32_t entry,
         struct error *e)
{
  struct repair *r = opaque;

  if (!vdi_is_index (entry)
      || vdi_host (v, entry) < storage_size (v->format.storage))
    return 0;
  count_fixed (r);
  return add_mend (r, block, VDI_UNALLOCATED, e);
}

static int
mend_cut (struct repair *r, uint32_t entry, struct error *e)
{
  struct storage *st = r->v->format.storage;
  uint64_t end = vdi_host (r->v, entry) + VDI_BLOCK_SIZE;

  if (storage_size (st) >= end)
    return 0;
  return storage_zero (st, end - SECTOR_SIZE, SECTOR_SIZE, STORAGE_MAY_UNMAP,
                       e);
}

/* A place that no entry has, or the one behind all others. */
static int
mend_duplicate (struct repair *r, uint64_t block, uint32_t entry,
                struct error *e)
{
  uint64_t place = r->next;

  if (r->taken < r->found->nr_free)
    place = r->found->free[r->taken++];
  else if (r->next++ >= VDI_DISCARDED)
    return vdi_no_index (r->v, e);
  if (vdi_copy_block (r->v, entry, place, e) == -1)
    return -1;
  return add_mend (r, block, (uint32_t) place, e);
}

static int
mend (void *opaque, enum survey_kind kind, uint64_t block, uint32_t entry,
      struct error *e)
{
  struct repair *r = opaque;

  if (kind == SURVEY_OUTSIDE)
    return error_set (e, EIO, "block map: the entry of block %" PRIu64
                      " changed meanwhile", block);
  if ((kind == SURVEY_CUT ? mend_cut (r, entry, e)
       : mend_duplicate (r, block, entry, e)) == -1)
    return -1;
  count_fixed (r);
  return 0;
}

/* A map of which most entries are the same is not damaged in places: it is some
 * other data, or a hole.  Giving each a block would fill the disk with copies.
 */
static int
refuse_hopeless (const struct repair *r, struct error *e)
{
  const struct survey *s = r->found;
  uint64_t distinct = s->used - s->duplicates;

  if (s->duplicates <= max_u64 (distinct, 16))
    return 0;
  return error_set (e, EIO, "%s: %" PRIu64 " of %" PRIu64 " blocks share their"
                    " place with another one: this block map cannot be"
                    " repaired", r->v->format.storage->name, s->duplicates,
                    s->used);
}

static int
mend_map (struct repair *r, struct error *e)
{
  if (refuse_hopeless (r, e) == -1)
    return -1;
  if (r->found->outside
      && (vdi_for_each_entry (r->v, r, give_up, e) == -1
          || apply_mends (r, e) == -1))
    return -1;
  if (vdi_survey (r->v, &r->survey, e) == -1 || apply_mends (r, e) == -1)
    return -1;
  return storage_flush (r->v->format.storage, e);
}

/* ---- gaps ---- */

static int
move_down (struct vdi *v, void *opaque, uint64_t block, uint32_t entry,
           struct error *e)
{
  struct repair *r = opaque;
  const struct survey *s = &r->survey;
  uint32_t place;

  if (!vdi_is_index (entry) || entry < s->used || r->taken == s->nr_free)
    return 0;
  place = s->free[r->taken++];
  if (vdi_copy_block (v, entry, place, e) == -1)
    return -1;
  return add_mend (r, block, place, e);
}

/* As many blocks lie behind the first S->used places as there are gaps among
 * these; a survey tells of the first VDI_MAX_FREE.
 */
static int
fill_gaps (struct repair *r, struct error *e)
{
  do {
    r->taken = 0;
    if (vdi_survey (r->v, &r->survey, e) == -1)
      return -1;
    r->next = r->survey.end;
    if (r->survey.gaps > 0
        && (vdi_for_each_entry (r->v, r, move_down, e) == -1
            || apply_mends (r, e) == -1))
      return -1;
    r->result->leaks_fixed += r->taken;
  } while (r->taken > 0);
  return 0;
}

/* ---- the number of blocks ---- */

static int
mend_count (struct repair *r, uint64_t count, struct error *e)
{
  if (r->v->recorded == count)
    return 0;
  if (vdi_write_count (r->v, count, e) == -1)
    return -1;
  return storage_flush (r->v->format.storage, e);
}

/* ---- all of it ---- */

static int
mend_all (struct repair *r, struct error *e)
{
  const struct survey *s = r->found;

  r->next = s->end;
  if ((s->duplicates || s->outside || s->cut) && mend_map (r, e) == -1)
    return -1;
  if (fill_gaps (r, e) == -1)
    return -1;
  return mend_count (r, r->survey.end, e);
}

static bool
on_progress (void *opaque, uint64_t done, uint64_t total)
{
  const struct format_check_options *opts = ((struct repair *) opaque)->opts;

  return !opts->progress || opts->progress (opts->opaque, done, total);
}

int
vdi_repair (struct vdi *v, const struct format_check_options *opts,
            const struct survey *found, bool count_is_wrong,
            struct format_check_result *result, struct error *e)
{
  struct repair *r = calloc (1, sizeof *r);
  int ret = 0;

  if (!r)
    return error_nomem (e, "the repair of a VDI image", sizeof *r);
  *r = (struct repair) {
    .v = v, .opts = opts, .found = found, .result = result,
    .survey = { .wrong = mend, .progress = on_progress, .opaque = r,
                .memory = found->memory },
  };
  if (opts->repair == REPAIR_ALL)
    ret = mend_all (r, e);
  else if (count_is_wrong)
    ret = mend_count (r, found->end, e);
  if (ret == 0 && count_is_wrong)
    count_fixed (r);
  if (!v->writing) {
    mutex_lock (v->cache.mutex);
    slices_forget_locked (&v->cache);
    mutex_unlock (v->cache.mutex);
  }
  free (r);
  return ret;
}
