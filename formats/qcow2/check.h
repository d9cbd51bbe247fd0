/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the files of the checker share.
 *
 *   check.c          entry point, findings, metadata other than L1 and L2
 *   check_walk.c     L1 and L2 tables: who refers to which cluster
 *   check_compare.c  the result against the refcounts on disk
 *   check_flags.c    the COPIED flags against both
 *   segments.c       tables that overlap, cut so that each byte is read once
 *   mend.c           refcounts made right in place; images with the dirty bit
 *   rebuild.c        refcounts made anew
 *   repair.h         check -r
 *
 * One window of clusters (refmap.h) after the other: walk over all tables and
 * count the references into the window, then compare.  Everything that is not
 * about counts is reported in the first walk.  An image that fits the memory,
 * and nearly all do, has one window.
 *
 * Each table is read once in a walk, however many entries point to it: first
 * the L1 tables are read and the L2 tables in them sorted, with the number of
 * references of each; then each L2 table is read and counts for its entries
 * that many times.  So the cost depends on the tables that exist, not on sizes
 * and offsets that an image claims.
 *
 * Locking: the image is frozen, one thread.
 */

#ifndef NBDIMG_QCOW2_CHECK_H
#define NBDIMG_QCOW2_CHECK_H

#include "formats/qcow2/qcow2.h"
#include "formats/qcow2/reader.h"
#include "formats/refmap.h"
#include "formats/qcow2/stream.h"

/* ---- segments.c ---- */

/* [START, END) bytes of the image, covered by NR ranges. */
struct segment {
  uint64_t start, end;
  uint32_t nr;
  bool active;                  /* one of the ranges is the active one */
};
struct segments {
  struct segment *items;        /* owned */
  size_t nr, alloc;
};
extern int segments_add (struct segments *l, uint64_t start, uint64_t end,
                         bool active, struct error *e);

/* Cut overlapping ranges into disjoint ones, in order; with ALIGN (a power of
 * 2) they are rounded out to it first.
 */
extern int segments_cut (const struct segments *from, uint64_t align,
                         struct segments *to, struct error *e);
extern void segments_clear (struct segments *l);

/* ---- check.c ---- */

/* Kinds of findings, by what a repair can do about them. */
enum finding {
  /* corruptions: */
  FINDING_CORRUPTION,           /* nothing, but it is in nobody's way */
  FINDING_LOST,                 /* what should be there is not known: nothing,
                                   and nobody knows which clusters are its */
  FINDING_SHARED,               /* a cluster is metadata and something else */
  FINDING_AUTOCLEAR,            /* the autoclear bit is cleared */
  FINDING_ENTRY,                /* the entry is put right */
  FINDING_SNAPSHOT,             /* the snapshot table is written anew */
  FINDING_REFCOUNT,             /* a refcount is raised */
  FINDING_REFCOUNTS,            /* the refcount structures are made anew */
  FINDING_FLAG,                 /* a COPIED flag is put right */
  /* not corruptions: */
  FINDING_LEAK,
  FINDING_ERROR,                /* a table could not be read */
  FINDING_REFBLOCK_ERROR,       /* a refcount block could not be read */
  FINDING_NOTE,                 /* not counted */
};

/* What was found, as a repair must know it. */
struct damage {
  uint64_t lost, shared, autoclear, entries, snapshots, refcounts, flags;
  uint64_t too_many;            /* of the refcounts: they cannot say it */
  uint64_t left;                /* FINDING_CORRUPTION */
  uint64_t anew;                /* FINDING_REFCOUNTS, FINDING_REFBLOCK_ERROR */
  uint64_t unreadable;          /* FINDING_ERROR */
  uint64_t lost_l2;             /* of those that are lost: L1 entries */
  char text[256];               /* of the first one that is lost, or could not
                                   be read */
};

/* One L2 table. */
struct l2_item {
  uint64_t host;
  uint32_t refs;                /* L1 entries that point here */
  uint32_t active_refs;         /* of these: in the active L1 table */
  uint32_t l1_index;            /* of one of the active ones */
  bool copied;                  /* an active entry says COPIED */
};

struct checker {
  /* fixed */
  struct qcow2 *q;
  struct storage *st;
  const struct format_check_options *opts;      /* NULL = silent */
  struct format_check_result *result;
  bool names_backing;           /* the header does; of version 2 only */
  uint64_t nr_clusters;         /* of the file, the last one may be cut */
  size_t memory;                /* bytes, for everything */
  bool ignore_refcounts;        /* the refcount table and blocks are about to
                                   be replaced: do not count them */
  bool repairing;               /* a later pass of a repair: nothing is told,
                                   and an entry that leads nowhere counts for
                                   nothing */
  bool strict;                  /* something will be written that depends on
                                   all tables: one that cannot be read is not a
                                   finding, but an error */
  bool metadata_only;           /* walk: do not count what L2 entries say */

  struct segments l1;           /* entries of all L1 tables, cut */
  struct segments l1_clusters;  /* clusters of all L1 tables, cut */
  struct segments bitmap_tables, bitmap_clusters;
  uint64_t snapshots_length;    /* bytes of the snapshot table */

  struct refmap refs;
  bool first;                   /* the first window: report what is found */
  bool l2_reported;             /* L1 entries were reported on already */

  /* L2 tables in [l2_lo, l2_hi) of the image, in order */
  struct l2_item *l2;           /* owned */
  size_t nr_l2, alloc_l2, max_l2;
  uint64_t l2_lo, l2_hi;
  bool l2_complete;             /* l2 holds all there are */

  bool flags_suspect;           /* COPIED flags need a closer look */
  uint64_t nr_findings;         /* told so far */
  char first_corruption[256];   /* its text */
  struct damage damage;
  uint64_t end;                 /* clusters up to the last one in use */
  uint64_t progress;            /* told so far */
};

extern int checker_init (struct checker *c, struct qcow2 *q,
                         const struct format_check_options *opts,
                         struct format_check_result *result, uint64_t memory,
                         struct error *e);
extern void checker_free (struct checker *c);

extern void check_finding (struct checker *c, enum finding kind,
                           const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

/* So many findings that new ones are only counted. */
extern bool check_is_flooded (const struct checker *c);

/* DONE of TOTAL steps of this window.  -1 = stop. */
extern int check_progress (struct checker *c, uint64_t done, uint64_t total,
                           struct error *e);

/* The finding of KIND for a range that does not lie in the file. */
extern void check_outside (struct checker *c, enum finding kind,
                           uint64_t host, uint64_t length);

/* Count NR references to each cluster of [host, host+length); none when it is
 * not INSIDE the file.
 */
extern int check_add_range (struct checker *c, uint64_t host, uint64_t length,
                            uint32_t nr, enum ref_kind kind, bool *inside,
                            struct error *e);

/* The first byte from AT on, before END, that is not in a hole of the file;
 * END = there is none.
 */
extern uint64_t check_skip_hole (const struct checker *c, uint64_t at,
                                 uint64_t end);

/* Run FN for each entry of 8 bytes, not 0, in the segments of L. */
extern int check_each_entry (struct checker *c, const struct segments *l,
                             int (*fn) (struct checker *c,
                                        const struct segment *s, uint64_t host,
                                        uint64_t entry, struct error *e),
                             struct error *e);

/* Find the L1 and bitmap tables; comes before check_walk. */
extern int check_find_tables (struct checker *c, struct error *e);

/* Count everything that refers to a cluster of the window. */
extern int check_walk (struct checker *c, struct error *e);

/* Run FN for each window, after the walk. */
extern int check_each_window (struct checker *c, void *opaque,
                              int (*fn) (struct checker *c, void *opaque,
                                         struct error *e),
                              struct error *e);

/* All of check but repair; C is new. */
extern int check_run (struct checker *c, struct error *e);

/* Report metadata that something else refers to as well. */
extern int check_overlaps (struct checker *c, struct error *e);

/* ---- check_walk.c ---- */

/* Run FN for each part of all L2 tables that fits into memory (c->l2). */
extern int check_each_l2_part (struct checker *c, void *opaque,
                               int (*fn) (struct checker *c, void *opaque,
                                          struct error *e),
                               struct error *e);
extern int check_walk_l2 (struct checker *c, void *opaque, struct error *e);

/* Run FN for each L2 table of the part that is in memory.  A table that cannot
 * be read is passed over, or, in a repair, an error.
 */
extern int check_each_l2_table (struct checker *c, void *opaque,
                                int (*fn) (struct checker *c, void *opaque,
                                           const struct l2_item *item,
                                           const uint8_t *table,
                                           struct error *e),
                                struct error *e);

/* Does a plain cluster read the same wherever its entry points to?  Not one
 * with bits that nobody sets: it may be no entry at all.
 */
extern bool check_needs_no_host (const struct qcow2 *q, struct l2_entry v);

/* Can an entry say what V does where there is no cluster, only zeroes? */
extern bool check_can_drop_host (const struct checker *c, struct l2_entry v);

/* The bits of an L2 entry that must be 0. */
extern uint64_t check_l2_reserved (const struct qcow2 *q);

/* ---- check_compare.c ---- */

/* Compare the window with the refcounts on disk. */
extern int check_compare (struct checker *c, struct error *e);

/* Where refcount table entry ENTRY says that a refcount block lies; 0 = nowhere
 * or not in the file.
 */
static inline uint64_t
check_refblock (const struct checker *c, uint64_t entry)
{
  uint64_t host = entry & ~REFTABLE_RESERVED;

  if (!is_aligned (host, c->q->cluster_size)
      || host >> c->q->cluster_bits >= c->nr_clusters)
    return 0;
  return host;
}

/* ---- check_flags.c ---- */

/* After check_compare: the COPIED flags of all entries that point into the
 * window.
 */
extern int check_flags (struct checker *c, struct error *e);

#endif /* NBDIMG_QCOW2_CHECK_H */
