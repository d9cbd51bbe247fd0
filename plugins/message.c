/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Messages to nbdkit's log.  Layer: plugins.  No locking: nothing is shared.
 * The log is often a terminal, and names in messages come from images: control
 * characters are escaped in all of them.
 */

#include <config.h>

#include <stdio.h>

#include <nbdkit-plugin.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "plugins/message.h"

static const char no_memory[] = "(out of memory)";

void
message_error (const char *text)
{
  CLEANUP_FREE char *safe = printable (text);

  nbdkit_error ("%s", safe ? safe : no_memory);
}

void
message_debug (const char *text)
{
  CLEANUP_FREE char *safe = printable (text);

  nbdkit_debug ("%s", safe ? safe : no_memory);
}

void
message_startup (const char *text)
{
  CLEANUP_FREE char *safe = printable (text);

  fprintf (stderr, "nbdkit: nbdimg: %s\n", safe ? safe : no_memory);
}
