/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Persistent bitmaps of an open image (private to qcow2).
 *
 *   bitmap.c        the directory as a stream
 *   bits.c          bits in memory
 *   bitmap_set.c    the set of all bitmaps: read, marked in use, told of writes
 *   bitmap_store.c  written out
 *   bitmap_edit.c   listed, added, removed, changed by the user
 *
 * The life of an enabled bitmap.  The first write (begin_write) reads it and
 * marks it in_use on disk, durably; from then on every change of guest data
 * sets its bits in memory before the data change; a clean close writes it to a
 * new place and lets the header point to a new directory, where it is not in
 * use.  So what is not in_use on disk is complete, after a crash too.  What is
 * in_use when the image is opened stays so and is nobody's concern but
 * remove's.  Disabled bitmaps are not read or changed unless somebody edits
 * them, or the disk's size changes.
 */

#ifndef NBDIMG_QCOW2_BITMAPS_H
#define NBDIMG_QCOW2_BITMAPS_H

#include "formats/qcow2/bits.h"
#include "formats/qcow2/reader.h"

enum { MAX_BITMAPS = 65535 };

/* What QEMU stores at most for one bitmap. */
#define MAX_BITMAP_BYTES (512 * MiB)

/* What the bits of all that are in memory may take, if all were set. */
#define MAX_BITMAPS_MEMORY (1 * GiB)

struct dirty_bitmap {
  char *name;                   /* owned */
  unsigned granularity_bits;
  uint32_t flags;               /* as the directory is to say */
  bool loaded;                  /* bits are valid */
  bool marked;                  /* in_use on disk, and by us */
  struct bits bits;
  /* on disk */
  uint64_t entry_host;          /* its directory entry; 0 = none yet */
  uint64_t table_offset;        /* 0 = none yet */
  uint32_t table_size;          /* entries */
  uint32_t disk_flags;          /* as the directory says, but for our mark */
};

struct bitmap_set {
  struct dirty_bitmap **items;  /* owned; in the order of the directory */
  size_t nr, alloc;
  bool edited;                  /* the directory on disk is another one */
  struct dirty_bitmap **removed;        /* owned; space to be freed */
  size_t nr_removed;
};

/* Is it to be told of writes? */
static inline bool
bitmap_is_tracking (const struct dirty_bitmap *b)
{
  return b->loaded && (b->flags & BITMAP_AUTO) && !(b->flags & BITMAP_IN_USE);
}

/* ---- bitmap_set.c ---- */

/* Read the directory into q->bitmaps, unless that is done.  An image that can
 * have bitmaps and has none gets an empty set.
 */
extern int bitmap_set_read (struct qcow2 *q, struct error *e);
extern int bitmap_set_add (struct bitmap_set *set, struct dirty_bitmap *b,
                           struct error *e);
extern struct dirty_bitmap *bitmap_set_find (const struct bitmap_set *set,
                                             const char *name);
extern void dirty_bitmap_free (struct dirty_bitmap *b);

/* Bits that a bitmap of this granularity has for a disk of SIZE bytes. */
extern uint64_t bitmap_bits (uint64_t size, unsigned granularity_bits);

/* Would it be too much to keep if B, or another bitmap (NULL), had NR bits? */
extern int bitmap_check_memory (const struct qcow2 *q,
                                const struct dirty_bitmap *b, uint64_t nr,
                                struct error *e);

/* Get the bits of B from disk, unless that is done. */
extern int bitmap_load (struct qcow2 *q, struct dirty_bitmap *b,
                        struct error *e);

/* ---- bitmap_store.c ---- */

/* Bytes of the directory of SET. */
extern uint64_t bitmap_directory_size (const struct bitmap_set *set);

/* Those of the NR bitmaps that are loaded become in_use on disk, durably. */
extern int bitmap_mark (struct qcow2 *q, struct dirty_bitmap **items,
                        size_t nr, struct error *e);

#endif /* NBDIMG_QCOW2_BITMAPS_H */
