/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Guest -> host.  Layer: formats.  Locking: the mutex, dropped when a slice
 * must be read; the caller's range lock keeps the answer true.
 * Specification: "Tables", "Logical offset translation".
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qed/qed.h"

static int
corrupt (const struct qed *q, struct error *e, uint64_t guest,
         const char *what, uint64_t v)
{
  return error_set (e, EIO, "%s: corrupt image: %s of guest offset %" PRIu64
                    ": 0x%" PRIx64 " is not a place for it: check and repair"
                    " the image", q->format.storage->name, what, guest, v);
}

int
qed_check_entry (const struct qed *q, uint64_t guest, uint64_t v,
                 struct error *e)
{
  if (v == 0 || v == QED_ZERO
      || qed_valid_host (q, v, false, storage_size (q->format.storage)))
    return 0;
  return corrupt (q, e, guest, "L2 entry", v);
}

int
qed_slice_locked (struct qed *q, struct slice_op *op, unsigned kind,
                  uint64_t host, struct slice **s, struct error *e)
{
  int r = slices_get_locked (&q->cache, op, kind, host, s, e);

  if (r != SLICE_OTHER_KIND)
    return r;
  return error_set (e, EIO, "%s: corrupt image: the cluster at 0x%" PRIx64
                    " is part of an L1 and of an L2 table: check the image",
                    q->format.storage->name, (*s)->host);
}

int
qed_find_l2_locked (struct qed *q, struct slice_op *op, uint64_t guest,
                    uint64_t *l2, struct error *e)
{
  uint64_t index = guest >> (q->g.cluster_bits + q->g.table_bits);
  uint64_t host = q->l1_table_offset + index * 8;
  struct slice *s;
  int r;

  r = qed_slice_locked (q, op, SLICE_L1, host, &s, e);
  if (r != 1)
    return r;
  *l2 = get_le64 (slice_byte (&q->cache, s, host));
  if (*l2 == 0
      || qed_valid_host (q, *l2, true, storage_size (q->format.storage)))
    return 1;
  return corrupt (q, e, guest, "L1 entry", *l2);
}

int
qed_entries_locked (struct qed *q, struct slice_op *op, uint64_t l2,
                    uint64_t guest, uint64_t length, struct qed_entries *r,
                    struct error *e)
{
  uint64_t mask = (UINT64_C (1) << q->g.table_bits) - 1;
  uint64_t first = guest >> q->g.cluster_bits;
  uint64_t last = (guest + length - 1) >> q->g.cluster_bits;
  uint64_t host = l2 + (first & mask) * 8;
  int got = qed_slice_locked (q, op, SLICE_L2, host, &r->slice, e);

  if (got != 1)
    return got;
  r->p = slice_byte (&q->cache, r->slice, host);
  r->nr = min_u64 (last - first + 1,
                   (q->cache.slice_size
                    - (uint64_t) (r->p - r->slice->data)) / 8);
  return 1;
}

/* ---- runs ---- */

static enum map_kind
kind_of (uint64_t v)
{
  if (v == 0)
    return MAP_BACKING;
  return v == QED_ZERO ? MAP_ZERO : MAP_DATA;
}

/* Clusters from the first one on that go on alike. */
static uint64_t
count_alike (const struct qed *q, const struct qed_entries *r)
{
  uint64_t first = get_le64 (r->p), n, v;
  enum map_kind kind = kind_of (first);
  struct error later = ERROR_INIT;      /* told when that offset is asked for */

  for (n = 1; n < r->nr; ++n) {
    v = get_le64 (r->p + 8 * n);
    if (kind_of (v) != kind
        || (kind == MAP_DATA && (v != first + n * q->g.cluster_size
                                 || qed_check_entry (q, 0, v, &later) == -1)))
      break;
  }
  return n;
}

static int
map_locked (struct qed *q, struct slice_op *op, uint64_t guest,
            uint64_t length, struct mapping *m, struct error *e)
  REQUIRES (q->cache.mutex)
{
  uint64_t in_cluster = guest & (q->g.cluster_size - 1), l2, v;
  struct qed_entries entries;
  int r;

  r = qed_find_l2_locked (q, op, guest, &l2, e);
  if (r != 1)
    return r;
  *m = (struct mapping) { .kind = MAP_BACKING, .storage = MAP_IN_IMAGE };
  if (l2 == 0) {
    m->length = min_u64 (length, qed_reach (q, guest));
    return 1;
  }
  r = qed_entries_locked (q, op, l2, guest, length, &entries, e);
  if (r != 1)
    return r;
  v = get_le64 (entries.p);
  if (qed_check_entry (q, guest, v, e) == -1)
    return -1;
  m->kind = kind_of (v);
  m->host = m->kind == MAP_DATA ? v + in_cluster : 0;
  m->length = min_u64 (length, (count_alike (q, &entries)
                                << q->g.cluster_bits) - in_cluster);
  /* Data that lie on a table may be read, but never written in place: reserve
   * says what is wrong.
   */
  if (q->writing && m->kind == MAP_DATA
      && qed_on_table_locked (q, m->host, m->length))
    m->kind = MAP_DATA_COW;
  return 1;
}

int
qed_map (struct format *f, struct format_view *view, uint64_t guest,
         uint64_t length, struct mapping *m, struct error *e)
{
  struct qed *q = to_qed (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  (void) view;
  mutex_lock (q->cache.mutex);
  do
    r = map_locked (q, &op, guest, length, m, e);
  while (r == 0);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  return r == 1 ? 0 : -1;
}
