/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Creation of a qcow image.  Layer: formats.  No locking: nobody else knows the
 * storage yet.
 *
 * Layout: the header, the name of the backing file, the L1 table.  Order on
 * disk: all but the first sector, barrier; the first sector, barrier.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/text.h"
#include "formats/blank.h"
#include "formats/preallocation.h"
#include "formats/qcow/qcow.h"

const struct format_option qcow_create_options[] = {
  { "size", OPTION_SIZE, "Virtual disk size", NULL, false },
  { "backing_file", OPTION_STRING, "File name of a base image", NULL, false },
  { "backing_fmt", OPTION_STRING, "Format of the backing image", NULL, false },
  { "encryption", OPTION_BOOL, "Encrypt the image with format 'aes'. "
    "(Deprecated in favor of encrypt.format=aes)", NULL, false },
  { "encrypt.format", OPTION_STRING, "Encrypt the image, format choices: 'aes'",
    NULL, false },
  { "encrypt.key-secret", OPTION_STRING,
    "ID of the secret that provides the AES encryption key", NULL, false },
  FORMAT_OPTION_NOCOW,
  FORMAT_OPTION_PREALLOCATION,
  FORMAT_OPTION_EXTENT_SIZE_HINT,
  { NULL, OPTION_STRING, NULL, NULL, false },
};

/* The image that is to be written. */
struct plan {
  uint64_t size;                /* virtual, a multiple of 512 bytes */
  unsigned cluster_bits, l2_bits;
  const char *backing_file;     /* or NULL */
  size_t name_length;
  bool encrypted;
  uint64_t l1_table_offset, end;
};

/* encryption=on, or encrypt.format=aes; both need a secret that is there. */
static int
parse_encrypt (const struct format_create_options *opts, struct plan *p,
               struct error *e)
{
  const char *legacy = format_option_text (opts, "encryption");
  const char *format = format_option_text (opts, "encrypt.format");
  const char *key_secret = format_option_text (opts, "encrypt.key-secret");
  struct secret secret;

  if (legacy && parse_bool ("encryption", legacy, &p->encrypted, e) == -1)
    return -1;
  if (p->encrypted && format)
    return error_set (e, EINVAL, "'encrypt.format' and its alias 'encryption' "
                      "can't be used at the same time");
  if (format && strcmp (format, "aes") != 0)
    return error_set (e, EINVAL, "Parameter 'encrypt.format' does not accept "
                      "value '%s'", format);
  p->encrypted |= format != NULL;
  if (!p->encrypted)
    return key_secret ? error_set (e, EINVAL, "Parameter 'encrypt.format' is "
                                   "missing") : 0;
  if (!key_secret)
    return error_set (e, EINVAL, "Parameter 'encrypt.key-secret' is required "
                      "for cipher");
  if (secret_get (key_secret, &secret, e) == -1)
    return -1;
  secret_free (&secret);
  return 0;
}

/* As QEMU: small clusters over a backing file, so that little of it must be
 * copied for a small write, and larger L2 tables for it.
 */
static int
make_plan (const struct format_create_options *opts, struct plan *p,
           struct error *e)
{
  uint64_t l1_size;

  if (parse_encrypt (opts, p, e) == -1
      || preallocation_is_vain (opts, "a qcow image", e) == -1)
    return -1;
  p->backing_file = opts->backing_file;
  p->name_length = p->backing_file ? strlen (p->backing_file) : 0;
  p->cluster_bits = p->backing_file ? 9 : 12;
  p->l2_bits = p->backing_file ? 12 : 9;
  if (opts->size == 0)
    return error_set (e, EINVAL, "Image size is too small, cannot be zero"
                      " length");
  if (p->name_length > Q1_MAX_BACKING_NAME)
    return error_set (e, EINVAL, "the name of the backing file is longer than"
                      " %d bytes", Q1_MAX_BACKING_NAME);
  if (!round_up_ok (opts->size, SECTOR_SIZE, &p->size)
      || p->size > INT64_MAX)
    return error_set (e, EFBIG, "the size %" PRIu64 " is too large",
                      opts->size);
  l1_size = div_round_up (p->size,
                          UINT64_C (1) << (p->cluster_bits + p->l2_bits));
  if (l1_size > Q1_MAX_L1_ENTRIES)
    return error_set (e, EFBIG, "The image size is too large for file format"
                      " 'qcow'");
  p->l1_table_offset = round_up (Q1_LENGTH + p->name_length, 8);
  p->end = p->l1_table_offset + round_up (l1_size * 8, SECTOR_SIZE);
  return 0;
}

static void
make_header (const struct plan *p, uint8_t *h)
{
  put_be32 (h + Q1_MAGIC, QCOW_MAGIC);
  put_be32 (h + Q1_VERSION, 1);
  if (p->backing_file) {
    put_be64 (h + Q1_BACKING_FILE_OFFSET, Q1_LENGTH);
    put_be32 (h + Q1_BACKING_FILE_SIZE, (uint32_t) p->name_length);
    memcpy (h + Q1_LENGTH, p->backing_file, p->name_length);
  }
  put_be64 (h + Q1_SIZE, p->size);
  put_be32 (h + Q1_CRYPT_METHOD, p->encrypted);
  h[Q1_CLUSTER_BITS] = (uint8_t) p->cluster_bits;
  h[Q1_L2_BITS] = (uint8_t) p->l2_bits;
  put_be64 (h + Q1_L1_TABLE_OFFSET, p->l1_table_offset);
}

int
qcow_create (struct storage *st, const struct format_create_options *opts,
             struct error *e)
{
  uint8_t header[Q1_LENGTH + Q1_MAX_BACKING_NAME + SECTOR_SIZE] = { 0 };
  struct plan plan = { .size = 0 };
  size_t len;

  /* All that can be refused is refused before the storage is touched. */
  if (make_plan (opts, &plan, e) == -1)
    return -1;
  make_header (&plan, header);
  len = (size_t) max_u64 (plan.l1_table_offset, SECTOR_SIZE);
  if (storage_blank (st, plan.end, e) == -1
      || (len > SECTOR_SIZE
          && storage_pwrite (st, header + SECTOR_SIZE, len - SECTOR_SIZE,
                             SECTOR_SIZE, 0, e) == -1)
      || storage_flush (st, e) == -1
      || storage_pwrite (st, header, SECTOR_SIZE, 0, 0, e) == -1)
    return -1;
  return storage_flush (st, e);
}
