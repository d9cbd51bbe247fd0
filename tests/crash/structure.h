/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Crash replay: operations on the structure of an image, between those of the
 * guest.  Each is alone, and durable when it returns; so after a crash in the
 * middle of it the image is as before it or as after it, never a mix.  A commit
 * is no such one: it changes neither what the guest reads nor the structure,
 * and makes nothing of what the guest wrote durable.
 *
 * What a kind of image can is a text with some of these letters:
 *   s  snapshots (s1 at first, then s2, ...; none twice): create, apply, delete
 *   r  other sizes        g  only larger ones
 *   b  another name of the backing file (BACKING_NAMES, which are one file)
 *   c  commit
 */

#ifndef NBDIMG_CRASH_STRUCTURE_H
#define NBDIMG_CRASH_STRUCTURE_H

#include "tests/crash/crash.h"

enum { MAX_SNAPSHOTS = 4, NR_BACKING_NAMES = 2 };

static const char *const backing_names[NR_BACKING_NAMES] = {
  "base", "the-same-base-by-a-name-that-is-longer",
};

struct structure {
  const char *can;
  uint64_t size;
  const char *backing;          /* recorded name, NULL = none */
  unsigned nr, newest;          /* snapshots there are; the last number */
  unsigned numbers[MAX_SNAPSHOTS];
  uint64_t sizes[MAX_SNAPSHOTS];
};

static inline bool
structure_can (const struct structure *s, enum op_type type)
{
  switch (type) {
  case OP_SNAPSHOT_CREATE:
    return strchr (s->can, 's') && s->nr < MAX_SNAPSHOTS;
  case OP_SNAPSHOT_APPLY:
  case OP_SNAPSHOT_DELETE:
    return strchr (s->can, 's') && s->nr > 0;
  case OP_RESIZE: return strchr (s->can, 'r') || strchr (s->can, 'g');
  case OP_SET_BACKING: return strchr (s->can, 'b') != NULL;
  case OP_COMMIT: return strchr (s->can, 'c') != NULL;
  default: return false;
  }
}

/* OP has been done. */
static inline void
structure_note (struct structure *s, const struct op *op)
{
  unsigned i = 0;

  while (i < s->nr && s->numbers[i] != op->byte)
    ++i;
  switch (op->type) {
  case OP_SNAPSHOT_CREATE:
    s->numbers[s->nr] = s->newest = op->byte;
    s->sizes[s->nr++] = s->size;
    break;
  case OP_SNAPSHOT_APPLY:
    s->size = s->sizes[i];
    break;
  case OP_SNAPSHOT_DELETE:
    for (s->nr--; i < s->nr; ++i) {
      s->numbers[i] = s->numbers[i + 1];
      s->sizes[i] = s->sizes[i + 1];
    }
    break;
  case OP_RESIZE:
    s->size = op->offset;
    break;
  case OP_SET_BACKING:
    s->backing = backing_names[op->byte];
    break;
  default:
    break;
  }
}

/* Up to 200 KiB more, or less. */
static inline uint64_t
random_size (const struct structure *s, uint64_t *rnd)
{
  bool shrinks = strchr (s->can, 'r') && next_random (rnd) % 2;
  uint64_t sectors = 1 + next_random (rnd) % 400;

  if (shrinks && s->size > 1000 * SECTOR_SIZE)
    return s->size - sectors * SECTOR_SIZE;
  return s->size + sectors * SECTOR_SIZE;
}

static inline struct op
structural_op (const struct structure *s, enum op_type type, uint64_t *rnd)
{
  struct op op = { .type = type };

  if (!structure_can (s, type))
    op.type = OP_FLUSH;
  else if (type == OP_SNAPSHOT_CREATE)
    op.byte = (uint8_t) (s->newest + 1);
  else if (type == OP_SNAPSHOT_APPLY || type == OP_SNAPSHOT_DELETE)
    op.byte = (uint8_t) s->numbers[next_random (rnd) % s->nr];
  else if (type == OP_RESIZE)
    op.offset = random_size (s, rnd);
  else if (type == OP_SET_BACKING)
    op.byte = s->backing == backing_names[0];
  return op;
}

enum { NR_STRUCTURAL = OP_COMMIT - OP_SNAPSHOT_CREATE + 1 };

/* One of seven operations is such a one. */
static inline bool
random_structural (const struct structure *s, uint64_t *rnd, struct op *op)
{
  unsigned first;

  if (next_random (rnd) % 7 != 0)
    return false;
  first = (unsigned) (next_random (rnd) % NR_STRUCTURAL);
  for (unsigned i = 0; i < NR_STRUCTURAL; ++i) {
    enum op_type type = OP_SNAPSHOT_CREATE + (first + i) % NR_STRUCTURAL;

    if (structure_can (s, type)) {
      *op = structural_op (s, type, rnd);
      return true;
    }
  }
  return false;
}

/* Sequences: of ten operations four are the guest's, the others these. */
enum { FIRST_STRUCTURAL = 4 };

static inline struct op
sequence_structural (const struct territory *t, const struct structure *s,
                     unsigned digit, uint8_t byte)
{
  uint64_t cs = t->cluster, part = max_u64 (cs / 4, SECTOR_SIZE);
  uint64_t edge = max_u64 (EDGE, cs), rnd = digit * 7 + byte;
  struct op op = { .byte = byte };

  switch (digit) {
  case 0: op.offset = edge, op.length = cs; break;
  case 1: op.offset = edge - part, op.length = part; break;
  case 2: op.offset = t->size - SECTOR_SIZE, op.length = SECTOR_SIZE; break;
  case 3:
    op.type = OP_ZERO_UNMAP, op.offset = edge, op.length = 2 * cs;
    break;
  default: {
    unsigned first = digit - FIRST_STRUCTURAL;

    /* A kind that has fewer gets them more often. */
    op = structural_op (s, OP_SNAPSHOT_CREATE + first, &rnd);
    for (unsigned i = 1; i < NR_STRUCTURAL && op.type == OP_FLUSH; ++i)
      op = structural_op (s, OP_SNAPSHOT_CREATE + (first + i) % NR_STRUCTURAL,
                          &rnd);
    return op;
  }
  }
  op.length = min_u64 (op.length, t->size - op.offset);
  return op;
}

#endif /* NBDIMG_CRASH_STRUCTURE_H */
