/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* VDI 1.1, dynamic and static images: what the files of this folder share.
 *
 * No specification was published.  The layout is that of images which
 * VirtualBox and QEMU make, little endian; names of fields follow VirtualBox's.
 *
 *   header.c  header; open, activate, begin_write, close
 *   map.c     guest -> host; reserve, link, abandon, unmap
 *   epoch.c   write-back in order, flush
 *   survey.c  one look at the whole map: duplicates, gaps, what is outside
 *   check.c repair.c create.c resize.c
 *
 * A disk is cut into blocks of 1 MiB.  The block map has one u32 for each: the
 * index of the place where it lies (data_offset + index * 1 MiB), or one of two
 * marks for "not allocated" and "discarded", which both read as zeroes.  Places
 * are given out in order.  There are no refcounts: two entries with the same
 * index share a block, and a write through one changes the other.  So an image
 * whose map has that is not written to before it is repaired.
 *
 * The next place is that behind the largest index in the map, or one that no
 * entry names; both are found by reading the map when a writer opens the image.
 * The header's blocks_allocated is not believed: QEMU takes it for the next
 * index, so that it writes over a block where the number is too small.
 *
 * How changes get to the disk.  Map entries collect in the cache; an epoch
 * writes them out:
 *
 *   P1  blocks_allocated, if it grows    barrier (covers guest data too)
 *   P2  the map                          barrier
 *
 * The number goes first, so that no crash leaves one that is smaller than what
 * the map uses: one that is too large costs another program some space, one
 * that is too small costs it data.  It is exact again after a clean shutdown.
 * A block is written whole before its entry, so a crash leaves the old content
 * or the new one, and at most some places that no entry names.
 *
 * A block that was allocated stays so: a mark in its entry would leave a gap,
 * which QEMU fills by writing over the last block.  Zeroes and trims punch
 * holes into it.
 *
 * Locking: cache.mutex guards what says so.  It is not held during a storage
 * read, write or flush.
 */

#ifndef NBDIMG_VDI_H
#define NBDIMG_VDI_H

#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/lock.h"
#include "formats/format.h"
#include "formats/slices.h"

#define VDI_SIGNATURE UINT32_C (0xbeda107f)
#define VDI_VERSION UINT32_C (0x00010001)

/* Offsets of header fields. */
enum {
  V_TEXT = 0,
  V_SIGNATURE = 64,
  V_VERSION = 68,
  V_HEADER_SIZE = 72,           /* of what follows this field's predecessor */
  V_IMAGE_TYPE = 76,
  V_BMAP_OFFSET = 340,
  V_DATA_OFFSET = 344,
  V_SECTOR_SIZE = 360,
  V_DISK_SIZE = 368,
  V_BLOCK_SIZE = 376,
  V_BLOCK_EXTRA = 380,
  V_BLOCKS_IN_IMAGE = 384,
  V_BLOCKS_ALLOCATED = 388,
  V_UUID_IMAGE = 392,
  V_UUID_LAST_SNAPSHOT = 408,
  V_UUID_LINK = 424,
  V_UUID_PARENT = 440,
  V_LENGTH = 512,               /* the header's sector */
  V_UUID_LENGTH = 16,
};

enum { VDI_DYNAMIC = 1, VDI_STATIC = 2, VDI_UNDO = 3, VDI_DIFFERENCING = 4 };

/* Map entries that are no index. */
#define VDI_UNALLOCATED UINT32_C (0xffffffff)
#define VDI_DISCARDED UINT32_C (0xfffffffe)

static inline bool
vdi_is_index (uint32_t entry)
{
  return entry < VDI_DISCARDED;
}

#define VDI_BLOCK_SIZE MiB

/* QEMU's limit (512 TiB less 128 MiB): its map must not pass 2 GiB. */
#define VDI_MAX_BLOCKS UINT64_C (0x1fffff80)

/* Places without an owner that are remembered: 4 KiB of memory. */
enum { VDI_MAX_FREE = 1024 };

struct vdi {
  struct format format;         /* base; must be first */

  /* fixed after open, but for resize */
  uint32_t image_type;
  uint64_t bmap_offset, data_offset;
  uint64_t blocks;              /* entries of the map */
  bool writable, for_check;

  struct mutex mutex;           /* the cache's */
  struct slice_cache cache;

  /* guarded by cache.mutex */
  bool writing;                 /* begin_write was done */
  uint64_t next;                /* larger than every index in use */
  uint64_t fresh_from;          /* places from here on were never written and
                                   read as zeroes; UINT64_MAX = unknown */
  uint32_t free[VDI_MAX_FREE];  /* indexes below next that nobody has */
  size_t nr_free;

  /* of the one epoch that runs, and of structural calls */
  uint64_t recorded;            /* blocks_allocated as written to the header */
};

static inline struct vdi *
to_vdi (struct format *f)
{
  return (struct vdi *) f;
}

static inline uint64_t
vdi_host (const struct vdi *v, uint64_t index)
{
  return v->data_offset + index * VDI_BLOCK_SIZE;
}

static inline uint64_t
vdi_entry_host (const struct vdi *v, uint64_t block)
{
  return v->bmap_offset + block * 4;
}

static inline uint64_t
vdi_map_bytes (uint64_t blocks)
{
  return round_up (blocks * 4, SECTOR_SIZE);
}

/* ---- header.c ---- */

/* Write the header's blocks_allocated.  No barrier. */
extern int vdi_write_count (struct vdi *v, uint64_t count, struct error *e);

/* The survey's results are taken over for writing. */
struct survey;
extern void vdi_start_allocating (struct vdi *v, const struct survey *s);

/* ---- map.c ---- */
extern int vdi_map (struct format *f, struct format_view *view,
                    uint64_t guest, uint64_t length, struct mapping *m,
                    struct error *e);
extern int vdi_reserve (struct format *f, uint64_t guest, uint64_t length,
                        struct placement *p, struct error *e);
extern int vdi_link (struct format *f, const struct placement *p,
                     struct error *e);
extern void vdi_abandon (struct format *f, const struct placement *p);
extern int vdi_unmap (struct format *f, uint64_t guest, uint64_t length,
                      enum unmap_how how, uint64_t *done, struct error *e);

/* The error of who wants a place and finds no index for it; -1. */
extern int vdi_no_index (const struct vdi *v, struct error *e);

/* ---- epoch.c ---- */
extern int vdi_run_epoch (void *owner, struct error *e);
extern int vdi_flush (struct format *f, struct error *e);
extern bool vdi_metadata_dirty (struct format *f);

/* ---- survey.c ---- */

enum survey_kind {
  SURVEY_DUPLICATE,             /* another entry has this index */
  SURVEY_OUTSIDE,               /* the place lies behind the end of the file */
  SURVEY_CUT,                   /* the file ends within the place */
};

struct survey {
  /* What is wrong with the entry of BLOCK; -1 stops the survey. */
  int (*wrong) (void *opaque, enum survey_kind kind, uint64_t block,
                uint32_t entry, struct error *e);
  /* Called from time to time; false = stop (ECANCELED).  May be NULL. */
  bool (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
  uint64_t memory;              /* bytes it may use */

  /* results */
  uint64_t used;                /* entries that have a place */
  uint64_t end;                 /* the largest index, and one */
  uint64_t duplicates, outside, cut;
  bool stopped;                 /* so many duplicates that the rest of the map
                                   was not looked at */
  uint64_t gaps;                /* indexes below end that no entry has */
  uint32_t free[VDI_MAX_FREE];  /* the first of these */
  size_t nr_free;
};

/* Read the whole map, from the disk. */
extern int vdi_survey (struct vdi *v, struct survey *s, struct error *e);

/* Call EACH for all entries of the map as they are on disk; what it changes
 * there it does not see again.
 */
extern int vdi_for_each_entry (struct vdi *v, void *opaque,
                               int (*each) (struct vdi *v, void *opaque,
                                            uint64_t block, uint32_t entry,
                                            struct error *e),
                               struct error *e);

/* The content of a place into another one.  No barrier. */
extern int vdi_copy_block (struct vdi *v, uint64_t from, uint64_t to,
                           struct error *e);

/* ---- check.c ---- */
extern int vdi_check (struct format *f, const struct format_check_options *,
                      struct format_check_result *, struct error *e);

/* ---- repair.c ---- */

/* What a survey FOUND.  COUNT_IS_WRONG: the result has the header's number of
 * blocks among its corruptions.
 */
extern int vdi_repair (struct vdi *v, const struct format_check_options *opts,
                       const struct survey *found, bool count_is_wrong,
                       struct format_check_result *result, struct error *e);

/* ---- create.c ---- */
extern const struct format_option vdi_create_options[];
extern int vdi_create (struct storage *st,
                       const struct format_create_options *opts,
                       struct error *e);

/* ---- resize.c ---- */
extern int vdi_resize (struct format *f, uint64_t size, uint64_t zero_until,
                       struct error *e);

#endif /* NBDIMG_VDI_H */
