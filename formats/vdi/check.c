/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Check and repair of the block map.  Layer: formats.  Locking: the image is
 * frozen, one thread.
 *
 * Repair: a block that shares its place gets a place of its own, with a copy of
 * the content; an entry that names a place behind the end of the file, where no
 * content can be, becomes unallocated; a file that ends within a block is made
 * longer; the header's number of blocks is set to what the map says.
 *
 * Order on disk: copies => entries => the number of blocks.  A repair that is
 * cut short leaves places that no entry has, and is gone on with by another.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "formats/vdi/vdi.h"

/* An entry that is to be changed once its block's copy is durable. */
struct mend {
  uint64_t block;
  uint32_t entry;
};
enum { MAX_MENDS = 256 };

struct checker {
  struct vdi *v;
  const struct format_check_options *opts;
  struct format_check_result *result;
  struct survey survey;
  bool mending;                 /* the second survey of a repair */
  uint64_t next;                /* index for the next copy */
  uint8_t *buf;                 /* a block; owned */
  struct mend mends[MAX_MENDS];
  size_t nr_mends;
};

/* Lines for each kind of damage: a map that is one hole has millions. */
enum { MAX_LINES = 1000 };

static void __attribute__ ((format (printf, 3, 4)))
tell (const struct checker *c, uint64_t nr, const char *fmt, ...)
{
  char text[200];
  va_list ap;

  if (!c->opts->finding || c->mending || nr > MAX_LINES)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  c->opts->finding (c->opts->opaque, text);
  if (nr == MAX_LINES)
    c->opts->finding (c->opts->opaque, "(no more lines of this kind)");
}

/* ---- mending ---- */

/* The copies become durable, then the entries that name them. */
static int
apply_mends (struct checker *c, struct error *e)
{
  struct storage *st = c->v->format.storage;
  uint8_t field[4];

  if (c->nr_mends == 0)
    return 0;
  if (storage_flush (st, e) == -1)
    return -1;
  for (size_t i = 0; i < c->nr_mends; ++i) {
    put_le32 (field, c->mends[i].entry);
    if (storage_pwrite (st, field, sizeof field,
                        vdi_entry_host (c->v, c->mends[i].block), 0, e) == -1)
      return error_prefix (e, "block map");
  }
  c->nr_mends = 0;
  return storage_flush (st, e);
}

static int
add_mend (struct checker *c, uint64_t block, uint32_t entry, struct error *e)
{
  if (c->nr_mends == MAX_MENDS && apply_mends (c, e) == -1)
    return -1;
  c->mends[c->nr_mends++] = (struct mend) { block, entry };
  c->result->corruptions--;
  c->result->corruptions_fixed++;
  return 0;
}

static int
copy_block (struct checker *c, uint32_t from, uint64_t to, struct error *e)
{
  struct storage *st = c->v->format.storage;

  if (storage_pread (st, c->buf, VDI_BLOCK_SIZE, vdi_host (c->v, from),
                     e) == -1)
    return -1;
  return storage_pwrite (st, c->buf, VDI_BLOCK_SIZE, vdi_host (c->v, to), 0,
                         e);
}

static int
mend_cut (struct checker *c, uint32_t entry, struct error *e)
{
  struct storage *st = c->v->format.storage;
  uint64_t end = vdi_host (c->v, entry) + VDI_BLOCK_SIZE;

  if (storage_size (st) < end
      && storage_zero (st, end - SECTOR_SIZE, SECTOR_SIZE, STORAGE_MAY_UNMAP,
                       e) == -1)
    return -1;
  c->result->corruptions--;
  c->result->corruptions_fixed++;
  return 0;
}

static int
mend (struct checker *c, enum survey_kind kind, uint64_t block,
      uint32_t entry, struct error *e)
{
  if (kind == SURVEY_CUT)
    return mend_cut (c, entry, e);
  if (kind == SURVEY_OUTSIDE)
    return add_mend (c, block, VDI_UNALLOCATED, e);
  if (c->next >= VDI_DISCARDED)
    return error_set (e, EFBIG, "%s: there is no index left for a block",
                      c->v->format.storage->name);
  if (copy_block (c, entry, c->next, e) == -1)
    return -1;
  return add_mend (c, block, (uint32_t) c->next++, e);
}

/* ---- looking ---- */

static int
on_wrong (void *opaque, enum survey_kind kind, uint64_t block, uint32_t entry,
          struct error *e)
{
  struct checker *c = opaque;

  if (c->mending)
    return mend (c, kind, block, entry, e);
  c->result->corruptions++;
  switch (kind) {
  case SURVEY_DUPLICATE:
    tell (c, c->survey.duplicates, "ERROR: block index %" PRIu32 " of block %"
          PRIu64 " also used by another block", entry, block);
    break;
  case SURVEY_OUTSIDE:
    tell (c, c->survey.outside, "ERROR: block index %" PRIu64 " too large, is"
          " %" PRIu32 " (behind the end of the file)", block, entry);
    break;
  case SURVEY_CUT:
    tell (c, c->survey.cut, "ERROR: block %" PRIu64 " with index %" PRIu32
          " is cut by the end of the file", block, entry);
    break;
  }
  return 0;
}

static bool
on_progress (void *opaque, uint64_t done, uint64_t total)
{
  const struct checker *c = opaque;

  return !c->opts->progress
    || c->opts->progress (c->opts->opaque, done, total);
}

/* The number is exact in an image that was closed.  While one is being written
 * to, it may be too large.
 */
static bool
count_is_wrong (const struct checker *c)
{
  const struct survey *s = &c->survey;

  if (s->duplicates || s->outside)
    return false;               /* what is right can only be said later */
  return c->v->writing ? c->v->recorded < s->end
    : c->v->recorded != s->end;
}

static int
look (struct checker *c, struct error *e)
{
  if (vdi_survey (c->v, &c->survey, e) == -1)
    return -1;
  if (count_is_wrong (c)) {
    c->result->corruptions++;
    tell (c, 1, "ERROR: allocated blocks mismatch, is %" PRIu64 ", should be"
          " %" PRIu64, c->survey.end, c->v->recorded);
  }
  if (c->survey.stopped)
    tell (c, 1, "The rest of the block map was not looked at");
  else if (c->survey.gaps)
    tell (c, 1, "%" PRIu64 " places are not in use; the next writer takes"
          " them", c->survey.gaps);
  return 0;
}

/* ---- repair ---- */

static int
mend_count (struct checker *c, uint64_t count, struct error *e)
{
  if (c->v->recorded == count)
    return 0;
  if (vdi_write_count (c->v, count, e) == -1
      || storage_flush (c->v->format.storage, e) == -1)
    return -1;
  return 0;
}

/* A map of which most entries are the same is not damaged in places: it is some
 * other data, or a hole.  Giving each a block would fill the disk with copies.
 */
static int
refuse_hopeless (const struct checker *c, struct error *e)
{
  const struct survey *s = &c->survey;
  uint64_t distinct = s->used - s->duplicates;

  if (s->duplicates <= max_u64 (distinct, 16))
    return 0;
  return error_set (e, EIO, "%s: %" PRIu64 " of %" PRIu64 " blocks share their"
                    " place with another one: this block map cannot be"
                    " repaired", c->v->format.storage->name, s->duplicates,
                    s->used);
}

static int
mend_map (struct checker *c, struct error *e)
{
  int r;

  if (refuse_hopeless (c, e) == -1)
    return -1;
  c->next = c->survey.end;
  c->buf = malloc (VDI_BLOCK_SIZE);
  if (!c->buf)
    return error_nomem (e, "a block", VDI_BLOCK_SIZE);
  c->mending = true;
  r = vdi_survey (c->v, &c->survey, e);
  if (r == 0)
    r = apply_mends (c, e);
  c->mending = false;
  if (r == 0)
    r = storage_flush (c->v->format.storage, e);
  return r == -1 ? -1 : mend_count (c, c->next, e);
}

static int
repair (struct checker *c, enum check_repair how, struct error *e)
{
  const struct survey *s = &c->survey;

  if (s->duplicates || s->outside || s->cut) {
    if (how == REPAIR_LEAKS)
      return 0;
    if (s->duplicates || s->outside)
      return mend_map (c, e);
  }
  if (count_is_wrong (c)) {
    if (mend_count (c, s->end, e) == -1)
      return -1;
    c->result->corruptions--;
    c->result->corruptions_fixed++;
  }
  return s->cut ? mend_map (c, e) : 0;
}

int
vdi_check (struct format *f, const struct format_check_options *opts,
           struct format_check_result *result, struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct checker *c = calloc (1, sizeof *c);
  int r;

  if (!c)
    return error_nomem (e, "the check of a VDI image", sizeof *c);
  *c = (struct checker) { .v = v, .opts = opts, .result = result };
  c->survey.wrong = on_wrong;
  c->survey.progress = on_progress;
  c->survey.opaque = c;
  c->survey.memory = opts->memory ? opts->memory : 64 * MiB;
  /* The map is read from the disk.  One that cannot be brought up to date there
   * is still looked at.
   */
  if (v->writing && vdi_flush (f, e) == -1)
    error_clear (e);
  r = look (c, e);
  if (r == 0 && opts->repair != REPAIR_NONE)
    r = repair (c, opts->repair, e);
  free (c->buf);
  free (c);
  return r;
}
