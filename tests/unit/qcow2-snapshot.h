/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* An internal snapshot "s" of a closed qcow2 image in memory, made by hand: a
 * copy of the L1 table, one reference more for all it leads to, no COPIED flag
 * in the active tables.  The first refcount blocks must reach far enough.
 */

#ifndef NBDIMG_QCOW2_SNAPSHOT_H
#define NBDIMG_QCOW2_SNAPSHOT_H

#include "formats/qcow2/qcow2.h"
#include "tests/unit/unit.h"

struct snapshot_maker {
  struct storage *st;
  uint8_t header[H_OUR_LENGTH];
  uint64_t cs;
  unsigned order, cluster_bits;
};

static inline void
sm_read (struct snapshot_maker *m, void *buf, size_t len, uint64_t host)
{
  struct error e = ERROR_INIT;

  CHECK_OK (storage_pread (m->st, buf, len, host, &e), &e);
}

static inline void
sm_write (struct snapshot_maker *m, const void *buf, size_t len,
          uint64_t host)
{
  struct error e = ERROR_INIT;

  CHECK_OK (storage_pwrite (m->st, buf, len, host, 0, &e), &e);
}

static inline void
sm_reference (struct snapshot_maker *m, uint64_t host)
{
  uint64_t cluster = host / m->cs, per_block = m->cs * 8 >> m->order;
  uint8_t *block = unit_alloc (m->cs), entry[8];
  uint64_t at, index = cluster % per_block;

  sm_read (m, entry, 8, get_be64 (m->header + H_REFCOUNT_TABLE_OFFSET)
           + cluster / per_block * 8);
  at = get_be64 (entry);
  CHECK (at != 0);
  sm_read (m, block, m->cs, at);
  refcount_set (block, index, m->order,
                refcount_get (block, index, m->order) + 1);
  sm_write (m, block, m->cs, at);
  free (block);
}

static inline uint64_t
sm_append (struct snapshot_maker *m, const void *buf, size_t len)
{
  uint64_t host = round_up (storage_size (m->st), m->cs);
  uint8_t *whole = unit_alloc (m->cs);

  CHECK (len <= m->cs);
  memset (whole, 0, m->cs);
  memcpy (whole, buf, len);
  sm_write (m, whole, m->cs, host);
  sm_reference (m, host);
  free (whole);
  return host;
}

/* ENTRY's cluster or stream. */
static inline void
sm_reference_data (struct snapshot_maker *m, uint64_t entry)
{
  unsigned offset_bits = 62 - (m->cluster_bits - 8);
  uint64_t host = entry & ENTRY_OFFSET_MASK, more;

  if (!(entry & L2_COMPRESSED)) {
    if (host)
      sm_reference (m, host);
    return;
  }
  host = entry & ((UINT64_C (1) << offset_bits) - 1);
  more = (entry & ~(ENTRY_COPIED | L2_COMPRESSED)) >> offset_bits;
  for (uint64_t c = host / m->cs;
       c <= (round_down (host, 512) + more * 512 + 511) / m->cs; ++c)
    sm_reference (m, c * m->cs);
}

static inline void
sm_share_l2 (struct snapshot_maker *m, uint64_t host, unsigned entry_size)
{
  uint8_t *table = unit_alloc (m->cs);

  sm_reference (m, host);
  sm_read (m, table, m->cs, host);
  for (uint64_t i = 0; i < m->cs; i += entry_size) {
    uint64_t entry = get_be64 (table + i);

    sm_reference_data (m, entry);
    put_be64 (table + i, entry & ~ENTRY_COPIED);
  }
  sm_write (m, table, m->cs, host);
  free (table);
}

static inline void
sm_append_table (struct snapshot_maker *m, uint64_t l1, uint32_t l1_size)
{
  uint8_t s[64] = { 0 }, nb[4];

  put_be64 (s, l1);
  put_be32 (s + 8, l1_size);
  put_be16 (s + 12, 1);
  put_be16 (s + 14, 1);
  put_be32 (s + 36, 16);        /* extra data */
  memcpy (s + 48, m->header + H_SIZE, 8);
  s[56] = '1';
  s[57] = 's';
  put_be64 (m->header + H_SNAPSHOTS_OFFSET, sm_append (m, s, sizeof s));
  put_be32 (nb, 1);
  sm_write (m, m->header + H_SNAPSHOTS_OFFSET, 8, H_SNAPSHOTS_OFFSET);
  sm_write (m, nb, 4, H_NB_SNAPSHOTS);
}

static inline void
snapshot_make (struct storage *st)
{
  struct snapshot_maker m = { .st = st };
  uint64_t l1_host, incompatible;
  uint32_t l1_size;
  uint8_t *l1;

  sm_read (&m, m.header, sizeof m.header, 0);
  m.cluster_bits = get_be32 (m.header + H_CLUSTER_BITS);
  m.cs = UINT64_C (1) << m.cluster_bits;
  m.order = get_be32 (m.header + H_REFCOUNT_ORDER);
  incompatible = get_be64 (m.header + H_INCOMPATIBLE_FEATURES);
  l1_host = get_be64 (m.header + H_L1_TABLE_OFFSET);
  l1_size = get_be32 (m.header + H_L1_SIZE);
  l1 = unit_alloc (l1_size * 8);
  sm_read (&m, l1, l1_size * 8, l1_host);
  for (uint32_t i = 0; i < l1_size; ++i) {
    uint64_t entry = get_be64 (l1 + i * 8);

    if (entry)
      sm_share_l2 (&m, entry & ENTRY_OFFSET_MASK,
                   incompatible & INCOMPAT_EXTENDED_L2 ? 16 : 8);
    put_be64 (l1 + i * 8, entry & ~ENTRY_COPIED);
  }
  sm_write (&m, l1, l1_size * 8, l1_host);
  sm_append_table (&m, sm_append (&m, l1, l1_size * 8), l1_size);
  free (l1);
}

#endif /* NBDIMG_QCOW2_SNAPSHOT_H */
