/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Key slots: see luks.h.  Layer: formats.  No locking.
 * Specification: "LUKS operations": initialisation, add new password, master
 * key recovery.
 *
 *   passphrase --PBKDF2--> slot key;  key material --decrypt, merge--> a key;
 *   it is the disk's if PBKDF2 of it is the digest in the header.
 *
 * PBKDF2 is work that the header asks for: no more than max_iterations of it
 * are done for a slot.  Keys are wiped as soon as they have been used.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/afsplit.h"
#include "common/bytes.h"
#include "common/secure.h"
#include "formats/luks/luks.h"

static int
check_iterations (const char *what, uint32_t iterations,
                  const struct format_key *key, struct error *e)
{
  if (iterations <= key->max_iterations)
    return 0;
  return error_set (e, E2BIG, "LUKS: %s asks for %u iterations of PBKDF2, and "
                    "%" PRIu64 " is the most that is done; max-iterations=%u "
                    "(encrypt.max-iterations with qcow2) among the image "
                    "options allows it", what, iterations,
                    key->max_iterations, iterations);
}

/* ---- the digest ---- */

static int
digest_of (const struct luks_header *h, enum hash hash,
           const uint8_t *master, const bool *cancel,
           uint8_t digest[LUKS_DIGEST], struct error *e)
{
  const struct pbkdf2 p = {
    .hash = hash, .password = master, .password_len = h->key_bytes,
    .salt = h->digest_salt, .salt_len = LUKS_SALT,
    .iterations = h->digest_iterations, .cancel = cancel,
  };

  return pbkdf2 (&p, digest, LUKS_DIGEST, e);
}

/* ---- one slot ---- */

/* The cipher of slot I's key material. */
static struct disk_cipher *
slot_cipher (const struct luks_header *h, unsigned i,
             const struct luks_spec *spec, const struct secret *passphrase,
             const bool *cancel, struct error *e)
{
  const struct pbkdf2 p = {
    .hash = spec->hash, .password = passphrase->data,
    .password_len = passphrase->len, .salt = h->slots[i].salt,
    .salt_len = LUKS_SALT, .iterations = h->slots[i].iterations,
    .cancel = cancel,
  };
  uint8_t key[CIPHER_MAX_KEY];
  struct disk_cipher *c = NULL;

  if (pbkdf2 (&p, key, h->key_bytes, e) == 0)
    c = disk_cipher_new (&spec->cipher, key, e);
  secure_wipe (key, sizeof key);
  return c;
}

static int
read_material (const struct luks_header *h, unsigned i, struct storage *st,
               uint64_t base, struct disk_cipher *c, enum hash hash,
               uint8_t *master, struct error *e)
{
  size_t len = (size_t) luks_material_bytes (h);
  uint64_t at = base + (uint64_t) h->slots[i].offset * SECTOR_SIZE;
  uint8_t *material = malloc (len);
  int r = -1;

  if (!material)
    return error_nomem (e, "key material", len);
  if (storage_pread (st, material, len, at, e) == 0
      && disk_decrypt (c, material, len, 0, e) == 0)
    r = af_merge (hash, material, h->key_bytes, LUKS_STRIPES, master, e);
  secure_free (material, len);
  return r;
}

/* 1 = MASTER is the key; 0 = the passphrase is not this slot's. */
static int
try_slot (const struct luks_header *h, unsigned i,
          const struct luks_spec *spec, struct storage *st, uint64_t base,
          const struct format_key *key, uint8_t *master, struct error *e)
{
  struct disk_cipher *c = slot_cipher (h, i, spec, key->secret, key->cancel,
                                       e);
  uint8_t digest[LUKS_DIGEST];
  int r = -1;

  if (!c)
    return -1;
  if (read_material (h, i, st, base, c, spec->hash, master, e) == 0
      && digest_of (h, spec->hash, master, key->cancel, digest, e) == 0)
    r = secure_equal (digest, h->digest, LUKS_DIGEST);
  disk_cipher_free (c);
  if (r != 1)
    secure_wipe (master, CIPHER_MAX_KEY);
  return r;
}

/* ---- unlock ---- */

/* Nothing opened: was it the passphrase? */
static int
not_unlocked (unsigned active, const struct error *refused, struct error *e)
{
  if (refused->err) {
    *e = *refused;
    return -1;
  }
  return error_set (e, EPERM, active
                    ? "Invalid password, cannot unlock any keyslot"
                    : "LUKS: no key slot is active, so no passphrase opens "
                    "the disk any more");
}

int
luks_unlock (const struct luks_header *h, struct storage *st, uint64_t base,
             const struct format_key *key, uint8_t master[CIPHER_MAX_KEY],
             struct error *e)
{
  struct error refused = ERROR_INIT;
  struct luks_spec spec;
  unsigned active = 0;
  char name[32];
  int r = 0;

  if (luks_spec (h, &spec, e) == -1
      || check_iterations ("the digest of the key", h->digest_iterations, key,
                           e) == -1)
    return -1;
  for (unsigned i = 0; r == 0 && i < LUKS_SLOTS; ++i) {
    if (!h->slots[i].active)
      continue;
    active++;
    snprintf (name, sizeof name, "key slot %u", i);
    if (check_iterations (name, h->slots[i].iterations, key, &refused) == 0)
      r = try_slot (h, i, &spec, st, base, key, master, e);
  }
  if (r == 0)
    return not_unlocked (active, &refused, e);
  return r == 1 ? 0 : -1;
}

int
luks_slot_opens (const struct luks_header *h, unsigned i, struct storage *st,
                 uint64_t base, const struct format_key *key,
                 struct error *e)
{
  uint8_t master[CIPHER_MAX_KEY];
  struct luks_spec spec;
  int r;

  if (luks_spec (h, &spec, e) == -1
      || check_iterations ("the digest of the key", h->digest_iterations, key,
                           e) == -1
      || check_iterations ("a key slot", h->slots[i].iterations, key, e) == -1)
    return -1;
  r = try_slot (h, i, &spec, st, base, key, master, e);
  secure_wipe (master, sizeof master);
  return r;
}

struct disk_cipher *
luks_cipher (const struct luks_header *h, struct storage *st, uint64_t base,
             const struct format_key *key, struct error *e)
{
  uint8_t master[CIPHER_MAX_KEY];
  struct luks_spec spec;
  struct disk_cipher *c = NULL;

  if (luks_unlock (h, st, base, key, master, e) == 0
      && luks_spec (h, &spec, e) == 0)
    c = disk_cipher_new (&spec.cipher, master, e);
  secure_wipe (master, sizeof master);
  return c;
}

/* ---- a new slot ---- */

static int
make_material (const struct luks_header *h, const struct luks_spec *spec,
               const uint8_t *master, struct disk_cipher *c,
               uint8_t *material, struct error *e)
{
  size_t len = (size_t) luks_material_bytes (h);

  memset (material, 0, len);    /* what fills its last sector */
  if (af_split (spec->hash, master, h->key_bytes, LUKS_STRIPES, material,
                e) == 0
      && disk_encrypt (c, material, len, 0, e) == 0)
    return 0;
  secure_wipe (material, len);
  return -1;
}

int
luks_fill_slot (struct luks_header *h, unsigned i,
                const struct luks_spec *spec, const uint8_t *master,
                const struct secret *passphrase, uint64_t iter_time,
                const bool *cancel, uint8_t *material, struct error *e)
{
  struct luks_slot *s = &h->slots[i];
  struct disk_cipher *c;
  int r;

  if (pbkdf2_calibrate (spec->hash, h->key_bytes, iter_time, &s->iterations,
                        e) == -1
      || secure_random (s->salt, LUKS_SALT, e) == -1)
    return -1;
  c = slot_cipher (h, i, spec, passphrase, cancel, e);
  if (!c)
    return -1;
  r = make_material (h, spec, master, c, material, e);
  disk_cipher_free (c);
  if (r == 0)
    s->active = true;
  return r;
}
