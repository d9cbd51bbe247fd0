/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Test storages around every file that is opened: see storage_test_wrap.
 *
 * Layer: storage.  Locking: none.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/storage.h"

#ifdef ENABLE_TEST_STORAGE

static struct storage *
wrap_as (struct storage *inner, const char *what, struct error *e)
{
  if (strncmp (what, "rec:", 4) == 0)
    return storage_record_new (inner, what + 4, e);
  if (strncmp (what, "fault:", 6) == 0)
    return storage_fault_new (inner, what + 6, e);
  error_set (e, EINVAL, "NBDIMG_TEST_STORAGE=%s is neither rec:LOG nor "
             "fault:SPEC", what);
  return NULL;
}

struct storage *
storage_test_wrap (struct storage *inner, struct error *e)
{
  const char *what = getenv ("NBDIMG_TEST_STORAGE");
  struct storage *outer;

  if (!what || !*what)
    return inner;
  outer = wrap_as (inner, what, e);
  if (!outer)
    storage_close (inner);
  return outer;
}

#else /* !ENABLE_TEST_STORAGE */

struct storage *
storage_test_wrap (struct storage *inner, struct error *e)
{
  (void) e;
  return inner;
}

#endif
