/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Crash replay: what the persistent bitmaps of an image may say.
 *
 * A bitmap that is not in use is complete: it has all bits in MUST, and while
 * it is enabled those of every sector that is not what it was in version SINCE;
 * and none that is not in MAY, or of a write behind the version.  One that is
 * enabled may be found in use after a crash at any time, another one only where
 * MAYBE_IN_USE.
 */

#ifndef NBDIMG_CRASH_MARKS_H
#define NBDIMG_CRASH_MARKS_H

#include "tests/crash/crash.h"

enum { MAX_MARKS = 4, MARK_BYTES = 256 };

struct mark {
  unsigned number, granularity;
  unsigned enabled, maybe_in_use;       /* 0 or 1 */
  unsigned since;
  uint64_t kept;                /* the smallest size of the disk since then */
  uint8_t must[MARK_BYTES], may[MARK_BYTES];
};

static inline bool
bit_is_set (const uint8_t *bits, uint64_t i)
{
  return i < MARK_BYTES * 8 && (bits[i / 8] >> (i % 8) & 1);
}

static inline void
bits_add (uint8_t *bits, unsigned granularity, uint64_t offset,
          uint64_t length)
{
  if (length == 0)
    return;
  if ((offset + length - 1) / granularity >= MARK_BYTES * 8)
    die ("bitmaps", "the disk is too large");
  for (uint64_t i = offset / granularity;
       i <= (offset + length - 1) / granularity; ++i)
    bits[i / 8] = (uint8_t) (bits[i / 8] | 1U << (i % 8));
}

/* All bits of FROM, which may have another granularity. */
static inline void
bits_merge (uint8_t *bits, unsigned granularity, const uint8_t *from,
            unsigned from_granularity, uint64_t size)
{
  for (uint64_t i = 0; i < MARK_BYTES * 8; ++i)
    if (bit_is_set (from, i) && i * from_granularity < size)
      bits_add (bits, granularity, i * from_granularity,
                min_u64 (from_granularity, size - i * from_granularity));
}

/* The disk ends at SIZE. */
static inline void
bits_cut (uint8_t *bits, unsigned granularity, uint64_t size)
{
  for (uint64_t i = div_round_up (size, granularity); i < MARK_BYTES * 8; ++i)
    bits[i / 8] = (uint8_t) (bits[i / 8] & ~(1U << (i % 8)));
}

/* ---- what happens to them ---- */

/* The guest did OP.  Zeroes where there were some, and a trim, need no bit. */
static inline void
mark_touch (struct mark *m, const struct op *op)
{
  if (!m->enabled || op->type >= OP_FLUSH)
    return;
  bits_add (m->may, m->granularity, op->offset, op->length);
  if (op->type == OP_WRITE || op->type == OP_WRITE_FUA
      || op->type == OP_PACKED)
    bits_add (m->must, m->granularity, op->offset, op->length);
}

static inline void
mark_resize (struct mark *m, uint64_t size)
{
  bits_cut (m->must, m->granularity, size);
  bits_cut (m->may, m->granularity, size);
  m->kept = min_u64 (m->kept, size);
  m->maybe_in_use = 1;
}

static inline void
mark_begin (struct mark *m, unsigned version, uint64_t size)
{
  m->since = version;
  m->kept = size;
}

static inline void
mark_clear (struct mark *m)
{
  memset (m->must, 0, sizeof m->must);
  memset (m->may, 0, sizeof m->may);
}

/* ---- as text ---- */

static inline void
print_bits (FILE *fp, const uint8_t *bits)
{
  putc (' ', fp);
  for (unsigned i = 0; i < MARK_BYTES; ++i)
    fprintf (fp, "%02x", bits[i]);
}

static inline void
print_mark (FILE *fp, const struct mark *m)
{
  fprintf (fp, " %u %u %u %u %u %" PRIu64, m->number, m->granularity,
           m->enabled, m->maybe_in_use, m->since, m->kept);
  print_bits (fp, m->must);
  print_bits (fp, m->may);
}

static inline bool
read_bits (FILE *fp, uint8_t *bits)
{
  unsigned byte;

  if (fscanf (fp, " ") == EOF)
    return false;
  for (unsigned i = 0; i < MARK_BYTES; ++i) {
    if (fscanf (fp, "%2x", &byte) != 1)
      return false;
    bits[i] = (uint8_t) byte;
  }
  return true;
}

static inline bool
read_mark (FILE *fp, struct mark *m)
{
  return fscanf (fp, "%u %u %u %u %u %" SCNu64, &m->number, &m->granularity,
                 &m->enabled, &m->maybe_in_use, &m->since, &m->kept) == 6
    && read_bits (fp, m->must) && read_bits (fp, m->may);
}

/* ---- those of an image that is open ---- */

struct marks_found {
  unsigned nr;
  struct mark items[MAX_MARKS]; /* must: their bits, if not in use */
  bool in_use[MAX_MARKS];
};

static inline int
find_bits (struct format *f, const char *name, struct mark *m,
           struct error *e)
{
  uint64_t at = 0, done;
  bool dirty;

  while (at < f->info.size) {
    if (f->ops->bitmap_map (f, name, at, f->info.size - at, &dirty, &done,
                            e) == -1)
      return -1;
    if (dirty)
      bits_add (m->must, m->granularity, at, done);
    at += done;
  }
  return 0;
}

static inline int
find_marks (struct format *f, struct marks_found *found, struct error *e)
{
  struct format_bitmap *list;
  size_t nr;
  int r = 0;

  memset (found, 0, sizeof *found);
  if (!f->ops->bitmaps)
    return 0;
  if (f->ops->bitmaps (f, &list, &nr, e) == -1)
    return -1;
  for (size_t i = 0; r == 0 && i < nr; ++i) {
    struct mark *m = &found->items[found->nr];

    if (nr > MAX_MARKS || list[i].granularity > 1 << 20) {
      r = error_set (e, EINVAL, "there are too many bitmaps, or too coarse");
      break;
    }
    m->number = (unsigned) atoi (list[i].name + 1);
    m->granularity = (unsigned) list[i].granularity;
    m->enabled = list[i].enabled;
    found->in_use[found->nr++] = list[i].inconsistent;
    if (!list[i].inconsistent)
      r = find_bits (f, list[i].name, m, e);
  }
  format_bitmaps_free (list, nr);
  return r;
}

#endif /* NBDIMG_CRASH_MARKS_H */
