/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Holes of the file: see holes.h.  Layer: formats.  No locking. */

#include <config.h>

#include "common/bytes.h"
#include "formats/holes.h"

uint64_t
skip_hole (struct storage *st, uint64_t at, uint64_t end)
{
  uint64_t file = storage_size (st);
  struct storage_extent extents[8];
  struct error ignored = ERROR_INIT;
  size_t nr;

  if (!st->caps.is_local_file)
    return at;
  while (at < end) {
    if (at >= file)
      return end;
    if (storage_extents (st, at, min_u64 (end, file) - at, extents, 8, &nr,
                         &ignored) == -1)
      return at;
    for (size_t i = 0; i < nr; ++i) {
      if (extents[i].kind == EXTENT_DATA)
        return at;
      at += extents[i].length;
    }
  }
  return end;
}
