/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Errors: see error.h.  Layer: common.  No locking: a struct error belongs to
 * one thread.
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/error.h"

static const char ellipsis[] = "...";

/* Append to the text at position USED; a text that does not fit is cut and
 * says so.  Returns the new length.
 */
static size_t
append (struct error *e, size_t used, const char *fmt, va_list ap)
{
  int n = vsnprintf (e->text + used, sizeof e->text - used, fmt, ap);

  if (n < 0)
    return used;
  if ((size_t) n < sizeof e->text - used)
    return used + (size_t) n;
  memcpy (e->text + sizeof e->text - sizeof ellipsis, ellipsis,
          sizeof ellipsis);
  return sizeof e->text - 1;
}

static size_t __attribute__ ((format (printf, 3, 4)))
appendf (struct error *e, size_t used, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  used = append (e, used, fmt, ap);
  va_end (ap);
  return used;
}

int
error_set (struct error *e, int err, const char *fmt, ...)
{
  va_list ap;

  if (e->err)
    return -1;
  e->err = err ? err : EINVAL;
  va_start (ap, fmt);
  append (e, 0, fmt, ap);
  va_end (ap);
  return -1;
}

int
error_errno (struct error *e, int err, const char *fmt, ...)
{
  va_list ap;
  size_t used;
  char buf[128];

  if (e->err)
    return -1;
  e->err = err ? err : EINVAL;
  va_start (ap, fmt);
  used = append (e, 0, fmt, ap);
  va_end (ap);
  appendf (e, used, ": %s", strerror_r (e->err, buf, sizeof buf));
  return -1;
}

int
error_prefix (struct error *e, const char *fmt, ...)
{
  char old[ERROR_TEXT_SIZE];
  va_list ap;
  size_t used;

  if (!e->err)
    return -1;
  memcpy (old, e->text, sizeof old);
  va_start (ap, fmt);
  used = append (e, 0, fmt, ap);
  va_end (ap);
  appendf (e, used, ": %s", old);
  return -1;
}

int
error_nomem (struct error *e, const char *what, size_t size)
{
  return error_set (e, ENOMEM, "out of memory: %zu bytes for %s", size, what);
}

void
error_clear (struct error *e)
{
  e->err = 0;
  e->text[0] = '\0';
}
