/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Messages on standard error, and --trace.
 *
 * Layer: tool.  Locking: none needed; a message is one call of stdio, which
 * has a lock of its own.  What --trace asked for is set before threads start.
 *
 * A message may quote a name from an image: what could drive a terminal is
 * escaped in all of it.
 */

#include <config.h>

#include <errno.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "tool/tool.h"

/* The only event that there is to trace. */
static const char trace_event[] = "debug";

static bool tracing;
static FILE *trace_file;        /* NULL = standard error */

void
tool_put_name (FILE *fp, const char *text)
{
  CLEANUP_FREE char *safe = printable (text);

  fputs (safe ? safe : "(out of memory)", fp);
}

static void
put_line (FILE *fp, const char *kind, const char *text)
{
  CLEANUP_FREE char *safe = printable (text);

  fprintf (fp, "%s: %s%s\n", program, kind, safe ? safe : "(out of memory)");
}

static void __attribute__ ((format (printf, 1, 0)))
put_message (const char *fmt, va_list ap)
{
  CLEANUP_FREE char *text = NULL;

  if (vasprintf (&text, fmt, ap) == -1)
    text = NULL;
  fflush (stdout);
  put_line (stderr, "", text ? text : "out of memory");
}

void
tool_error (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  put_message (fmt, ap);
  va_end (ap);
}

int
tool_fail (const struct error *e)
{
  tool_error ("%s", e->text);
  return 1;
}

const char *
tool_without_name (const char *name, const struct error *e)
{
  size_t n = strlen (name);

  if (strncmp (e->text, name, n) == 0 && strncmp (e->text + n, ": ", 2) == 0)
    return e->text + n + 2;
  return e->text;
}

int
tool_fail_image (const char *name, const struct error *e)
{
  switch (e->err) {
  case EINVAL: case ENOTSUP: case ENOENT: case EPERM: case EEXIST:
    tool_error ("%s", tool_without_name (name, e));
    return 1;
  default:
    return tool_fail (e);
  }
}

int
tool_misuse (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  put_message (fmt, ap);
  va_end (ap);
  fprintf (stderr, "Try '%s --help' for more information\n", program);
  return 1;
}

void
tool_log (enum log_level level, const char *text)
{
  if (level == LOG_WARNING)
    put_line (stderr, "warning: ", text);
  else if (tracing)
    put_line (trace_file ? trace_file : stderr, "debug: ", text);
}

/* ---- --trace ---- */

static void
trace_pattern (const char *pattern)
{
  if (fnmatch (pattern, trace_event, 0) == 0)
    tracing = true;
  else if (!strpbrk (pattern, "*?["))
    tool_log (LOG_WARNING, "there is no such trace event; there is: debug");
}

/* A pattern on each line; "#" begins a comment. */
static int
trace_events_file (const char *name)
{
  CLEANUP_FCLOSE FILE *fp = fopen (name, "r");
  CLEANUP_FREE char *line = NULL;
  size_t size = 0;
  ssize_t n;

  if (!fp) {
    tool_error ("%s: %s", name, strerror (errno));
    return -1;
  }
  while ((n = getline (&line, &size, fp)) != -1) {
    if (n && line[n - 1] == '\n')
      line[n - 1] = '\0';
    if (*line && *line != '#')
      trace_pattern (line);
  }
  return 0;
}

static int
trace_output (const char *name)
{
  FILE *fp = fopen (name, "w");

  if (!fp) {
    tool_error ("%s: %s", name, strerror (errno));
    return -1;
  }
  setvbuf (fp, NULL, _IOLBF, 0);
  trace_file = fp;
  return 0;
}

static int
trace_item (char *item)
{
  char *value = strchr (item, '=');

  if (!value) {
    trace_pattern (item);
    return 0;
  }
  *value++ = '\0';
  if (strcmp (item, "events") == 0)
    return trace_events_file (value);
  if (strcmp (item, "file") == 0)
    return trace_output (value);
  if (strcmp (item, "enable") != 0) {
    tool_error ("Invalid parameter '%s'", item);
    return -1;
  }
  trace_pattern (value);
  return 0;
}

int
tool_trace (const char *arg)
{
  CLEANUP_FREE char *copy = strdup (arg);
  char *save, *item;

  if (strcmp (arg, "help") == 0 || strcmp (arg, "?") == 0) {
    printf ("%s\n", trace_event);
    return 1;
  }
  if (!copy) {
    tool_error ("out of memory");
    return -1;
  }
  for (item = strtok_r (copy, ",", &save); item;
       item = strtok_r (NULL, ",", &save))
    if (trace_item (item) == -1)
      return -1;
  return 0;
}
