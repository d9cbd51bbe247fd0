/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Header and feature bits; open, activate, begin_write.  Layer: formats.
 * Locking: all of these have the image for themselves.
 * Specification: "Header".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qed/qed.h"

int
qed_probe (const uint8_t *buf, size_t len, uint64_t size)
{
  return len >= 4 && size >= H_LENGTH && get_le32 (buf) == QED_MAGIC
    ? 100 : 0;
}

/* ---- limits ---- */

/* entries * entries * cluster_size, which may not fit into 64 bits. */
static uint64_t
reach_of_l1 (const struct qed_geometry *g)
{
  uint64_t limit = INT64_MAX - (uint64_t) g->cluster_size + 1;
  unsigned bits = 2 * g->table_bits + g->cluster_bits;

  return bits >= 63 ? limit : min_u64 (UINT64_C (1) << bits, limit);
}

int
qed_geometry (struct qed_geometry *g, uint64_t cluster_size,
              uint64_t table_size, struct error *e)
{
  if (cluster_size < MIN_CLUSTER_SIZE || cluster_size > MAX_CLUSTER_SIZE
      || !is_power_of_2 (cluster_size))
    return error_set (e, EINVAL, "QED cluster size must be within range [%d,"
                      " %d] and power of 2", MIN_CLUSTER_SIZE,
                      MAX_CLUSTER_SIZE);
  if (table_size < 1 || table_size > MAX_TABLE_SIZE
      || !is_power_of_2 (table_size))
    return error_set (e, EINVAL, "QED table size must be within range [1, %d]"
                      " and power of 2", MAX_TABLE_SIZE);
  g->cluster_size = (uint32_t) cluster_size;
  g->table_size = (uint32_t) table_size;
  g->table_bytes = cluster_size * table_size;
  if (g->table_bytes > MAX_TABLE_BYTES)
    return error_set (e, EFBIG, "QED tables of %" PRIu64 " bytes (%" PRIu64
                      " clusters of %" PRIu64 ") are not supported, at most %"
                      PRIu64, g->table_bytes, table_size, cluster_size,
                      MAX_TABLE_BYTES);
  g->cluster_bits = (unsigned) __builtin_ctzll (cluster_size);
  g->table_bits = (unsigned) __builtin_ctzll (g->table_bytes) - 3;
  g->max_size = reach_of_l1 (g);
  return 0;
}

/* ---- parse ---- */

static int
check_features (const struct qed *q, struct error *e)
{
  uint64_t unknown = q->features & ~QED_F_KNOWN;

  if (!unknown)
    return 0;
  return error_set (e, ENOTSUP, "Unsupported QED features: 0x%" PRIx64
                    " (of 0x%" PRIx64 "); a newer program has set them",
                    unknown, q->features);
}

/* No cluster lies before the end of what header_size says, so the L1 table does
 * not either.
 */
static int
check_places (struct qed *q, uint32_t header_size, uint64_t file_size,
              struct error *e)
{
  q->header_bytes = (uint64_t) header_size * q->g.cluster_size;
  if (header_size == 0)
    return error_set (e, EINVAL, "the header's header_size is 0");
  if (!is_aligned (q->l1_table_offset, q->g.cluster_size)
      || q->l1_table_offset < q->header_bytes)
    return error_set (e, EINVAL, "l1_table_offset 0x%" PRIx64 " is invalid:"
                      " it must be a multiple of the cluster size %u, behind"
                      " the header's %u clusters", q->l1_table_offset,
                      q->g.cluster_size, header_size);
  if (q->l1_table_offset > file_size
      || q->g.table_bytes > file_size - q->l1_table_offset)
    return error_set (e, EINVAL, "the L1 table at 0x%" PRIx64 " (%" PRIu64
                      " bytes) is not within the file, which has %" PRIu64
                      " bytes", q->l1_table_offset, q->g.table_bytes,
                      file_size);
  return 0;
}

static int
check_size (const struct qed *q, struct error *e)
{
  uint64_t size = q->format.info.size;

  if (!is_aligned (size, SECTOR_SIZE))
    return error_set (e, EINVAL, "image_size %" PRIu64 " is not a multiple of"
                      " 512", size);
  if (size > q->g.max_size)
    return error_set (e, EFBIG, "image_size %" PRIu64 " is too large: the"
                      " tables reach %" PRIu64 " bytes", size, q->g.max_size);
  return 0;
}

static int
parse (struct qed *q, const uint8_t *h, struct error *e)
{
  if (get_le32 (h + H_MAGIC) != QED_MAGIC)
    return error_set (e, EINVAL, "Image not in QED format");
  if (qed_geometry (&q->g, get_le32 (h + H_CLUSTER_SIZE),
                    get_le32 (h + H_TABLE_SIZE), e) == -1)
    return -1;
  q->features = get_le64 (h + H_FEATURES);
  q->autoclear_features = get_le64 (h + H_AUTOCLEAR_FEATURES);
  q->l1_table_offset = get_le64 (h + H_L1_TABLE_OFFSET);
  q->format.info.size = get_le64 (h + H_IMAGE_SIZE);
  if (check_features (q, e) == -1
      || check_places (q, get_le32 (h + H_HEADER_SIZE),
                       storage_size (q->format.storage), e) == -1)
    return -1;
  return check_size (q, e);
}

static int
read_backing (struct qed *q, const uint8_t *h, struct format_needs *needs,
              struct error *e)
{
  uint32_t offset = get_le32 (h + H_BACKING_FILENAME_OFFSET);
  uint32_t n = get_le32 (h + H_BACKING_FILENAME_SIZE);
  uint64_t end = min_u64 (q->header_bytes, storage_size (q->format.storage));

  if (!(q->features & QED_F_BACKING_FILE) || n == 0)
    return 0;
  if (n > MAX_BACKING_NAME)
    return error_set (e, EINVAL, "the backing file name has %u bytes, at most"
                      " %d are possible", n, MAX_BACKING_NAME);
  if (offset < H_LENGTH || offset > end || n > end - offset)
    return error_set (e, EINVAL, "the backing file name (%u bytes at %u) must"
                      " lie behind the header, within its %" PRIu64 " bytes",
                      n, offset, end);
  needs->backing = malloc ((size_t) n + 1);
  if (!needs->backing)
    return error_nomem (e, "backing file name", n);
  if (storage_pread (q->format.storage, needs->backing, n, offset, e) == -1)
    return -1;
  needs->backing[n] = '\0';
  if (strlen (needs->backing) != n)
    return error_set (e, EINVAL, "the backing file name has a NUL byte");
  if (!(q->features & QED_F_BACKING_FORMAT_NO_PROBE))
    return 0;
  needs->backing_format = strdup ("raw");
  return needs->backing_format ? 0 : error_nomem (e, "backing format", 3);
}

/* ---- open ---- */

static const char *const kind_names[NR_SLICE_KINDS] = {
  "L1 table", "L2 table",
};

static int
init_cache (struct qed *q, uint64_t bytes, struct error *e)
{
  const struct slice_cache_setup setup = {
    .mutex = &q->own_mutex, .storage = q->format.storage,
    .kinds = kind_names, .nr_kinds = NR_SLICE_KINDS,
    .unit = q->g.cluster_size, .bytes = bytes, .epoch = qed_run_epoch,
    .owner = q,
  };

  return slices_init (&q->cache, &setup, e);
}

static void
fill_info (struct qed *q)
{
  struct format_info *info = &q->format.info;

  q->format.dirty_flag = q->features & QED_F_NEED_CHECK;
  info->cluster_size = info->cow_size = q->g.cluster_size;
  info->alignment = SECTOR_SIZE;
  info->zero_is_fast = false;   /* not over data clusters */
  info->trim_in_place = true;
}

static int
read_header (struct qed *q, struct format_needs *needs, struct error *e)
{
  struct storage *st = q->format.storage;
  uint8_t h[H_LENGTH];

  if (storage_size (st) < sizeof h)
    return error_set (e, EINVAL, "Could not read the QED header: the file has"
                      " %" PRIu64 " bytes", storage_size (st));
  if (storage_pread (st, h, sizeof h, 0, e) == -1 || parse (q, h, e) == -1)
    return -1;
  return read_backing (q, h, needs, e);
}

struct format *
qed_open (struct storage *st, const struct format_open_options *opts,
          struct format_needs *needs, struct error *e)
{
  struct qed *q = calloc (1, sizeof *q);

  memset (needs, 0, sizeof *needs);
  if (!q) {
    error_nomem (e, "the image", sizeof *q);
    return NULL;
  }
  mutex_init (&q->own_mutex);
  q->format.ops = &format_qed;
  q->format.storage = st;
  if (read_header (q, needs, e) == 0
      && init_cache (q, opts->cache_size, e) == 0) {
    fill_info (q);
    return &q->format;
  }
  qed_free (q);
  return NULL;
}

void
qed_free (struct qed *q)
{
  slices_free (&q->cache);
  host_set_clear (&q->tables);
  mutex_destroy (&q->own_mutex);
  free (q);
}

int
qed_activate (struct format *f, struct storage *data_file, bool has_backing,
              struct error *e)
{
  if (data_file)
    return error_set (e, EINVAL, "%s: a QED image has no external data file",
                      f->storage->name);
  to_qed (f)->has_backing = has_backing;
  return 0;
}

bool
qed_valid_host (const struct qed *q, uint64_t host, bool table,
                uint64_t file_size)
{
  uint64_t length = table ? q->g.table_bytes : q->g.cluster_size;

  return is_aligned (host, q->g.cluster_size) && host >= q->header_bytes
    && host < file_size && (!table || length <= file_size - host)
    && !ranges_overlap (host, length, q->l1_table_offset, q->g.table_bytes);
}

/* ---- the first writer ---- */

/* A field lies within the first sector: it is never torn. */
int
qed_write_field (struct qed *q, uint64_t offset, uint64_t value,
                 struct error *e)
{
  uint8_t field[8];

  put_le64 (field, value);
  if (storage_pwrite (q->format.storage, field, sizeof field, offset, 0,
                      e) == -1
      || storage_flush (q->format.storage, e) == -1)
    return error_prefix (e, "header");
  return 0;
}

/* We know no autoclear bit: what they promise is wrong after a change. */
static int
clear_autoclear (struct qed *q, struct error *e)
{
  if (q->autoclear_features == 0)
    return 0;
  if (qed_write_field (q, H_AUTOCLEAR_FEATURES, 0, e) == -1)
    return -1;
  q->autoclear_features = 0;
  return 0;
}

/* New clusters come behind the file as it is now: what a crash left at its end
 * was cut off, and a last cluster that is not whole may be in use.
 */
static void
init_space (struct qed *q)
{
  const struct storage *st = q->format.storage;

  q->file_end = storage_size (st);
  q->end = round_up (q->file_end, q->g.cluster_size);
  q->fresh_from = st->caps.reads_zero_past_end ? q->end : UINT64_MAX;
}

int
qed_begin_write (struct format *f, struct error *e)
{
  struct qed *q = to_qed (f);

  if (f->dirty_flag) {
    log_warning ("%s: the image was not closed cleanly; it is being checked",
                 f->storage->name);
    if (qed_mend (q, e) == -1)
      return -1;
    f->dirty_flag = false;
  }
  if (qed_learn_tables (q, e) == -1 || clear_autoclear (q, e) == -1)
    return -1;
  mutex_lock (q->cache.mutex);
  init_space (q);
  q->writing = true;
  mutex_unlock (q->cache.mutex);
  return 0;
}

/* ---- the driver ---- */

const struct format_ops format_qed = {
  .name = "qed",
  .has_backing = true,
  .create_options = qed_create_options,
  .probe = qed_probe,
  .create = qed_create,
  .open = qed_open,
  .activate = qed_activate,
  .begin_write = qed_begin_write,
  .close = qed_close,
  .map = qed_map,
  .reserve = qed_reserve,
  .link = qed_link,
  .abandon = qed_abandon,
  .unmap = qed_unmap,
  .flush = qed_flush,
  .metadata_dirty = qed_metadata_dirty,
  .resize = qed_resize,
  .check = qed_check,
  .set_backing = qed_set_backing,
};
