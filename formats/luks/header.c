/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The LUKS header: see luks.h.  Layer: formats.  No locking.
 * Specification: "LUKS partition header", "Key slots".
 *
 * A header comes from anybody: what it asks for in work (iterations) is limited
 * in slot.c, what it says of places is checked here.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "formats/luks/luks.h"

static const uint8_t magic[8] = { 'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 1 };

/* Offsets of fields. */
enum {
  H_CIPHER_NAME = 8, H_CIPHER_MODE = 40, H_HASH_SPEC = 72,
  H_PAYLOAD_OFFSET = 104, H_KEY_BYTES = 108, H_DIGEST = 112,
  H_DIGEST_SALT = 132, H_DIGEST_ITERATIONS = 164, H_UUID = 168,
  S_ACTIVE = 0, S_ITERATIONS = 4, S_SALT = 8, S_OFFSET = 40, S_STRIPES = 44,
};
#define SLOT_ACTIVE UINT32_C (0x00ac71f3)
#define SLOT_DEAD UINT32_C (0x0000dead)

bool
luks_is_header (const uint8_t *buf, size_t len)
{
  return len >= sizeof magic && memcmp (buf, magic, sizeof magic) == 0;
}

/* ---- bytes to fields ---- */

static int
get_text (const uint8_t *p, size_t size, const char *what, char *text,
          struct error *e)
{
  if (!memchr (p, '\0', size))
    return error_set (e, EINVAL, "LUKS header %s is not NUL terminated", what);
  memcpy (text, p, size);
  for (char *c = text; *c; ++c)
    if (*c < ' ' || *c > '~')
      return error_set (e, EINVAL, "LUKS header %s has a byte 0x%02x", what,
                        (unsigned char) *c);
  return 0;
}

static int
get_slot (const uint8_t *p, unsigned i, struct luks_slot *s, struct error *e)
{
  uint32_t active = get_be32 (p + S_ACTIVE), stripes;

  if (active != SLOT_ACTIVE && active != SLOT_DEAD)
    return error_set (e, EINVAL, "LUKS key slot %u: its state 0x%08x is "
                      "corrupted (neither active nor inactive)", i, active);
  s->active = active == SLOT_ACTIVE;
  s->iterations = get_be32 (p + S_ITERATIONS);
  memcpy (s->salt, p + S_SALT, LUKS_SALT);
  s->offset = get_be32 (p + S_OFFSET);
  stripes = get_be32 (p + S_STRIPES);
  if (stripes != LUKS_STRIPES)
    return error_set (e, EINVAL, "LUKS key slot %u is corrupted (stripes %u != "
                      "%u)", i, stripes, LUKS_STRIPES);
  if (s->active && s->iterations == 0)
    return error_set (e, EINVAL, "LUKS key slot %u iteration count is zero", i);
  return 0;
}

static int
get_header (const uint8_t *b, struct luks_header *h, struct error *e)
{
  if (!luks_is_header (b, LUKS_HEADER_SIZE)) {
    if (memcmp (b, magic, 6) != 0)
      return error_set (e, EINVAL, "Volume is not in LUKS format");
    return error_set (e, ENOTSUP, "LUKS version %u is not supported; version 1 "
                      "is", get_be16 (b + 6));
  }
  if (get_text (b + H_CIPHER_NAME, LUKS_NAME, "cipher name", h->cipher_name,
                e) == -1
      || get_text (b + H_CIPHER_MODE, LUKS_NAME, "cipher mode",
                   h->cipher_mode, e) == -1
      || get_text (b + H_HASH_SPEC, LUKS_NAME, "hash spec", h->hash_spec,
                   e) == -1
      || get_text (b + H_UUID, LUKS_UUID, "UUID", h->uuid, e) == -1)
    return -1;
  h->payload_offset = get_be32 (b + H_PAYLOAD_OFFSET);
  h->key_bytes = get_be32 (b + H_KEY_BYTES);
  memcpy (h->digest, b + H_DIGEST, LUKS_DIGEST);
  memcpy (h->digest_salt, b + H_DIGEST_SALT, LUKS_SALT);
  h->digest_iterations = get_be32 (b + H_DIGEST_ITERATIONS);
  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    if (get_slot (b + LUKS_SLOT_OFFSET + i * LUKS_SLOT_SIZE, i, &h->slots[i],
                  e) == -1)
      return -1;
  return 0;
}

/* ---- checks ---- */

uint64_t
luks_material_bytes (const struct luks_header *h)
{
  return round_up ((uint64_t) h->key_bytes * LUKS_STRIPES, SECTOR_SIZE);
}

static int
check_slot_place (const struct luks_header *h, unsigned i, uint64_t limit,
                  bool detached, struct error *e)
{
  uint64_t len = luks_material_bytes (h);
  uint64_t start = (uint64_t) h->slots[i].offset * SECTOR_SIZE;
  uint64_t payload = detached ? 0
    : (uint64_t) h->payload_offset * SECTOR_SIZE;

  if (start < LUKS_HEADER_SIZE)
    return error_set (e, EINVAL, "LUKS key slot %u: its key material at %"
                      PRIu64 " is overlapping with the LUKS header", i, start);
  if (payload && start + len > payload)
    return error_set (e, EINVAL, "LUKS key slot %u is overlapping with the "
                      "encrypted payload: %" PRIu64 " bytes at %" PRIu64
                      ", payload at %" PRIu64, i, len, start, payload);
  if (start + len > limit)
    return error_set (e, EINVAL, "LUKS key slot %u: its key material (%" PRIu64
                      " bytes at %" PRIu64 ") ends behind %" PRIu64 ", the "
                      "end of the file or of the encryption header", i, len,
                      start, limit);
  for (unsigned j = 0; j < i; ++j)
    if (ranges_overlap (start, len, (uint64_t) h->slots[j].offset
                        * SECTOR_SIZE, len))
      return error_set (e, EINVAL, "LUKS key slots %u and %u are overlapping"
                        " in the header", j, i);
  return 0;
}

/* Slots that nobody used may lie where the file has not grown to. */
static int
check (const struct luks_header *h, uint64_t limit, bool detached,
       struct error *e)
{
  if (h->key_bytes == 0 || h->key_bytes > CIPHER_MAX_KEY)
    return error_set (e, EINVAL, "LUKS header: a key of %u bytes is not "
                      "supported; it can have up to %d", h->key_bytes,
                      CIPHER_MAX_KEY);
  if (h->digest_iterations == 0)
    return error_set (e, EINVAL, "LUKS key iteration count is zero");
  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    if (check_slot_place (h, i, h->slots[i].active ? limit : UINT64_MAX,
                          detached, e) == -1)
      return -1;
  return 0;
}

int
luks_read (struct storage *st, uint64_t base, uint64_t limit, bool detached,
           struct luks_header *h, struct error *e)
{
  uint8_t buf[LUKS_HEADER_SIZE];

  if (limit < LUKS_HEADER_SIZE)
    return error_set (e, EINVAL, "there is no room for a LUKS header: %" PRIu64
                      " bytes, it has %d", limit, LUKS_HEADER_SIZE);
  if (storage_pread (st, buf, sizeof buf, base, e) == -1)
    return error_prefix (e, "LUKS header");
  return get_header (buf, h, e) == -1 ? -1 : check (h, limit, detached, e);
}

/* ---- names ---- */

/* "xts-plain64", "cbc-essiv:sha256". */
void
luks_mode_parts (const struct luks_header *h, char *mode, char *ivgen,
                 char *ivgen_hash)
{
  const char *p = h->cipher_mode;
  size_t n = strcspn (p, "-"), m;

  memset (mode, 0, LUKS_NAME);
  memset (ivgen, 0, LUKS_NAME);
  memset (ivgen_hash, 0, LUKS_NAME);
  memcpy (mode, p, n);
  p += n + (p[n] != '\0');
  m = strcspn (p, ":");
  memcpy (ivgen, p, m);
  p += m + (p[m] != '\0');
  memcpy (ivgen_hash, p, strlen (p));
}

static int
unknown (const char *what, const char *name, struct error *e)
{
  return error_set (e, ENOTSUP, "LUKS header: %s '%s' is not supported", what,
                    name);
}

/* ECB has no IV, and cryptsetup then names none. */
static int
spec_of_mode (const struct luks_header *h, struct cipher_spec *c,
              struct error *e)
{
  char mode[LUKS_NAME], ivgen[LUKS_NAME], ivgen_hash[LUKS_NAME];

  luks_mode_parts (h, mode, ivgen, ivgen_hash);
  if (cipher_mode_by_name (mode, &c->mode) == -1)
    return unknown ("cipher mode", mode, e);
  c->ivgen = IVGEN_PLAIN64;
  if ((c->mode != CIPHER_ECB || *ivgen)
      && cipher_ivgen_by_name (ivgen, &c->ivgen) == -1)
    return unknown ("IV generator", ivgen, e);
  if (c->ivgen == IVGEN_ESSIV
      && hash_by_name (ivgen_hash, &c->ivgen_hash) == -1)
    return unknown ("IV generator hash", ivgen_hash, e);
  return 0;
}

int
luks_spec (const struct luks_header *h, struct luks_spec *spec,
           struct error *e)
{
  *spec = (struct luks_spec) { .cipher = { .key_len = h->key_bytes } };
  if (cipher_alg_by_name (h->cipher_name, &spec->cipher.alg) == -1)
    return unknown ("cipher", h->cipher_name, e);
  if (spec_of_mode (h, &spec->cipher, e) == -1)
    return -1;
  if (hash_by_name (h->hash_spec, &spec->hash) == -1)
    return unknown ("hash", h->hash_spec, e);
  if (hash_need (spec->hash, e) == -1
      || cipher_check (&spec->cipher, e) == -1)
    return error_prefix (e, "LUKS header");
  return 0;
}

/* ---- fields to bytes ---- */

void
luks_put_slot (const struct luks_slot *s, uint8_t *p)
{
  put_be32 (p + S_ACTIVE, s->active ? SLOT_ACTIVE : SLOT_DEAD);
  put_be32 (p + S_ITERATIONS, s->iterations);
  memcpy (p + S_SALT, s->salt, LUKS_SALT);
  put_be32 (p + S_OFFSET, s->offset);
  put_be32 (p + S_STRIPES, LUKS_STRIPES);
}

void
luks_put_header (const struct luks_header *h, uint8_t buf[LUKS_HEADER_SIZE])
{
  memset (buf, 0, LUKS_HEADER_SIZE);
  memcpy (buf, magic, sizeof magic);
  memcpy (buf + H_CIPHER_NAME, h->cipher_name, LUKS_NAME);
  memcpy (buf + H_CIPHER_MODE, h->cipher_mode, LUKS_NAME);
  memcpy (buf + H_HASH_SPEC, h->hash_spec, LUKS_NAME);
  put_be32 (buf + H_PAYLOAD_OFFSET, h->payload_offset);
  put_be32 (buf + H_KEY_BYTES, h->key_bytes);
  memcpy (buf + H_DIGEST, h->digest, LUKS_DIGEST);
  memcpy (buf + H_DIGEST_SALT, h->digest_salt, LUKS_SALT);
  put_be32 (buf + H_DIGEST_ITERATIONS, h->digest_iterations);
  memcpy (buf + H_UUID, h->uuid, LUKS_UUID);
  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    luks_put_slot (&h->slots[i], buf + LUKS_SLOT_OFFSET + i * LUKS_SLOT_SIZE);
}
