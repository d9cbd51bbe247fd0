/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Growing the virtual disk.  Layer: formats.  Locking: structural, nobody else
 * is inside.
 *
 * The L1 table has room for all that there can be, so only the header's size
 * changes.  Order on disk: what stood in entries behind the old end is dropped,
 * zero entries hide a longer backing file => the header's size.  A crash leaves
 * the old size, and NEED_CHECK if there was anything to hide.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qed/qed.h"

static int
check_size (const struct qed *q, uint64_t size, struct error *e)
{
  if (!is_aligned (size, SECTOR_SIZE))
    return error_set (e, EINVAL, "The new size must be a multiple of 512");
  if (size < q->format.info.size)
    return error_set (e, ENOTSUP, "a qed image cannot be shrunk: its clusters"
                      " could not be given back; convert it instead");
  if (size > q->g.max_size)
    return error_set (e, EFBIG, "%" PRIu64 " bytes are too large: the tables"
                      " reach %" PRIu64, size, q->g.max_size);
  return 0;
}

static int
zero (struct qed *q, uint64_t from, uint64_t to, struct error *e)
{
  uint64_t done;

  for (; from < to; from += done)
    if (qed_unmap (&q->format, from, to - from, UNMAP_ZERO, &done, e) == -1)
      return -1;
  return 0;
}

int
qed_resize (struct format *f, uint64_t size, uint64_t zero_until,
            struct error *e)
{
  struct qed *q = to_qed (f);
  uint64_t from = round_up (f->info.size, q->g.cluster_size);
  uint64_t to = round_up (size, q->g.cluster_size);

  if (check_size (q, size, e) == -1)
    return -1;
  if (size == f->info.size)
    return 0;
  if (to > from && qed_forget (q, from, to - from, e) == -1)
    return -1;
  if (zero (q, from, min_u64 (to, round_up (zero_until, q->g.cluster_size)),
            e) == -1
      || qed_flush (f, e) == -1
      || qed_write_field (q, H_IMAGE_SIZE, size, e) == -1)
    return -1;
  f->info.size = size;
  return 0;
}
