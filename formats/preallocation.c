/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The names of the modes of preallocation.  Layer: formats.  No locking: no
 * state.
 */

#include <config.h>

#include <string.h>

#include "formats/format.h"

static const char *const names[] = {
  [PREALLOCATION_OFF] = "off",
  [PREALLOCATION_METADATA] = "metadata",
  [PREALLOCATION_FALLOC] = "falloc",
  [PREALLOCATION_FULL] = "full",
};
enum { NR_NAMES = sizeof names / sizeof names[0] };

const char *
preallocation_name (enum preallocation mode)
{
  return names[mode];
}

int
preallocation_parse (const char *name)
{
  for (int i = 0; i < NR_NAMES; ++i)
    if (strcmp (names[i], name) == 0)
      return i;
  return -1;
}
