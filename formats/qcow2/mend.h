/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Refcounts made what the tables say: mend.c in place, rebuild.c anew.  For a
 * dirty image that gets its first writer, and for check -r.
 * Locking: no other call is inside.
 */

#ifndef NBDIMG_QCOW2_MEND_H
#define NBDIMG_QCOW2_MEND_H

#include "formats/qcow2/check.h"

struct repair;

struct survey {
  uint64_t end;                 /* clusters up to the last one in use */
  bool missing;                 /* a refcount block that is needed */
  bool one_window;              /* the counts are still in the map */
  /* the first cluster with more references than a refcount can say, and the
   * first that has several although one says that it is the only one: how
   * many, 0 = there is none
   */
  uint64_t too_many, too_many_at;
  uint64_t contradicted, contradicted_at;
};

/* C has found the tables: count, and see what there is. */
extern int mend_survey (struct checker *c, struct survey *s,
                        struct error *e);

/* Is there a refcount block for CLUSTER? */
extern int mend_has_refblock (struct checker *c, struct reader *reader,
                              uint64_t cluster, bool *yes, struct error *e);

enum {
  MEND_RAISE = 1, MEND_LOWER = 2,
  MEND_BEHIND_END = 4,          /* lower those behind the end of the file too */
};

struct mending {
  unsigned how;
  uint64_t first, nr;           /* clusters that are about to be used: they get
                                   at least the refcount REFS */
  uint64_t refs;
  struct repair *repair;        /* who counts and tells; NULL = nobody */
};

/* After mend_survey.  No barrier at the end. */
extern int mend_in_place (struct checker *c, const struct survey *s,
                          struct mending *m, struct error *e);

/* After mend_survey.  They lie behind S->end and M's clusters, which are not
 * before it; durable on return.
 */
extern int mend_anew (struct checker *c, const struct survey *s,
                      const struct mending *m, struct error *e);

#endif /* NBDIMG_QCOW2_MEND_H */
