/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* LUKS headers.  The input stands at the start of 4 MiB of storage.  What is
 * accepted lies within it, apart from each other and from the header; info says
 * it as text; and opening it does no more work than it was allowed.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "formats/luks/luks.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t len);

static void
must (bool so)
{
  if (!so)
    abort ();
}

static void
check_header (const struct luks_header *h, uint64_t limit)
{
  uint64_t len = luks_material_bytes (h);

  must (len > 0 && len <= (uint64_t) CIPHER_MAX_KEY * LUKS_STRIPES);
  must (h->digest_iterations > 0);
  for (unsigned i = 0; i < LUKS_SLOTS; ++i) {
    uint64_t start = (uint64_t) h->slots[i].offset * SECTOR_SIZE;

    must (start >= LUKS_HEADER_SIZE);
    if (!h->slots[i].active)
      continue;
    must (start + len <= limit && h->slots[i].iterations > 0);
    for (unsigned j = 0; j < i; ++j)
      must (!ranges_overlap (start, len, (uint64_t) h->slots[j].offset
                             * SECTOR_SIZE, len));
  }
}

static void
check_info (const struct luks_header *h)
{
  json_t *out = json_object ();
  struct error e = ERROR_INIT;

  must (luks_info (h, true, out, &e) == 0);
  must (json_array_size (json_object_get (out, "slots")) == LUKS_SLOTS);
  json_decref (out);
}

/* What was read is what would be written. */
static void
check_bytes (const struct luks_header *h, const uint8_t *data)
{
  uint8_t buf[LUKS_HEADER_SIZE];

  luks_put_header (h, buf);
  must (memcmp (buf + LUKS_SLOT_OFFSET, data + LUKS_SLOT_OFFSET,
                LUKS_SLOTS * LUKS_SLOT_SIZE) == 0);
  must (memcmp (buf + 104, data + 104, 64) == 0);
}

static void
try_to_open (const struct luks_header *h, struct storage *st)
{
  const struct secret secret = { .data = (uint8_t *) "x", .len = 1 };
  const struct format_key key = { .secret = &secret, .max_iterations = 4 };
  struct error e = ERROR_INIT;
  struct disk_cipher *c = luks_cipher (h, st, 0, &key, &e);

  must (c || (e.err && e.text[0]));
  disk_cipher_free (c);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  const uint64_t limit = 4 * MiB;
  struct error e = ERROR_INIT;
  struct storage *st;
  struct luks_header h;

  if (len < LUKS_HEADER_SIZE || len > limit)
    return 0;
  st = storage_memory_new ("fuzz", limit, &e);
  must (st && storage_pwrite (st, data, len, 0, 0, &e) == 0);
  if (luks_read (st, 0, limit, len % 2, &h, &e) == 0) {
    check_header (&h, limit);
    check_info (&h);
    check_bytes (&h, data);
    try_to_open (&h, st);
  }
  else
    must (e.err && e.text[0]);
  storage_close (st);
  return 0;
}
