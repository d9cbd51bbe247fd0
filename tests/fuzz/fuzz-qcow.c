/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz qcow version 1: see image.h. */

#include <config.h>

#include "formats/qcow/qcow.h"

static const struct format_ops *const format = &format_qcow;

static const char *const kinds[] = { "" };
static const unsigned nr_kinds = sizeof kinds / sizeof kinds[0];

#include "tests/fuzz/image.h"

/* The L1 table, the L2 table, its entries of compressed clusters, data. */
static void
find_tables (struct template *t)
{
  uint64_t l1 = get_be64 (t->buf + Q1_L1_TABLE_OFFSET);

  t->tables[1] = l1;
  t->tables[2] = get_be64 (t->buf + l1);
  t->tables[3] = t->tables[2] + GUEST_SIZE / 2 / 4096 * 8;
  t->tables[4] = t->tables[2] + 4096;
  t->tables[5] = t->size - 512;
}
