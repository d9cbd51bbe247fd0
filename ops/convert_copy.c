/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Convert: one claim.  The chunk is seen as blocks, each to be skipped, zeroed
 * or written.  The sources' extents tell the first guess, the bytes the rest:
 * blocks of zeroes, and with -B blocks that equal the backing file, need no
 * writing.
 *
 * Layer: ops.  Locking: a worker owns its buffers, except while it waits for
 * its turn (convert_claim_done may exchange them); all else is fixed.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "common/bytes.h"
#include "common/codec.h"
#include "ops/convert.h"

static uint64_t
claim_length (const struct worker *w)
{
  return w->claim.end - w->claim.start;
}

static size_t
nr_blocks (const struct worker *w)
{
  return (size_t) div_round_up (claim_length (w), w->c->block);
}

/* Offset of a block from the claim's start; the last block may be short. */
static uint64_t
block_at (const struct worker *w, size_t i)
{
  return min_u64 (i * w->c->block, claim_length (w));
}

/* The end of the run of blocks that are like the one at I. */
static size_t
run_end (const struct worker *w, size_t i)
{
  uint8_t state = w->states[i];
  size_t n = nr_blocks (w);

  while (i < n && w->states[i] == state)
    ++i;
  return i;
}

/* ---- first guess ---- */

/* [FROM, TO), from the claim's start, has STATE.  A block of which two states
 * are true must be read.
 */
static void
mark (struct worker *w, uint64_t from, uint64_t to, enum block_state state)
{
  size_t last = (size_t) div_round_up (to, w->c->block);

  for (size_t i = (size_t) (from / w->c->block); i < last; ++i) {
    if (w->states[i] == BLOCK_UNKNOWN)
      w->states[i] = (uint8_t) state;
    else if (w->states[i] != (uint8_t) state)
      w->states[i] = BLOCK_DATA;
  }
}

static int
guess (struct worker *w, struct error *e)
{
  struct convert *c = w->c;
  uint64_t offset = w->claim.start, length;

  memset (w->states, (int) w->claim.state, nr_blocks (w));
  if (w->claim.state != BLOCK_UNKNOWN)
    return 0;
  while (offset < w->claim.end) {
    enum block_state state;

    length = w->claim.end - offset;
    if (convert_state (c, offset, length, &length, &state, e) == -1) {
      if (!convert_can_salvage (c, e))
        return error_prefix (e, "error while reading at byte %" PRIu64, offset);
      error_clear (e);
      state = BLOCK_DATA;
      length = w->claim.end - offset;
    }
    mark (w, offset - w->claim.start, offset - w->claim.start + length, state);
    offset += length;
  }
  return 0;
}

/* What is written as a whole (a compressed or a shared cluster) and is not of
 * one state is data.
 */
static void
even_out (struct worker *w)
{
  size_t group = (size_t) (w->c->grain / w->c->block), n = nr_blocks (w);

  if (group <= 1)
    return;
  for (size_t i = 0; i < n; i += group) {
    size_t end = (size_t) min_u64 (i + group, n);

    if (run_end (w, i) < end)
      memset (w->states + i, BLOCK_DATA, end - i);
  }
}

/* ---- the bytes ---- */

static int
read_data (struct worker *w, struct error *e)
{
  size_t n = nr_blocks (w), end;

  for (size_t i = 0; i < n; i = end) {
    uint64_t at = block_at (w, i);

    end = run_end (w, i);
    if (w->states[i] == BLOCK_DATA
        && convert_read (w, w->buf + at, block_at (w, end) - at,
                         w->claim.start + at, e) == -1)
      return -1;
  }
  return 0;
}

/* Is there nothing but zeroes in the blocks [I, END)? */
static bool
group_is_zero (const struct worker *w, size_t i, size_t end)
{
  for (; i < end; ++i) {
    uint64_t at = block_at (w, i);

    if (w->states[i] == BLOCK_DATA
        && !is_zero (w->buf + at, block_at (w, i + 1) - at))
      return false;
  }
  return true;
}

static void
find_zeroes (struct worker *w)
{
  size_t group = (size_t) (w->c->detect / w->c->block), n = nr_blocks (w);
  uint8_t zero = w->c->target_is_zero ? BLOCK_SKIP : BLOCK_ZERO;

  for (size_t i = 0; group && i < n; i += group) {
    size_t end = (size_t) min_u64 (i + group, n);

    if (!group_is_zero (w, i, end))
      continue;
    for (size_t j = i; j < end; ++j)
      if (w->states[j] == BLOCK_DATA)
        w->states[j] = zero;
  }
}

/* -B: what the backing file has already is not written.  It may be shorter
 * than the disk; what it lacks reads as zeroes through the target.
 */
static int
read_base (struct worker *w, uint64_t at, uint64_t len, struct error *e)
{
  uint64_t offset = w->claim.start + at, size = image_size (w->c->base);
  uint64_t n = offset < size ? min_u64 (len, size - offset) : 0;

  memset (w->other + at + n, 0, len - n);
  if (n && image_read (w->c->base, w->other + at, n, offset, e) == -1)
    return error_prefix (e, "error while reading at byte %" PRIu64
                         ": backing file %s", offset, w->c->base->name);
  return 0;
}

static int
find_equal (struct worker *w, struct error *e)
{
  size_t n = nr_blocks (w), end;

  for (size_t i = 0; i < n; i = end) {
    uint64_t at = block_at (w, i);

    end = run_end (w, i);
    if (w->states[i] != BLOCK_DATA)
      continue;
    if (read_base (w, at, block_at (w, end) - at, e) == -1)
      return -1;
    for (; i < end; ++i) {
      uint64_t from = block_at (w, i), len = block_at (w, i + 1) - from;

      if (memcmp (w->buf + from, w->other + from, len) == 0)
        w->states[i] = BLOCK_SKIP;
    }
  }
  return 0;
}

/* ---- writing ---- */

static int
write_failed (uint64_t offset, struct error *e)
{
  return error_prefix (e, "error while writing at byte %" PRIu64, offset);
}

/* The disk is whole sectors; a target of a fixed size may end within its last
 * one, which is no loss as long as only zeroes follow.
 */
static uint64_t
clip (const struct worker *w, const uint8_t *buf, uint64_t offset, uint64_t len)
{
  uint64_t size = w->c->target_size, n;

  if (offset + len <= size)
    return len;
  n = offset < size ? size - offset : 0;
  return !buf || is_zero (buf + n, len - n) ? n : len;
}

static int
write_data (struct worker *w, uint64_t at, uint64_t len, struct error *e)
{
  uint64_t offset = w->claim.start + at;

  len = clip (w, w->buf + at, offset, len);
  if (len == 0)
    return 0;
  if (image_write (w->c->target, w->buf + at, len, offset, 0, e) == -1)
    return write_failed (offset, e);
  w->result.bytes_written += len;
  return 0;
}

/* What the target knows to be zero stays as it is, with the space that may
 * have been given to it on purpose.
 */
static int
write_zeroes (struct worker *w, uint64_t offset, uint64_t len, struct error *e)
{
  struct image *target = w->c->target;
  struct image_extent x;
  uint64_t n;

  len = clip (w, NULL, offset, len);
  for (; len; offset += n, len -= n) {
    if (image_extents (target, offset, len, 0, &x, e) == -1)
      return write_failed (offset, e);
    n = min_u64 (len, x.length);
    if (x.zero)
      continue;
    if (image_zero (target, offset, n, IMAGE_MAY_UNMAP, e) == -1)
      return write_failed (offset, e);
    w->result.bytes_zeroed += n;
  }
  return 0;
}

/* Deflate the clusters that are data.  The last cluster of a disk may be
 * short; its stream is of a whole one, with zeroes after the end, as readers
 * expect it.
 */
static int
pack (struct worker *w, struct error *e)
{
  struct image *target = w->c->target;
  uint64_t cluster = w->c->cluster, len = claim_length (w);

  for (uint64_t at = 0; at < len; at += cluster) {
    uint64_t n = min_u64 (cluster, len - at);
    ssize_t r;

    if (w->states[at / w->c->block] != BLOCK_DATA)
      continue;
    memset (w->buf + at + n, 0, cluster - n);
    r = codec_compress (target->format->info.codec, w->buf + at, cluster,
                        w->other + at, cluster - 1, e);
    if (r == -1)
      return write_failed (w->claim.start + at, e);
    w->packed[at / cluster] = (size_t) r;
  }
  return 0;
}

static int
write_packed (struct worker *w, uint64_t at, uint64_t len, struct error *e)
{
  uint64_t cluster = w->c->cluster;

  for (uint64_t end = at + len; at < end; at += cluster) {
    uint64_t offset = w->claim.start + at, n = min_u64 (cluster, end - at);

    if (image_write_stream (w->c->target, w->buf + at, n, w->other + at,
                            w->packed[at / cluster], offset, e) == -1)
      return write_failed (offset, e);
    w->result.bytes_written += n;
  }
  return 0;
}

static int
write_run (struct worker *w, enum block_state state, uint64_t at, uint64_t len,
           struct error *e)
{
  if (state == BLOCK_SKIP)
    return 0;
  if (state == BLOCK_ZERO)
    return write_zeroes (w, w->claim.start + at, len, e);
  return w->c->cluster ? write_packed (w, at, len, e)
    : write_data (w, at, len, e);
}

static int
write_out (struct worker *w, struct error *e)
{
  size_t n = nr_blocks (w), end;

  for (size_t i = 0; i < n; i = end) {
    uint64_t at = block_at (w, i);

    end = run_end (w, i);
    if (write_run (w, (enum block_state) w->states[i], at,
                   block_at (w, end) - at, e) == -1)
      return -1;
  }
  return 0;
}

/* ---- the whole ---- */

static bool
stopped (void *opaque)
{
  struct convert *c = opaque;

  return convert_stopped (c) || (c->ctx && op_cancelled (c->ctx));
}

/* Fill the buffer, and decide for each block. */
static int
prepare (struct worker *w, struct error *e)
{
  struct convert *c = w->c;

  if (guess (w, e) == -1)
    return -1;
  even_out (w);
  if (convert_clone (w, e) == -1)
    return -1;
  if (read_data (w, e) == -1)
    return -1;
  find_zeroes (w);
  if (c->base && find_equal (w, e) == -1)
    return -1;
  even_out (w);
  return c->cluster ? pack (w, e) : 0;
}

/* All that can be done before it is the claim's turn. */
static int
fill (struct worker *w, struct error *e)
{
  if (w->claim.state == BLOCK_ZERO)
    return 0;
  rate_wait (&w->c->rate, claim_length (w), stopped, w->c);
  return prepare (w, e);
}

static int
write_claim (struct worker *w, struct error *e)
{
  if (w->claim.state == BLOCK_ZERO)
    return write_zeroes (w, w->claim.start, claim_length (w), e);
  return write_out (w, e);
}

static int
copy (struct worker *w, struct error *e)
{
  int r = fill (w, e);

  convert_report_bad (w);
  if (r == -1)
    return -1;
  if (!convert_wait_turn (w, true))
    return 0;
  do
    r = write_claim (w, e);
  while (r == 0 && convert_claim_done (w));
  return r;
}

int
convert_copy (struct worker *w)
{
  struct error e = ERROR_INIT;
  int r = copy (w, &e);

  if (r == -1)
    convert_fail (w->c, w->claim.start, &e);
  return r;
}
