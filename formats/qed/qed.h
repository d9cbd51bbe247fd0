/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* QED: everything that the files of this folder share.
 *
 * Specification: QEMU's docs/interop/qed_spec; field names are taken from
 * there.
 *
 *   header.c    header and feature bits; open, activate, begin_write
 *   map.c       guest -> host
 *   place.c     reserve, link, abandon, unmap
 *   space.c     clusters at the end of the file, the NEED_CHECK bit
 *   known.c     where the L2 tables lie
 *   epoch.c     write-back in order, flush, close
 *   resize.c    growing the virtual disk
 *   backing.c   another backing file
 *   check.c     check and repair
 *   create.c
 *
 * There are no refcounts: a cluster is in use when a table refers to it, new
 * ones come from the end of the file, and one that is dropped is lost for good.
 * So nothing here drops a data cluster: zeroes over one are written into it.
 *
 * How metadata get to the disk.  Before the first change of a table, NEED_CHECK
 * is set in the header, durably; the last thing that a clean close does is to
 * clear it.  Changes collect in a cache of table slices (formats/slices.h), and
 * an epoch writes them out:
 *
 *   barrier (guest data, the file's size, new empty L2 tables)
 *   L2 slices    barrier
 *   L1 slices    barrier
 *
 * Hence, at any moment, whatever a table on disk points to is complete on disk.
 * A crash leaves clusters behind the end of what is in use, which the next
 * writer cuts off (check.c), and NEED_CHECK, which makes it look.
 *
 * Locking: one mutex guards all fields in the group "guarded by mutex" and the
 * cache.  It is never held during a storage read, write or flush; a function
 * that drops it returns 0, and its caller looks everything up again.
 */

#ifndef NBDIMG_QED_H
#define NBDIMG_QED_H

#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/lock.h"
#include "formats/format.h"
#include "formats/host_set.h"
#include "formats/slices.h"

/* ---- on disk (little endian) ---- */

#define QED_MAGIC UINT32_C (0x00444551)         /* "QED\0" */

/* Offsets of header fields. */
enum {
  H_MAGIC = 0,
  H_CLUSTER_SIZE = 4,
  H_TABLE_SIZE = 8,
  H_HEADER_SIZE = 12,
  H_FEATURES = 16,
  H_COMPAT_FEATURES = 24,
  H_AUTOCLEAR_FEATURES = 32,
  H_L1_TABLE_OFFSET = 40,
  H_IMAGE_SIZE = 48,
  H_BACKING_FILENAME_OFFSET = 56,
  H_BACKING_FILENAME_SIZE = 60,
  H_LENGTH = 64,
};

#define QED_F_BACKING_FILE UINT64_C (1)
#define QED_F_NEED_CHECK UINT64_C (2)
#define QED_F_BACKING_FORMAT_NO_PROBE UINT64_C (4)
#define QED_F_KNOWN UINT64_C (7)

#define QED_ZERO UINT64_C (1)   /* L2 entry: reads as zeroes */

enum {
  MIN_CLUSTER_SIZE = 1 << 12,
  MAX_CLUSTER_SIZE = 1 << 26,
  MAX_TABLE_SIZE = 16,          /* clusters */
  DEFAULT_CLUSTER_SIZE = 1 << 16,
  DEFAULT_TABLE_SIZE = 4,
  MAX_BACKING_NAME = 4095,      /* what QEMU reads */
};

/* The specification allows 1 GiB; QEMU's arithmetic wraps beyond this. */
#define MAX_TABLE_BYTES (16 * MiB)

/* What the three sizes of a header make. */
struct qed_geometry {
  uint32_t cluster_size;        /* bytes, power of 2 */
  uint32_t table_size;          /* clusters, power of 2 */
  unsigned cluster_bits;        /* log2 of the cluster size */
  unsigned table_bits;          /* log2 of the entries of a table */
  uint64_t table_bytes;
  uint64_t max_size;            /* virtual bytes that the L1 table can reach,
                                   cut to INT64_MAX less a cluster */
};

/* Check the ranges of CLUSTER_SIZE and TABLE_SIZE; the same for create and
 * open.
 */
extern int qed_geometry (struct qed_geometry *g, uint64_t cluster_size,
                         uint64_t table_size, struct error *e);

/* ---- an open image ---- */

enum slice_kind { SLICE_L1, SLICE_L2, NR_SLICE_KINDS };

/* Clusters side by side that nothing refers to, since a write failed. */
struct spare {
  uint64_t host, length;        /* bytes */
};
enum { MAX_SPARES = 256 };      /* more than writers that fail at once; others
                                   leak until the next check */

struct qed {
  struct format format;         /* base; must be first */

  /* fixed after open */
  struct qed_geometry g;
  uint64_t header_bytes;        /* header_size in bytes: no cluster before */
  uint64_t l1_table_offset;
  bool has_backing;             /* after activate: unallocated is not zero */

  struct mutex own_mutex;       /* cache.mutex is this one: use that name, so
                                   that clang sees that they are one */
  struct slice_cache cache;

  /* guarded by *cache.mutex */
  uint64_t features, autoclear_features;        /* as on disk */
  bool writing;                 /* begin_write was done */
  bool marking;                 /* NEED_CHECK is being written */
  bool growing;                 /* the file is being made longer */
  bool linking;                 /* an L2 table is being made */
  uint64_t end;                 /* bytes; all allocated clusters lie before */
  uint64_t file_end;            /* bytes; the file reaches to here */
  uint64_t fresh_from;          /* bytes; what lies behind reads as zeroes when
                                   it is given out first */
  struct host_set tables;       /* of begin_write and later (known.c) */
  struct spare spares[MAX_SPARES];
  unsigned nr_spares;
};

static inline struct qed *
to_qed (struct format *f)
{
  return (struct qed *) f;
}

/* ---- header.c ---- */
extern int qed_probe (const uint8_t *buf, size_t len, uint64_t size);
extern struct format *qed_open (struct storage *st,
                                const struct format_open_options *opts,
                                struct format_needs *needs, struct error *e);
extern int qed_activate (struct format *f, struct storage *data_file,
                         bool has_backing, struct error *e);
extern int qed_begin_write (struct format *f, struct error *e);
extern void qed_free (struct qed *q);

/* Write one of the header's fields of 8 bytes, durably.  Without the mutex. */
extern int qed_write_field (struct qed *q, uint64_t offset, uint64_t value,
                            struct error *e);

/* May a data cluster, or (TABLE) an L2 table, lie at HOST of a file of
 * FILE_SIZE bytes?
 */
extern bool qed_valid_host (const struct qed *q, uint64_t host, bool table,
                            uint64_t file_size);

/* ---- map.c ---- */
extern int qed_map (struct format *f, struct format_view *view,
                    uint64_t guest, uint64_t length, struct mapping *m,
                    struct error *e);

/* Where the L2 table for GUEST lies, 0 = there is none.  1 = done, 0 = the
 * mutex was dropped: start over, -1.
 */
extern int qed_find_l2_locked (struct qed *q, struct slice_op *op,
                               uint64_t guest, uint64_t *l2, struct error *e)
  REQUIRES (q->cache.mutex);

/* The slice of a table that holds byte HOST.  1, 0, -1. */
extern int qed_slice_locked (struct qed *q, struct slice_op *op,
                             unsigned kind, uint64_t host, struct slice **s,
                             struct error *e) REQUIRES (q->cache.mutex);

/* L2 entries of GUEST's and those behind it that are in its slice, as far as
 * [guest, guest+length) touches their clusters.
 */
struct qed_entries {
  struct slice *slice;
  uint8_t *p;                   /* GUEST's entry, in the slice */
  uint64_t nr;
};
extern int qed_entries_locked (struct qed *q, struct slice_op *op,
                               uint64_t l2, uint64_t guest, uint64_t length,
                               struct qed_entries *r, struct error *e)
  REQUIRES (q->cache.mutex);

/* Is V, an entry for GUEST, 0, QED_ZERO or the place of a cluster?  0, -1. */
extern int qed_check_entry (const struct qed *q, uint64_t guest, uint64_t v,
                            struct error *e);

/* Bytes from GUEST to the end of what its L2 table covers. */
static inline uint64_t
qed_reach (const struct qed *q, uint64_t guest)
{
  uint64_t reach = UINT64_C (1) << (q->g.cluster_bits + q->g.table_bits);

  return reach - (guest & (reach - 1));
}

/* ---- place.c ---- */
extern int qed_reserve (struct format *f, uint64_t guest, uint64_t length,
                        struct placement *p, struct error *e);
extern int qed_link (struct format *f, const struct placement *p,
                     struct error *e);
extern void qed_abandon (struct format *f, const struct placement *p);
extern int qed_unmap (struct format *f, uint64_t guest, uint64_t length,
                      enum unmap_how how, uint64_t *done, struct error *e);

/* What stands at [guest, guest+length), data too, is forgotten: all entries
 * become 0.  Its clusters are lost, so this is for what no guest can see.
 */
extern int qed_forget (struct qed *q, uint64_t guest, uint64_t length,
                       struct error *e);

/* ---- space.c ---- */

/* NEED_CHECK stands in the header.  1, 0 = start over, -1. */
extern int qed_need_check_locked (struct qed *q, struct error *e)
  REQUIRES (q->cache.mutex);

/* LEAST to *LENGTH bytes of clusters side by side; nobody refers to them yet.
 * *LENGTH = how many; FRESH: they read as zeroes.  1, 0 = start over, -1.
 */
extern int qed_alloc_locked (struct qed *q, uint64_t least, uint64_t *length,
                             uint64_t *host, bool *fresh, struct error *e)
  REQUIRES (q->cache.mutex);

/* Give back what qed_alloc gave and no table refers to.  What is not used again
 * before the image is closed, and does not lie at its end, leaks.
 */
extern void qed_spare_locked (struct qed *q, uint64_t host, uint64_t length)
  REQUIRES (q->cache.mutex);

/* Cut off what nothing refers to at the end of the file.  At close. */
extern int qed_cut (struct qed *q, struct error *e);

/* ---- known.c ---- */

/* Read where the L2 tables are.  Before the first write. */
extern int qed_learn_tables (struct qed *q, struct error *e);

/* Has an L2 table a byte of these whole clusters? */
extern bool qed_on_table_locked (struct qed *q, uint64_t host,
                                 uint64_t length)
  REQUIRES (q->cache.mutex);

/* ---- epoch.c ---- */
extern int qed_run_epoch (void *owner, struct error *e);
extern int qed_flush (struct format *f, struct error *e);
extern bool qed_metadata_dirty (struct format *f);
extern int qed_close (struct format *f, struct error *e);

/* ---- resize.c, backing.c, check.c, create.c ---- */
extern int qed_resize (struct format *f, uint64_t size, uint64_t zero_until,
                       struct error *e);
extern int qed_set_backing (struct format *f, const char *name,
                            const char *format, struct error *e);
extern int qed_check (struct format *f,
                      const struct format_check_options *opts,
                      struct format_check_result *result, struct error *e);

/* An image with NEED_CHECK gets its first writer: mend it and clear the bit, or
 * say why not.
 */
extern int qed_mend (struct qed *q, struct error *e);
extern const struct format_option qed_create_options[];
extern int qed_create (struct storage *st,
                       const struct format_create_options *opts,
                       struct error *e);

#endif /* NBDIMG_QED_H */
