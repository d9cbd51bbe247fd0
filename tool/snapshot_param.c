/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Which internal snapshot is meant by -l of convert and measure: an id or name,
 * or "snapshot.id=...,snapshot.name=...".  Layer: tool.  No locking here.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "tool/tool.h"

/* What -l asks for: an id or a name, or one or both by their keys. */
struct wanted {
  char *text;                   /* owned; the others point into it */
  const char *any, *id, *name;
};

static int
set_wanted (struct wanted *w, char *item, const char *param)
{
  static const char id[] = "snapshot.id=", name[] = "snapshot.name=";

  if (strncmp (item, id, sizeof id - 1) == 0)
    w->id = item + sizeof id - 1;
  else if (strncmp (item, name, sizeof name - 1) == 0)
    w->name = item + sizeof name - 1;
  else {
    tool_error ("Invalid parameter '%.*s'", (int) strcspn (item, "="), item);
    tool_error ("Failed in parsing snapshot param '%s'", param);
    return -1;
  }
  return 0;
}

/* Copy the item at *P over BUF, "," undoubled, and step behind it. */
static char *
cut_item (char **p)
{
  char *start = *p, *to = *p, *from = *p;

  while (*from && !(*from == ',' && from[1] != ',')) {
    from += *from == ',';
    *to++ = *from++;
  }
  *p = *from ? from + 1 : NULL;
  *to = '\0';
  return start;
}

static int
parse_wanted (struct wanted *w, const char *param)
{
  char *p;

  w->text = strdup (param);
  if (!w->text) {
    tool_error ("out of memory");
    return -1;
  }
  p = w->text;
  if (strncmp (p, "snapshot.", 9) != 0) {
    w->any = p;
    return 0;
  }
  while (p)
    if (set_wanted (w, cut_item (&p), param) == -1)
      return -1;
  return 0;
}

static bool
matches (const struct wanted *w, const struct format_snapshot *s, bool by_name)
{
  if (w->any)
    return strcmp (by_name ? s->name : s->id, w->any) == 0;
  return (!w->id || strcmp (s->id, w->id) == 0)
    && (!w->name || strcmp (s->name, w->name) == 0);
}

/* An id counts before a name.  Returns the id, owned. */
static char *
find_id (const struct wanted *w, const struct format_snapshot *s, size_t nr)
{
  for (int by_name = 0; by_name < 2; ++by_name)
    for (size_t i = 0; i < nr; ++i)
      if (matches (w, &s[i], by_name))
        return strdup (s[i].id);
  return NULL;
}

static char *
look_up (const struct wanted *w, struct image *im)
{
  const struct format_ops *ops = im->format->ops;
  struct format_snapshot *list = NULL;
  struct error e = ERROR_INIT;
  char *id = NULL;
  size_t nr = 0;

  if (!ops->snapshots)
    tool_error ("Failed to load snapshot: %s: the format %s has no internal "
                "snapshots", im->name, ops->name);
  else if (ops->snapshots (im->format, &list, &nr, &e) == -1)
    tool_error ("Failed to load snapshot: %s", e.text);
  else {
    id = find_id (w, list, nr);
    if (!id)
      tool_error ("Failed to load snapshot: Can't find snapshot");
  }
  format_snapshots_free (list, nr);
  return id;
}

char *
tool_find_snapshot (const struct tool_image *ti, const char *param)
{
  struct tool_image plain = *ti;
  struct wanted w = { .text = NULL };
  struct image *im = NULL;
  char *id = NULL;

  plain.open.no_backing = true;
  if (parse_wanted (&w, param) == 0)
    im = tool_open (&plain);
  if (im) {
    id = look_up (&w, im);
    tool_close (im);
  }
  free (w.text);
  return id;
}
