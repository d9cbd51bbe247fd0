/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Ranges that overlap, cut into disjoint ones: see check.h.
 * Layer: formats.  Locking: none, one thread.
 *
 * An image may name 65536 L1 tables of 32 MiB that all lie in the same place.
 * Cut into segments, each byte of them is read once and counted as often as it
 * is covered.
 */

#include <config.h>

#include <stdlib.h>

#include "formats/qcow2/check.h"

int
segments_add (struct segments *l, uint64_t start, uint64_t end, bool active,
              struct error *e)
{
  struct segment *items;
  size_t alloc;

  if (start >= end)
    return 0;
  if (l->nr == l->alloc) {
    alloc = l->alloc ? l->alloc * 2 : 16;
    items = realloc (l->items, alloc * sizeof *items);
    if (!items)
      return error_nomem (e, "table ranges", alloc * sizeof *items);
    l->items = items;
    l->alloc = alloc;
  }
  l->items[l->nr++] = (struct segment) {
    .start = start, .end = end, .nr = 1, .active = active,
  };
  return 0;
}

void
segments_clear (struct segments *l)
{
  free (l->items);
  l->items = NULL;
  l->nr = l->alloc = 0;
}

/* A range begins or ends here. */
struct edge {
  uint64_t at;
  int cover, active;            /* how many more ranges cover what follows */
};

static int
compare_edges (const void *a, const void *b)
{
  const struct edge *ea = a, *eb = b;

  return (ea->at > eb->at) - (ea->at < eb->at);
}

static int
sweep (const struct edge *edges, size_t nr, struct segments *to,
       struct error *e)
{
  uint32_t cover = 0;
  int active = 0;

  for (size_t i = 0; i < nr; ++i) {
    if (i > 0 && cover > 0 && edges[i].at > edges[i - 1].at) {
      if (segments_add (to, edges[i - 1].at, edges[i].at, active > 0, e) == -1)
        return -1;
      to->items[to->nr - 1].nr = cover;
    }
    cover += (uint32_t) edges[i].cover;
    active += edges[i].active;
  }
  return 0;
}

int
segments_cut (const struct segments *from, uint64_t align, struct segments *to,
              struct error *e)
{
  struct edge *edges = malloc ((from->nr * 2 + 1) * sizeof *edges);
  int r;

  if (!edges)
    return error_nomem (e, "table ranges", from->nr * 2 * sizeof *edges);
  for (size_t i = 0; i < from->nr; ++i) {
    const struct segment *s = &from->items[i];

    edges[2 * i] = (struct edge) {
      .at = round_down (s->start, align), .cover = 1, .active = s->active,
    };
    edges[2 * i + 1] = (struct edge) {
      .at = round_up (s->end, align), .cover = -1, .active = -s->active,
    };
  }
  qsort (edges, from->nr * 2, sizeof *edges, compare_edges);
  r = sweep (edges, from->nr * 2, to, e);
  free (edges);
  return r;
}
