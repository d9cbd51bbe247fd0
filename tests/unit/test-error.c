/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* common/error.c. */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "common/error.h"
#include "tests/unit/unit.h"

static void
test_text (void)
{
  struct error e = ERROR_INIT;

  unit_begin ("an error is told with its number, its cause and its context");
  CHECK (error_errno (&e, ENOSPC, "write at %d", 512) == -1);
  CHECK (error_prefix (&e, "%s", "a.qcow2") == -1);
  CHECK (e.err == ENOSPC);
  CHECK_STR (e.text, "a.qcow2: write at 512: No space left on device");

  unit_begin ("an error without a number is EINVAL");
  error_clear (&e);
  CHECK (error_set (&e, 0, "odd") == -1);
  CHECK (e.err == EINVAL);
  CHECK_STR (e.text, "odd");
}

static void
test_first_wins (void)
{
  struct error e = ERROR_INIT;

  unit_begin ("the first error wins until it is cleared");
  error_set (&e, EIO, "first");
  error_set (&e, EPERM, "second");
  error_errno (&e, EPERM, "third");
  error_nomem (&e, "fourth", 4);
  CHECK (e.err == EIO);
  CHECK_STR (e.text, "first");
  error_clear (&e);
  CHECK (e.err == 0);
  CHECK (error_nomem (&e, "a table", 4096) == -1);
  CHECK (e.err == ENOMEM);
  CHECK_STR (e.text, "out of memory: 4096 bytes for a table");

  unit_begin ("no context is put in front of no error");
  error_clear (&e);
  error_prefix (&e, "context");
  CHECK (e.err == 0);
  CHECK_STR (e.text, "");
}

static void
test_long (void)
{
  struct error e = ERROR_INIT;
  char name[2 * ERROR_TEXT_SIZE];

  unit_begin ("a text that does not fit is cut and says so");
  memset (name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  error_errno (&e, EIO, "%s", name);
  CHECK (strlen (e.text) == ERROR_TEXT_SIZE - 1);
  CHECK_STR (e.text + ERROR_TEXT_SIZE - 4, "...");
  error_prefix (&e, "in front");
  CHECK (strncmp (e.text, "in front: xxx", 13) == 0);
  CHECK_STR (e.text + ERROR_TEXT_SIZE - 4, "...");
  error_prefix (&e, "%s", name);
  CHECK (e.text[ERROR_TEXT_SIZE - 1] == '\0');
  CHECK_STR (e.text + ERROR_TEXT_SIZE - 4, "...");

  /* Each length around the edge: always ended, never past the end. */
  for (size_t n = ERROR_TEXT_SIZE - 40; n < ERROR_TEXT_SIZE + 8; ++n) {
    size_t want = n + strlen (": Input/output error");

    error_clear (&e);
    error_errno (&e, EIO, "%.*s", (int) n, name);
    CHECK (strlen (e.text)
           == (want < ERROR_TEXT_SIZE ? want : ERROR_TEXT_SIZE - 1));
  }
}

int
main (void)
{
  test_text ();
  test_first_wins ();
  test_long ();
  return unit_end ();
}
