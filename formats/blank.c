/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* See blank.h.  Layer: formats.  No locking: nobody else knows the storage. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "formats/blank.h"

int
storage_blank (struct storage *st, uint64_t end, struct error *e)
{
  static const uint8_t zeroes[SECTOR_SIZE];

  if (st->caps.can_grow && st->caps.reads_zero_past_end) {
    if (storage_truncate (st, 0, e) == -1)
      return -1;
    return storage_truncate (st, end, e);
  }
  if (!st->caps.can_grow && storage_size (st) < end)
    return error_set (e, ENOSPC, "%s: has %" PRIu64 " bytes, the image needs"
                      " %" PRIu64, st->name, storage_size (st), end);
  if (storage_pwrite (st, zeroes, sizeof zeroes, 0, 0, e) == -1
      || storage_flush (st, e) == -1)
    return -1;
  return storage_zero (st, 0, end, STORAGE_MAY_UNMAP, e);
}
