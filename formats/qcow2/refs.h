/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* All that one L1 table leads to: its L2 tables and their clusters, and what
 * the refcounts and COPIED flags say of them.  Snapshots give and take one
 * reference of each, amend expands zero clusters.
 *
 * Everything is done in passes over whole tables, read ahead and written in
 * large pieces, straight on the storage.  References are counted first, in
 * bounded memory (refmap.h), so that each refcount block is read and written
 * once, wherever its clusters are referred from.  A disk whose counts do not
 * fit the memory is done in windows, and its L2 tables are read once for each.
 *
 * Locking: structural; no other call is inside, nothing is dirty in the table
 * cache and nothing in it is used (qcow2_settle).
 */

#ifndef NBDIMG_QCOW2_REFS_H
#define NBDIMG_QCOW2_REFS_H

#include "formats/qcow2/qcow2.h"
#include "formats/refmap.h"

struct l1_refs {
  /* fixed after refs_load */
  struct qcow2 *q;
  uint64_t l1_table_offset;
  uint32_t l1_size;             /* entries */
  uint64_t *l2;                 /* owned; where its L2 tables lie, in order */
  size_t nr_l2;
  uint64_t nr_clusters;         /* of the file */

  /* set afterwards, or not: one more L2 table, of which only the entries from
   * PART_FROM on count; 0 = none
   */
  uint64_t part_l2, part_from;

  struct refmap map;            /* of the window: counts, or, after
                                   refs_change with KEEP, refcounts (refs_of) */
  bool counted;                 /* one window is enough, MAP has its counts */
};

/* Read the L1 table and look at each entry: places that are not in the file,
 * and a table that two entries name, are errors.
 */
extern int refs_load (struct l1_refs *r, struct qcow2 *q,
                      uint64_t l1_table_offset, uint32_t l1_size,
                      struct error *e);
extern void refs_free (struct l1_refs *r);

/* Run FN for each window of clusters, with the references into it counted. */
extern int refs_each_window (struct l1_refs *r,
                             int (*fn) (struct l1_refs *r, void *opaque,
                                        struct error *e),
                             void *opaque, struct error *e);

struct refs_change {
  int delta;                    /* references that each counted one adds: 1, 0,
                                   -1 */
  bool write;                   /* false: only find out if it can be done */
  bool keep;                    /* leave the new refcounts in the map */
  bool punch;                   /* what becomes free leaves the file, too */
  uint64_t first_free;          /* result: first cluster that became free, or
                                   UINT64_MAX */
};

/* Change the refcounts of the window.  Errors: EIO, the refcounts contradict
 * the tables; EOVERFLOW, they cannot become larger.
 */
extern int refs_change (struct l1_refs *r, struct refs_change *c,
                        struct error *e);

/* After KEEP: the refcount of CLUSTER; UINT64_MAX = it was not counted. */
extern uint64_t refs_of (const struct l1_refs *r, uint64_t cluster);

/* Before refs_change: does R lead to the image's own tables?  EIO. */
extern int refs_check_metadata (const struct l1_refs *r, struct error *e);

/* After a change with KEEP: does all that STAYS leads to keep a refcount above
 * 0?  EIO.
 */
extern int refs_verify (const struct l1_refs *r, struct l1_refs *stays,
                        struct error *e);

/* For refs_each_window: can R's references be dropped, and leave all that
 * OPAQUE (struct l1_refs) leads to; drop them, and set the flags of OPAQUE, or
 * NULL.
 */
extern int refs_look_at_drop (struct l1_refs *r, void *opaque,
                              struct error *e);
extern int refs_drop (struct l1_refs *r, void *opaque, struct error *e);

/* Set the COPIED flags in the tables of ACTIVE: R NULL = none has it; else as
 * the refcounts in R's map say, where it has one.
 */
extern int refs_set_flags (const struct l1_refs *r, struct l1_refs *active,
                           struct error *e);

/* The COPIED flags of the active tables as the refcounts on disk say. */
extern int qcow2_rebuild_flags (struct qcow2 *q, struct error *e);

#endif /* NBDIMG_QCOW2_REFS_H */
