/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Reference counts of clusters in bounded memory: see refmap.h.
 * Layer: formats.  Locking: none, one thread.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "formats/refmap.h"

/* ---- cells ----
 *
 * 4 bits: 0 = none; 1 + kind = one reference of that kind; from 4 on pairs:
 * 4 + 2 * (count - 2), + 1 if one of them was REF_COPIED.  The largest is
 * count 7.  Wider cells: count * 4 + copied * 2 + shared.
 */

enum { MAX_COUNT_4 = 7, MAX_COUNT_16 = UINT16_MAX / 4 };

static struct refcell
decode_4 (unsigned v)
{
  struct refcell c = { .count = 0 };

  if (v >= 4) {
    c.count = (v - 4) / 2 + 2;
    c.copied = v % 2;
  }
  else if (v > 0) {
    c.count = 1;
    c.copied = v == 1 + REF_COPIED;
    c.shared = v == 1 + REF_SHARED;
  }
  return c;
}

static unsigned
encode_4 (struct refcell c)
{
  if (c.count == 0)
    return 0;
  if (c.count == 1)
    return 1 + (c.copied ? REF_COPIED : c.shared ? REF_SHARED : REF_PLAIN);
  return (unsigned) (4 + (c.count - 2) * 2 + c.copied);
}

static struct refcell
decode_wide (uint64_t v)
{
  struct refcell c = { .count = v >> 2, .copied = v & 2, .shared = v & 1 };

  return c;
}

static uint64_t
encode_wide (struct refcell c)
{
  return c.count << 2 | (c.copied ? 2 : 0) | (c.shared ? 1 : 0);
}

static uint64_t
load (const struct refpage *p, unsigned i)
{
  uint16_t v16;
  uint64_t v64;

  switch (p->width) {
  case REF_4_BITS:
    return (p->data[i / 2] >> (i % 2 * 4)) & 15;
  case REF_16_BITS:
    memcpy (&v16, p->data + 2 * i, sizeof v16);
    return v16;
  case REF_64_BITS:
  default:
    memcpy (&v64, p->data + 8 * i, sizeof v64);
    return v64;
  }
}

static void
store (struct refpage *p, unsigned i, uint64_t v)
{
  unsigned shift = i % 2 * 4;
  uint16_t v16 = (uint16_t) v;

  switch (p->width) {
  case REF_4_BITS:
    p->data[i / 2] = (uint8_t) ((p->data[i / 2] & ~(15U << shift))
                                | (unsigned) v << shift);
    break;
  case REF_16_BITS:
    memcpy (p->data + 2 * i, &v16, sizeof v16);
    break;
  case REF_64_BITS:
    memcpy (p->data + 8 * i, &v, sizeof v);
    break;
  }
}

struct refcell
refpage_get (const struct refpage *p, unsigned i)
{
  uint64_t v = load (p, i);

  return p->width == REF_4_BITS ? decode_4 ((unsigned) v) : decode_wide (v);
}

static void
put_cell (struct refpage *p, unsigned i, struct refcell c)
{
  store (p, i, p->width == REF_4_BITS ? encode_4 (c) : encode_wide (c));
}

static bool
fits (const struct refpage *p, struct refcell c)
{
  return p->width == REF_64_BITS
    || c.count <= (p->width == REF_4_BITS ? MAX_COUNT_4 : MAX_COUNT_16);
}

void
refpage_put_refcount (struct refpage *p, unsigned i, uint64_t r)
{
  store (p, i, p->width == REF_4_BITS ? min_u64 (r, 15)
         : p->width == REF_16_BITS ? min_u64 (r, UINT16_MAX) : r);
}

uint64_t
refpage_refcount (const struct refpage *p, unsigned i, bool *exact)
{
  uint64_t v = load (p, i);

  *exact = v != (p->width == REF_4_BITS ? 15
                 : p->width == REF_16_BITS ? UINT16_MAX : UINT64_MAX);
  return v;
}

/* ---- pages ---- */

static size_t
page_bytes (enum ref_width width)
{
  static const size_t bytes[] = { REF_PAGE / 2, REF_PAGE * 2, REF_PAGE * 8 };

  /* malloc's own header is part of the cost. */
  return sizeof (struct refpage) + bytes[width] + 16;
}

int
refmap_init (struct refmap *m, size_t budget, struct error *e)
{
  memset (m, 0, sizeof *m);
  m->budget = budget;
  m->nr_buckets = 64;
  while (m->nr_buckets < budget / page_bytes (REF_4_BITS))
    m->nr_buckets *= 2;
  m->buckets = calloc (m->nr_buckets, sizeof *m->buckets);
  if (!m->buckets)
    return error_nomem (e, "reference counts",
                        m->nr_buckets * sizeof *m->buckets);
  return 0;
}

/* Drop the pages from index FROM on. */
static void
drop_pages (struct refmap *m, uint64_t from)
{
  m->last = NULL;
  for (size_t b = 0; b < m->nr_buckets; ++b) {
    struct refpage **link = &m->buckets[b], *p;

    while ((p = *link)) {
      if (p->index < from) {
        link = &p->next;
        continue;
      }
      *link = p->next;
      m->used -= page_bytes (p->width);
      m->nr_pages--;
      free (p);
    }
  }
}

void
refmap_begin (struct refmap *m, uint64_t lo, uint64_t hi)
{
  drop_pages (m, 0);
  m->lo = lo;
  m->hi = hi;
}

void
refmap_free (struct refmap *m)
{
  if (m->buckets)
    drop_pages (m, 0);
  free (m->buckets);
  m->buckets = NULL;
}

static struct refpage **
bucket (const struct refmap *m, uint64_t index)
{
  return &m->buckets[(index * UINT64_C (0x9e3779b97f4a7c15) >> 20)
                     & (m->nr_buckets - 1)];
}

struct refpage *
refmap_page (const struct refmap *m, uint64_t cluster)
{
  uint64_t index = cluster >> REF_PAGE_BITS;
  struct refpage *p = *bucket (m, index);

  while (p && p->index != index)
    p = p->next;
  return p;
}

static int
compare_pages (const void *a, const void *b)
{
  const struct refpage *const *pa = a, *const *pb = b;

  return ((*pa)->index > (*pb)->index) - ((*pa)->index < (*pb)->index);
}

struct refpage **
refmap_sorted (const struct refmap *m, struct error *e)
{
  struct refpage **r = malloc ((m->nr_pages + 1) * sizeof *r);
  size_t n = 0;

  if (!r) {
    error_nomem (e, "reference counts", m->nr_pages * sizeof *r);
    return NULL;
  }
  for (size_t b = 0; b < m->nr_buckets; ++b)
    for (struct refpage *p = m->buckets[b]; p; p = p->next)
      r[n++] = p;
  qsort (r, n, sizeof *r, compare_pages);
  return r;
}

/* Make room for BYTES more: give up the last eighth of the window's pages, or
 * at least one.  A window keeps its first page, so that each makes progress.
 */
static int
make_room (struct refmap *m, size_t bytes, struct error *e)
{
  struct refpage **sorted;
  size_t keep;

  while (m->used + bytes > m->budget && m->nr_pages > 1) {
    sorted = refmap_sorted (m, e);
    if (!sorted)
      return -1;
    keep = m->nr_pages - m->nr_pages / 8;
    if (keep == m->nr_pages)
      keep--;
    m->hi = sorted[keep]->index << REF_PAGE_BITS;
    drop_pages (m, sorted[keep]->index);
    free (sorted);
  }
  return 0;
}

/* A new page, or P in the next width; NULL with *E empty = the window became
 * too short for it.
 */
static struct refpage *
new_page (struct refmap *m, uint64_t index, enum ref_width width,
          struct error *e)
{
  size_t bytes = page_bytes (width);
  struct refpage *p, **b;

  if (make_room (m, bytes, e) == -1 || index << REF_PAGE_BITS >= m->hi)
    return NULL;
  p = calloc (1, bytes - 16);
  if (!p) {
    error_nomem (e, "reference counts", bytes);
    return NULL;
  }
  p->index = index;
  p->width = width;
  b = bucket (m, index);
  p->next = *b;
  *b = p;
  m->used += bytes;
  m->nr_pages++;
  return p;
}

static void
remove_page (struct refmap *m, struct refpage *p)
{
  struct refpage **link = bucket (m, p->index);

  while (*link != p)
    link = &(*link)->next;
  *link = p->next;
  m->used -= page_bytes (p->width);
  m->nr_pages--;
  if (m->last == p)
    m->last = NULL;
}

/* Replace P by a page of the next width; NULL as new_page. */
static struct refpage *
widen (struct refmap *m, struct refpage *p, struct error *e)
{
  struct refpage *wide;

  remove_page (m, p);           /* so that make_room does not free it */
  wide = new_page (m, p->index, p->width + 1, e);
  for (unsigned i = 0; wide && i < REF_PAGE; ++i)
    put_cell (wide, i, refpage_get (p, i));
  free (p);
  return wide;
}

int
refmap_add_slow (struct refmap *m, uint64_t cluster, uint64_t nr,
                 enum ref_kind kind, struct error *e)
{
  struct refpage *p = refmap_page (m, cluster);
  unsigned i = (unsigned) (cluster & (REF_PAGE - 1));
  struct refcell c;

  if (nr == 0)
    return 0;
  if (!p)
    p = new_page (m, cluster >> REF_PAGE_BITS, REF_4_BITS, e);
  if (!p)
    return e->err ? -1 : 0;
  c = refpage_get (p, i);
  c.count = min_u64 (c.count + nr, UINT64_MAX >> 2);
  c.copied |= kind == REF_COPIED;
  c.shared |= kind == REF_SHARED;
  while (!fits (p, c)) {
    p = widen (m, p, e);
    if (!p)
      return e->err ? -1 : 0;
  }
  put_cell (p, i, c);
  m->last = p;
  return 0;
}

struct refcell
refmap_get (const struct refmap *m, uint64_t cluster)
{
  const struct refpage *p = refmap_page (m, cluster);
  struct refcell none = { .count = 0 };

  return p ? refpage_get (p, (unsigned) (cluster & (REF_PAGE - 1))) : none;
}

void
refmap_take (struct refmap *m, uint64_t cluster, uint64_t nr)
{
  struct refpage *p = refmap_page (m, cluster);
  unsigned i = (unsigned) (cluster & (REF_PAGE - 1));
  struct refcell c;

  if (!p)
    return;
  c = refpage_get (p, i);
  c.count -= min_u64 (c.count, nr);
  put_cell (p, i, c);
}
