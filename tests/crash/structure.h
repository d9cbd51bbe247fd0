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
 *   b  another name of the backing file (the first two BACKING_NAMES, which are
 *      one file)
 *   c  commit
 *   t  persistent bitmaps (b1, b2, ...): each time the image is closed first,
 *      for one that is enabled is in use as long as it is open (marks.h)
 *   a  amend
 *   o  rebase: onto another backing file, or none
 */

#ifndef NBDIMG_CRASH_STRUCTURE_H
#define NBDIMG_CRASH_STRUCTURE_H

#include "tests/crash/marks.h"

enum { MAX_SNAPSHOTS = 4, NR_BACKING_NAMES = 3, OTHER_BACKING = 2,
       NO_BACKING = 255 };

static const char *const backing_names[NR_BACKING_NAMES] = {
  "base", "the-same-base-by-a-name-that-is-longer", "other",
};

/* What amend may be told, by op.byte. */
enum { AMEND_DOWN, AMEND_UP, AMEND_LAZY, AMEND_NOT_LAZY, AMEND_BITS,
       NR_AMENDS = AMEND_BITS + 7 };
static const char *const amend_options[NR_AMENDS] = {
  "compat=0.10", "compat=1.1", "lazy_refcounts=on", "lazy_refcounts=off",
  "refcount_bits=1", "refcount_bits=2", "refcount_bits=4", "refcount_bits=8",
  "refcount_bits=16", "refcount_bits=32", "refcount_bits=64",
};

struct structure {
  const char *can;
  uint64_t size;
  const char *backing;          /* recorded name, NULL = none */
  unsigned nr, newest;          /* snapshots there are; the last number */
  unsigned numbers[MAX_SNAPSHOTS];
  uint64_t sizes[MAX_SNAPSHOTS];
  unsigned version, refcount_order, lazy;       /* qcow2's; else 0 */
  bool was_version_2;           /* clusters of zeroes may be shared */
  unsigned index;               /* of the version in DIR/versions */
  unsigned nr_marks, newest_mark;
  struct mark marks[MAX_MARKS];
};

/* qcow2's header; of other formats all is 0. */
static inline void
read_features (const uint8_t *header, struct structure *s)
{
  s->version = s->refcount_order = s->lazy = 0;
  if (memcmp (header, "QFI\xfb", 4) != 0
      || (s->version = get_be32 (header + 4)) < 2)
    return;
  s->refcount_order = 4;
  if (s->version >= 3) {
    s->refcount_order = get_be32 (header + 96);
    s->lazy = get_be64 (header + 80) & 1;
  }
}

static inline bool
can_amend (const struct structure *s, unsigned what)
{
  bool same_size = true;

  for (unsigned i = 0; i < s->nr; ++i)
    same_size = same_size && s->sizes[i] == s->size;
  switch (what) {
  case AMEND_DOWN:
    return s->version == 3 && s->refcount_order == 4 && s->nr_marks == 0
      && same_size;
  case AMEND_UP: return s->version == 2;
  case AMEND_LAZY: return s->version == 3 && !s->lazy;
  case AMEND_NOT_LAZY: return s->version == 3 && s->lazy;
  default:
    /* Narrow ones cannot count what snapshots share. */
    return s->version == 3 && what - AMEND_BITS != s->refcount_order
      && (what >= AMEND_BITS + 4
          || !(s->was_version_2 || strchr (s->can, 's')));
  }
}

static inline bool
structure_can (const struct structure *s, enum op_type type)
{
  bool marks = strchr (s->can, 't') && s->nr_marks > 0;

  switch (type) {
  case OP_SNAPSHOT_CREATE:
    return strchr (s->can, 's') && s->nr < MAX_SNAPSHOTS;
  case OP_SNAPSHOT_APPLY:
    return strchr (s->can, 's') && s->nr > 0 && s->nr_marks == 0;
  case OP_SNAPSHOT_DELETE:
    return strchr (s->can, 's') && s->nr > 0;
  case OP_RESIZE: return strchr (s->can, 'r') || strchr (s->can, 'g');
  case OP_SET_BACKING: return strchr (s->can, 'b') != NULL;
  case OP_COMMIT: return strchr (s->can, 'c') != NULL;
  case OP_BITMAP_ADD:
    return strchr (s->can, 't') && s->nr_marks < MAX_MARKS && s->version == 3;
  case OP_BITMAP_REMOVE:
  case OP_BITMAP_CLEAR:
  case OP_BITMAP_TOGGLE:
  case OP_BITMAP_MERGE:
  case OP_CLOSE: return marks;
  case OP_AMEND: return strchr (s->can, 'a') != NULL;
  case OP_REBASE: return strchr (s->can, 'o') != NULL;
  default: return false;
  }
}

/* Must the image be closed before? */
static inline bool
begins_with_close (enum op_type type)
{
  return type >= OP_BITMAP_ADD && type <= OP_BITMAP_MERGE;
}

/* ---- it has been done ---- */

static inline struct mark *
find_mark (struct structure *s, unsigned number)
{
  for (unsigned i = 0; i < s->nr_marks; ++i)
    if (s->marks[i].number == number)
      return &s->marks[i];
  die ("bitmaps", "there is none of this number");
}

static inline void
note_mark (struct structure *s, const struct op *op)
{
  struct mark *m, *from;

  if (op->type == OP_BITMAP_ADD) {
    m = &s->marks[s->nr_marks++];
    *m = (struct mark) { .number = op->byte, .enabled = 1,
                         .granularity = (unsigned) op->offset };
    mark_begin (m, s->index, s->size);
    s->newest_mark = op->byte;
    return;
  }
  m = find_mark (s, op->byte);
  switch (op->type) {
  case OP_BITMAP_REMOVE:
    memmove (m, m + 1, (size_t) (s->marks + s->nr_marks - (m + 1))
             * sizeof *m);
    s->nr_marks--;
    break;
  case OP_BITMAP_TOGGLE:
    m->enabled = !m->enabled;
    mark_begin (m, s->index, s->size);
    break;
  case OP_BITMAP_CLEAR:
    mark_clear (m);
    mark_begin (m, s->index, s->size);
    break;
  default:
    from = find_mark (s, (unsigned) op->offset);
    bits_merge (m->must, m->granularity, from->must, from->granularity,
                s->size);
    bits_merge (m->may, m->granularity, from->may, from->granularity, s->size);
    break;
  }
}

static inline void
note_amend (struct structure *s, unsigned what)
{
  switch (what) {
  case AMEND_DOWN:
    s->version = 2;
    s->lazy = 0;
    s->was_version_2 = true;
    break;
  case AMEND_UP: s->version = 3; break;
  case AMEND_LAZY: s->lazy = 1; break;
  case AMEND_NOT_LAZY: s->lazy = 0; break;
  default: s->refcount_order = what - AMEND_BITS; break;
  }
}

static inline void
note_snapshot (struct structure *s, const struct op *op)
{
  unsigned i = 0;

  while (i < s->nr && s->numbers[i] != op->byte)
    ++i;
  if (op->type == OP_SNAPSHOT_CREATE) {
    s->numbers[s->nr] = s->newest = op->byte;
    s->sizes[s->nr++] = s->size;
  }
  else if (op->type == OP_SNAPSHOT_APPLY)
    s->size = s->sizes[i];
  else
    for (s->nr--; i < s->nr; ++i) {
      s->numbers[i] = s->numbers[i + 1];
      s->sizes[i] = s->sizes[i + 1];
    }
}

/* OP has been done. */
static inline void
structure_note (struct structure *s, const struct op *op)
{
  switch (op->type) {
  case OP_SNAPSHOT_CREATE:
  case OP_SNAPSHOT_APPLY:
  case OP_SNAPSHOT_DELETE:
    note_snapshot (s, op);
    break;
  case OP_RESIZE:
    s->size = op->offset;
    for (unsigned i = 0; i < s->nr_marks; ++i)
      mark_resize (&s->marks[i], s->size);
    return;
  case OP_REBASE:
    /* What is copied counts as written. */
    for (unsigned i = 0; i < s->nr_marks; ++i)
      if (s->marks[i].enabled)
        bits_add (s->marks[i].may, s->marks[i].granularity, 0, s->size);
    __attribute__ ((fallthrough));
  case OP_SET_BACKING:
    s->backing = op->byte == NO_BACKING ? NULL : backing_names[op->byte];
    break;
  case OP_AMEND:
    note_amend (s, op->byte);
    break;
  case OP_CLOSE:
    break;
  default:
    if (begins_with_close (op->type))
      note_mark (s, op);
    break;
  }
  if (op->type > OP_COMMIT || op->type == OP_SET_BACKING)
    for (unsigned i = 0; i < s->nr_marks; ++i)
      s->marks[i].maybe_in_use = 0;
}

/* The guest did OP. */
static inline void
structure_touch (struct structure *s, const struct op *op)
{
  for (unsigned i = 0; i < s->nr_marks; ++i)
    mark_touch (&s->marks[i], op);
}

/* ---- which one ---- */

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

static inline uint8_t
random_amend (const struct structure *s, uint64_t *rnd)
{
  unsigned first = (unsigned) (next_random (rnd) % NR_AMENDS), what;

  /* There is always one of them. */
  if (next_random (rnd) % 2)
    first = AMEND_DOWN;
  for (unsigned i = 0; i < NR_AMENDS; ++i) {
    what = (first + i) % NR_AMENDS;
    if (can_amend (s, what))
      return (uint8_t) what;
  }
  die ("amend", "nothing can be changed");
}

static inline uint8_t
random_rebase (const struct structure *s, uint64_t *rnd)
{
  static const uint8_t names[3] = { 0, OTHER_BACKING, NO_BACKING };
  unsigned first = (unsigned) (next_random (rnd) % 3);

  for (;; ++first)
    if (s->backing != (names[first % 3] == NO_BACKING ? NULL
                       : backing_names[names[first % 3]]))
      return names[first % 3];
}

static inline struct op
bitmap_op (const struct structure *s, enum op_type type, uint64_t *rnd)
{
  struct op op = { .type = type };

  if (type == OP_BITMAP_ADD) {
    op.byte = (uint8_t) (s->newest_mark + 1);
    op.offset = op.byte % 2 ? 4096 : 16384;
    return op;
  }
  op.byte = (uint8_t) s->marks[next_random (rnd) % s->nr_marks].number;
  if (type == OP_BITMAP_MERGE)
    op.offset = s->marks[next_random (rnd) % s->nr_marks].number;
  return op;
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
  else if (type == OP_AMEND)
    op.byte = random_amend (s, rnd);
  else if (type == OP_REBASE)
    op.byte = random_rebase (s, rnd);
  else if (begins_with_close (type))
    op = bitmap_op (s, type, rnd);
  return op;
}

enum { NR_STRUCTURAL = OP_CLOSE - OP_SNAPSHOT_CREATE + 1 };

/* The I-th of those that can be, from the first again behind the last. */
static inline struct op
choose_structural (const struct structure *s, unsigned i, uint64_t *rnd)
{
  enum op_type can[NR_STRUCTURAL];
  unsigned nr = 0;

  for (unsigned k = 0; k < NR_STRUCTURAL; ++k)
    if (structure_can (s, OP_SNAPSHOT_CREATE + k))
      can[nr++] = OP_SNAPSHOT_CREATE + k;
  return structural_op (s, nr ? can[i % nr] : OP_FLUSH, rnd);
}

/* One of seven operations is such a one. */
static inline bool
random_structural (const struct structure *s, uint64_t *rnd, struct op *op)
{
  if (next_random (rnd) % 7 != 0)
    return false;
  *op = choose_structural (s, (unsigned) (next_random (rnd) % 1000), rnd);
  return op->type != OP_FLUSH;
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
  default:
    /* A kind that has fewer gets them more often. */
    return choose_structural (s, digit - FIRST_STRUCTURAL, &rnd);
  }
  op.length = min_u64 (op.length, t->size - op.offset);
  return op;
}

#endif /* NBDIMG_CRASH_STRUCTURE_H */
