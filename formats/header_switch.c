/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Rewriting a header: see header_switch.h.  Layer: formats.  No locking: the
 * image is frozen.
 */

#include <config.h>

#include "common/bytes.h"
#include "formats/header_switch.h"

/* The sectors of [from, len) that differ; *CHANGED = there were some. */
static int
write_changed (struct storage *st, const uint8_t *old, const uint8_t *new,
               size_t from, size_t to, bool *changed, struct error *e)
{
  for (size_t at = from; at < to; at += SECTOR_SIZE) {
    if (memcmp (old + at, new + at, SECTOR_SIZE) == 0)
      continue;
    if (storage_pwrite (st, new + at, SECTOR_SIZE, at, 0, e) == -1)
      return error_prefix (e, "header");
    *changed = true;
  }
  return 0;
}

int
header_switch (struct storage *st, const uint8_t *old, const uint8_t *new,
               size_t len, struct error *e)
{
  bool behind = false, first = false;

  if (write_changed (st, old, new, SECTOR_SIZE, len, &behind, e) == -1
      || (behind && storage_flush (st, e) == -1)
      || write_changed (st, old, new, 0, SECTOR_SIZE, &first, e) == -1)
    return -1;
  return first ? storage_flush (st, e) : 0;
}
