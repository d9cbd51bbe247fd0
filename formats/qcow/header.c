/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The header of a qcow image: open, activate, begin_write, close.  Layer:
 * formats.  Locking: open and close have the image for themselves.
 *
 * Every field is checked before it is used, in the words of QEMU where it
 * refuses the same.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "formats/legacy_aes.h"
#include "formats/qcow/qcow.h"

static int
qcow_probe (const uint8_t *buf, size_t len, uint64_t size)
{
  (void) size;
  if (len < Q1_VERSION + 4 || get_be32 (buf + Q1_MAGIC) != QCOW_MAGIC)
    return 0;
  return get_be32 (buf + Q1_VERSION) == 1 ? 100 : 0;
}

/* ---- parse ---- */

static int
check_kind (const uint8_t *h, struct error *e)
{
  if (get_be32 (h + Q1_MAGIC) != QCOW_MAGIC)
    return error_set (e, EINVAL, "Image not in qcow format");
  if (get_be32 (h + Q1_VERSION) != 1)
    return error_set (e, ENOTSUP, "qcow (v%" PRIu32 ") does not support qcow"
                      " version %" PRIu32, get_be32 (h + Q1_VERSION),
                      get_be32 (h + Q1_VERSION));
  return 0;
}

static int
check_geometry (struct qcow *q, const uint8_t *h, struct error *e)
{
  uint32_t crypt_method = get_be32 (h + Q1_CRYPT_METHOD);

  q->cluster_bits = h[Q1_CLUSTER_BITS];
  q->l2_bits = h[Q1_L2_BITS];
  if (get_be64 (h + Q1_SIZE) <= 1)
    return error_set (e, EINVAL, "Image size is too small (must be at least 2"
                      " bytes)");
  if (q->cluster_bits < Q1_MIN_CLUSTER_BITS
      || q->cluster_bits > Q1_MAX_CLUSTER_BITS)
    return error_set (e, EINVAL, "Cluster size must be between 512 and 64k"
                      " (cluster_bits is %u)", q->cluster_bits);
  if (q->l2_bits < Q1_MIN_L2_BITS || q->l2_bits > Q1_MAX_L2_BITS)
    return error_set (e, EINVAL, "L2 table size must be between 512 and 64k"
                      " (l2_bits is %u)", q->l2_bits);
  if (crypt_method > 1)
    return error_set (e, EINVAL, "invalid encryption method in qcow header (%"
                      PRIu32 ")", crypt_method);
  q->format.encrypted = crypt_method == 1;
  q->cluster_size = UINT64_C (1) << q->cluster_bits;
  return 0;
}

/* The table is looked at a slice at a time; it lies in the file all the same,
 * so that its size is bounded by what is really there.
 */
static int
check_l1 (struct qcow *q, const uint8_t *h, struct error *e)
{
  uint64_t size = get_be64 (h + Q1_SIZE), bytes;
  uint64_t slice = min_u64 (q->cluster_size, 4096);
  uint64_t file_size = storage_size (q->format.storage);

  if (size > INT64_MAX)
    return error_set (e, EFBIG, "Image too large (%" PRIu64 " bytes)", size);
  q->l1_size = div_round_up (size, qcow_l2_reach (q));
  if (q->l1_size > Q1_MAX_L1_ENTRIES)
    return error_set (e, EFBIG, "Image too large (%" PRIu64 " L1 entries)",
                      q->l1_size);
  bytes = q->l1_size * 8;
  q->l1_table_offset = get_be64 (h + Q1_L1_TABLE_OFFSET);
  if (q->l1_table_offset < Q1_LENGTH || !is_aligned (q->l1_table_offset, 8)
      || bytes > file_size || q->l1_table_offset > file_size - bytes)
    return error_set (e, EINVAL, "the L1 table (%" PRIu64 " entries at 0x%"
                      PRIx64 ") does not lie in the file, behind the header",
                      q->l1_size, q->l1_table_offset);
  q->tables_end = round_up (q->l1_table_offset + bytes, slice);
  q->format.info.size = round_down (size, SECTOR_SIZE);
  return 0;
}

static int
check_backing (const struct qcow *q, uint64_t offset, uint32_t len,
               struct error *e)
{
  uint64_t file_size = storage_size (q->format.storage);

  if (len > Q1_MAX_BACKING_NAME)
    return error_set (e, EINVAL, "Backing file name too long (%" PRIu32
                      " bytes)", len);
  if (len == 0 || offset < Q1_LENGTH || offset > file_size
      || len > file_size - offset
      || ranges_overlap (offset, len, q->l1_table_offset, q->l1_size * 8))
    return error_set (e, EINVAL, "Invalid backing file offset: %" PRIu64 " (%"
                      PRIu32 " bytes): the name must lie in the file, behind"
                      " the header and beside the L1 table", offset, len);
  return 0;
}

static int
parse_backing (struct qcow *q, const uint8_t *h, struct format_needs *needs,
               struct error *e)
{
  uint64_t offset = get_be64 (h + Q1_BACKING_FILE_OFFSET);
  uint32_t len = get_be32 (h + Q1_BACKING_FILE_SIZE);
  char name[Q1_MAX_BACKING_NAME];

  if (offset == 0 && len == 0)
    return 0;
  if (check_backing (q, offset, len, e) == -1
      || storage_pread (q->format.storage, name, len, offset, e) == -1)
    return -1;
  if (memchr (name, '\0', len))
    return error_set (e, EINVAL, "the backing file name contains a NUL byte");
  q->name_end = offset + len;
  needs->backing = strndup (name, len);
  return needs->backing ? 0 : error_nomem (e, "backing file name", len);
}

static int
read_header (struct qcow *q, struct format_needs *needs, struct error *e)
{
  uint8_t h[Q1_LENGTH];

  if (storage_size (q->format.storage) < Q1_LENGTH)
    return error_set (e, EINVAL, "the file ends within the qcow header (%"
                      PRIu64 " bytes)", storage_size (q->format.storage));
  if (storage_pread (q->format.storage, h, sizeof h, 0, e) == -1
      || check_kind (h, e) == -1 || check_geometry (q, h, e) == -1
      || check_l1 (q, h, e) == -1)
    return -1;
  needs->crypto = q->format.encrypted ? "aes" : NULL;
  return parse_backing (q, h, needs, e);
}

/* ---- open and close ---- */

static void
fill_info (struct qcow *q)
{
  struct format_info *info = &q->format.info;

  info->cluster_size = info->cow_size = (uint32_t) q->cluster_size;
  info->alignment = SECTOR_SIZE;
  info->codec = CODEC_DEFLATE;
  info->can_pack = !q->format.encrypted;
  info->trim_in_place = true;
  info->iv_base = IV_GUEST;
}

static int
init_cache (struct qcow *q, uint64_t bytes, struct error *e)
{
  static const char *const kinds[] = { "L1 table", "L2 table" };
  const struct slice_cache_setup setup = {
    .mutex = &q->mutex, .storage = q->format.storage, .kinds = kinds,
    .nr_kinds = 2, .unit = q->cluster_size, .bytes = bytes,
    .epoch = qcow_run_epoch, .owner = q,
  };

  return slices_init (&q->cache, &setup, e);
}

static struct format *
qcow_open (struct storage *st, const struct format_open_options *opts,
           struct format_needs *needs, struct error *e)
{
  struct qcow *q = calloc (1, sizeof *q);

  if (!q) {
    error_nomem (e, "a qcow image", sizeof *q);
    return NULL;
  }
  mutex_init (&q->mutex);
  q->format.ops = &format_qcow;
  q->format.storage = st;
  if (read_header (q, needs, e) == 0
      && init_cache (q, opts->cache_size, e) == 0) {
    fill_info (q);
    return &q->format;
  }
  mutex_destroy (&q->mutex);
  free (q);
  return NULL;
}

static int
qcow_unlock (struct format *f, const struct format_key *key, struct error *e)
{
  f->cipher = legacy_aes_new (key->secret, e);
  return f->cipher ? 0 : -1;
}

static int
qcow_activate (struct format *f, struct storage *data_file, bool has_backing,
               struct error *e)
{
  struct qcow *q = to_qcow (f);

  if (data_file)
    return error_set (e, EINVAL, "a qcow image has no data file");
  q->has_backing = has_backing;
  return 0;
}

/* The file is the only record of what is allocated: the next cluster goes
 * behind its end.
 */
static int
qcow_begin_write (struct format *f, struct error *e)
{
  struct qcow *q = to_qcow (f);
  uint64_t size = max_u64 (storage_size (f->storage), q->tables_end);

  if (size > INT64_MAX - q->cluster_size)
    return error_set (e, EFBIG, "%s: the file cannot grow", f->storage->name);
  mutex_lock (q->cache.mutex);
  q->end = round_up (size, q->cluster_size);
  q->writing = true;
  mutex_unlock (q->cache.mutex);
  return 0;
}

static int
qcow_close (struct format *f, struct error *e)
{
  struct qcow *q = to_qcow (f);
  int r = q->writing ? qcow_flush (f, e) : 0;

  slices_free (&q->cache);
  mutex_destroy (&q->mutex);
  disk_cipher_free (f->cipher);
  free (q);
  return r;
}

const struct format_ops format_qcow = {
  .name = "qcow",
  .has_backing = true,
  .packs = true,
  .create_options = qcow_create_options,
  .key_option = "encrypt.key-secret",
  .probe = qcow_probe,
  .create = qcow_create,
  .open = qcow_open,
  .unlock = qcow_unlock,
  .activate = qcow_activate,
  .begin_write = qcow_begin_write,
  .close = qcow_close,
  .map = qcow_map,
  .reserve = qcow_reserve,
  .reserve_packed = qcow_reserve_packed,
  .link = qcow_link,
  .abandon = qcow_abandon,
  .unmap = qcow_unmap,
  .empty = qcow_empty,
  .flush = qcow_flush,
  .metadata_dirty = qcow_metadata_dirty,
};
