/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* How often each cluster of an image is referred to, in bounded memory.
 *
 * The map holds counts of the clusters of one window [lo, hi).  It is made of
 * pages that come into being with their first reference, so that its size
 * depends on what is used, not on what a header or a sparse file claims.  When
 * the pages outgrow the budget the window's end moves down and the pages behind
 * it are dropped: the caller walks over the image again for the next window.
 *
 * A page has 4 bits a cluster: 4 TiB of 64 KiB clusters take 32 MiB.  Only
 * pages with larger counts (many snapshots) have 16 or 64 bits.
 *
 * Locking: none, one thread.
 */

#ifndef NBDIMG_REFMAP_H
#define NBDIMG_REFMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum {
  REF_PAGE_BITS = 12,
  REF_PAGE = 1 << REF_PAGE_BITS,        /* clusters of a page */
};

/* Who refers to a cluster: entries that the guest writes through say whether
 * they are the only one (COPIED); of other references that is not known.
 */
enum ref_kind { REF_PLAIN, REF_COPIED, REF_SHARED };

enum ref_width { REF_4_BITS, REF_16_BITS, REF_64_BITS };

struct refpage {
  uint64_t index;               /* first cluster / REF_PAGE */
  struct refpage *next;         /* in its hash bucket */
  enum ref_width width;
  uint8_t data[] __attribute__ ((aligned (8)));
};

struct refmap {
  uint64_t lo, hi;              /* the window, clusters */
  size_t budget, used;          /* bytes of pages */
  size_t nr_pages;
  struct refpage *last;         /* where the last reference was; or NULL */
  struct refpage **buckets;     /* owned */
  size_t nr_buckets;            /* power of 2 */
};

/* What is known of a cluster. */
struct refcell {
  uint64_t count;
  bool copied;                  /* some REF_COPIED */
  bool shared;                  /* some REF_SHARED (told only if count == 1) */
};

extern int refmap_init (struct refmap *m, size_t budget, struct error *e);
extern void refmap_free (struct refmap *m);

/* Forget everything; the window is [LO, HI). */
extern void refmap_begin (struct refmap *m, uint64_t lo, uint64_t hi);

extern int refmap_add_slow (struct refmap *m, uint64_t cluster, uint64_t nr,
                            enum ref_kind kind, struct error *e);
extern struct refcell refmap_get (const struct refmap *m, uint64_t cluster);

/* NR references to CLUSTER less. */
extern void refmap_take (struct refmap *m, uint64_t cluster, uint64_t nr);
extern struct refpage *refmap_page (const struct refmap *m, uint64_t cluster);
extern struct refcell refpage_get (const struct refpage *p, unsigned i);

/* All pages in order of their clusters.  Returns owned, NULL = no memory. */
extern struct refpage **refmap_sorted (const struct refmap *m,
                                       struct error *e);

/* After the counts were compared they make room for the refcounts that stand on
 * disk, cut to 15 in narrow pages.
 */
extern void refpage_put_refcount (struct refpage *p, unsigned i, uint64_t r);
extern uint64_t refpage_refcount (const struct refpage *p, unsigned i,
                                  bool *exact);

/* Add NR references of KIND to CLUSTER; ignored outside the window.  Inline for
 * what nearly all references of a check are: the first one of a cluster near
 * the one before.
 */
static inline int
refmap_add (struct refmap *m, uint64_t cluster, uint64_t nr,
            enum ref_kind kind, struct error *e)
{
  struct refpage *p = m->last;
  unsigned i = (unsigned) (cluster & (REF_PAGE - 1)), shift = i % 2 * 4;

  if (cluster - m->lo >= m->hi - m->lo)
    return 0;
  if (!p || p->index != cluster >> REF_PAGE_BITS || p->width != REF_4_BITS
      || nr != 1 || ((p->data[i / 2] >> shift) & 15))
    return refmap_add_slow (m, cluster, nr, kind, e);
  p->data[i / 2] = (uint8_t) (p->data[i / 2] | (1 + kind) << shift);
  return 0;
}

#endif /* NBDIMG_REFMAP_H */
