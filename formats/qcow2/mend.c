/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Refcounts put right in place, and images with the dirty bit: another program
 * postponed their refcounts and did not come to write them.
 * Layer: formats.  Locking: no other call is inside; the mutex is taken only to
 * change what it guards.
 * Specification: "Host cluster management", "Dirty bit", "Lazy refcounts bit".
 *
 * The tables say what is in use.  Where refcount blocks exist for all of it
 * they are put right in place: a crash in the middle leaves some refcounts old
 * and some right, and it is done again.  Where a block is missing all of them
 * are made anew (rebuild.c).
 *
 * A dirty image whose tables are damaged is refused when it is opened: what
 * they say cannot be trusted, and new refcounts would hand their clusters out
 * again.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/mend.h"
#include "formats/qcow2/refs.h"
#include "formats/qcow2/repair.h"

/* ---- survey ---- */

int
mend_has_refblock (struct checker *c, struct reader *reader, uint64_t cluster,
                   bool *yes, struct error *e)
{
  uint64_t i = cluster >> c->q->refblock_bits;
  const uint8_t *p;

  *yes = false;
  if (i >= (uint64_t) c->q->refcount_table_clusters
      << (c->q->cluster_bits - 3))
    return 0;
  p = reader_get (reader, c->q->refcount_table_offset + i * 8, 8, e);
  if (!p)
    return -1;
  *yes = check_refblock (c, get_be64 (p)) != 0;
  return 0;
}

static int
survey_page (struct checker *c, struct reader *reader,
             const struct refpage *p, struct survey *s, struct error *e)
{
  uint64_t first = p->index << REF_PAGE_BITS, known = UINT64_MAX;
  bool yes;

  for (unsigned i = 0; i < REF_PAGE; ++i) {
    struct refcell cell = refpage_get (p, i);
    uint64_t block = (first + i) >> c->q->refblock_bits;

    if (cell.count == 0)
      continue;
    s->end = max_u64 (s->end, first + i + 1);
    if (cell.count > refcount_max (c->q) && !s->too_many) {
      s->too_many = cell.count;
      s->too_many_at = first + i;
    }
    if (cell.count > 1 && cell.copied && !s->contradicted) {
      s->contradicted = cell.count;
      s->contradicted_at = first + i;
    }
    if (block == known)
      continue;
    known = block;
    if (mend_has_refblock (c, reader, first + i, &yes, e) == -1)
      return -1;
    s->missing |= !yes;
  }
  return 0;
}

static int
survey_window (struct checker *c, void *opaque, struct error *e)
{
  struct survey *s = opaque;
  struct refpage **pages = refmap_sorted (&c->refs, e);
  struct reader reader = { .buf = NULL };
  size_t nr = c->refs.nr_pages;
  int r = -1;

  s->one_window = c->refs.lo == 0;
  if (!c->repairing && check_overlaps (c, e) == -1)
    r = -1;
  else if (pages && reader_init (&reader, c->st, 64 * KiB, e) == 0) {
    r = 0;
    for (size_t i = 0; i < nr && r == 0; ++i)
      r = survey_page (c, &reader, pages[i], s, e);
  }
  reader_free (&reader);
  free (pages);
  return r;
}

int
mend_survey (struct checker *c, struct survey *s, struct error *e)
{
  memset (s, 0, sizeof *s);
  return check_each_window (c, s, survey_window, e);
}

/* ---- in place ---- */

/* What the refcount of CLUSTER is to be. */
static uint64_t
wanted_refcount (const struct checker *c, const struct mending *m,
                 const struct refpage *p, uint64_t cluster)
{
  uint64_t want = p
    ? refpage_get (p, (unsigned) (cluster & (REF_PAGE - 1))).count : 0;

  if (m->nr && cluster - m->first < m->nr)
    want = max_u64 (want, m->refs);
  return min_u64 (want, refcount_max (c->q));
}

static void
tell_mended (struct mending *m, uint64_t cluster, uint64_t old, uint64_t want)
{
  if (!m->repair || (m->nr && cluster - m->first < m->nr))
    return;
  if (want > old)
    m->repair->result->corruptions_fixed++;
  else
    m->repair->result->leaks_fixed++;
  repair_say (m->repair, "Repairing cluster %" PRIu64 " refcount=%" PRIu64
              " reference=%" PRIu64, cluster, old, want);
}

/* Make the refcounts of the block for clusters FIRST.. what the map says, as
 * far as they belong to the window.
 */
static bool
mend_block (const struct checker *c, struct mending *m, uint64_t first,
            uint8_t *block)
{
  unsigned order = c->q->refcount_order;
  uint64_t nr = UINT64_C (1) << c->q->refblock_bits, want, old;
  uint64_t hi = c->refs.hi >= c->nr_clusters ? UINT64_MAX : c->refs.hi;
  const struct refpage *p = NULL;
  bool changed = false;

  for (uint64_t i = 0; i < nr; ++i) {
    uint64_t cluster = first + i;

    if (i == 0 || cluster % REF_PAGE == 0)
      p = refmap_page (&c->refs, cluster);
    if (cluster < c->refs.lo || cluster >= hi)
      continue;
    want = wanted_refcount (c, m, p, cluster);
    old = refcount_get (block, i, order);
    if (want == old || !(m->how & (want > old ? MEND_RAISE : MEND_LOWER))
        || (want < old && cluster >= c->nr_clusters
            && !(m->how & MEND_BEHIND_END)))
      continue;
    refcount_set (block, i, order, want);
    tell_mended (m, cluster, old, want);
    changed = true;
  }
  return changed;
}

static int
mend_block_at (struct checker *c, struct mending *m, uint64_t first,
               uint64_t host, uint8_t *block, struct error *e)
{
  size_t len = (size_t) c->q->cluster_size;

  if (storage_pread (c->st, block, len, host, e) == -1)
    return -1;
  if (!mend_block (c, m, first, block))
    return 0;
  if (m->repair)
    return repair_write (m->repair, block, len, host, e);
  mutex_lock (&c->q->mutex);
  table_drop_locked (c->q, host, len);
  mutex_unlock (&c->q->mutex);
  return storage_pwrite (c->st, block, len, host, 0, e);
}

static int
mend_window (struct checker *c, void *opaque, struct error *e)
{
  struct mending *m = opaque;
  unsigned bits = c->q->refblock_bits;
  uint64_t nr = (uint64_t) c->q->refcount_table_clusters
    << (c->q->cluster_bits - 3);
  uint64_t hi = c->refs.hi >= c->nr_clusters ? UINT64_MAX : c->refs.hi;
  CLEANUP_FREE uint8_t *block = malloc ((size_t) c->q->cluster_size);
  struct reader reader;
  int r = 0;

  if (!block)
    return error_nomem (e, "a refcount block", (size_t) c->q->cluster_size);
  if (reader_init (&reader, c->st, 64 * KiB, e) == -1)
    return -1;
  for (uint64_t i = c->refs.lo >> bits; i < nr && i << bits < hi && r == 0;
       ++i) {
    const uint8_t *p = reader_get (&reader, c->q->refcount_table_offset
                                   + i * 8, 8, e);
    uint64_t host = p ? check_refblock (c, get_be64 (p)) : 0;

    r = !p ? -1 : host ? mend_block_at (c, m, i << bits, host, block, e) : 0;
  }
  reader_free (&reader);
  return r;
}

int
mend_in_place (struct checker *c, const struct survey *s, struct mending *m,
               struct error *e)
{
  return s->one_window ? mend_window (c, m, e)
    : check_each_window (c, m, mend_window, e);
}

/* ---- a dirty image ---- */

static int
refuse_damage (const struct checker *c, const struct survey *s,
               struct error *e)
{
  if (c->result->corruptions || c->result->check_errors)
    return error_set (e, EIO, "its tables are damaged: %s",
                      c->first_corruption[0] ? c->first_corruption
                      : "a table cannot be read");
  if (s->too_many)
    return error_set (e, EIO, "cluster %" PRIu64 " has %" PRIu64
                      " references, its refcount cannot say that",
                      s->too_many_at, s->too_many);
  if (s->contradicted)
    return error_set (e, EIO, "cluster %" PRIu64 " has %" PRIu64
                      " references, one of them is marked as the only one",
                      s->contradicted_at, s->contradicted);
  return 0;
}

/* Until the dirty bit is cleared, behind a barrier, a crash only means that it
 * is done again.
 */
static int
mend (struct checker *c, struct error *e)
{
  struct mending m = { .how = MEND_RAISE | MEND_LOWER | MEND_BEHIND_END };
  struct survey s;

  c->strict = true;
  if (check_find_tables (c, e) == -1 || mend_survey (c, &s, e) == -1
      || refuse_damage (c, &s, e) == -1)
    return -1;
  return s.missing ? mend_anew (c, &s, &m, e) : mend_in_place (c, &s, &m, e);
}

/* The COPIED flags come last: they follow from the refcounts. */
int
qcow2_mend (struct qcow2 *q, struct error *e)
{
  struct format_check_result result;
  struct checker c;
  int r;

  r = checker_init (&c, q, NULL, &result, 0, e);
  if (r == 0)
    r = mend (&c, e);
  checker_free (&c);
  if (r == 0 && !(q->incompatible_features & INCOMPAT_DATA_FILE))
    r = qcow2_rebuild_flags (q, e);
  return r == -1 ? -1 : storage_flush (q->format.storage, e);
}

int
qcow2_mend_dirty (struct qcow2 *q, struct error *e)
{
  int r = qcow2_mend (q, e);

  if (r == 0)
    r = qcow2_clear_features (q, INCOMPAT_DIRTY, e);
  return r == -1 ? error_prefix (e, "%s: the image was not closed cleanly, and"
                                 " its refcounts cannot be rebuilt",
                                 q->format.storage->name) : 0;
}
