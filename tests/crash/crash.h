/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Crash replay: what crash-run, qemu-run and crash-eval share.
 *
 *   crash-run  runs a random workload on DIR/image with our driver, on a
 *              recording storage; writes DIR/log and DIR/ledger
 *   qemu-run   runs the same workload with qemu-io and its blklogwrites
 *              driver, and writes the same two files
 *   crash-eval makes the states in which a crash could leave DIR/image, opens
 *              each, and looks whether every sector has a value it may have
 *
 * Every sector of the guest is full of one byte: the number of the write that
 * made it (1..250), 0 = zeroes, BASE_BYTE = the first content.
 *
 * A ledger has one line for each guest operation:
 *   W|U|Z|T|F  submit  done  offset  length  byte
 * (write, write with FUA, zero, trim, flush), on the clock of the log.
 *
 * DIR/versions has one line for the image as it was at first, and one for each
 * operation on its structure (structure.h):
 *   submit  done  letter  size  backing  NR  NR numbers of snapshots
 *   version  refcount_order  lazy  NR  NR bitmaps (marks.h)
 * Line K left the guest with DIR/content-K, snapshot N has DIR/content-sN.
 */

#ifndef NBDIMG_CRASH_H
#define NBDIMG_CRASH_H

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/error.h"
#include "formats/format.h"

enum { MAX_BYTE = 250, BASE_BYTE = 0xfb };

static inline void __attribute__ ((noreturn))
die (const char *what, const char *why)
{
  fprintf (stderr, "%s: %s\n", what, why);
  exit (2);
}

static inline void *
must_alloc (size_t n)
{
  void *p = calloc (1, n ? n : 1);

  if (!p)
    die ("crash", "out of memory");
  return p;
}

static inline uint64_t
next_random (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (0x2545f4914f6cdd1d) >> 11;
}

/* -f: the format of the image. */
static inline const struct format_ops *
format_option (const char *name)
{
  const struct format_ops *format = format_by_name (name);

  if (!format)
    die (name, "no such format");
  return format;
}

/* The file DIR/NAME; NULL if there is none. */
static inline uint8_t *
load (const char *dir, const char *name, size_t *size)
{
  char path[8192];
  struct stat st;
  uint8_t *buf;
  FILE *fp;

  snprintf (path, sizeof path, "%s/%s", dir, name);
  fp = fopen (path, "r");
  if (!fp)
    return NULL;
  if (fstat (fileno (fp), &st) == -1)
    die (path, "fstat");
  *size = (size_t) st.st_size;
  buf = must_alloc (*size);
  if (fread (buf, 1, *size, fp) != *size)
    die (path, "short read");
  fclose (fp);
  return buf;
}

/* ---- the workload ---- */

enum op_type { OP_WRITE, OP_WRITE_FUA, OP_ZERO, OP_ZERO_UNMAP, OP_TRIM,
               OP_PACKED, OP_FLUSH,
               OP_SNAPSHOT_CREATE, OP_SNAPSHOT_APPLY, OP_SNAPSHOT_DELETE,
               OP_RESIZE, OP_SET_BACKING, OP_COMMIT,
               OP_BITMAP_ADD, OP_BITMAP_REMOVE, OP_BITMAP_CLEAR,
               OP_BITMAP_TOGGLE, OP_BITMAP_MERGE, OP_AMEND, OP_REBASE,
               OP_CLOSE };

struct op {
  enum op_type type;
  uint64_t offset, length;      /* OP_RESIZE: offset is the new size;
                                   OP_BITMAP_ADD: the granularity, _MERGE: the
                                   number of the one that is merged */
  uint8_t byte;                 /* OP_SNAPSHOT_*, OP_BITMAP_*: the number */
};

struct structure;               /* structure.h */

/* Where one thread works: chunks of CHUNK bytes, every STEP bytes (0 = the
 * whole disk).
 */
struct territory {
  uint64_t size, cluster, start, chunk, step;
  bool packed, discard;
};

/* Any sectors of the disk, or of one chunk of the territory. */
static inline void
random_range (const struct territory *t, uint64_t *rnd, struct op *op)
{
  uint64_t lo = 0, hi = t->size, sectors, max;

  if (t->step) {
    lo = t->start + next_random (rnd) % (t->size / t->step) * t->step;
    hi = min_u64 (lo + t->chunk, t->size);
    if (lo >= hi) {
      lo = t->start;
      hi = lo + t->chunk;
    }
  }
  sectors = (hi - lo) / SECTOR_SIZE;
  max = next_random (rnd) % 3 == 0 ? 4 * t->cluster / SECTOR_SIZE : 12;
  op->offset = lo + next_random (rnd) % sectors * SECTOR_SIZE;
  op->length = (1 + next_random (rnd) % max) * SECTOR_SIZE;
  if (next_random (rnd) % 3 == 0 && !t->step) {
    op->offset = round_down (op->offset, t->cluster);
    op->length = round_up (op->length, t->cluster);
  }
  op->length = min_u64 (op->length, hi - op->offset);
}

static inline struct op
random_op (const struct territory *t, uint64_t *rnd, uint8_t byte)
{
  uint64_t what = next_random (rnd) % 100;
  struct op op = { .byte = byte };

  random_range (t, rnd, &op);
  if (what < 50)
    op.type = what < 6 ? OP_WRITE_FUA : OP_WRITE;
  else if (what < 58)
    op.type = OP_ZERO;
  else if (what < 66)
    op.type = OP_ZERO_UNMAP;
  else if (what < 76)
    op.type = t->discard ? OP_TRIM : OP_WRITE;
  else if (what < 84 && t->packed && !t->step
           && t->size % t->cluster == 0) {
    op.type = OP_PACKED;
    op.offset = round_down (op.offset, t->cluster);
    op.length = t->cluster;
  }
  else if (what < 84)
    op.type = OP_WRITE;
  else
    op.type = OP_FLUSH;
  return op;
}

/* Every sequence of three of these operations, by its number: around the first
 * cluster of the disk that is full at first (at EDGE, but where clusters are
 * larger than that), and the empty one before.
 */
enum { ALPHABET = 10, SEQUENCE = 3, NR_SEQUENCES = 1000 };
#define EDGE UINT64_C (131072)

static inline struct op
sequence_op (const struct territory *t, unsigned number, unsigned i)
{
  uint64_t cs = t->cluster, part = max_u64 (cs / 4, SECTOR_SIZE);
  uint64_t half = cs < 2 * SECTOR_SIZE ? cs : cs / 2;
  uint64_t edge = max_u64 (EDGE, cs);
  const struct op alphabet[ALPHABET] = {
    { .type = OP_FLUSH },
    { .type = OP_WRITE, .offset = edge, .length = cs },
    { .type = OP_WRITE, .offset = edge - part, .length = part },
    { .type = OP_WRITE, .offset = edge - half, .length = 2 * half },
    { .type = OP_WRITE, .offset = t->size - cs, .length = cs },
    { .type = OP_WRITE_FUA, .offset = edge - cs, .length = part },
    { .type = OP_ZERO, .offset = edge - cs, .length = 2 * cs },
    { .type = OP_ZERO_UNMAP, .offset = edge, .length = 2 * cs },
    { .type = t->discard ? OP_TRIM : OP_ZERO_UNMAP, .offset = edge - cs,
      .length = 2 * cs },
    { .type = t->packed ? OP_PACKED : OP_WRITE, .offset = edge,
      .length = cs },
  };
  struct op op;

  for (unsigned n = i; n > 0; --n)
    number /= ALPHABET;
  op = alphabet[number % ALPHABET];
  op.byte = (uint8_t) (i + 1);
  return op;
}

#endif /* NBDIMG_CRASH_H */
