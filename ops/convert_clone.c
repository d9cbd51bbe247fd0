/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Convert: sharing blocks instead of moving them.  Where both sides are local
 * files of one file system that shares blocks (btrfs, XFS), the target gets
 * the source's blocks without a byte being copied.  With -C, where they cannot
 * be shared, the kernel or the file server copies them.
 *
 * Layer: ops.  Locking: convert.clone is atomic; who finds that it does not
 * work here turns it off for all.
 */

#include <config.h>

#include "common/bytes.h"
#include "ops/convert.h"

static void
mark_done (struct worker *w, uint64_t at, uint64_t len)
{
  for (uint64_t i = at / w->c->block; i < (at + len) / w->c->block; ++i)
    w->states[i] = BLOCK_SKIP;
}

/* The bytes [OFFSET, OFFSET+LEN) stand at HOST of ST: share the whole units
 * among them.
 */
static int
share (struct worker *w, uint64_t offset, uint64_t len, struct storage *st,
       uint64_t host, struct error *e)
{
  struct convert *c = w->c;
  uint64_t unit = c->share_unit, done;
  uint64_t start = round_up (offset, unit);
  uint64_t end = round_down (offset + len, unit);

  /* Blocks are shared when it is our turn, as writes are done; but no claim
   * that shares nothing waits before it is read.  Meanwhile another may have
   * found that nothing can be shared: a second try would take and give back
   * clusters, and the same sources would make another file.
   */
  if (start >= end || !convert_wait_turn (w, false)
      || !convert_may_clone (c))
    return 0;
  if (image_share (c->target, start, end - start, st, host + (start - offset),
                   c->opts->copy_in_kernel, &done, e) == -1)
    return error_prefix (e, "error while writing at byte %llu",
                         (unsigned long long) start);
  if (done < end - start)
    __atomic_store_n (&c->clone, false, __ATOMIC_RELAXED);
  mark_done (w, start - w->claim.start, done);
  w->result.bytes_written += done;
  return 0;
}

static int
clone_run (struct worker *w, uint64_t offset, uint64_t end, struct error *e)
{
  uint64_t length, host;
  struct storage *st;

  for (; offset < end && convert_may_clone (w->c); offset += length) {
    if (convert_host (w->c, offset, end - offset, &length, &st, &host,
                      e) == -1) {
      if (!convert_can_salvage (w->c, e))
        return error_prefix (e, "error while reading at byte %llu",
                             (unsigned long long) offset);
      error_clear (e);
      return 0;
    }
    if (st && share (w, offset, length, st, host, e) == -1)
      return -1;
  }
  return 0;
}

/* Is there data in the unit at AT, from the claim's start? */
static bool
unit_has_data (const struct worker *w, uint64_t at, uint64_t len)
{
  const struct convert *c = w->c;
  uint64_t end = min_u64 (at + c->share_unit, len);

  for (; at < end; at += c->block)
    if (w->states[at / c->block] == BLOCK_DATA)
      return true;
  return false;
}

int
convert_clone (struct worker *w, struct error *e)
{
  uint64_t len = w->claim.end - w->claim.start, unit = w->c->share_unit;
  uint64_t at = 0, end;

  while (convert_may_clone (w->c) && at < len) {
    for (end = at; end < len && unit_has_data (w, end, len); end += unit)
      ;
    end = min_u64 (end, len);
    if (end > at
        && clone_run (w, w->claim.start + at, w->claim.start + end, e) == -1)
      return -1;
    at = end > at ? end : at + unit;
  }
  return 0;
}
