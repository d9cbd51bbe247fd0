/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What refcount.c has for alloc.c. */

#ifndef NBDIMG_QCOW2_REFCOUNT_H
#define NBDIMG_QCOW2_REFCOUNT_H

#include "formats/qcow2/qcow2.h"

extern uint64_t qcow2_refcounts_in_slice (const struct qcow2 *q);

/* How many clusters may be taken at CLUSTER before the storage ends. */
extern uint64_t qcow2_room_at (const struct qcow2 *q, uint64_t cluster);

/* The slice with CLUSTER's refcount, which is entry *INDEX in it; *S = NULL
 * where there is no refcount block (all its clusters are free).
 */
extern int qcow2_find_refcount_locked (struct qcow2 *q, struct slice_op *op,
                                       uint64_t cluster, struct slice **s,
                                       uint64_t *index, struct error *e)
  REQUIRES (q->mutex);

/* Clusters [cluster, cluster+nr) get an owner: check that nobody has them, and
 * keep account of the end of the file.
 */
extern int qcow2_claim_locked (struct qcow2 *q, uint64_t cluster, uint64_t nr,
                               bool *fresh, struct error *e)
  REQUIRES (q->mutex);

/* Give CLUSTER a refcount block.  0 = done, start over; -1. */
extern int qcow2_grow_refcounts_locked (struct qcow2 *q, struct slice_op *op,
                                        uint64_t cluster, struct error *e)
  REQUIRES (q->mutex);

#endif /* NBDIMG_QCOW2_REFCOUNT_H */
