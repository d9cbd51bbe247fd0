/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg convert: the sources, and -l.  Layer: tool.  No locking here. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "tool/convert.h"

/* ---- -l ---- */

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

/* The id of the snapshot, so that a name that is another's id does not lead
 * astray.  Returns owned; NULL = a message was printed.
 */
static char *
snapshot_id (const struct convert_request *rq)
{
  struct tool_image first = rq->source;
  struct wanted w = { .text = NULL };
  struct image *im = NULL;
  char *id = NULL;

  first.name = rq->names[0];
  first.open.no_backing = true;
  if (parse_wanted (&w, rq->snapshot) == 0)
    im = tool_open (&first);
  if (im) {
    id = look_up (&w, im);
    tool_close (im);
  }
  free (w.text);
  return id;
}

/* ---- open and close ---- */

int
convert_open_sources (struct convert_request *rq)
{
  CLEANUP_FREE char *id = NULL;
  struct tool_image ti = rq->source;

  if (rq->snapshot) {
    id = snapshot_id (rq);
    if (!id)
      return -1;
    ti.open.snapshot = id;
  }
  rq->opts.sources = calloc (rq->nr_names, sizeof rq->opts.sources[0]);
  if (!rq->opts.sources) {
    tool_error ("out of memory");
    return -1;
  }
  for (size_t i = 0; i < rq->nr_names; ++i) {
    ti.name = rq->names[i];
    rq->opts.sources[i] = tool_open (&ti);
    if (!rq->opts.sources[i])
      return -1;
    rq->opts.nr_sources++;
  }
  return 0;
}

int
convert_close_sources (struct convert_request *rq)
{
  int r = 0;

  for (size_t i = 0; i < rq->opts.nr_sources; ++i)
    if (tool_close (rq->opts.sources[i]) == -1)
      r = -1;
  free (rq->opts.sources);
  rq->opts.sources = NULL;
  rq->opts.nr_sources = 0;
  return r;
}

/* What is copied of one source. */
static uint64_t
source_size (const struct convert_request *rq, size_t i)
{
  uint64_t size = image_size (rq->opts.sources[i]);

  size -= min_u64 (size, rq->opts.skip);
  return rq->opts.limit ? min_u64 (size, rq->opts.limit) : size;
}

uint64_t
convert_total (const struct convert_request *rq)
{
  uint64_t total = 0, span;

  for (size_t i = 0; i < rq->opts.nr_sources; ++i)
    if (!round_up_ok (source_size (rq, i), SECTOR_SIZE, &span)
        || !add_ok (total, span, &total) || total > (uint64_t) INT64_MAX)
      return UINT64_MAX;
  return total;
}
