/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz QED: see image.h. */

#include <config.h>

#include "formats/qed/qed.h"

static const struct format_ops *const format = &format_qed;

static const char *const kinds[] = {
  "cluster_size=4096", "cluster_size=4096,table_size=1",
  "cluster_size=4096,table_size=16", "cluster_size=65536",
};
static const unsigned nr_kinds = sizeof kinds / sizeof kinds[0];

#include "tests/fuzz/image.h"

static void
find_tables (struct template *t)
{
  uint64_t l1 = get_le64 (t->buf + H_L1_TABLE_OFFSET);

  t->tables[1] = l1;
  t->tables[2] = get_le64 (t->buf + l1);
  t->tables[3] = t->tables[2] + GUEST_SIZE / 2 / MIN_CLUSTER_SIZE * 8;
  t->tables[4] = t->size - 4096;
  t->tables[5] = t->size;
}
