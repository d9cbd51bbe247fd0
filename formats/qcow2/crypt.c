/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The key of an encrypted image.  Layer: formats.  Locking: the image is not
 * shared yet.  Specification: "Header" (crypt_method), "Full disk encryption
 * header pointer".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/log.h"
#include "formats/legacy_aes.h"
#include "formats/luks/luks.h"
#include "formats/qcow2/qcow2.h"

/* The LUKS header, none of which may lie behind the end of the file. */
static int
read_luks (const struct qcow2 *q, struct luks_header *h, struct error *e)
{
  struct storage *st = q->format.storage;
  uint64_t size = storage_size (st), start = q->crypto_header_offset;

  if (start >= size)
    return error_set (e, EINVAL, "the encryption header at 0x%" PRIx64
                      " lies behind the end of the file", start);
  return luks_read (st, start, min_u64 (q->crypto_header_length,
                                        size - start), h, e);
}

int
qcow2_unlock (struct format *f, const struct format_key *key, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct luks_header h;

  if (q->crypt_method == CRYPT_AES)
    f->cipher = legacy_aes_new (key->secret, e);
  else if (read_luks (q, &h, e) == 0)
    f->cipher = luks_cipher (&h, f->storage, q->crypto_header_offset, key, e);
  return f->cipher ? 0 : -1;
}

/* Those that can be changed today are at the end. */
#define NOT_BUILT "amend of this option is not built yet"
const struct format_option qcow2_amend_options[] = {
  { "backing_file", OPTION_STRING, "File name of a base image",
    "nbdimg rebase changes it", NULL, false },
  { "backing_fmt", OPTION_STRING, "Image format of the base image",
    "nbdimg rebase changes it", NULL, false },
  { "size", OPTION_SIZE, "Virtual disk size", "nbdimg resize changes it", NULL,
    false },
  { "compat", OPTION_STRING, "Compatibility level (v2 [0.10] or v3 [1.1])",
    NOT_BUILT, NULL, false },
  { "data_file", OPTION_STRING, "File name of an external data file",
    NOT_BUILT, NULL, false },
  { "data_file_raw", OPTION_BOOL,
    "The external data file must stay valid as a raw image", NOT_BUILT, NULL,
    false },
  { "lazy_refcounts", OPTION_BOOL, "Postpone refcount updates", NOT_BUILT,
    NULL, false },
  { "refcount_bits", OPTION_NUMBER,
    "Width of a reference count entry in bits", NOT_BUILT, NULL, false },
  { "encrypt.state", OPTION_STRING,
    "Select new state of affected keyslots (active/inactive)", NULL, NULL,
    false },
  { "encrypt.new-secret", OPTION_STRING,
    "New secret to set in the matching keyslots. Empty string to erase", NULL,
    NULL, false },
  { "encrypt.old-secret", OPTION_STRING,
    "Select all keyslots that match this password", NULL, NULL, false },
  { "encrypt.keyslot", OPTION_NUMBER,
    "Select a single keyslot to modify explicitly", NULL, NULL, false },
  { "encrypt.iter-time", OPTION_NUMBER,
    "Time to spend in PBKDF in milliseconds", NULL, NULL, false },
  { NULL, OPTION_STRING, NULL, NULL, NULL, false },
};

int
qcow2_change_key (struct format *f, const struct format_key *key,
                  const struct format_key_change *change, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct luks_header h;

  if (q->crypt_method != CRYPT_LUKS)
    return error_set (e, ENOTSUP, "only LUKS has key slots that can be "
                      "changed");
  if (read_luks (q, &h, e) == -1)
    return -1;
  return luks_amend (&h, f->storage, q->crypto_header_offset,
                     q->crypto_header_length, key, change, e);
}

/* A damaged header hides nothing else that info has to say. */
int
qcow2_info_crypt (const struct qcow2 *q, json_t *out, struct error *e)
{
  struct error bad = ERROR_INIT;
  struct luks_header h;

  if (q->crypt_method == CRYPT_LUKS && read_luks (q, &h, &bad) == 0)
    return luks_info (&h, true, out, e);
  if (bad.err)
    log_warning ("%s: %s", q->format.storage->name, bad.text);
  if (json_object_set_new (out, "format", json_string
                           (q->crypt_method == CRYPT_AES ? "aes" : "luks"))
      == -1)
    return error_nomem (e, "format", 0);
  return 0;
}
