/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Creation of a VDI image.  Layer: formats.  No locking: nobody else knows the
 * storage yet.
 *
 * Layout: the header, the map from offset 512 on, the blocks.  Order on disk:
 * the map (and the places of a static image), barrier; the header, barrier.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/random.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "formats/blank.h"
#include "formats/preallocation.h"
#include "formats/vdi/vdi.h"

const struct format_option vdi_create_options[] = {
  { "size", OPTION_SIZE, "Virtual disk size", NULL, false },
  { "static", OPTION_BOOL, "VDI static (pre-allocated) image", "off", false },
  FORMAT_OPTION_NOCOW,
  FORMAT_OPTION_PREALLOCATION,
  FORMAT_OPTION_EXTENT_SIZE_HINT,
  { NULL, OPTION_STRING, NULL, NULL, false },
};

/* The image that is to be written. */
struct plan {
  bool is_static;
  enum preallocation preallocation;     /* of a static one */
  uint64_t size, blocks;        /* size: a multiple of 512 bytes */
  uint64_t data_offset, end;
};

static int
make_plan (const struct format_create_options *opts, struct plan *p,
           struct error *e)
{
  const char *text = format_option_text (opts, "static");
  uint64_t max = VDI_MAX_BLOCKS * VDI_BLOCK_SIZE;

  if (text && parse_bool ("static", text, &p->is_static, e) == -1)
    return -1;
  if (p->is_static ? preallocation_option (opts, false, &p->preallocation, e)
      : preallocation_is_vain (opts, "a dynamic vdi image", e))
    return -1;
  if (opts->backing_file)
    return error_set (e, ENOTSUP,
                      "Backing file not supported for file format 'vdi'");
  if (opts->size > max)
    return error_set (e, ENOTSUP, "Unsupported VDI image size (size is 0x%"
                      PRIx64 ", max supported is 0x%" PRIx64 ")", opts->size,
                      max);
  p->size = round_up (opts->size, SECTOR_SIZE);
  p->blocks = div_round_up (p->size, VDI_BLOCK_SIZE);
  p->data_offset = V_LENGTH + vdi_map_bytes (p->blocks);
  p->end = p->data_offset + (p->is_static ? p->blocks * VDI_BLOCK_SIZE : 0);
  return 0;
}

/* A random UUID (version 4), in the order of bytes that VirtualBox uses: the
 * first three of its fields are little endian.
 */
static int
put_uuid (uint8_t *p, struct error *e)
{
  if (getrandom (p, V_UUID_LENGTH, 0) != V_UUID_LENGTH)
    return error_errno (e, errno, "random numbers for a UUID");
  p[7] = (uint8_t) ((p[7] & 0x0f) | 0x40);
  p[8] = (uint8_t) ((p[8] & 0x3f) | 0x80);
  return 0;
}

static int
make_header (const struct plan *p, uint8_t *h, struct error *e)
{
  static const char text[] = "<<< QEMU VM Virtual Disk Image >>>\n";

  memset (h, 0, V_LENGTH);
  memcpy (h + V_TEXT, text, sizeof text);
  put_le32 (h + V_SIGNATURE, VDI_SIGNATURE);
  put_le32 (h + V_VERSION, VDI_VERSION);
  put_le32 (h + V_HEADER_SIZE, 0x180);
  put_le32 (h + V_IMAGE_TYPE, p->is_static ? VDI_STATIC : VDI_DYNAMIC);
  put_le32 (h + V_BMAP_OFFSET, V_LENGTH);
  put_le32 (h + V_DATA_OFFSET, (uint32_t) p->data_offset);
  put_le32 (h + V_SECTOR_SIZE, SECTOR_SIZE);
  put_le64 (h + V_DISK_SIZE, p->size);
  put_le32 (h + V_BLOCK_SIZE, VDI_BLOCK_SIZE);
  put_le32 (h + V_BLOCKS_IN_IMAGE, (uint32_t) p->blocks);
  if (p->is_static)
    put_le32 (h + V_BLOCKS_ALLOCATED, (uint32_t) p->blocks);
  if (put_uuid (h + V_UUID_IMAGE, e) == -1)
    return -1;
  return put_uuid (h + V_UUID_LAST_SNAPSHOT, e);
}

static int
write_map (struct storage *st, const struct plan *p, struct error *e)
{
  const uint64_t piece = MiB / 4;       /* entries */
  CLEANUP_FREE uint8_t *buf = malloc (piece * 4);
  uint64_t nr;

  if (!buf)
    return error_nomem (e, "a piece of the block map", MiB);
  for (uint64_t block = 0; block < p->blocks; block += nr) {
    nr = min_u64 (piece, p->blocks - block);
    for (uint64_t i = 0; i < nr; ++i)
      put_le32 (buf + i * 4, p->is_static ? (uint32_t) (block + i)
                : VDI_UNALLOCATED);
    if (storage_pwrite (st, buf, nr * 4, V_LENGTH + block * 4, 0, e) == -1)
      return -1;
  }
  return 0;
}

int
vdi_create (struct storage *st, const struct format_create_options *opts,
            struct error *e)
{
  struct plan plan = { .is_static = false };
  uint8_t header[V_LENGTH];

  /* All that can be refused is refused before the storage is touched. */
  if (make_plan (opts, &plan, e) == -1
      || make_header (&plan, header, e) == -1)
    return -1;
  if (storage_blank (st, plan.end, e) == -1
      || write_map (st, &plan, e) == -1
      || preallocate (st, plan.data_offset, plan.end, plan.preallocation,
                      e) == -1
      || storage_flush (st, e) == -1
      || storage_pwrite (st, header, sizeof header, 0, 0, e) == -1)
    return -1;
  return storage_flush (st, e);
}
