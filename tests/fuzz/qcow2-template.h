/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The qcow2 images that fuzz-qcow2 and fuzz-check change. */

#ifndef NBDIMG_QCOW2_TEMPLATE_H
#define NBDIMG_QCOW2_TEMPLATE_H

#include "formats/qcow2/qcow2.h"

static const struct format_ops *const format = &format_qcow2;

static const char *const kinds[] = {
  "cluster_size=512", "cluster_size=4096",
  "cluster_size=4096,compat=0.10", "cluster_size=512,refcount_bits=1",
  "cluster_size=512,refcount_bits=64",
  "cluster_size=16384,extended_l2=on", "cluster_size=65536",
  "cluster_size=4096,lazy_refcounts=on",
};
static const unsigned nr_kinds = sizeof kinds / sizeof kinds[0];

#include "tests/fuzz/template.h"

static void
find_tables (struct template *t)
{
  const uint8_t *b = t->buf;
  uint64_t l1 = get_be64 (b + H_L1_TABLE_OFFSET);
  uint64_t reftable = get_be64 (b + H_REFCOUNT_TABLE_OFFSET);

  t->tables[1] = l1;
  t->tables[2] = reftable;
  t->tables[3] = get_be64 (b + reftable);
  t->tables[4] = get_be64 (b + l1) & ENTRY_OFFSET_MASK;
  t->tables[5] = t->size / 2;
}

#endif /* NBDIMG_QCOW2_TEMPLATE_H */
