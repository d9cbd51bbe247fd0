/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* -o key=value,...: parsed against the table of a format.
 *
 * Layer: ops.  No locking: no state.  What a list may look like was found by
 * trying qemu-img: "," is doubled inside a value, "key" alone is key=on and
 * "nokey" is key=off, and the last of two wins.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "ops/ops.h"

static const struct format_option *
find_option (const struct format_option *table, const char *name)
{
  for (const struct format_option *o = table; o->name; ++o)
    if (strcmp (o->name, name) == 0)
      return o;
  return NULL;
}

/* The value as the format gets it: sizes in bytes, numbers decimal.  Returns
 * owned.
 */
static char *
normalise (const struct format_option *o, const char *text, struct error *e)
{
  struct error bad = ERROR_INIT;
  uint64_t n;
  bool on;

  switch (o->type) {
  case OPTION_STRING:
    return strdup (text);
  case OPTION_BOOL:
    if (parse_bool (o->name, text, &on, &bad) == 0)
      return strdup (text);
    error_set (e, EINVAL, "Parameter '%s' expects 'on' or 'off'", o->name);
    return NULL;
  case OPTION_SIZE:
    if (parse_size (o->name, text, &n, &bad) == 0)
      return format_text ("%" PRIu64, n);
    if (bad.err == ERANGE)
      error_set (e, ERANGE, "Value '%s' is out of range for parameter '%s'",
                 text, o->name);
    else
      error_set (e, EINVAL, "Parameter '%s' expects a number of bytes, with a "
                 "suffix k, M, G, T, P or E if you like", o->name);
    return NULL;
  case OPTION_NUMBER:
    if (parse_size (o->name, text, &n, &bad) == 0
        && (*text == '0' || text[strspn (text, "0123456789")] == '\0'))
      return format_text ("%" PRIu64, n);
    error_set (e, EINVAL, "Parameter '%s' expects a number", o->name);
    return NULL;
  }
  return NULL;
}

static int
set_option (json_t *options, const struct format_option *table,
            const struct format_option *others, const char *key,
            const char *value, struct error *e)
{
  const struct format_option *o = find_option (table, key);
  CLEANUP_FREE char *text = NULL;

  if (!o && !value && strncmp (key, "no", 2) == 0) {
    o = find_option (table, key + 2);
    value = "off";
    if (o && o->type != OPTION_BOOL)
      o = NULL;
  }
  if (!o)
    return error_set (e, others && find_option (others, key) ? ENOENT : EINVAL,
                      "Invalid parameter '%s'", key);
  text = normalise (o, value ? value : "on", e);
  if (!text || json_object_set_new (options, o->name,
                                    json_string_nocheck (text)) == -1)
    return error_nomem (e, "an option", 0);
  return 0;
}

/* Copy the item at *P into BUF, "," undoubled, and step behind it. */
static void
next_item (const char **p, char *buf)
{
  for (; **p; ++*p) {
    if (**p == ',' && *++*p != ',')
      break;
    *buf++ = **p;
  }
  *buf = '\0';
}

/* ENOENT: an option that TABLE does not have and OTHERS (or NULL) has. */
static json_t *
parse_options (const struct format_option *table,
               const struct format_option *others, const char *text,
               struct error *e)
{
  CLEANUP_FREE char *item = malloc (strlen (text) + 1);
  json_t *options = json_object ();
  int r = 0;

  if (!item || !options) {
    error_nomem (e, "options", strlen (text));
    json_decref (options);
    return NULL;
  }
  while (r == 0 && *text) {
    char *value;

    next_item (&text, item);
    value = strchr (item, '=');
    if (value)
      *value++ = '\0';
    r = set_option (options, table, others, item, value, e);
  }
  if (r == 0)
    return options;
  json_decref (options);
  return NULL;
}

json_t *
op_format_options (const struct format_ops *format, const char *text,
                   struct error *e)
{
  return parse_options (format->create_options, NULL, text, e);
}

json_t *
op_amend_options (const struct format_ops *format, const char *text,
                  struct error *e)
{
  return parse_options (format->amend_options, format->create_options, text,
                        e);
}
