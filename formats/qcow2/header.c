/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Header, header extensions and feature bits; open, activate, begin_write.
 * Layer: formats.  Locking: open and activate have the image for themselves;
 * the corrupt bit is set under the mutex.
 * Specification: "Header", "Feature name table", "Header extensions".
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow2/qcow2.h"

int
qcow2_probe (const uint8_t *buf, size_t len, uint64_t size)
{
  uint32_t version;

  if (len < H_VERSION + 4 || size < H_V2_LENGTH
      || get_be32 (buf + H_MAGIC) != QCOW2_MAGIC)
    return 0;
  version = get_be32 (buf + H_VERSION);
  return version >= 2 ? 100 : 0;
}

/* ---- parse ---- */

/* The first cluster, or what there is of it. */
struct head {
  uint8_t *buf;                 /* owned */
  size_t len;                   /* bytes read: min (cluster, file) */
};

static int
parse_geometry (struct qcow2 *q, const uint8_t *h, struct error *e)
{
  uint32_t magic = get_be32 (h + H_MAGIC);

  q->version = get_be32 (h + H_VERSION);
  q->cluster_bits = get_be32 (h + H_CLUSTER_BITS);
  q->format.info.size = get_be64 (h + H_SIZE);
  q->l1_size = get_be32 (h + H_L1_SIZE);
  q->l1_table_offset = get_be64 (h + H_L1_TABLE_OFFSET);
  q->refcount_table_offset = get_be64 (h + H_REFCOUNT_TABLE_OFFSET);
  q->refcount_table_clusters = get_be32 (h + H_REFCOUNT_TABLE_CLUSTERS);
  q->nb_snapshots = get_be32 (h + H_NB_SNAPSHOTS);
  q->snapshots_offset = get_be64 (h + H_SNAPSHOTS_OFFSET);
  q->crypt_method = get_be32 (h + H_CRYPT_METHOD);

  if (magic != QCOW2_MAGIC)
    return error_set (e, EINVAL, "Image is not in qcow2 format");
  if (q->version != 2 && q->version != 3)
    return error_set (e, ENOTSUP, "Unsupported qcow2 version %u",
                      q->version);
  if (q->cluster_bits < MIN_CLUSTER_BITS || q->cluster_bits > MAX_CLUSTER_BITS)
    return error_set (e, EINVAL, "Unsupported cluster size: 2^%u",
                      q->cluster_bits);
  q->cluster_size = UINT64_C (1) << q->cluster_bits;
  if (q->crypt_method > CRYPT_LUKS)
    return error_set (e, EINVAL, "Unsupported encryption method %u",
                      q->crypt_method);
  return 0;
}

static int
parse_v3 (struct qcow2 *q, const uint8_t *h, size_t len, struct error *e)
{
  uint8_t type = 0;

  q->refcount_order = 4;
  q->header_length = H_V2_LENGTH;
  if (q->version < 3)
    return 0;
  if (len < H_V3_LENGTH)
    return error_set (e, EINVAL, "the file ends within the header (%zu bytes)",
                      len);
  q->incompatible_features = get_be64 (h + H_INCOMPATIBLE_FEATURES);
  q->compatible_features = get_be64 (h + H_COMPATIBLE_FEATURES);
  q->autoclear_features = get_be64 (h + H_AUTOCLEAR_FEATURES);
  q->refcount_order = get_be32 (h + H_REFCOUNT_ORDER);
  q->header_length = get_be32 (h + H_HEADER_LENGTH);
  if (q->header_length < H_V3_LENGTH)
    return error_set (e, EINVAL, "qcow2 header too short (%u bytes)",
                      q->header_length);
  if (q->header_length > q->cluster_size || q->header_length > len)
    return error_set (e, EINVAL, "qcow2 header exceeds cluster size"
                      " (%u bytes)", q->header_length);
  if (q->refcount_order > 6)
    return error_set (e, EINVAL, "Reference count entry width too large:"
                      " 2^%u bits; it may not exceed 64 bits",
                      q->refcount_order);
  if (q->header_length > H_COMPRESSION_TYPE)
    type = h[H_COMPRESSION_TYPE];
  if (!!type != !!(q->incompatible_features & INCOMPAT_COMPRESSION))
    return error_set (e, EINVAL, "Compression type incompatible feature bit"
                      " must %sbe set (compression_type is %u)",
                      type ? "" : "not ", type);
  if (type > 1)
    return error_set (e, ENOTSUP, "Unknown compression type: %u", type);
  q->codec = type == 1 ? CODEC_ZSTD : CODEC_DEFLATE;
  return 0;
}

/* The name of an incompatible bit, from the image's own feature name table. */
static const char *
feature_name (const uint8_t *table, size_t len, unsigned bit, char name[47])
{
  for (size_t i = 0; i + 48 <= len; i += 48)
    if (table[i] == 0 && table[i + 1] == bit) {
      memcpy (name, table + i + 2, 46);
      name[46] = '\0';
      for (char *p = name; *p; ++p)
        if ((unsigned char) *p < ' ' || (unsigned char) *p > '~')
          *p = '?';
      return name;
    }
  return NULL;
}

static int
check_features (struct qcow2 *q, const uint8_t *names, size_t names_len,
                struct error *e)
{
  uint64_t unknown = q->incompatible_features & ~INCOMPAT_KNOWN;
  char buf[47];
  const char *name;
  unsigned bit;

  if (!unknown)
    return 0;
  bit = (unsigned) __builtin_ctzll (unknown);
  name = feature_name (names, names_len, bit, buf);
  if (name && *name)
    return error_set (e, ENOTSUP, "Unsupported qcow2 feature(s): %s"
                      " (incompatible feature bit %u)", name, bit);
  return error_set (e, ENOTSUP, "Unsupported qcow2 feature(s): Unknown"
                    " incompatible feature: %" PRIx64, unknown);
}

/* A copy of LEN bytes as a string without a NUL inside. */
static char *
name_copy (const uint8_t *p, size_t len, const char *what, struct error *e)
{
  char *s;

  if (memchr (p, '\0', len)) {
    error_set (e, EINVAL, "the %s contains a NUL byte", what);
    return NULL;
  }
  s = strndup ((const char *) p, len);
  if (!s)
    error_nomem (e, what, len);
  return s;
}

struct extensions {
  const uint8_t *names;         /* feature name table, NULL = none */
  size_t names_len;
  bool data_file_name;
};

static int
parse_bitmaps (struct qcow2 *q, const uint8_t *p, uint32_t len,
               struct error *e)
{
  if (len != 24)
    return error_set (e, EINVAL, "bitmaps extension: length %u, must be 24",
                      len);
  q->nb_bitmaps = get_be32 (p);
  q->bitmap_directory_size = get_be64 (p + 8);
  q->bitmap_directory_offset = get_be64 (p + 16);
  if (q->nb_bitmaps == 0 || q->nb_bitmaps > 65535
      || q->bitmap_directory_size > MAX_BITMAP_DIRECTORY
      || !is_aligned (q->bitmap_directory_offset, q->cluster_size)
      || q->bitmap_directory_offset > INT64_MAX)
    return error_set (e, EINVAL, "bitmaps extension: %u bitmaps in a directory"
                      " of %" PRIu64 " bytes at 0x%" PRIx64 " is not valid",
                      q->nb_bitmaps, q->bitmap_directory_size,
                      q->bitmap_directory_offset);
  return 0;
}

static int
parse_crypto (struct qcow2 *q, const uint8_t *p, uint32_t len,
              struct error *e)
{
  if (q->crypt_method != CRYPT_LUKS)
    return error_set (e, EINVAL, "CRYPTO header extension only expected with "
                      "LUKS encryption method");
  if (len != 16)
    return error_set (e, EINVAL, "CRYPTO header extension size %u, but "
                      "expected size 16", len);
  q->crypto_header_offset = get_be64 (p);
  q->crypto_header_length = get_be64 (p + 8);
  if (q->crypto_header_length == 0
      || q->crypto_header_length > MAX_CRYPTO_HEADER_BYTES)
    return error_set (e, EINVAL, "the encryption header has %" PRIu64
                      " bytes; it can have 1 to %" PRIu64,
                      q->crypto_header_length,
                      (uint64_t) MAX_CRYPTO_HEADER_BYTES);
  if (q->crypto_header_offset == 0
      || !is_aligned (q->crypto_header_offset, q->cluster_size)
      || q->crypto_header_offset > INT64_MAX - 2 * MAX_CRYPTO_HEADER_BYTES)
    return error_set (e, EINVAL, "Encryption header offset '%" PRIu64 "' is "
                      "not a multiple of cluster size '%" PRIu64 "', or not "
                      "valid", q->crypto_header_offset, q->cluster_size);
  return 0;
}

static int
parse_extension (struct qcow2 *q, uint32_t type, const uint8_t *p,
                 uint32_t len, struct format_needs *needs,
                 struct extensions *x, struct error *e)
{
  switch (type) {
  case EXT_BACKING_FORMAT:
    free (q->backing_format);
    q->backing_format = name_copy (p, len, "backing format", e);
    return q->backing_format ? 0 : -1;
  case EXT_FEATURE_NAMES:
    x->names = p;
    x->names_len = len;
    return 0;
  case EXT_BITMAPS:
    return parse_bitmaps (q, p, len, e);
  case EXT_CRYPTO:
    return parse_crypto (q, p, len, e);
  case EXT_DATA_FILE:
    free (needs->data_file_name);
    needs->data_file_name = name_copy (p, len, "data file name", e);
    return needs->data_file_name ? 0 : -1;
  default:
    return 0;                   /* unknown ones are kept as they stand */
  }
}

/* Extensions lie between the header and the backing file name (or the end of
 * the first cluster).
 */
static int
parse_extensions (struct qcow2 *q, const struct head *head,
                  struct format_needs *needs, struct extensions *x,
                  struct error *e)
{
  uint64_t backing = get_be64 (head->buf + H_BACKING_FILE_OFFSET);
  uint64_t end = head->len, o = q->header_length;
  uint32_t type, len;

  if (backing && backing < end)
    end = backing;
  while (o + 8 <= end) {
    type = get_be32 (head->buf + o);
    len = get_be32 (head->buf + o + 4);
    o += 8;
    if (type == EXT_END)
      return 0;
    if (len > end - o)
      return error_set (e, EINVAL, "Header extension too large: type 0x%x,"
                        " %u bytes at offset %" PRIu64, type, len, o - 8);
    if (parse_extension (q, type, head->buf + o, len, needs, x, e) == -1)
      return -1;
    o += round_up (len, 8);
  }
  return 0;
}

static int
parse_backing (struct qcow2 *q, const struct head *head,
               struct format_needs *needs, struct error *e)
{
  uint64_t offset = get_be64 (head->buf + H_BACKING_FILE_OFFSET);
  uint32_t len = get_be32 (head->buf + H_BACKING_FILE_SIZE);

  if (offset == 0 && len == 0)
    return 0;
  if (offset == 0 || len == 0 || len > MAX_BACKING_NAME)
    return error_set (e, EINVAL, "Backing file name too long or missing: %u"
                      " bytes at offset %" PRIu64, len, offset);
  if (offset < q->header_length || offset > q->cluster_size
      || len > q->cluster_size - offset || offset + len > head->len)
    return error_set (e, EINVAL, "Invalid backing file offset: %" PRIu64
                      " (%u bytes): it must lie in the first cluster, behind"
                      " the header", offset, len);
  needs->backing = name_copy (head->buf + offset, len, "backing file name",
                              e);
  if (!needs->backing)
    return -1;
  if (q->backing_format) {
    needs->backing_format = strdup (q->backing_format);
    if (!needs->backing_format)
      return error_nomem (e, "backing format", strlen (q->backing_format));
  }
  return 0;
}

/* ---- checks ---- */

static int
check_table (const struct qcow2 *q, const char *what, uint64_t offset,
             uint64_t bytes, uint64_t max, struct error *e)
{
  if (bytes > max)
    return error_set (e, EFBIG, "%s too large: %" PRIu64 " bytes, at most %"
                      PRIu64, what, bytes, max);
  if (!is_aligned (offset, q->cluster_size)
      || offset > INT64_MAX - round_up (bytes, q->cluster_size))
    return error_set (e, EINVAL, "%s offset 0x%" PRIx64 " is invalid", what,
                      offset);
  return 0;
}

static int
check_geometry (struct qcow2 *q, struct error *e)
{
  struct format_info *info = &q->format.info;
  uint64_t l1_needed;

  q->extended_l2 = q->incompatible_features & INCOMPAT_EXTENDED_L2;
  if (q->extended_l2 && q->cluster_bits < MIN_EXTENDED_CLUSTER_BITS)
    return error_set (e, EINVAL, "extended L2 entries need clusters of at"
                      " least 16384 bytes; these have %" PRIu64,
                      q->cluster_size);
  q->l2_entry_size = q->extended_l2 ? 16 : 8;
  q->l2_bits = q->cluster_bits - (q->extended_l2 ? 4 : 3);
  q->subcluster_size = q->cluster_size / (q->extended_l2 ? SUBCLUSTERS : 1);
  q->refblock_bits = q->cluster_bits + 3 - q->refcount_order;

  if (info->size > INT64_MAX - (q->cluster_size - 1))
    return error_set (e, EFBIG, "the virtual size %" PRIu64 " is too large",
                      info->size);
  if (check_table (q, "Active L1 table", q->l1_table_offset,
                   (uint64_t) q->l1_size * 8, MAX_L1_BYTES, e) == -1
      || check_table (q, "Reference count table", q->refcount_table_offset,
                      (uint64_t) q->refcount_table_clusters * q->cluster_size,
                      MAX_REFTABLE_BYTES, e) == -1)
    return -1;
  l1_needed = div_round_up (div_round_up (info->size, q->cluster_size),
                            UINT64_C (1) << q->l2_bits);
  if (l1_needed > q->l1_size)
    return error_set (e, EINVAL, "L1 table is too small: %u entries, the"
                      " virtual size needs %" PRIu64, q->l1_size, l1_needed);
  if (q->l1_size > 0 && q->l1_table_offset < q->cluster_size)
    return error_set (e, EINVAL, "Active L1 table offset 0x%" PRIx64
                      " is invalid: the header is there", q->l1_table_offset);
  if (q->refcount_table_clusters == 0 || q->refcount_table_offset == 0)
    return error_set (e, EINVAL, "Image does not contain a reference count"
                      " table");
  return 0;
}

/* Why the image may be read but not written; NULL = it may. */
static const char *
refused_writable (const struct qcow2 *q)
{
  if (q->incompatible_features & INCOMPAT_CORRUPT)
    return "it is marked corrupt: check and repair it first";
  return NULL;
}

/* Who wrote to the image last knew nothing of bitmaps.  They count as if there
 * were none; a directory is written anew when there is one again.
 */
static void
forget_stale_bitmaps (struct qcow2 *q)
{
  if (q->autoclear_features & AUTOCLEAR_BITMAPS)
    return;
  q->stale_bitmaps = q->nb_bitmaps > 0;
  q->nb_bitmaps = 0;
  q->bitmap_directory_offset = 0;
  q->bitmap_directory_size = 0;
}

static int
fill_needs (struct qcow2 *q, struct format_needs *needs, struct error *e)
{
  needs->data_file = q->incompatible_features & INCOMPAT_DATA_FILE;
  q->data_file_raw = needs->data_file
    && (q->autoclear_features & AUTOCLEAR_DATA_FILE_RAW);
  needs->data_file_raw = q->data_file_raw;
  needs->crypto = q->crypt_method == CRYPT_NONE ? NULL
    : q->crypt_method == CRYPT_AES ? "aes" : "luks";
  needs->refused = refused_writable (q);
  needs->writable_refused = needs->refused != NULL;
  if (needs->data_file_name) {
    q->data_file_name = strdup (needs->data_file_name);
    if (!q->data_file_name)
      return error_nomem (e, "data file name",
                          strlen (needs->data_file_name));
  }
  return 0;
}

static void
fill_info (struct qcow2 *q, const struct format_open_options *opts)
{
  struct format *f = &q->format;

  f->dirty_flag = q->incompatible_features & INCOMPAT_DIRTY;
  f->corrupt_flag = q->incompatible_features & INCOMPAT_CORRUPT;
  f->encrypted = q->crypt_method != CRYPT_NONE;
  f->info.iv_base = q->crypt_method == CRYPT_LUKS ? IV_HOST : IV_GUEST;
  f->info.new_is_random = f->encrypted && q->version < 3;
  f->info.cluster_size = (uint32_t) q->cluster_size;
  f->info.cow_size = (uint32_t) q->subcluster_size;
  f->info.alignment = SECTOR_SIZE;
  f->info.vm_state_unit = (uint64_t) q->cluster_size << q->l2_bits;
  f->info.keeps_bitmaps = q->version >= 3;
  f->info.codec = q->codec;
  f->info.can_pack = codec_available (q->codec) && !f->encrypted
    && !(q->incompatible_features & INCOMPAT_DATA_FILE);
  f->info.zero_is_fast = q->version >= 3 && !q->data_file_raw;
  q->writable = opts->writable;
  q->for_check = opts->check;
  q->discard = opts->discard && f->storage->caps.can_punch;
}

void
qcow2_init_allocation (struct qcow2 *q)
{
  struct storage *st = q->format.storage;
  uint64_t size = storage_size (st);

  q->end = round_up (size, q->cluster_size);
  q->fresh_from = UINT64_MAX;
  if (st->caps.can_grow && st->caps.reads_zero_past_end)
    q->fresh_from = q->end;
}

/* ---- open ---- */

static int
read_head (struct storage *st, struct head *head, struct error *e)
{
  uint64_t size = storage_size (st), want = 1 << MAX_CLUSTER_BITS;
  uint8_t start[H_V2_LENGTH];
  uint32_t bits;

  if (size < H_V2_LENGTH)
    return error_set (e, EINVAL, "Could not read qcow2 header: the file has %"
                      PRIu64 " bytes", size);
  if (storage_pread (st, start, sizeof start, 0, e) == -1)
    return -1;
  bits = get_be32 (start + H_CLUSTER_BITS);
  if (bits >= MIN_CLUSTER_BITS && bits <= MAX_CLUSTER_BITS)
    want = UINT64_C (1) << bits;
  head->len = (size_t) min_u64 (want, size);
  head->buf = malloc (head->len);
  if (!head->buf)
    return error_nomem (e, "the header", head->len);
  return storage_pread (st, head->buf, head->len, 0, e);
}

static int
parse (struct qcow2 *q, const struct head *head, struct format_needs *needs,
       struct extensions *x, struct error *e)
{
  if (parse_geometry (q, head->buf, e) == -1
      || parse_v3 (q, head->buf, head->len, e) == -1
      || parse_extensions (q, head, needs, x, e) == -1
      || check_features (q, x->names, x->names_len, e) == -1
      || parse_backing (q, head, needs, e) == -1
      || check_geometry (q, e) == -1)
    return -1;
  forget_stale_bitmaps (q);
  if (q->crypt_method == CRYPT_LUKS && !q->crypto_header_length)
    return error_set (e, EINVAL, "CRYPTO header extension not found, and the"
                      " encryption method is LUKS");
  return 0;
}

struct format *
qcow2_open (struct storage *st, const struct format_open_options *opts,
            struct format_needs *needs, struct error *e)
{
  struct head head = { .buf = NULL };
  struct extensions x = { .names = NULL };
  struct qcow2 *q = calloc (1, sizeof *q);
  int r;

  if (!q) {
    error_nomem (e, "the image", sizeof *q);
    return NULL;
  }
  mutex_init (&q->mutex);
  q->format.ops = &format_qcow2;
  q->format.storage = st;
  r = read_head (st, &head, e);
  if (r == 0)
    r = parse (q, &head, needs, &x, e);
  free (head.buf);
  if (r == 0)
    r = fill_needs (q, needs, e);
  if (r == 0) {
    fill_info (q, opts);
    qcow2_init_allocation (q);
    r = qcow2_snapshots_check (q, e);
  }
  if (r == 0)
    r = table_cache_init (q, opts->cache_size, e);
  if (r == 0)
    return &q->format;
  qcow2_free (q);
  return NULL;
}

int
qcow2_activate (struct format *f, struct storage *data_file, bool has_backing,
                struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);

  if (!(q->incompatible_features & INCOMPAT_DATA_FILE) != !data_file)
    return error_set (e, EINVAL, "%s: %s", f->storage->name, data_file
                      ? "'data-file' can only be set for images with an"
                        " external data file"
                      : "'data-file' is required for this image");
  f->data_file = data_file;
  f->info.data_file_identity = data_file != NULL;
  q->has_backing = has_backing;
  return 0;
}

void
qcow2_free (struct qcow2 *q)
{
  bitmap_set_free (q);
  slices_free (&q->cache);
  known_clear (q);
  freed_list_clear (&q->known_free);
  freed_list_clear (&q->quarantine);
  freed_list_clear (&q->released);
  free (q->backing_format);
  free (q->data_file_name);
  disk_cipher_free (q->format.cipher);
  mutex_destroy (&q->mutex);
  free (q);
}

/* ---- header writes ---- */

int
qcow2_put_header (struct qcow2 *q, uint64_t offset, const void *buf,
                  size_t len, unsigned flags, struct error *e)
{
  struct storage *st = q->format.storage;
  struct error ignored = ERROR_INIT;
  uint8_t old[SECTOR_SIZE];

  assert (len <= sizeof old);
  if (storage_pread (st, old, len, offset, e) == -1)
    return error_prefix (e, "header");
  if (storage_pwrite (st, buf, len, offset, flags, e) == 0)
    return 0;
  storage_pwrite (st, old, len, offset, 0, &ignored);
  return error_prefix (e, "header");
}

int
qcow2_write_header (struct qcow2 *q, uint64_t offset, const void *buf,
                    size_t len, struct error *e)
{
  return qcow2_put_header (q, offset, buf, len, 0, e);
}

int
qcow2_keep_autoclear (struct qcow2 *q, uint64_t keep, struct error *e)
{
  uint8_t field[8];

  keep &= q->autoclear_features;
  if (q->version < 3 || q->autoclear_features == keep)
    return 0;
  put_be64 (field, keep);
  if (qcow2_write_header (q, H_AUTOCLEAR_FEATURES, field, sizeof field,
                          e) == -1
      || storage_flush (q->format.storage, e) == -1)
    return -1;
  q->autoclear_features = keep;
  return 0;
}

int
qcow2_begin_write (struct format *f, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  uint64_t keep = AUTOCLEAR_DATA_FILE_RAW;

  if (f->dirty_flag) {
    log_warning ("%s: the image was not closed cleanly; its refcounts are"
                 " being rebuilt", f->storage->name);
    if (qcow2_mend_dirty (q, e) == -1)
      return -1;
    /* Readers may have cached what has been mended on disk. */
    mutex_lock (&q->mutex);
    table_drop_all_locked (q);
    mutex_unlock (&q->mutex);
    f->dirty_flag = false;
  }
  if (q->stale_bitmaps)
    log_warning ("%s: a program lacking bitmap support modified this file, so"
                 " all bitmaps are now considered inconsistent; clusters may be"
                 " leaked, check -r leaks frees them", f->storage->name);
  if (q->nb_bitmaps)
    keep |= AUTOCLEAR_BITMAPS;
  if (qcow2_keep_autoclear (q, keep, e) == -1
      || qcow2_learn_tables (q, e) == -1
      || qcow2_bitmaps_begin (q, e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  qcow2_init_allocation (q);
  q->writing = true;
  mutex_unlock (&q->mutex);
  return 0;
}

/* The write of the bit is not followed by a barrier here: a barrier may not be
 * waited for with the mutex held, and the next epoch has one.
 */
int
qcow2_corrupt_locked (struct qcow2 *q, struct error *e, const char *fmt, ...)
{
  struct error ignored = ERROR_INIT;
  char text[512];
  uint8_t field[8];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  if (!q->corrupt_told)
    log_warning ("%s: corrupt image: %s", q->format.storage->name, text);
  q->corrupt_told = true;
  if (q->writing && q->version >= 3
      && !(q->incompatible_features & INCOMPAT_CORRUPT)) {
    q->incompatible_features |= INCOMPAT_CORRUPT;
    put_be64 (field, q->incompatible_features);
    if (storage_pwrite (q->format.storage, field, sizeof field,
                        H_INCOMPATIBLE_FEATURES, 0, &ignored) == -1)
      log_warning ("%s", ignored.text);
  }
  return error_set (e, EIO, "%s: corrupt image: %s",
                    q->format.storage->name, text);
}

/* ---- the driver ---- */

const struct format_ops format_qcow2 = {
  .name = "qcow2",
  .has_backing = true,
  .packs = true,
  .create_options = qcow2_create_options,
  .key_option = "encrypt.key-secret",
  .probe = qcow2_probe,
  .create = qcow2_create,
  .measure = qcow2_measure,
  .measure_bitmaps = qcow2_measure_bitmaps,
  .open = qcow2_open,
  .unlock = qcow2_unlock,
  .change_key = qcow2_change_key,
  .activate = qcow2_activate,
  .begin_write = qcow2_begin_write,
  .close = qcow2_close,
  .open_view = qcow2_open_view,
  .close_view = qcow2_close_view,
  .map = qcow2_map,
  .reserve = qcow2_reserve,
  .reserve_packed = qcow2_reserve_packed,
  .link = qcow2_link,
  .abandon = qcow2_abandon,
  .unmap = qcow2_unmap,
  .flush = qcow2_flush,
  .metadata_dirty = qcow2_metadata_dirty,
  .resize = qcow2_resize,
  .resize_preallocated = qcow2_resize_preallocated,
  .reach = qcow2_reach,
  .amend_options = qcow2_amend_options,
  .amend = qcow2_amend,
  .check = qcow2_check,
  .set_backing = qcow2_set_backing,
  .info = qcow2_info,
  .changed = qcow2_changed,
  .bitmaps = qcow2_bitmaps,
  .bitmap_edit = qcow2_bitmap_edit,
  .bitmap_map = qcow2_bitmap_map,
  .snapshots = qcow2_snapshots,
  .snapshot_create = qcow2_snapshot_create,
  .snapshot_apply = qcow2_snapshot_apply,
  .snapshot_delete = qcow2_snapshot_delete,
};
