/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The bits of a dirty bitmap in memory: see bits.h.  Layer: formats.  Locking:
 * none; bits are set by atomic operations, and are never cleared beside that.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "formats/qcow2/bits.h"

static uint64_t
piece_bits (const struct bits *b)
{
  return (uint64_t) b->piece_size * 8;
}

int
bits_init (struct bits *b, uint64_t nr, size_t piece_size, struct error *e)
{
  *b = (struct bits) { .piece_size = piece_size };
  return bits_resize (b, nr, e);
}

static void
drop_pieces (struct bits *b, uint64_t from)
{
  for (uint64_t i = from; i < b->nr_pieces; ++i) {
    free (b->pieces[i]);
    b->pieces[i] = NULL;
  }
}

void
bits_free (struct bits *b)
{
  drop_pieces (b, 0);
  free (b->pieces);
  *b = (struct bits) { .nr = 0 };
}

void
bits_clear (struct bits *b)
{
  drop_pieces (b, 0);
  b->changed = true;
}

static uint8_t *
get_piece (const struct bits *b, uint64_t i)
{
  return __atomic_load_n (&b->pieces[i], __ATOMIC_ACQUIRE);
}

/* Of several threads that miss the same piece, one puts in its own. */
uint8_t *
bits_piece (struct bits *b, uint64_t i, struct error *e)
{
  uint8_t *p = get_piece (b, i), *new;

  if (p)
    return p;
  new = calloc (1, b->piece_size);
  if (!new) {
    error_nomem (e, "a dirty bitmap", b->piece_size);
    return NULL;
  }
  if (__atomic_compare_exchange_n (&b->pieces[i], &p, new, false,
                                   __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    return new;
  free (new);
  return p;
}

/* Bits [from, to) of a byte. */
static uint8_t
byte_mask (uint64_t from, uint64_t to)
{
  return (uint8_t) ((0xffU << from) & (0xffU >> (8 - to)));
}

/* Bits [from, to) of the piece P.  A byte is written to only where it changes:
 * most writes find their bits set.  Returns whether one did.
 */
static bool
set_in_piece (uint8_t *p, uint64_t from, uint64_t to)
{
  bool changed = false;
  uint64_t end;
  uint8_t mask;

  for (; from < to; from = end) {
    end = min_u64 (round_down (from, 8) + 8, to);
    mask = byte_mask (from % 8, end - round_down (from, 8));
    if ((__atomic_load_n (&p[from / 8], __ATOMIC_RELAXED) & mask) == mask)
      continue;
    __atomic_fetch_or (&p[from / 8], mask, __ATOMIC_RELAXED);
    changed = true;
  }
  return changed;
}

int
bits_set (struct bits *b, uint64_t first, uint64_t nr, struct error *e)
{
  uint64_t per_piece = piece_bits (b), end = first + nr, start, to;
  uint8_t *p;

  for (; first < end; first = to) {
    start = round_down (first, per_piece);
    to = min_u64 (start + per_piece, end);
    p = bits_piece (b, first / per_piece, e);
    if (!p)
      return -1;
    if (set_in_piece (p, first - start, to - start))
      __atomic_store_n (&b->changed, true, __ATOMIC_RELAXED);
  }
  return 0;
}

static bool
get_bit (const struct bits *b, uint64_t i)
{
  const uint8_t *p = get_piece (b, i / piece_bits (b));
  uint64_t in_piece = i % piece_bits (b);

  return p && (p[in_piece / 8] >> in_piece % 8 & 1);
}

/* Bit I is R: how many, a whole piece or a byte at best, are the same? */
static uint64_t
same_bits (const struct bits *b, uint64_t i, bool r)
{
  uint64_t per_piece = piece_bits (b);
  const uint8_t *p = get_piece (b, i / per_piece);

  if (!p)
    return per_piece - i % per_piece;
  return i % 8 == 0 && p[i % per_piece / 8] == (r ? 0xff : 0) ? 8 : 1;
}

bool
bits_run (const struct bits *b, uint64_t first, uint64_t *nr)
{
  bool r = get_bit (b, first);
  uint64_t i = first;

  while (i < b->nr && get_bit (b, i) == r)
    i += same_bits (b, i, r);
  *nr = min_u64 (i, b->nr) - first;
  return r;
}

void
bits_trim (struct bits *b)
{
  uint64_t used = b->nr % piece_bits (b);
  uint8_t *p = b->nr_pieces ? b->pieces[b->nr_pieces - 1] : NULL;

  if (!p || used == 0)
    return;
  if (used % 8)
    p[used / 8] &= byte_mask (0, used % 8);
  used = div_round_up (used, 8);
  memset (p + used, 0, b->piece_size - used);
}

int
bits_resize (struct bits *b, uint64_t nr, struct error *e)
{
  uint64_t nr_pieces = div_round_up (nr, piece_bits (b));
  uint8_t **pieces;

  if (nr_pieces > b->nr_pieces) {
    pieces = realloc (b->pieces, nr_pieces * sizeof pieces[0]);
    if (!pieces)
      return error_nomem (e, "a dirty bitmap", nr_pieces * sizeof pieces[0]);
    memset (pieces + b->nr_pieces, 0,
            (nr_pieces - b->nr_pieces) * sizeof pieces[0]);
    b->pieces = pieces;
  }
  else
    drop_pieces (b, nr_pieces);
  b->changed |= nr != b->nr;
  b->nr = nr;
  b->nr_pieces = nr_pieces;
  bits_trim (b);
  return 0;
}

enum bits_kind
bits_kind (const struct bits *b, uint64_t i)
{
  const uint8_t *p = b->pieces[i];

  if (!p || is_zero (p, b->piece_size))
    return BITS_CLEAR;
  if (p[0] == 0xff && memcmp (p, p + 1, b->piece_size - 1) == 0)
    return BITS_SET;
  return BITS_MIXED;
}
