/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Persistent bitmaps: changed by the user, copied from image to image (ops.h).
 *
 * Layer: ops.  No locking: image/ lets no guest I/O in meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>

#include "ops/ops.h"

/* ---- change ---- */

static int
act (struct image *im, const struct bitmap_opts *opts,
     const struct bitmap_action *a, struct error *e)
{
  const struct format_bitmap_edit edit = {
    .verb = a->verb, .name = opts->name, .granularity = opts->granularity,
  };

  if (a->verb != BITMAP_SET)
    return image_bitmap_edit (im, &edit, e);
  return image_bitmap_merge (im, opts->name,
                             opts->source ? opts->source : im, a->merge, e);
}

int
op_bitmap (struct image *im, const struct bitmap_opts *opts,
           struct bitmap_result *result, struct op_ctx *ctx, struct error *e)
{
  for (result->done = 0; result->done < opts->nr_actions; result->done++) {
    if (op_cancelled (ctx))
      return error_set (e, ECANCELED, "cancelled");
    if (act (im, opts, &opts->actions[result->done], e) == -1)
      return -1;
  }
  return 0;
}

/* ---- copy ---- */

int
op_check_bitmaps (struct image *from, bool skip_broken, struct error *e)
{
  struct format_bitmap *list;
  size_t nr;
  int r = 0;

  if (!from->format->info.keeps_bitmaps)
    return error_set (e, ENOTSUP, "Source lacks bitmap support");
  if (image_bitmaps (from, &list, &nr, e) == -1)
    return -1;
  for (size_t i = 0; r == 0 && i < nr; ++i)
    if (list[i].inconsistent && !skip_broken)
      r = error_set (e, EINVAL, "Cannot copy inconsistent bitmap '%s'",
                     list[i].name);
  format_bitmaps_free (list, nr);
  return r;
}

static int
copy_bitmap (struct image *from, struct image *to,
             const struct format_bitmap *b, struct error *e)
{
  struct format_bitmap_edit edit = {
    .verb = BITMAP_ADD, .name = b->name, .granularity = b->granularity,
  };

  if (image_bitmap_edit (to, &edit, e) == -1)
    return error_prefix (e, "Failed to create bitmap %s", b->name);
  edit.verb = BITMAP_DISABLE;
  if ((!b->enabled && image_bitmap_edit (to, &edit, e) == -1)
      || image_bitmap_merge (to, b->name, from, b->name, e) == -1)
    return error_prefix (e, "Failed to populate bitmap %s", b->name);
  return 0;
}

static void
tell_skipped (struct op_ctx *ctx, const char *name)
{
  char text[1200];

  snprintf (text, sizeof text, "Skipping inconsistent bitmap '%s'",
            name);
  if (ctx->message)
    ctx->message (ctx->opaque, text);
}

int
op_copy_bitmaps (struct image *from, struct image *to, struct op_ctx *ctx,
                 struct error *e)
{
  struct format_bitmap *list;
  size_t nr;
  int r = 0;

  if (image_bitmaps (from, &list, &nr, e) == -1)
    return -1;
  for (size_t i = 0; r == 0 && i < nr; ++i)
    if (op_cancelled (ctx))
      r = error_set (e, ECANCELED, "cancelled");
    else if (list[i].inconsistent)
      tell_skipped (ctx, list[i].name);
    else
      r = copy_bitmap (from, to, &list[i], e);
  format_bitmaps_free (list, nr);
  return r;
}
