/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What info says of a LUKS header, with qemu-img's keys in qemu-img's order.
 * Layer: formats.  No locking.  No key is derived for it.
 */

#include <config.h>

#include <string.h>

#include "common/bytes.h"
#include "common/text.h"
#include "formats/luks/luks.h"

/* Takes VALUE; NULL means that memory was out when it was made. */
static int
put (json_t *out, const char *key, json_t *value, struct error *e)
{
  if (json_object_set_new (out, key, value) == -1)
    return error_nomem (e, key, 0);
  return 0;
}

static json_t *
slot_json (const struct luks_slot *s)
{
  const json_int_t offset = (json_int_t) s->offset * SECTOR_SIZE;

  if (!s->active)
    return json_pack ("{sb sI}", "active", 0, "key-offset", offset);
  return json_pack ("{sb sI sI si}", "active", 1, "iters",
                    (json_int_t) s->iterations, "key-offset", offset,
                    "stripes", LUKS_STRIPES);
}

static int
put_slots (const struct luks_header *h, json_t *out, struct error *e)
{
  json_t *slots = json_array ();

  if (put (out, "slots", slots, e) == -1)
    return -1;
  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    if (json_array_append_new (slots, slot_json (&h->slots[i])) == -1)
      return error_nomem (e, "slots", 0);
  return 0;
}

/* "aes-256": XTS has two keys of that size. */
static json_t *
alg_json (const struct luks_header *h, const char *mode)
{
  uint32_t bits = h->key_bytes * 8 / (strcmp (mode, "xts") == 0 ? 2 : 1);
  char text[LUKS_NAME + 16];

  snprintf (text, sizeof text, "%s-%u", h->cipher_name, bits);
  return json_string (text);
}

int
luks_info (const struct luks_header *h, bool format, json_t *out,
           struct error *e)
{
  char mode[LUKS_NAME], ivgen[LUKS_NAME], ivgen_hash[LUKS_NAME];

  luks_mode_parts (h, mode, ivgen, ivgen_hash);
  if (put (out, "ivgen-alg", json_string (ivgen), e) == -1
      || put (out, "hash-alg", json_string (h->hash_spec), e) == -1
      || put (out, "cipher-alg", alg_json (h, mode), e) == -1
      || put (out, "uuid", json_string (h->uuid), e) == -1
      || (strcmp (ivgen, "essiv") == 0 && put (out, "ivgen-hash-alg",
                              json_string (ivgen_hash), e) == -1)
      || (format && put (out, "format", json_string ("luks"), e) == -1)
      || put (out, "cipher-mode", json_string (mode), e) == -1
      || put_slots (h, out, e) == -1
      || put (out, "payload-offset",
              json_integer ((json_int_t) h->payload_offset * SECTOR_SIZE),
              e) == -1)
    return -1;
  return put (out, "master-key-iters",
              json_integer ((json_int_t) h->digest_iterations), e);
}
