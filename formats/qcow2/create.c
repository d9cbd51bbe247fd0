/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Creation of a qcow2 image.  Layer: formats.  No locking: nobody else knows
 * the storage yet.  Specification: "Header", "Header extensions", "Host cluster
 * management", "Cluster mapping".
 *
 * Layout, in clusters: header, refcount table, refcount blocks, L1 table, LUKS
 * header if there is one, L2 tables and data (the last two only where they are
 * preallocated).  Tables of
 * one kind lie side by side, so that they are written, and later checked, in
 * large sequential requests.
 *
 * Order on disk: what an older image left in the first sector, barrier; all
 * tables and the rest of the header cluster, barrier; the first sector,
 * barrier.  A crash before the last step leaves a file that is no image.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/secure.h"
#include "formats/blank.h"
#include "formats/preallocation.h"
#include "formats/qcow2/create.h"

/* ---- layout ---- */

/* The smallest number of refcount blocks and table clusters that cover OTHER
 * clusters and themselves.  It is found after a few rounds, as a block covers
 * at least 64 clusters.
 */
static void
size_refcounts (struct plan *p, uint64_t other)
{
  uint64_t cluster_size = UINT64_C (1) << p->cluster_bits;
  uint64_t per_block = (cluster_size * 8) >> p->refcount_order;
  uint64_t total;

  p->refblocks = p->reftable = 1;
  do {
    total = other + p->refblocks + p->reftable;
    p->refblocks = div_round_up (total, per_block);
    p->reftable = div_round_up (p->refblocks * 8, cluster_size);
  } while (other + p->refblocks + p->reftable != total);
  p->total = total;
}

static void
place_tables (struct plan *p)
{
  unsigned bits = p->cluster_bits;

  p->reftable_offset = UINT64_C (1) << bits;
  p->refblocks_offset = p->reftable_offset + (p->reftable << bits);
  p->l1_offset = p->refblocks_offset + (p->refblocks << bits);
  p->crypto_offset = p->l1_offset + (p->l1 << bits);
  p->l2_offset = p->crypto_offset + (p->crypto << bits);
  p->data_offset = p->l2_offset + (p->l2 << bits);
  p->end = p->data_offset + (p->data << bits);
}

int
qcow2_create_layout (struct plan *p, struct error *e)
{
  uint64_t cluster_size = UINT64_C (1) << p->cluster_bits;
  unsigned l2_bits = p->cluster_bits - (p->extended_l2 ? 4 : 3);
  uint64_t clusters = div_round_up (p->size, cluster_size);

  p->l1_size = max_u64 (div_round_up (clusters, UINT64_C (1) << l2_bits), 1);
  if (p->l1_size > MAX_L1_BYTES / 8)
    return error_set (e, EFBIG, "The image size is too large for file format"
                      " 'qcow2' (try using a larger cluster size)");
  p->l1 = div_round_up (p->l1_size * 8, cluster_size);

  /* A raw data file is valid without the tables, so all of it is mapped. */
  if (p->data_file_raw && p->preallocation == PREALLOCATION_OFF)
    p->preallocation = PREALLOCATION_METADATA;
  if (p->preallocation != PREALLOCATION_OFF) {
    p->l2 = clusters ? p->l1_size : 0;
    p->data = p->data_file ? 0 : clusters;
  }

  if (p->crypt_method == CRYPT_LUKS)
    p->crypto = div_round_up (luks_total_bytes (&p->luks), cluster_size);

  /* data <= 2^52 clusters, the tables are a small part of that. */
  size_refcounts (p, 1 + p->l1 + p->crypto + p->l2 + p->data);
  place_tables (p);
  return 0;
}

/* Of a disk that is not preallocated the tables are small. */
static int
check_layout (const struct plan *p, struct error *e)
{
  if (p->reftable <= MAX_REFTABLE_BYTES >> p->cluster_bits
      && p->total <= ENTRY_OFFSET_MASK >> p->cluster_bits)
    return 0;
  return error_set (e, EFBIG, "The image size is too large to be preallocated"
                    " (try a larger cluster size, or smaller refcount_bits)");
}

/* ---- header ---- */

struct feature {
  uint8_t type, bit;            /* type: 0 incompatible, 1 compatible,
                                   2 autoclear */
  const char *name;
};
static const struct feature features[] = {
  { 0, 0, "dirty bit" },
  { 0, 1, "corrupt bit" },
  { 0, 2, "external data file" },
  { 0, 3, "compression type" },
  { 0, 4, "extended L2 entries" },
  { 1, 0, "lazy refcounts" },
  { 2, 0, "bitmaps" },
  { 2, 1, "raw external data" },
};
enum {
  NR_FEATURES = sizeof features / sizeof features[0],
  FEATURE_ENTRY = 48,
  EXTENSION_HEADER = 8,
};

/* The header cluster while it is put together. */
struct header {
  uint8_t *buf;                 /* one cluster of zeroes at first */
  uint64_t size;                /* of a cluster */
  uint64_t used;
};

static int
add_extension (struct header *h, uint32_t type, const void *data, size_t len,
               struct error *e)
{
  uint64_t length = EXTENSION_HEADER + round_up (len, 8);

  if (length > h->size - h->used)
    return error_set (e, ENOSPC, "the names of the backing file, its format and"
                      " the data file do not fit into a cluster of %" PRIu64
                      " bytes (try a larger cluster size)", h->size);
  put_be32 (h->buf + h->used, type);
  put_be32 (h->buf + h->used + 4, (uint32_t) len);
  if (len)
    memcpy (h->buf + h->used + EXTENSION_HEADER, data, len);
  h->used += length;
  return 0;
}

/* The table is a help for programs that do not know a feature.  Small clusters
 * have no room for it beside the longest backing file name, which a later
 * rebase may want to store.
 */
static int
add_feature_names (struct header *h, struct error *e)
{
  uint8_t table[NR_FEATURES * FEATURE_ENTRY] = { 0 };

  if (h->size - h->used < 2 * EXTENSION_HEADER + sizeof table
      + MAX_BACKING_NAME + 1)
    return 0;
  for (size_t i = 0; i < NR_FEATURES; ++i) {
    uint8_t *p = &table[i * FEATURE_ENTRY];

    p[0] = features[i].type;
    p[1] = features[i].bit;
    memcpy (p + 2, features[i].name, strlen (features[i].name));
  }
  return add_extension (h, EXT_FEATURE_NAMES, table, sizeof table, e);
}

static int
add_backing_name (const struct plan *p, struct header *h, struct error *e)
{
  size_t len = strlen (p->backing_file);

  if (len > h->size - h->used)
    return error_set (e, ENOSPC, "the name of the backing file does not fit"
                      " into a cluster of %" PRIu64 " bytes (try a larger"
                      " cluster size)", h->size);
  memcpy (h->buf + h->used, p->backing_file, len);
  put_be64 (h->buf + H_BACKING_FILE_OFFSET, h->used);
  put_be32 (h->buf + H_BACKING_FILE_SIZE, (uint32_t) len);
  return 0;
}

static void
put_fixed_fields (const struct plan *p, uint8_t *b)
{
  put_be32 (b + H_MAGIC, QCOW2_MAGIC);
  put_be32 (b + H_VERSION, p->version);
  put_be32 (b + H_CLUSTER_BITS, p->cluster_bits);
  put_be64 (b + H_SIZE, p->size);
  put_be32 (b + H_CRYPT_METHOD, p->crypt_method);
  put_be32 (b + H_L1_SIZE, (uint32_t) p->l1_size);
  put_be64 (b + H_L1_TABLE_OFFSET, p->l1_offset);
  put_be64 (b + H_REFCOUNT_TABLE_OFFSET, p->reftable_offset);
  put_be32 (b + H_REFCOUNT_TABLE_CLUSTERS, (uint32_t) p->reftable);
  if (p->version < 3)
    return;
  put_be64 (b + H_INCOMPATIBLE_FEATURES,
            (p->data_file ? INCOMPAT_DATA_FILE : 0)
            | (p->codec != CODEC_DEFLATE ? INCOMPAT_COMPRESSION : 0)
            | (p->extended_l2 ? INCOMPAT_EXTENDED_L2 : 0));
  put_be64 (b + H_COMPATIBLE_FEATURES,
            p->lazy_refcounts ? COMPAT_LAZY_REFCOUNTS : 0);
  put_be64 (b + H_AUTOCLEAR_FEATURES,
            p->data_file_raw ? AUTOCLEAR_DATA_FILE_RAW : 0);
  put_be32 (b + H_REFCOUNT_ORDER, p->refcount_order);
  put_be32 (b + H_HEADER_LENGTH, H_OUR_LENGTH);
  b[H_COMPRESSION_TYPE] = p->codec == CODEC_DEFLATE ? 0 : 1;
}

static int
add_crypto (const struct plan *p, struct header *h, struct error *e)
{
  uint8_t place[16];

  if (!p->crypto)
    return 0;
  put_be64 (place, p->crypto_offset);
  put_be64 (place + 8, luks_total_bytes (&p->luks));
  return add_extension (h, EXT_CRYPTO, place, sizeof place, e);
}

static int
make_header (const struct plan *p, struct header *h, struct error *e)
{
  put_fixed_fields (p, h->buf);
  h->used = p->version < 3 ? H_V2_LENGTH : H_OUR_LENGTH;
  if (p->backing_format
      && add_extension (h, EXT_BACKING_FORMAT, p->backing_format,
                        strlen (p->backing_format), e) == -1)
    return -1;
  if (p->data_file && add_extension (h, EXT_DATA_FILE, p->data_file,
                                     strlen (p->data_file), e) == -1)
    return -1;
  if (add_crypto (p, h, e) == -1
      || (p->version >= 3 && add_feature_names (h, e) == -1))
    return -1;
  if (add_extension (h, EXT_END, NULL, 0, e) == -1)
    return -1;
  return p->backing_file ? add_backing_name (p, h, e) : 0;
}

/* ---- tables ---- */

/* Large enough for one cluster of any size. */
#define BUFFER_SIZE (2 * MiB)

/* Write entries 0..NR-1 of 8 bytes to OFFSET, the rest of the last cluster as
 * zeroes; ENTRY says what each is.
 */
static int
write_entries (struct storage *st, const struct plan *p, uint64_t offset,
               uint64_t nr, uint64_t (*entry) (const struct plan *, uint64_t),
               uint8_t *buf, struct error *e)
{
  uint64_t end = round_up (nr * 8, UINT64_C (1) << p->cluster_bits);

  for (uint64_t at = 0; at < end; ) {
    size_t len = (size_t) min_u64 (BUFFER_SIZE, end - at);

    for (size_t i = 0; i < len; i += 8)
      put_be64 (buf + i, (at + i) / 8 < nr ? entry (p, (at + i) / 8) : 0);
    if (storage_pwrite (st, buf, len, offset + at, 0, e) == -1)
      return -1;
    at += len;
  }
  return 0;
}

static uint64_t
reftable_entry (const struct plan *p, uint64_t i)
{
  return p->refblocks_offset + (i << p->cluster_bits);
}

static uint64_t
l1_entry (const struct plan *p, uint64_t i)
{
  return (p->l2_offset + (i << p->cluster_bits)) | ENTRY_COPIED;
}

/* What nobody wrote reads as zeroes; but decrypted it would be random bytes, so
 * the zero flag says it, which version 2 does not have.
 */
static uint64_t
entry_flags (const struct plan *p)
{
  return ENTRY_COPIED
    | (p->crypt_method != CRYPT_NONE && p->version >= 3 ? L2_ZERO : 0);
}

static uint64_t
l2_entry (const struct plan *p, uint64_t i)
{
  return (p->data_offset + (i << p->cluster_bits)) | entry_flags (p);
}

/* In an external data file each cluster has its guest offset. */
static uint64_t
l2_entry_data_file (const struct plan *p, uint64_t i)
{
  return (i << p->cluster_bits) | entry_flags (p);
}

/* The second half of an extended entry is 0: no subcluster is allocated, so
 * that the backing file, or zeroes, are read.
 */
static uint64_t
extended_l2_entry (const struct plan *p, uint64_t i)
{
  if (i % 2)
    return 0;
  i /= 2;
  return (p->data_file ? l2_entry_data_file (p, i) : l2_entry (p, i))
    & ~L2_ZERO;
}

static int
write_l2 (struct storage *st, const struct plan *p, uint8_t *buf,
          struct error *e)
{
  uint64_t clusters = div_round_up (p->size, UINT64_C (1) << p->cluster_bits);

  if (p->extended_l2)
    return write_entries (st, p, p->l2_offset, clusters * 2,
                          extended_l2_entry, buf, e);
  return write_entries (st, p, p->l2_offset, clusters,
                        p->data_file ? l2_entry_data_file : l2_entry, buf, e);
}

/* All clusters have refcount 1; those after the last one have 0. */
static int
write_refblocks (struct storage *st, const struct plan *p, uint8_t *buf,
                 struct error *e)
{
  uint64_t end = p->refblocks << p->cluster_bits;
  uint64_t per_buffer = (BUFFER_SIZE * 8) >> p->refcount_order;
  uint64_t first = 0;           /* cluster of the first entry in the buffer */

  memset (buf, 0, BUFFER_SIZE);
  for (uint64_t i = 0; i < min_u64 (per_buffer, p->total); ++i)
    refcount_set (buf, i, p->refcount_order, 1);
  for (uint64_t at = 0; at < end; at += BUFFER_SIZE, first += per_buffer) {
    size_t len = (size_t) min_u64 (BUFFER_SIZE, end - at);

    for (uint64_t i = p->total - first; i < per_buffer; ++i)
      refcount_set (buf, i, p->refcount_order, 0);
    if (storage_pwrite (st, buf, len, p->refblocks_offset + at, 0, e) == -1)
      return -1;
  }
  return 0;
}

/* ---- writing ---- */

/* The data file gets the disk's size and reads as zeroes. */
static int
prepare_data_file (struct storage *st, const struct plan *p, struct error *e)
{
  if (st->caps.can_grow && st->caps.reads_zero_past_end) {
    if (storage_truncate (st, 0, e) == -1
        || storage_truncate (st, p->size, e) == -1)
      return -1;
  }
  else {
    if (!st->caps.can_grow && storage_size (st) < p->size)
      return error_set (e, ENOSPC, "%s: has %" PRIu64 " bytes, the disk"
                        " needs %" PRIu64, st->name, storage_size (st),
                        p->size);
    if (p->size && storage_zero (st, 0, p->size, STORAGE_MAY_UNMAP, e) == -1)
      return -1;
  }
  if (preallocate (st, 0, p->size, p->preallocation, e) == -1)
    return -1;
  return storage_flush (st, e);
}

static int
write_tables (struct storage *st, const struct plan *p, uint8_t *buf,
              struct error *e)
{
  if (write_entries (st, p, p->reftable_offset, p->refblocks, reftable_entry,
                     buf, e) == -1
      || write_refblocks (st, p, buf, e) == -1)
    return -1;
  if (p->l2 == 0)
    return 0;
  if (write_entries (st, p, p->l1_offset, p->l2, l1_entry, buf, e) == -1)
    return -1;
  return write_l2 (st, p, buf, e);
}

static int
write_image (struct storage *st, struct storage *data_file,
             const struct plan *p, const struct header *h, uint8_t *buf,
             struct error *e)
{
  if (storage_blank (st, p->end, e) == -1)
    return -1;
  if (data_file && prepare_data_file (data_file, p, e) == -1)
    return -1;
  if (p->luks_header
      && storage_pwrite (st, p->luks_header,
                         (size_t) luks_total_bytes (&p->luks),
                         p->crypto_offset, 0, e) == -1)
    return -1;
  if (write_tables (st, p, buf, e) == -1
      || preallocate (st, p->data_offset,
                      p->data_offset + (p->data << p->cluster_bits),
                      p->preallocation, e) == -1)
    return -1;
  if (h->size > SECTOR_SIZE
      && storage_pwrite (st, h->buf + SECTOR_SIZE,
                         (size_t) h->size - SECTOR_SIZE, SECTOR_SIZE, 0,
                         e) == -1)
    return -1;
  if (storage_flush (st, e) == -1
      || storage_pwrite (st, h->buf, SECTOR_SIZE, 0, 0, e) == -1)
    return -1;
  return storage_flush (st, e);
}

/* Deriving keys takes seconds, in which the storage is as it was. */
static int
make_luks_header (const struct format_create_options *opts, struct plan *p,
                  struct error *e)
{
  size_t len = (size_t) luks_total_bytes (&p->luks);

  if (!p->crypto)
    return 0;
  p->luks_header = malloc (len);
  if (!p->luks_header)
    return error_nomem (e, "the LUKS header", len);
  return luks_make (&p->luks, opts->cancel, p->luks_header, e);
}

static int
create (struct storage *st, const struct format_create_options *opts,
        struct plan *p, struct error *e)
{
  struct header header = { .size = UINT64_C (1) << p->cluster_bits };
  CLEANUP_FREE uint8_t *cluster = calloc (1, (size_t) header.size);
  CLEANUP_FREE uint8_t *buf = malloc (BUFFER_SIZE);

  if (!cluster || !buf)
    return error_nomem (e, "tables", BUFFER_SIZE);
  header.buf = cluster;
  if (make_header (p, &header, e) == -1 || make_luks_header (opts, p, e) == -1)
    return -1;
  return write_image (st, p->data_file ? opts->data_file : NULL, p, &header,
                      buf, e);
}

int
qcow2_create (struct storage *st, const struct format_create_options *opts,
              struct error *e)
{
  struct plan plan = { .size = 0 };
  int r;

  /* All that can be refused is refused before the storage is touched. */
  if (qcow2_create_plan (opts, &plan, e) == -1
      || qcow2_create_layout (&plan, e) == -1
      || check_layout (&plan, e) == -1)
    return -1;
  r = create (st, opts, &plan, e);
  secure_free (plan.luks_header,
               plan.crypto ? (size_t) luks_total_bytes (&plan.luks) : 0);
  return r;
}
