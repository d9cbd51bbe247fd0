/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* snapshot: internal snapshots of an image; list, create, apply, delete.
 *
 * Layer: ops.  No locking: image/ lets no guest I/O in meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "ops/ops.h"

/* ---- list ---- */

/* Takes VALUE, which may be NULL (no memory). */
static int
put (json_t *object, const char *key, json_t *value, struct error *e)
{
  if (json_object_set_new (object, key, value) == 0)
    return 0;
  return error_nomem (e, "a list of snapshots", sizeof (json_t *));
}

static int
put_text (json_t *object, const char *key, const char *text, struct error *e)
{
  CLEANUP_FREE char *utf8 = utf8_text (text);

  return put (object, key, utf8 ? json_string (utf8) : NULL, e);
}

static int
put_number (json_t *object, const char *key, uint64_t n, struct error *e)
{
  return put (object, key, json_integer ((json_int_t) n), e);
}

static int
describe (json_t *o, const struct format_snapshot *s, struct error *e)
{
  const uint64_t second = 1000000000;

  if (put_text (o, "id", s->id, e) == -1
      || put_text (o, "name", s->name, e) == -1
      || put_number (o, "vm-state-size", s->vm_state_size, e) == -1
      || put_number (o, "date-sec", s->date_sec, e) == -1
      || put_number (o, "date-nsec", s->date_nsec, e) == -1
      || put_number (o, "vm-clock-sec", s->vm_clock_nsec / second, e) == -1
      || put_number (o, "vm-clock-nsec", s->vm_clock_nsec % second, e) == -1)
    return -1;
  return s->icount == UINT64_MAX ? 0 : put_number (o, "icount", s->icount, e);
}

static int
append (json_t *array, const struct format_snapshot *s, struct error *e)
{
  json_t *o = json_object ();

  if (json_array_append_new (array, o) == -1)
    return error_nomem (e, "a snapshot", sizeof *s);
  return describe (o, s, e);
}

int
op_snapshot_list (struct image *im, json_t **list, struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  struct format_snapshot *s = NULL;
  size_t nr = 0;
  int r = 0;

  *list = json_array ();
  if (!*list)
    return error_nomem (e, "a list of snapshots", sizeof *list);
  if (ops->snapshots)
    r = ops->snapshots (im->format, &s, &nr, e);
  for (size_t i = 0; i < nr && r == 0; ++i)
    r = append (*list, &s[i], e);
  if (s)
    format_snapshots_free (s, nr);
  if (r == -1)
    json_decref (*list);
  return r;
}

/* ---- change ---- */

static int
create (struct image *im, const char *name, struct error *e)
{
  struct format_snapshot s = { .name = (char *) name, .icount = 0 };
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  s.date_sec = (uint32_t) now.tv_sec;
  s.date_nsec = (uint32_t) now.tv_nsec;
  return image_snapshot_create (im, &s, e);
}

/* What runs is not stopped in the middle: cancelling is looked at before. */
int
op_snapshot (struct image *im, const struct snapshot_opts *opts,
             struct op_ctx *ctx, struct error *e)
{
  if (op_cancelled (ctx))
    return error_set (e, ECANCELED, "snapshot was cancelled");
  switch (opts->verb) {
  case SNAPSHOT_CREATE:
    return create (im, opts->name, e);
  case SNAPSHOT_APPLY:
    return image_snapshot_apply (im, opts->name, e);
  case SNAPSHOT_DELETE:
    return image_snapshot_delete (im, opts->name, e);
  }
  return error_set (e, EINVAL, "snapshot: nothing to do");
}
