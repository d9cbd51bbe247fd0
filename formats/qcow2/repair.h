/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the files of check -r share.
 *
 *   repair.c            what is done, in which order, and what is refused
 *   repair_tables.c     L1 and L2 tables read and changed in place
 *   repair_entries.c    entries that are wrong in themselves
 *   repair_moves.c      clusters that may not be shared get their own place
 *   repair_snapshots.c  the snapshot table
 *   check_flags.c       COPIED flags
 *   mend.c, rebuild.c   refcounts
 *
 * Each step begins with a look at the image as it is then (struct checker), and
 * ends with a barrier.  After each write of a step the image is no worse than
 * before it, so that neither the dirty nor the corrupt bit is set for the time
 * of the work; where they are set they are cleared when all else is durable and
 * nothing is wrong any more.
 *
 * Locking: the image is frozen and was not written to, one thread; the mutex is
 * taken only to change what it guards.
 */

#ifndef NBDIMG_QCOW2_REPAIR_H
#define NBDIMG_QCOW2_REPAIR_H

#include "formats/qcow2/check.h"

/* ---- repair.c ---- */

struct repair {
  struct qcow2 *q;
  const struct format_check_options *opts;
  struct format_check_result *result;   /* what is mended is counted there */
  struct format_check_result found;     /* by the look that is going on */
  struct damage damage;
  uint64_t end;                 /* clusters up to the last one that is in use,
                                   or whose refcount says so */
  bool anew;                    /* the refcounts must be made anew */
  bool begun;                   /* something was written */
  uint64_t nr_told;
  uint8_t *table;               /* owned; a cluster, for changes */
};

/* DAMAGE and END are what check found in Q; RESULT is its result, and is
 * brought up to date.
 */
extern int qcow2_repair (struct qcow2 *q,
                         const struct format_check_options *opts,
                         const struct damage *damage, uint64_t end,
                         struct format_check_result *result, struct error *e);

/* Begin a look at the image as it is now; checker_free ends it. */
extern int repair_look (struct repair *r, struct checker *c, struct error *e);

/* A line for the user about what was mended. */
extern void repair_say (struct repair *r, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

/* Write to the image, in place of what is cached of it. */
extern int repair_write (struct repair *r, const void *buf, size_t len,
                         uint64_t host, struct error *e);
extern int repair_flush (struct repair *r, struct error *e);

/* [end, end+nr) get the refcount REFS (or as much as it can be), durably, and
 * are behind R->end then.  *HOST is the first one's place.
 */
extern int repair_reserve (struct repair *r, uint64_t nr, uint64_t refs,
                           uint64_t *cluster, struct error *e);

/* ---- repair_tables.c ---- */

/* An L2 table and what is to become of it. */
struct table_edit {
  const uint8_t *old;
  uint8_t *buf;                 /* a copy with the changes */
  uint64_t lo, hi;              /* entries that changed lie in [lo, hi) */
};
extern struct l2_entry table_edit_get (const struct qcow2 *q,
                                       const struct table_edit *t,
                                       uint64_t index);
extern void table_edit_put (const struct qcow2 *q, struct table_edit *t,
                            uint64_t index, struct l2_entry v);

/* Run FN for each L2 table; what it changed is written.  A table with entries
 * that cannot be right is passed over: it may not be a table at all.
 */
extern int repair_l2 (struct checker *c, struct repair *r, void *opaque,
                      int (*fn) (struct checker *c, struct repair *r,
                                 void *opaque, const struct l2_item *item,
                                 struct table_edit *t, struct error *e),
                      struct error *e);

/* Run FN for each L1 entry that is not 0; true = *ENTRY was changed.  Nothing
 * is done when there are entries that cannot be right.
 */
extern int repair_l1 (struct checker *c, struct repair *r,
                      bool (*fn) (struct checker *c, struct repair *r,
                                  const struct segment *s, uint64_t host,
                                  uint64_t *entry),
                      struct error *e);

/* ---- the steps ---- */

extern int repair_entries (struct checker *c, struct repair *r,
                           struct error *e);
extern int repair_flags (struct checker *c, struct repair *r,
                         struct error *e);
extern int repair_snapshots (struct repair *r, struct error *e);

/* Metadata that shares a cluster with other metadata: an error. */
extern int repair_check_shared (struct repair *r, struct error *e);

/* Entries that share a cluster with metadata (TOO_MANY: whose cluster has more
 * references than a refcount can say) get one of their own, with the same
 * content.
 */
extern int repair_moves (struct repair *r, bool too_many, struct error *e);

/* Would that be refused?  Nothing is written. */
extern int repair_check_moves (struct repair *r, bool too_many,
                               struct error *e);

#endif /* NBDIMG_QCOW2_REPAIR_H */
