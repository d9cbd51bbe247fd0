/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Streams of metadata: parse what lies one after the other in the image, a
 * piece at a time.  Layer: formats.  A reader belongs to one thread.
 *
 * The snapshot table and the bitmap directory are read this way, never whole,
 * since a header may claim 64 MiB for each.
 */

#ifndef NBDIMG_QCOW2_READER_H
#define NBDIMG_QCOW2_READER_H

#include "formats/qcow2/qcow2.h"

/* ---- reader.c ---- */

struct reader {
  struct storage *st;           /* borrowed */
  uint8_t *buf;                 /* owned */
  size_t size;                  /* of buf */
  uint64_t host;                /* what the buffer holds: LEN bytes from HOST */
  size_t len;
};

extern int reader_init (struct reader *r, struct storage *st, size_t size,
                        struct error *e);
extern void reader_free (struct reader *r);

/* LEN bytes (not more than the buffer's size) at HOST, valid until the next
 * call; bytes past the end of the image are zero.  NULL on error.
 */
extern const uint8_t *reader_get (struct reader *r, uint64_t host, size_t len,
                                  struct error *e);

/* ---- snapshot.c ---- */

/* Offsets in an entry. */
enum {
  S_L1_TABLE_OFFSET = 0,
  S_L1_SIZE = 8,
  S_ID_LENGTH = 12,
  S_NAME_LENGTH = 14,
  S_DATE_SEC = 16,
  S_DATE_NSEC = 20,
  S_VM_CLOCK = 24,
  S_VM_STATE_SIZE = 32,
  S_EXTRA_SIZE = 36,
  S_EXTRA = 40,
  /* in the extra data */
  X_VM_STATE_SIZE = 0,
  X_DISK_SIZE = 8,
  X_ICOUNT = 16,
};

struct snapshot_entry {
  uint64_t l1_table_offset;     /* not checked */
  uint32_t l1_size;             /* entries, not checked */
  uint32_t date_sec, date_nsec;
  uint64_t vm_clock_nsec, vm_state_size;
  uint64_t disk_size;           /* bytes, not checked */
  uint64_t icount;              /* UINT64_MAX = not recorded */
  bool incomplete;              /* version 3, and the disk size is missing */
  uint16_t id_length, name_length;
  const char *id, *name;        /* in the reader's buffer, no NUL at the end */
  uint64_t start, end;          /* bytes of the table; of snapshot_find alone */
};

struct snapshot_iter {
  struct reader reader;
  unsigned version;
  uint64_t image_size;          /* virtual, of the active disk */
  uint64_t offset;              /* of the table */
  uint64_t length;              /* bytes of the entries read so far */
  uint32_t nr, index;           /* entries in all, entries read */
};

extern int snapshot_iter_init (struct snapshot_iter *it, struct qcow2 *q,
                               struct error *e);
/* 1 = an entry; 0 = there are no more; -1 = the table is not valid. */
extern int snapshot_iter_next (struct snapshot_iter *it,
                               struct snapshot_entry *s, struct error *e);
extern void snapshot_iter_free (struct snapshot_iter *it);

/* The snapshot whose id is ID (or whose name, if BY_NAME).  1 = *FOUND is it,
 * but for the names; 0 = there is none; -1.
 */
extern int qcow2_snapshot_find (struct qcow2 *q, const char *id, bool by_name,
                                struct snapshot_entry *found,
                                struct error *e);

/* Can the L1 table of S be there, and reach over its disk? */
extern int qcow2_snapshot_check_l1 (const struct qcow2 *q,
                                    const char *snapshot,
                                    const struct snapshot_entry *s,
                                    struct error *e);

/* ---- bitmap.c ---- */

/* Offsets in an entry. */
enum {
  B_TABLE_OFFSET = 0,
  B_TABLE_SIZE = 8,
  B_FLAGS = 12,
  B_TYPE = 16,
  B_GRANULARITY_BITS = 17,
  B_NAME_SIZE = 18,
  B_EXTRA_DATA_SIZE = 20,
  B_EXTRA_DATA = 24,
};

/* What QEMU supports. */
enum {
  BITMAP_DIRTY_TRACKING = 1,    /* the type */
  MIN_GRANULARITY_BITS = 9,
  MAX_GRANULARITY_BITS = 31,
  MAX_BITMAP_NAME = 1023,
};
enum {
  BITMAP_IN_USE = 1 << 0,
  BITMAP_AUTO = 1 << 1,
  BITMAP_EXTRA_DATA_COMPATIBLE = 1 << 2,
};

struct bitmap_entry {
  uint64_t table_offset;
  uint32_t table_size;          /* entries */
  uint32_t flags;
  unsigned granularity_bits;
  uint16_t name_length;
  const char *name;             /* in the reader's buffer, no NUL at the end */
};

struct bitmap_iter {
  struct reader reader;
  uint64_t cluster_size;
  uint64_t offset, size;        /* of the directory */
  uint64_t used;                /* bytes of the entries read so far */
  uint32_t nr, index;           /* entries in all, entries read */
};

/* Bytes of an entry in the directory. */
extern uint64_t bitmap_entry_size (const struct bitmap_entry *b);

/* Are the bitmaps of the image valid (the autoclear bit is set)? */
extern bool qcow2_has_bitmaps (struct qcow2 *q);

extern int bitmap_iter_init (struct bitmap_iter *it, struct qcow2 *q,
                             struct error *e);
/* 1 = an entry, all its fields checked; 0 = there are no more; -1. */
extern int bitmap_iter_next (struct bitmap_iter *it, struct bitmap_entry *b,
                             struct error *e);
extern void bitmap_iter_free (struct bitmap_iter *it);

#endif /* NBDIMG_QCOW2_READER_H */
