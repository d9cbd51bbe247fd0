/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The key of an encrypted image.  Layer: formats.  Locking: the image is not
 * shared yet.  Specification: "Header" (crypt_method), "Full disk encryption
 * header pointer".
 */

#include <config.h>

#include <errno.h>

#include "formats/legacy_aes.h"
#include "formats/qcow2/qcow2.h"

int
qcow2_unlock (struct format *f, const struct format_key *key, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);

  if (q->crypt_method == CRYPT_AES)
    f->cipher = legacy_aes_new (key->secret, e);
  else
    error_set (e, ENOTSUP, "LUKS is not built yet");
  return f->cipher ? 0 : -1;
}
