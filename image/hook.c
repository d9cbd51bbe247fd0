/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Write hooks: see hook.h.  Layer: image.  Locking: the list changes while the
 * image is frozen, and is read by whoever has entered the gate.
 */

#include <config.h>

#include <stdlib.h>

#include "image/hook.h"

void
hook_add (struct image *im, struct write_hook *hook)
{
  hook->next = im->hooks;
  im->hooks = hook;
}

int
hooks_before (struct image *im, uint64_t offset, uint64_t len,
              struct error *e)
{
  for (struct write_hook *h = im->hooks; h; h = h->next)
    if (h->before (h, offset, len, e) == -1)
      return error_prefix (e, "%s", im->name);
  return 0;
}

/* ---- the format's ---- */

struct format_hook {
  struct write_hook hook;       /* must be first */
  struct format *format;        /* borrowed */
};

static int
tell_format (struct write_hook *hook, uint64_t offset, uint64_t len,
             struct error *e)
{
  struct format *f = ((struct format_hook *) hook)->format;

  return f->ops->changed (f, offset, len, e);
}

int
hook_add_format (struct image *im, struct error *e)
{
  struct format_hook *h;

  if (!im->format->ops->changed || im->format_hook)
    return 0;
  h = calloc (1, sizeof *h);
  if (!h)
    return error_nomem (e, "a write hook", sizeof *h);
  h->hook.before = tell_format;
  h->format = im->format;
  im->format_hook = &h->hook;
  hook_add (im, &h->hook);
  return 0;
}

void
hooks_free (struct image *im)
{
  free (im->format_hook);
  im->format_hook = im->hooks = NULL;
}
