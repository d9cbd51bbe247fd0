/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Reading compressed clusters, with a small cache of decoded ones, so that
 * small sequential reads decode each cluster once.
 */

#ifndef NBDIMG_PACKED_H
#define NBDIMG_PACKED_H

#include "image/image.h"

struct packed_cache;

/* BYTES: the budget for decoded clusters; at least two are kept.  Returns
 * owned, freed with packed_cache_free.
 */
extern struct packed_cache *packed_cache_new (uint64_t bytes,
                                              struct error *e);
extern void packed_cache_free (struct packed_cache *pc);

/* Read LEN bytes at OFFSET of the guest from the cluster that M (MAP_PACKED)
 * describes; the caller holds the range.
 */
extern int packed_read (struct image *im, const struct mapping *m, void *buf,
                        size_t len, uint64_t offset, struct error *e);

/* The mapping of [offset, offset+length) is about to change; the caller holds
 * the range EXCLUSIVE.
 */
extern void packed_forget (struct packed_cache *pc, uint64_t offset,
                           uint64_t length);

#endif /* NBDIMG_PACKED_H */
