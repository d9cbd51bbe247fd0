/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The directory of persistent bitmaps.  Layer: formats.  Locking: the place of
 * the directory is fixed after open.
 * Specification: "Bitmaps extension", "Bitmap directory".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qcow2/reader.h"

#define FLAGS_KNOWN \
  (BITMAP_IN_USE | BITMAP_AUTO | BITMAP_EXTRA_DATA_COMPATIBLE)

/* More than the longest entry: 24 + MAX_BITMAP_NAME bytes. */
#define BITMAP_BUFFER (64 * KiB)

uint64_t
bitmap_entry_size (const struct bitmap_entry *b)
{
  return round_up (B_EXTRA_DATA + UINT64_C (0) + b->name_length, 8);
}

bool
qcow2_has_bitmaps (struct qcow2 *q)
{
  bool r;

  mutex_lock (&q->mutex);
  r = q->nb_bitmaps > 0 && (q->autoclear_features & AUTOCLEAR_BITMAPS);
  mutex_unlock (&q->mutex);
  return r;
}

int
bitmap_iter_init (struct bitmap_iter *it, struct qcow2 *q, struct error *e)
{
  uint64_t file = round_up (storage_size (q->format.storage),
                            q->cluster_size);

  it->cluster_size = q->cluster_size;
  it->offset = q->bitmap_directory_offset;
  it->size = q->bitmap_directory_size;
  it->nr = q->nb_bitmaps;
  it->used = 0;
  it->index = 0;
  if (it->offset > file || it->size > file - it->offset)
    return error_set (e, EINVAL, "bitmap directory (%" PRIu64 " bytes at 0x%"
                      PRIx64 ") lies outside of the file", it->size,
                      it->offset);
  return reader_init (&it->reader, q->format.storage, BITMAP_BUFFER, e);
}

void
bitmap_iter_free (struct bitmap_iter *it)
{
  reader_free (&it->reader);
}

static int
check_entry (const struct bitmap_iter *it, const struct bitmap_entry *b,
             const uint8_t *p, struct error *e)
{
  uint32_t extra = get_be32 (p + B_EXTRA_DATA_SIZE);
  const char *what = NULL;

  if (b->name_length == 0 || b->name_length > MAX_BITMAP_NAME)
    what = "length of its name";
  else if (extra)
    what = "extra data (not supported)";
  else if (p[B_TYPE] != BITMAP_DIRTY_TRACKING)
    what = "type";
  else if (b->flags & ~(uint32_t) FLAGS_KNOWN)
    what = "flags";
  else if (b->granularity_bits < MIN_GRANULARITY_BITS
           || b->granularity_bits > MAX_GRANULARITY_BITS)
    what = "granularity";
  else if (!is_aligned (b->table_offset, it->cluster_size)
           || b->table_offset > INT64_MAX)
    what = "offset of its table";
  if (!what)
    return 0;
  return error_set (e, EINVAL, "bitmap directory entry %u is not valid: %s",
                    it->index, what);
}

int
bitmap_iter_next (struct bitmap_iter *it, struct bitmap_entry *b,
                  struct error *e)
{
  uint64_t left = it->size - it->used, len;
  const uint8_t *p;

  if (it->index == it->nr)
    return left == 0 ? 0
      : error_set (e, EINVAL, "bitmap directory: %" PRIu64 " bytes are left"
                   " behind the last of %u entries", left, it->nr);
  if (left < B_EXTRA_DATA)
    return error_set (e, EINVAL, "bitmap directory ends before entry %u of %u",
                      it->index, it->nr);
  p = reader_get (&it->reader, it->offset + it->used, B_EXTRA_DATA, e);
  if (!p)
    return error_prefix (e, "bitmap directory");
  b->table_offset = get_be64 (p + B_TABLE_OFFSET);
  b->table_size = get_be32 (p + B_TABLE_SIZE);
  b->flags = get_be32 (p + B_FLAGS);
  b->granularity_bits = p[B_GRANULARITY_BITS];
  b->name_length = get_be16 (p + B_NAME_SIZE);
  if (check_entry (it, b, p, e) == -1)
    return -1;
  len = bitmap_entry_size (b);
  if (len > left)
    return error_set (e, EINVAL, "bitmap directory ends within entry %u",
                      it->index);
  p = reader_get (&it->reader, it->offset + it->used, (size_t) len, e);
  if (!p)
    return error_prefix (e, "bitmap directory");
  b->name = (const char *) p + B_EXTRA_DATA;
  it->used += len;
  it->index++;
  return 1;
}
