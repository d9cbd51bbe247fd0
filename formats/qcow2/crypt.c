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
                                        size - start), false, h, e);
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
