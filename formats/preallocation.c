/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The modes of preallocation: their names, and what they do to a storage.
 * Layer: formats.  No locking: no state.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/interrupt.h"
#include "common/log.h"
#include "formats/preallocation.h"

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

int
preallocation_option (const struct format_create_options *opts, bool metadata,
                      enum preallocation *mode, struct error *e)
{
  const char *text = format_option_text (opts, "preallocation");
  int found = text ? preallocation_parse (text) : PREALLOCATION_OFF;

  *mode = found == -1 ? PREALLOCATION_OFF : (enum preallocation) found;
  if (found != -1 && (found != PREALLOCATION_METADATA || metadata))
    return 0;
  return error_set (e, EINVAL, "Unsupported preallocation mode: %s "
                    "(allowed are off, falloc, full)", text);
}

int
preallocation_is_vain (const struct format_create_options *opts,
                       const char *what, struct error *e)
{
  enum preallocation mode;

  if (preallocation_option (opts, false, &mode, e) == -1)
    return -1;
  if (mode != PREALLOCATION_OFF)
    log_warning ("preallocation=%s: %s gets the space for data when they are "
                 "written", names[mode], what);
  return 0;
}

static int
stop_if_interrupted (const struct storage *st, struct error *e)
{
  return interrupted () ? error_set (e, ECANCELED, "%s: preallocation was "
                                     "interrupted", st->name) : 0;
}

/* Bytes that were written take their space on every file system, also where
 * allocated extents are only promised (copy on write, compression).  A large
 * disk takes hours.
 */
static int
write_zeroes (struct storage *st, uint64_t from, uint64_t to,
              struct error *e)
{
  const size_t chunk = 2 * MiB;
  CLEANUP_FREE void *buf = calloc (1, chunk);

  if (!buf)
    return error_nomem (e, "preallocation", chunk);
  for (; from < to; from += chunk)
    if (stop_if_interrupted (st, e) == -1
        || storage_pwrite (st, buf, (size_t) min_u64 (chunk, to - from), from,
                           0, e) == -1)
      return -1;
  return 0;
}

int
preallocate (struct storage *st, uint64_t from, uint64_t to,
             enum preallocation mode, struct error *e)
{
  if (mode == PREALLOCATION_FALLOC && to > from)
    return storage_zero (st, from, to - from, 0, e);
  return mode == PREALLOCATION_FULL ? write_zeroes (st, from, to, e) : 0;
}
