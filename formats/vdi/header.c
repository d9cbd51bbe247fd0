/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The header of a VDI image: open, activate, begin_write, close.  Layer:
 * formats.  Locking: open and close have the image for themselves.
 *
 * Every field is checked before it is used, in the order and the words of QEMU
 * where it refuses the same.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "formats/vdi/vdi.h"

static int
vdi_probe (const uint8_t *buf, size_t len, uint64_t size)
{
  (void) size;
  if (len < V_VERSION || get_le32 (buf + V_SIGNATURE) != VDI_SIGNATURE)
    return 0;
  return 100;
}

/* ---- parse ---- */

static int
check_kind (const uint8_t *h, struct error *e)
{
  uint32_t signature = get_le32 (h + V_SIGNATURE);
  uint32_t version = get_le32 (h + V_VERSION);
  uint32_t type = get_le32 (h + V_IMAGE_TYPE);

  if (signature != VDI_SIGNATURE)
    return error_set (e, EINVAL, "Image not in VDI format (bad signature"
                      " %08" PRIx32 ")", signature);
  if (version != VDI_VERSION)
    return error_set (e, ENOTSUP, "unsupported VDI image (version %" PRIu32
                      ".%" PRIu32 ")", version >> 16, version & 0xffff);
  if (type == VDI_DIFFERENCING)
    return error_set (e, ENOTSUP, "unsupported VDI image (a differencing"
                      " image: what it lacks is in its parent, which only"
                      " VirtualBox can find)");
  if (type != VDI_DYNAMIC && type != VDI_STATIC)
    return error_set (e, ENOTSUP, "unsupported VDI image (image type %" PRIu32
                      ", not 1 (dynamic) or 2 (static))", type);
  return 0;
}

static int
check_units (const uint8_t *h, struct error *e)
{
  uint32_t bmap = get_le32 (h + V_BMAP_OFFSET);
  uint32_t data = get_le32 (h + V_DATA_OFFSET);
  uint32_t sector = get_le32 (h + V_SECTOR_SIZE);
  uint32_t block = get_le32 (h + V_BLOCK_SIZE);
  uint32_t extra = get_le32 (h + V_BLOCK_EXTRA);

  if (!is_aligned (bmap, SECTOR_SIZE))
    return error_set (e, ENOTSUP, "unsupported VDI image (unaligned block map"
                      " offset 0x%" PRIx32 ")", bmap);
  if (!is_aligned (data, SECTOR_SIZE))
    return error_set (e, ENOTSUP, "unsupported VDI image (unaligned data"
                      " offset 0x%" PRIx32 ")", data);
  if (sector != SECTOR_SIZE)
    return error_set (e, ENOTSUP, "unsupported VDI image (sector size %" PRIu32
                      " is not 512)", sector);
  if (block != VDI_BLOCK_SIZE)
    return error_set (e, ENOTSUP, "unsupported VDI image (block size %" PRIu32
                      " is not 1048576)", block);
  if (extra != 0)
    return error_set (e, ENOTSUP, "unsupported VDI image (%" PRIu32 " extra"
                      " bytes for each block)", extra);
  return 0;
}

static int
check_size (struct vdi *v, const uint8_t *h, struct error *e)
{
  uint64_t size = get_le64 (h + V_DISK_SIZE);
  uint64_t max = VDI_MAX_BLOCKS * VDI_BLOCK_SIZE, room;

  v->blocks = get_le32 (h + V_BLOCKS_IN_IMAGE);
  room = v->blocks * VDI_BLOCK_SIZE;
  if (size > max)
    return error_set (e, ENOTSUP, "Unsupported VDI image size (size is 0x%"
                      PRIx64 ", max supported is 0x%" PRIx64 ")", size, max);
  if (size > room)
    return error_set (e, ENOTSUP, "unsupported VDI image (disk size %" PRIu64
                      ", image bitmap has room for %" PRIu64 ")", size, room);
  if (v->blocks > VDI_MAX_BLOCKS)
    return error_set (e, ENOTSUP, "unsupported VDI image (too many blocks %"
                      PRIu64 ", max is %" PRIu64 ")", v->blocks,
                      VDI_MAX_BLOCKS);
  v->format.info.size = round_up (size, SECTOR_SIZE);
  return 0;
}

static int
check_uuids (const uint8_t *h, struct error *e)
{
  if (!is_zero (h + V_UUID_LINK, V_UUID_LENGTH))
    return error_set (e, ENOTSUP, "unsupported VDI image (non-NULL link"
                      " UUID)");
  if (!is_zero (h + V_UUID_PARENT, V_UUID_LENGTH))
    return error_set (e, ENOTSUP, "unsupported VDI image (non-NULL parent"
                      " UUID)");
  return 0;
}

/* The map lies behind the header, inside the file, and before the data: so its
 * size is bounded by what is really there.
 */
static int
check_places (struct vdi *v, const uint8_t *h, struct error *e)
{
  uint64_t size = storage_size (v->format.storage);
  uint64_t end;

  v->bmap_offset = get_le32 (h + V_BMAP_OFFSET);
  v->data_offset = get_le32 (h + V_DATA_OFFSET);
  end = v->bmap_offset + vdi_map_bytes (v->blocks);
  if (v->bmap_offset < V_LENGTH
      || v->bmap_offset + v->blocks * 4 > size)
    return error_set (e, EINVAL, "the block map (%" PRIu64 " entries at 0x%"
                      PRIx64 ") does not lie in the file, behind the header",
                      v->blocks, v->bmap_offset);
  if (v->data_offset < end)
    return error_set (e, EINVAL, "the blocks begin at 0x%" PRIx64 ", and the"
                      " block map ends at 0x%" PRIx64, v->data_offset, end);
  return 0;
}

static int
parse (struct vdi *v, const uint8_t *h, struct error *e)
{
  if (check_kind (h, e) == -1 || check_units (h, e) == -1
      || check_size (v, h, e) == -1 || check_uuids (h, e) == -1)
    return -1;
  v->image_type = get_le32 (h + V_IMAGE_TYPE);
  v->recorded = get_le32 (h + V_BLOCKS_ALLOCATED);
  return check_places (v, h, e);
}

static void
fill_info (struct vdi *v)
{
  struct format_info *info = &v->format.info;

  info->cluster_size = info->cow_size = VDI_BLOCK_SIZE;
  info->alignment = SECTOR_SIZE;
  info->trim_in_place = true;
}

/* ---- before writing ---- */

/* The first thing that is wrong decides: the image is not written to. */
static int
refuse (void *opaque, enum survey_kind kind, uint64_t block, uint32_t entry,
        struct error *e)
{
  (void) opaque;
  if (kind == SURVEY_CUT)
    return 0;
  return error_set (e, EIO, "the image is damaged (block %" PRIu64 " has the"
                    " place %" PRIu32 ", which %s): it may be read, and "
                    "repaired by check -r all", block, entry,
                    kind == SURVEY_DUPLICATE ? "another block has too"
                    : "lies behind the end of the file");
}

void
vdi_start_allocating (struct vdi *v, const struct survey *s)
{
  struct storage *st = v->format.storage;
  uint64_t size = storage_size (st);

  v->next = s->end;
  v->nr_free = s->nr_free;
  memcpy (v->free, s->free, sizeof v->free);
  v->fresh_from = UINT64_MAX;
  if (st->caps.can_grow && st->caps.reads_zero_past_end)
    v->fresh_from = size <= v->data_offset ? 0
      : div_round_up (size - v->data_offset, VDI_BLOCK_SIZE);
}

static int
vdi_begin_write (struct format *f, struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct survey *s = calloc (1, sizeof *s);
  int r;

  if (!s)
    return error_nomem (e, "the places of a VDI image", sizeof *s);
  s->wrong = refuse;
  s->memory = 8 * MiB;
  r = vdi_survey (v, s, e);
  if (r == 0) {
    mutex_lock (v->cache.mutex);
    vdi_start_allocating (v, s);
    v->writing = true;
    mutex_unlock (v->cache.mutex);
  }
  free (s);
  return r;
}

/* ---- open and close ---- */

static const char *const kinds[] = { "block map" };

static int
init_cache (struct vdi *v, uint64_t bytes, struct error *e)
{
  const struct slice_cache_setup setup = {
    .mutex = &v->mutex, .storage = v->format.storage, .kinds = kinds,
    .nr_kinds = 1, .unit = SECTOR_SIZE, .bytes = bytes,
    .epoch = vdi_run_epoch, .owner = v,
  };

  return slices_init (&v->cache, &setup, e);
}

static int
read_header (struct vdi *v, struct error *e)
{
  uint8_t h[V_LENGTH];

  if (storage_size (v->format.storage) < V_LENGTH)
    return error_set (e, EINVAL, "the file ends within the VDI header (%"
                      PRIu64 " bytes)", storage_size (v->format.storage));
  if (storage_pread (v->format.storage, h, sizeof h, 0, e) == -1)
    return -1;
  return parse (v, h, e);
}

static struct format *
vdi_open (struct storage *st, const struct format_open_options *opts,
          struct format_needs *needs, struct error *e)
{
  struct vdi *v = calloc (1, sizeof *v);

  (void) needs;
  if (!v) {
    error_nomem (e, "a VDI image", sizeof *v);
    return NULL;
  }
  mutex_init (&v->mutex);
  v->format.ops = &format_vdi;
  v->format.storage = st;
  v->writable = opts->writable;
  v->for_check = opts->check;
  if (read_header (v, e) == 0 && init_cache (v, opts->cache_size, e) == 0) {
    fill_info (v);
    return &v->format;
  }
  mutex_destroy (&v->mutex);
  free (v);
  return NULL;
}

static int
vdi_activate (struct format *f, struct storage *data_file, bool has_backing,
              struct error *e)
{
  (void) f;
  if (data_file || has_backing)
    return error_set (e, EINVAL, "a VDI image has no backing file and no data"
                      " file");
  return 0;
}

int
vdi_write_count (struct vdi *v, uint64_t count, struct error *e)
{
  uint8_t field[4];

  put_le32 (field, (uint32_t) count);
  if (storage_pwrite (v->format.storage, field, sizeof field,
                      V_BLOCKS_ALLOCATED, 0, e) == -1)
    return error_prefix (e, "header");
  v->recorded = count;
  return 0;
}

/* The map is durable; now the number of blocks may be exact. */
static int
record_count (struct vdi *v, struct error *e)
{
  if (v->recorded == v->next)
    return 0;
  if (vdi_write_count (v, v->next, e) == -1)
    return -1;
  return storage_flush (v->format.storage, e);
}

static int
vdi_close (struct format *f, struct error *e)
{
  struct vdi *v = to_vdi (f);
  int r = 0;

  if (v->writing) {
    r = vdi_flush (f, e);
    if (r == 0)
      r = record_count (v, e);
  }
  slices_free (&v->cache);
  mutex_destroy (&v->mutex);
  free (v);
  return r;
}

const struct format_ops format_vdi = {
  .name = "vdi",
  .create_options = vdi_create_options,
  .probe = vdi_probe,
  .create = vdi_create,
  .open = vdi_open,
  .activate = vdi_activate,
  .begin_write = vdi_begin_write,
  .close = vdi_close,
  .map = vdi_map,
  .reserve = vdi_reserve,
  .link = vdi_link,
  .abandon = vdi_abandon,
  .unmap = vdi_unmap,
  .flush = vdi_flush,
  .metadata_dirty = vdi_metadata_dirty,
  .resize = vdi_resize,
  .check = vdi_check,
};
