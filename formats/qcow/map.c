/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Guest -> host.  Layer: formats.  Locking: cache.mutex, dropped when a slice
 * of a table must be read; the caller's range lock keeps the answer true.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "formats/qcow/qcow.h"

int
qcow_slice_locked (struct qcow *q, struct slice_op *op, enum qcow_slice kind,
                   uint64_t host, struct slice **s, struct error *e)
{
  int r = slices_get_locked (&q->cache, op, kind, host, s, e);

  if (r != SLICE_OTHER_KIND)
    return r;
  return error_set (e, EIO, "corrupt image: what lies at 0x%" PRIx64 " is used"
                    " as L1 and as L2 table", host);
}

/* May LENGTH bytes of a table or of a plain cluster lie at HOST? */
static bool
is_place (const struct qcow *q, uint64_t host, uint64_t length)
{
  uint64_t size = storage_size (q->format.storage);

  return is_aligned (host, q->cache.slice_size) && host >= q->tables_end
    && length <= size && host <= size - length;
}

int
qcow_find_l2_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
                     uint64_t *l2, struct error *e)
{
  uint64_t host = q->l1_table_offset + guest / qcow_l2_reach (q) * 8;
  struct slice *s;
  int r = qcow_slice_locked (q, op, QCOW_L1, host, &s, e);

  if (r != 1)
    return r;
  *l2 = get_be64 (slice_byte (&q->cache, s, host));
  /* One that the file's end cuts would get clusters written over its rest. */
  if (*l2 == 0 || is_place (q, *l2, UINT64_C (8) << q->l2_bits))
    return 1;
  return error_set (e, EIO, "corrupt image: the L1 entry at 0x%" PRIx64 " is"
                    " 0x%" PRIx64 ", which is not the place of an L2 table",
                    host, *l2);
}

int
qcow_entry_locked (struct qcow *q, struct slice_op *op, uint64_t l2,
                   uint64_t guest, uint64_t length, struct slice **s,
                   uint8_t **p, uint64_t *nr, struct error *e)
{
  uint64_t index = (guest & (qcow_l2_reach (q) - 1)) >> q->cluster_bits;
  uint64_t host = l2 + index * 8, in_slice, in_table;
  int r = qcow_slice_locked (q, op, QCOW_L2, host, s, e);

  if (r != 1)
    return r;
  *p = slice_byte (&q->cache, *s, host);
  in_slice = (q->cache.slice_size - (host & (q->cache.slice_size - 1))) / 8;
  in_table = (UINT64_C (1) << q->l2_bits) - index;
  *nr = min_u64 (div_round_up ((guest & (q->cluster_size - 1)) + length,
                               q->cluster_size), min_u64 (in_slice, in_table));
  return 1;
}

/* ---- runs ---- */

/* No L2 table: nor have the next entries of the slice one, perhaps. */
static int
map_no_table_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
                     uint64_t length, struct mapping *m, struct error *e)
  REQUIRES (q->cache.mutex)
{
  uint64_t reach = qcow_l2_reach (q), index = guest / reach;
  uint64_t host = q->l1_table_offset + index * 8, o;
  uint64_t in_slice = host & (q->cache.slice_size - 1);
  struct slice *s;
  int r = qcow_slice_locked (q, op, QCOW_L1, host, &s, e);

  if (r != 1)
    return r;
  for (o = reach - (guest & (reach - 1)); o < length; o += reach) {
    in_slice += 8;
    if (in_slice >= q->cache.slice_size || get_be64 (s->data + in_slice) != 0)
      break;
  }
  *m = (struct mapping) {
    .kind = MAP_BACKING, .length = min_u64 (o, length),
  };
  return 1;
}

static int
map_packed (struct qcow *q, uint64_t guest, uint64_t length, uint64_t entry,
            struct mapping *m, struct error *e)
{
  uint64_t in_cluster = guest & (q->cluster_size - 1);
  unsigned bits = qcow_offset_bits (q);

  *m = (struct mapping) {
    .kind = MAP_PACKED, .codec = CODEC_DEFLATE,
    .host = entry & ((UINT64_C (1) << bits) - 1),
    .packed_length = (entry & ~Q1_COMPRESSED) >> bits,
    .cluster = guest - in_cluster,
    .length = min_u64 (length, q->cluster_size - in_cluster),
  };
  if (m->packed_length > 0 && m->host >= Q1_LENGTH
      && m->host < storage_size (q->format.storage))
    return 1;
  return error_set (e, EIO, "corrupt image: the compressed cluster of guest"
                    " offset %" PRIu64 " (%" PRIu64 " bytes at 0x%" PRIx64
                    ") does not lie in the file", m->cluster,
                    m->packed_length, m->host);
}

/* How many of the NR entries from P on go on as the first one, which is not
 * compressed, does?  None of them begins behind the end of the file.
 */
static uint64_t
run_length (const struct qcow *q, const uint8_t *p, uint64_t nr)
{
  uint64_t first = get_be64 (p), size = storage_size (q->format.storage), n;

  if (first && first < size)
    nr = min_u64 (nr, div_round_up (size - first, q->cluster_size));
  for (n = 1; n < nr; ++n)
    if (get_be64 (p + n * 8) != (first ? first + n * q->cluster_size : 0))
      break;
  return n;
}

static int
map_locked (struct qcow *q, struct slice_op *op, uint64_t guest,
            uint64_t length, struct mapping *m, struct error *e)
  REQUIRES (q->cache.mutex)
{
  uint64_t in_cluster = guest & (q->cluster_size - 1), l2, nr, entry, n;
  struct slice *s;
  uint8_t *p;
  int r = qcow_find_l2_locked (q, op, guest, &l2, e);

  if (r != 1)
    return r;
  if (l2 == 0)
    return map_no_table_locked (q, op, guest, length, m, e);
  r = qcow_entry_locked (q, op, l2, guest, length, &s, &p, &nr, e);
  if (r != 1)
    return r;
  entry = get_be64 (p);
  if (entry & Q1_COMPRESSED)
    return map_packed (q, guest, length, entry, m, e);
  if (entry != 0 && !is_place (q, entry, 1))
    return error_set (e, EIO, "corrupt image: the L2 entry of guest offset %"
                      PRIu64 " is 0x%" PRIx64 ", which is not the place of a"
                      " cluster", guest, entry);
  n = run_length (q, p, nr);
  *m = (struct mapping) {
    .kind = entry ? MAP_DATA : MAP_BACKING,
    .host = entry ? entry + in_cluster : 0,
    .length = min_u64 (length, n * q->cluster_size - in_cluster),
  };
  return 1;
}

/* A damaged image may have a table where a cluster is.  What is written there
 * would change the very entries that lead to it.
 */
static int
refuse_table_locked (struct qcow *q, const struct mapping *m, struct error *e)
  REQUIRES (q->cache.mutex)
{
  if (!q->writing || m->kind != MAP_DATA
      || !slices_cached_locked (&q->cache, m->host, m->length))
    return 1;
  return error_set (e, EIO, "corrupt image: a cluster at 0x%" PRIx64 ", or"
                    " within %" PRIu64 " bytes behind it, is a table too",
                    m->host, m->length);
}

int
qcow_map (struct format *f, struct format_view *view, uint64_t guest,
          uint64_t length, struct mapping *m, struct error *e)
{
  struct qcow *q = to_qcow (f);
  struct slice_op op = SLICE_OP_INIT;
  int r;

  (void) view;
  mutex_lock (q->cache.mutex);
  do
    r = map_locked (q, &op, guest, length, m, e);
  while (r == 0);
  if (r == 1)
    r = refuse_table_locked (q, m, e);
  slice_op_end_locked (&q->cache, &op);
  mutex_unlock (q->cache.mutex);
  return r == 1 ? 0 : -1;
}
