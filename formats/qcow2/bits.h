/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* An array of bits in pieces, which take memory once a bit in them is set
 * (private to qcow2).  Bit N is bit N % 8 of byte N / 8, as on disk.
 *
 * bits_set comes from any thread, beside itself; everything else is for one
 * thread alone.
 */

#ifndef NBDIMG_QCOW2_BITS_H
#define NBDIMG_QCOW2_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

struct bits {
  uint64_t nr;                  /* bits */
  size_t piece_size;            /* bytes */
  uint64_t nr_pieces;
  uint8_t **pieces;             /* owned; atomic; NULL = all clear */
  bool changed;                 /* atomic: a bit was set that was clear */
};

extern int bits_init (struct bits *b, uint64_t nr, size_t piece_size,
                      struct error *e);
extern void bits_free (struct bits *b);

/* Set [first, first+nr), which lies inside.  An error (memory) may leave some
 * of them set.
 */
extern int bits_set (struct bits *b, uint64_t first, uint64_t nr,
                     struct error *e);
extern void bits_clear (struct bits *b);

/* What bit FIRST is; *NR = how many from there on are the same. */
extern bool bits_run (const struct bits *b, uint64_t first, uint64_t *nr);

/* New bits are clear.  To fewer bits it never fails. */
extern int bits_resize (struct bits *b, uint64_t nr, struct error *e);

/* Piece I, to be read into; NULL = no memory.  bits_trim clears what a file has
 * behind the last bit.
 */
extern uint8_t *bits_piece (struct bits *b, uint64_t i, struct error *e);
extern void bits_trim (struct bits *b);

enum bits_kind { BITS_CLEAR, BITS_SET, BITS_MIXED };
/* All of piece I; only a piece without bits behind the last is ever SET. */
extern enum bits_kind bits_kind (const struct bits *b, uint64_t i);

#endif /* NBDIMG_QCOW2_BITS_H */
