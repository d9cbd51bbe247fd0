/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Ciphers of disks, sector by sector: see cipher.h.  Layer: common.
 *
 * Locking: none but cipher.c's: a struct disk_cipher is constant.
 *
 * How an IV is made from the number of a sector ("LUKS1 On-Disk Format
 * Specification", cipher modes; dm-crypt's names):
 *   plain     the low 32 bits of the number, little endian, then zeroes
 *   plain64   64 bits of it
 *   essiv:H   plain64, encrypted with the hash H of the disk's key
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cipher.h"
#include "common/secure.h"

static const char *const ivgen_names[NR_CIPHER_IVGENS] = {
  [IVGEN_PLAIN] = "plain", [IVGEN_PLAIN64] = "plain64",
  [IVGEN_ESSIV] = "essiv",
};

const char *
cipher_ivgen_name (enum cipher_ivgen ivgen)
{
  return ivgen_names[ivgen];
}

int
cipher_ivgen_by_name (const char *name, enum cipher_ivgen *ivgen)
{
  for (int i = 0; i < NR_CIPHER_IVGENS; ++i)
    if (strcmp (ivgen_names[i], name) == 0) {
      *ivgen = (enum cipher_ivgen) i;
      return 0;
    }
  return -1;
}

struct disk_cipher {
  struct cipher_spec spec;
  struct cipher *data;          /* owned */
  struct cipher *essiv;         /* owned; NULL = not needed */
};

/* One block in CBC with an IV of zeroes is the block cipher itself. */
static struct cipher *
essiv_cipher (const struct cipher_spec *spec, const void *key,
              struct error *e)
{
  uint8_t salt[HASH_MAX_SIZE];
  struct cipher *c = NULL;

  if (hash_compute (spec->ivgen_hash, key, spec->key_len, NULL, 0, salt,
                    e) == 0)
    c = cipher_new (spec->alg, CIPHER_CBC, salt, hash_size (spec->ivgen_hash),
                    e);
  secure_wipe (salt, sizeof salt);
  return c;
}

struct disk_cipher *
disk_cipher_new (const struct cipher_spec *spec, const void *key,
                 struct error *e)
{
  struct disk_cipher *c;

  if (cipher_check (spec, e) == -1)
    return NULL;
  c = calloc (1, sizeof *c);
  if (!c) {
    error_nomem (e, "a cipher", sizeof *c);
    return NULL;
  }
  c->spec = *spec;
  c->data = cipher_new (spec->alg, spec->mode, key, spec->key_len, e);
  if (c->data && spec->ivgen == IVGEN_ESSIV)
    c->essiv = essiv_cipher (spec, key, e);
  if (c->data && (c->essiv || spec->ivgen != IVGEN_ESSIV))
    return c;
  disk_cipher_free (c);
  return NULL;
}

void
disk_cipher_free (struct disk_cipher *c)
{
  if (!c)
    return;
  cipher_free (c->data);
  cipher_free (c->essiv);
  free (c);
}

/* ---- sectors ---- */

static int
make_iv (const struct disk_cipher *c, struct cipher_handle *essiv,
         uint64_t sector, uint8_t iv[CIPHER_MAX_BLOCK], struct error *e)
{
  static const uint8_t zeroes[CIPHER_MAX_BLOCK];

  if (c->spec.ivgen == IVGEN_PLAIN)
    sector &= UINT32_MAX;
  memset (iv, 0, CIPHER_MAX_BLOCK);
  put_le64 (iv, sector);
  if (!essiv)
    return 0;
  return cipher_run (essiv, true, zeroes, iv, cipher_block_size (c->spec.alg),
                     e);
}

static int
run_sectors (struct disk_cipher *c, struct cipher_handle *data,
             struct cipher_handle *essiv, bool encrypt, uint8_t *buf,
             size_t len, uint64_t sector, struct error *e)
{
  uint8_t iv[CIPHER_MAX_BLOCK];

  for (size_t done = 0; done < len; done += SECTOR_SIZE, ++sector)
    if (make_iv (c, essiv, sector, iv, e) == -1
        || cipher_run (data, encrypt, iv, buf + done, SECTOR_SIZE, e) == -1)
      return -1;
  return 0;
}

static int
run (struct disk_cipher *c, bool encrypt, void *buf, size_t len,
     uint64_t sector, struct error *e)
{
  struct cipher_handle *data = cipher_acquire (c->data, e), *essiv = NULL;
  int r = -1;

  if (!data)
    return -1;
  if (c->essiv)
    essiv = cipher_acquire (c->essiv, e);
  if (essiv || !c->essiv)
    r = run_sectors (c, data, essiv, encrypt, buf, len, sector, e);
  if (essiv)
    cipher_release (c->essiv, essiv);
  cipher_release (c->data, data);
  return r;
}

int
disk_encrypt (struct disk_cipher *c, void *buf, size_t len, uint64_t sector,
              struct error *e)
{
  return run (c, true, buf, len, sector, e);
}

int
disk_decrypt (struct disk_cipher *c, void *buf, size_t len, uint64_t sector,
              struct error *e)
{
  return run (c, false, buf, len, sector, e);
}
