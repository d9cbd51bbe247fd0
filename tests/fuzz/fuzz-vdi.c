/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz VDI: see image.h. */

#include <config.h>

#include "formats/vdi/vdi.h"

static const struct format_ops *const format = &format_vdi;

static const char *const kinds[] = { "static=off", "static=on" };
static const unsigned nr_kinds = sizeof kinds / sizeof kinds[0];

/* Some blocks, of 1 MiB each. */
#define FUZZ_GUEST_SIZE (6 << 20)

#include "tests/fuzz/image.h"

/* The map, the first blocks, the end of the file. */
static void
find_tables (struct template *t)
{
  t->tables[1] = get_le32 (t->buf + V_BMAP_OFFSET);
  t->tables[2] = t->tables[1];
  t->tables[3] = V_BMAP_OFFSET;
  t->tables[4] = get_le32 (t->buf + V_DATA_OFFSET);
  t->tables[5] = t->size - 512;
}
