/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* check: are the tables of an image right?
 *
 * Layer: ops.  Locking: the image is frozen while its format looks, so that no
 * table changes under it.
 */

#include <config.h>

#include "ops/ops.h"

/* The format knows one opaque for both of its calls. */
struct caller {
  const struct check_opts *opts;
  struct op_ctx *ctx;
};

static bool
on_progress (void *opaque, uint64_t done, uint64_t total)
{
  const struct caller *c = opaque;

  if (c->ctx->progress)
    c->ctx->progress (c->ctx->opaque, done, total);
  return !op_cancelled (c->ctx);
}

static void
on_finding (void *opaque, const char *text)
{
  const struct caller *c = opaque;

  c->opts->finding (c->opts->opaque, text);
}

int
op_check (struct image *im, const struct check_opts *opts,
          struct check_result *result, struct op_ctx *ctx, struct error *e)
{
  struct caller caller = { .opts = opts, .ctx = ctx };
  const struct format_check_options fopts = {
    .progress = on_progress,
    .opaque = &caller,
    .finding = opts->finding ? on_finding : NULL,
  };
  int r;

  *result = (struct check_result) {
    .supported = im->format->ops->check != NULL,
  };
  if (!result->supported)
    return 0;
  image_freeze (im);
  r = im->format->ops->check (im->format, &fopts, &result->format, e);
  image_thaw (im);
  return r;
}
