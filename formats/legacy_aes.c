/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The legacy encryption: see legacy_aes.h.  Layer: formats.  No locking.
 * Specification of qcow2: "Header", crypt_method 1; the key and the IV were
 * found by decrypting what qemu-img wrote (openssl enc -aes-128-cbc).
 */

#include <config.h>

#include <string.h>

#include "common/bytes.h"
#include "common/secure.h"
#include "formats/legacy_aes.h"

struct disk_cipher *
legacy_aes_new (const struct secret *passphrase, struct error *e)
{
  const struct cipher_spec spec = {
    .alg = CIPHER_AES, .mode = CIPHER_CBC, .ivgen = IVGEN_PLAIN64,
    .key_len = 16,
  };
  uint8_t key[16] = { 0 };
  struct disk_cipher *c;

  memcpy (key, passphrase->data, min_u64 (sizeof key, passphrase->len));
  c = disk_cipher_new (&spec, key, e);
  secure_wipe (key, sizeof key);
  return c;
}
