/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* See interrupt.h.  Layer: common.  Locking: one atomic flag. */

#include <config.h>

#include "common/interrupt.h"

static bool noted;              /* atomic */

void
interrupt_note (void)
{
  __atomic_store_n (&noted, true, __ATOMIC_RELAXED);
}

bool
interrupted (void)
{
  return __atomic_load_n (&noted, __ATOMIC_RELAXED);
}
