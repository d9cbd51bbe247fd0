/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* New LUKS headers: see luks.h.  Layer: formats.  No locking.
 * Specification: "LUKS operations", initialisation.
 *
 * The layout is QEMU's and cryptsetup's: the header, slots from 4096 on, each
 * rounded up to 4096, then the payload.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/secure.h"
#include "common/text.h"
#include "formats/luks/luks.h"

enum { ALIGNMENT = 4096, DEFAULT_ITER_TIME = 2000 };

/* ---- options ---- */

struct reader {
  const struct format_create_options *opts;
  const char *prefix;
};

static const char *
option (const struct reader *r, const char *name)
{
  char key[64];

  snprintf (key, sizeof key, "%s%s", r->prefix, name);
  return json_string_value (json_object_get (r->opts->options, key));
}

static int
bad_value (const struct reader *r, const char *name, const char *value,
           struct error *e)
{
  return error_set (e, EINVAL, "Parameter '%s%s' does not accept value '%s'",
                    r->prefix, name, value);
}

/* QEMU's names: the cipher and the bits of its key. */
static const struct {
  const char *name;
  enum cipher_alg alg;
  size_t key_len;
} algs[] = {
  { "aes-128", CIPHER_AES, 16 },
  { "aes-192", CIPHER_AES, 24 },
  { "aes-256", CIPHER_AES, 32 },
  { "cast5-128", CIPHER_CAST5, 16 },
  { "serpent-128", CIPHER_SERPENT, 16 },
  { "serpent-192", CIPHER_SERPENT, 24 },
  { "serpent-256", CIPHER_SERPENT, 32 },
  { "twofish-128", CIPHER_TWOFISH, 16 },
  { "twofish-192", CIPHER_TWOFISH, 24 },
  { "twofish-256", CIPHER_TWOFISH, 32 },
};

static int
parse_alg (const struct reader *r, struct cipher_spec *c, struct error *e)
{
  const char *text = option (r, "cipher-alg");

  for (size_t i = 0; i < sizeof algs / sizeof algs[0]; ++i)
    if (strcmp (algs[i].name, text ? text : "aes-256") == 0) {
      c->alg = algs[i].alg;
      c->key_len = algs[i].key_len;
      return 0;
    }
  if (strcmp (text, "des") == 0 || strcmp (text, "3des") == 0)
    return error_set (e, ENOTSUP, "Algorithm '%s' not supported", text);
  return bad_value (r, "cipher-alg", text, e);
}

static int
parse_mode (const struct reader *r, struct luks_options *o, struct error *e)
{
  struct cipher_spec *c = &o->spec.cipher;
  const char *mode = option (r, "cipher-mode");
  const char *ivgen = option (r, "ivgen-alg");
  const char *hash = option (r, "ivgen-hash-alg");

  c->mode = CIPHER_XTS;
  c->ivgen = IVGEN_PLAIN64;
  c->ivgen_hash = HASH_SHA256;
  if (mode && cipher_mode_by_name (mode, &c->mode) == -1)
    return bad_value (r, "cipher-mode", mode, e);
  if (ivgen && cipher_ivgen_by_name (ivgen, &c->ivgen) == -1)
    return bad_value (r, "ivgen-alg", ivgen, e);
  if (hash && hash_by_name (hash, &c->ivgen_hash) == -1)
    return bad_value (r, "ivgen-hash-alg", hash, e);
  /* A hash that is given has no use with plain, but is recorded, as by QEMU. */
  o->names_ivgen_hash = hash || c->ivgen == IVGEN_ESSIV;
  if (c->mode == CIPHER_XTS)
    c->key_len *= 2;
  return 0;
}

static int
parse_secret (const struct reader *r, struct luks_options *o,
              struct error *e)
{
  struct secret secret;

  o->key_secret = option (r, "key-secret");
  if (!o->key_secret)
    return error_set (e, EINVAL, "Parameter '%skey-secret' is required for "
                      "cipher", r->prefix);
  if (secret_get (o->key_secret, &secret, e) == -1)
    return -1;
  secret_free (&secret);
  return 0;
}

int
luks_parse_options (const struct format_create_options *opts,
                    const char *prefix, struct luks_options *o,
                    struct error *e)
{
  const struct reader r = { .opts = opts, .prefix = prefix };
  const char *hash = option (&r, "hash-alg"), *time = option (&r, "iter-time");

  *o = (struct luks_options) { .iter_time = DEFAULT_ITER_TIME };
  o->spec.hash = HASH_SHA256;
  if (parse_secret (&r, o, e) == -1
      || parse_alg (&r, &o->spec.cipher, e) == -1
      || parse_mode (&r, o, e) == -1)
    return -1;
  if (hash && hash_by_name (hash, &o->spec.hash) == -1)
    return bad_value (&r, "hash-alg", hash, e);
  if (time && parse_number ("iter-time", time, 0, UINT32_MAX, &o->iter_time,
                            e) == -1)
    return -1;
  return hash_need (o->spec.hash, e) == -1 ? -1
    : cipher_check (&o->spec.cipher, e);
}

/* ---- the header ---- */

static uint64_t
slot_bytes (const struct luks_options *o)
{
  return round_up (o->spec.cipher.key_len * LUKS_STRIPES, ALIGNMENT);
}

uint64_t
luks_total_bytes (const struct luks_options *o)
{
  return ALIGNMENT + LUKS_SLOTS * slot_bytes (o);
}

static void
name_cipher (const struct luks_options *o, struct luks_header *h)
{
  const struct cipher_spec *c = &o->spec.cipher;
  bool hash = o->names_ivgen_hash;

  strcpy (h->cipher_name, cipher_alg_name (c->alg));
  snprintf (h->cipher_mode, LUKS_NAME, "%s-%s%s%s", cipher_mode_name (c->mode),
            cipher_ivgen_name (c->ivgen), hash ? ":" : "",
            hash ? hash_name (c->ivgen_hash) : "");
  strcpy (h->hash_spec, hash_name (o->spec.hash));
}

/* Version 4: random. */
static int
make_uuid (char uuid[LUKS_UUID], struct error *e)
{
  uint8_t b[16];

  if (secure_random (b, sizeof b, e) == -1)
    return -1;
  b[6] = (uint8_t) ((b[6] & 0x0f) | 0x40);
  b[8] = (uint8_t) ((b[8] & 0x3f) | 0x80);
  snprintf (uuid, LUKS_UUID, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
            "%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3], b[4], b[5],
            b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
  return 0;
}

static int
make_digest (struct luks_header *h, const struct luks_options *o,
             const uint8_t *master, const bool *cancel, struct error *e)
{
  struct pbkdf2 p = {
    .hash = o->spec.hash, .password = master, .password_len = h->key_bytes,
    .salt = h->digest_salt, .salt_len = LUKS_SALT, .cancel = cancel,
  };

  /* As QEMU: an eighth of the time. */
  if (secure_random (h->digest_salt, LUKS_SALT, e) == -1
      || pbkdf2_calibrate (o->spec.hash, LUKS_DIGEST, o->iter_time / 8,
                           &h->digest_iterations, e) == -1)
    return -1;
  p.iterations = h->digest_iterations;
  return pbkdf2 (&p, h->digest, LUKS_DIGEST, e);
}

static int
fill_header (struct luks_header *h, const struct luks_options *o,
             const uint8_t *master, const bool *cancel, uint8_t *material,
             struct error *e)
{
  struct secret passphrase;
  int r;

  if (make_uuid (h->uuid, e) == -1
      || make_digest (h, o, master, cancel, e) == -1
      || secret_get (o->key_secret, &passphrase, e) == -1)
    return -1;
  r = luks_fill_slot (h, 0, &o->spec, master, &passphrase, o->iter_time,
                      cancel, material, e);
  secret_free (&passphrase);
  return r;
}

int
luks_make (const struct luks_options *o, const bool *cancel, uint8_t *buf,
           struct error *e)
{
  struct luks_header h = { .key_bytes = (uint32_t) o->spec.cipher.key_len };
  uint8_t master[CIPHER_MAX_KEY];
  int r;

  name_cipher (o, &h);
  h.payload_offset = (uint32_t) (luks_total_bytes (o) / SECTOR_SIZE);
  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    h.slots[i].offset = (uint32_t) ((ALIGNMENT + i * slot_bytes (o))
                                    / SECTOR_SIZE);
  memset (buf, 0, (size_t) luks_total_bytes (o));
  if (secure_random (master, h.key_bytes, e) == -1)
    return -1;
  r = fill_header (&h, o, master, cancel, buf + ALIGNMENT, e);
  secure_wipe (master, sizeof master);
  if (r == 0)
    luks_put_header (&h, buf);
  return r;
}
