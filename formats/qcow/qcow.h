/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* qcow, version 1: what the files of this folder share.
 *
 * No specification was published.  The layout is that of images which QEMU
 * makes, big endian; field names follow those of qcow2's specification, which
 * has most of them.
 *
 *   header.c  header; open, activate, begin_write, close
 *   map.c     guest -> host
 *   place.c   reserve, link, abandon, unmap
 *   epoch.c   write-back in order, flush
 *   survey.c  how far the file may grow
 *   empty.c
 *   create.c
 *
 * An entry of the L1 table is the place of an L2 table, an entry of that is the
 * place of a cluster or of a compressed stream.  There are no refcounts, no
 * zero clusters and no list of free space: the file only grows, and what is no
 * longer referred to is lost.  So a cluster that has a place keeps it, and
 * zeroes and trims punch holes into it.
 *
 * How changes get to the disk.  Entries collect in the cache; an epoch writes
 * them out:
 *
 *   P1  barrier: guest data, and new L2 tables, which are written as zeroes
 *       when they are allocated
 *   P2  L2 and L1 entries, barrier
 *
 * So whatever an entry on disk refers to is complete on disk: a crash leaves
 * for each sector the old content (of the backing file too) or the new one, and
 * some space that is lost.
 *
 * Slices of tables are aligned in the file, so nothing that is written in place
 * may share one with a table: L2 tables and plain clusters are aligned to
 * slices, and what is allocated begins behind the slices of the L1 table.
 *
 * Locking: cache.mutex guards what says so.  It is not held during a storage
 * read, write or flush.
 */

#ifndef NBDIMG_QCOW_H
#define NBDIMG_QCOW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/lock.h"
#include "formats/format.h"
#include "formats/slices.h"

#define QCOW_MAGIC UINT32_C (0x514649fb)        /* "QFI\xfb" */

/* Offsets of header fields. */
enum {
  Q1_MAGIC = 0,
  Q1_VERSION = 4,
  Q1_BACKING_FILE_OFFSET = 8,
  Q1_BACKING_FILE_SIZE = 16,
  Q1_MTIME = 20,
  Q1_SIZE = 24,
  Q1_CLUSTER_BITS = 32,
  Q1_L2_BITS = 33,
  Q1_CRYPT_METHOD = 36,
  Q1_L1_TABLE_OFFSET = 40,
  Q1_LENGTH = 48,
};

/* Limits, the same as QEMU's: tables of 512 bytes to 64 KiB. */
enum {
  Q1_MIN_CLUSTER_BITS = 9, Q1_MAX_CLUSTER_BITS = 16,
  Q1_MIN_L2_BITS = 9 - 3, Q1_MAX_L2_BITS = 16 - 3,
  Q1_MAX_BACKING_NAME = 1023,
};
#define Q1_MAX_L1_ENTRIES ((uint64_t) INT32_MAX / 8)

#define Q1_COMPRESSED (UINT64_C (1) << 63)

enum qcow_slice { QCOW_L1, QCOW_L2 };

struct qcow {
  struct format format;         /* base; must be first */

  /* fixed after open */
  unsigned cluster_bits, l2_bits;
  uint64_t cluster_size;        /* bytes */
  uint64_t l1_table_offset, l1_size;    /* bytes, entries */
  uint64_t name_end;            /* of the name of the backing file, or 0 */
  uint64_t tables_end;          /* no cluster and no L2 table lies before */
  bool has_backing;             /* after activate: unallocated is not zero */

  struct mutex mutex;           /* the cache's */
  struct slice_cache cache;

  /* guarded by cache.mutex */
  bool writing;                 /* begin_write was done */
  uint64_t end;                 /* bytes; what is allocated lies before */
  uint64_t limit;               /* bytes; END stays below (survey.c); 0 =
                                   not known yet */
  bool growing;                 /* an L2 table is being added, or LIMIT
                                   found out */
};

static inline struct qcow *
to_qcow (struct format *f)
{
  return (struct qcow *) f;
}

/* Bits of an entry of a compressed cluster that are its byte offset; the next
 * cluster_bits are the length of the stream.
 */
static inline unsigned
qcow_offset_bits (const struct qcow *q)
{
  return 63 - q->cluster_bits;
}

/* Bytes of the disk that one L2 table covers. */
static inline uint64_t
qcow_l2_reach (const struct qcow *q)
{
  return UINT64_C (1) << (q->cluster_bits + q->l2_bits);
}

/* ---- map.c ---- */
extern int qcow_map (struct format *f, struct format_view *view,
                     uint64_t guest, uint64_t length, struct mapping *m,
                     struct error *e);

/* Where the L2 table for GUEST lies; *L2 = 0: there is none.  1, 0 (start
 * over), -1.
 */
extern int qcow_find_l2_locked (struct qcow *q, struct slice_op *op,
                                uint64_t guest, uint64_t *l2,
                                struct error *e)
  REQUIRES (q->cache.mutex);

/* The entry of GUEST in the L2 table at L2 is at *P, in the slice *S; *NR =
 * entries from there to the end of the slice, but no more than the clusters
 * that [guest, guest+length) touches.  1, 0, -1.
 */
extern int qcow_entry_locked (struct qcow *q, struct slice_op *op,
                              uint64_t l2, uint64_t guest, uint64_t length,
                              struct slice **s, uint8_t **p, uint64_t *nr,
                              struct error *e)
  REQUIRES (q->cache.mutex);

/* A slice of a table; one that is used as two kinds of table is an error. */
extern int qcow_slice_locked (struct qcow *q, struct slice_op *op,
                              enum qcow_slice kind, uint64_t host,
                              struct slice **s, struct error *e)
  REQUIRES (q->cache.mutex);

/* ---- place.c ---- */
extern int qcow_reserve (struct format *f, uint64_t guest, uint64_t length,
                         struct placement *p, struct error *e);
extern int qcow_reserve_packed (struct format *f, uint64_t guest,
                                uint64_t packed_length, struct placement *p,
                                struct error *e);
extern int qcow_link (struct format *f, const struct placement *p,
                      struct error *e);
extern void qcow_abandon (struct format *f, const struct placement *p);
extern int qcow_unmap (struct format *f, uint64_t guest, uint64_t length,
                       enum unmap_how how, uint64_t *done, struct error *e);

/* ---- epoch.c ---- */
extern int qcow_run_epoch (void *owner, struct error *e);
extern int qcow_flush (struct format *f, struct error *e);
extern bool qcow_metadata_dirty (struct format *f);

/* ---- survey.c ---- */

/* New clusters are going to lie behind FIRST_NEW: how far?  A damaged image
 * has entries that lead there; *LIMIT = the first place, or INT64_MAX.  Without
 * the mutex, and nothing was allocated yet.
 */
extern int qcow_survey (struct qcow *q, uint64_t first_new, uint64_t *limit,
                        struct error *e);

/* ---- empty.c ---- */
extern int qcow_empty (struct format *f, struct error *e);

/* ---- create.c ---- */
extern const struct format_option qcow_create_options[];
extern int qcow_create (struct storage *st,
                        const struct format_create_options *opts,
                        struct error *e);

#endif /* NBDIMG_QCOW_H */
