/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* How large an image will be.  Layer: formats.  No locking: what is read is
 * fixed after open.  Specification: "Host cluster management", "Cluster
 * mapping", "Bitmaps".
 *
 * All tables that the full disk needs are counted, whatever is in it: an image
 * that is measured is one that is going to be written to.  So is the data of an
 * external data file, which takes its space elsewhere, but takes it.
 */

#include <config.h>

#include "formats/qcow2/create.h"
#include "formats/qcow2/reader.h"

int
qcow2_measure (const struct format_create_options *opts,
               struct format_measure *m, struct error *e)
{
  struct plan plan = { .size = 0 };
  uint64_t data;
  bool solid;

  if (qcow2_measure_plan (opts, &plan, e) == -1)
    return -1;
  solid = plan.preallocation >= PREALLOCATION_FALLOC;
  plan.preallocation = PREALLOCATION_METADATA;
  plan.data_file = NULL;
  if (qcow2_create_layout (&plan, e) == -1)
    return -1;

  data = plan.data << plan.cluster_bits;
  m->fully_allocated = plan.total << plan.cluster_bits;
  m->required = solid ? m->fully_allocated : m->fully_allocated - data;
  m->cluster_size = UINT32_C (1) << plan.cluster_bits;
  m->keeps_bitmaps = plan.version >= 3;
  return 0;
}

/* The table of a bitmap, and the clusters that it points to. */
static uint64_t
bitmap_bytes (uint64_t size, unsigned granularity_bits, uint32_t cluster_size)
{
  uint64_t bits = div_round_up (size, UINT64_C (1) << granularity_bits);
  uint64_t clusters = div_round_up (div_round_up (bits, 8), cluster_size);

  return clusters * cluster_size + round_up (clusters * 8, cluster_size);
}

int
qcow2_measure_bitmaps (struct format *f, uint32_t cluster_size,
                       uint64_t *bytes, struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  struct bitmap_iter it;
  struct bitmap_entry b;
  uint64_t directory = 0;
  int r;

  *bytes = 0;
  if (q->version < 3)
    return 0;
  if (!qcow2_has_bitmaps (q))
    return 1;
  if (bitmap_iter_init (&it, q, e) == -1)
    return -1;
  while ((r = bitmap_iter_next (&it, &b, e)) == 1) {
    *bytes += bitmap_bytes (f->info.size, b.granularity_bits, cluster_size);
    directory += bitmap_entry_size (&b);
  }
  bitmap_iter_free (&it);
  *bytes += round_up (directory, cluster_size);
  return r == -1 ? -1 : 1;
}
