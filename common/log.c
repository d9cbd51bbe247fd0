/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Warnings and debug messages: see log.h.  Layer: common.  The sink is set
 * before threads start and is only read after that.
 */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>

#include "common/log.h"

static log_sink sink;

void
log_set_sink (log_sink s)
{
  sink = s;
}

static void
emit (enum log_level level, const char *fmt, va_list ap)
{
  char text[1024];

  if (!sink)
    return;
  vsnprintf (text, sizeof text, fmt, ap);
  sink (level, text);
}

void
log_warning (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  emit (LOG_WARNING, fmt, ap);
  va_end (ap);
}

void
log_debug (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  emit (LOG_DEBUG, fmt, ap);
  va_end (ap);
}
