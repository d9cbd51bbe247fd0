/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* check: are the tables of an image right?  And repair.
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

static int
run (struct image *im, const struct format_check_options *fopts,
     struct format_check_result *result, struct error *e)
{
  *result = (struct format_check_result) { .check_errors = 0 };
  return im->format->ops->check (im->format, fopts, result, e);
}

/* Who mends believes that all is well now; a second look says what is. */
static int
check_again (struct image *im, const struct check_opts *opts,
             struct format_check_options *fopts,
             struct format_check_result *result, struct error *e)
{
  const struct format_check_result mended = *result;

  if (opts->repaired)
    opts->repaired (opts->opaque, &mended);
  fopts->repair = REPAIR_NONE;
  if (run (im, fopts, result, e) == -1)
    return error_prefix (e, "checking what was repaired");
  result->corruptions_fixed = mended.corruptions_fixed;
  result->leaks_fixed = mended.leaks_fixed;
  return 0;
}

int
op_check (struct image *im, const struct check_opts *opts,
          struct check_result *result, struct op_ctx *ctx, struct error *e)
{
  struct caller caller = { .opts = opts, .ctx = ctx };
  struct format_check_options fopts = {
    .repair = opts->repair,
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
  r = run (im, &fopts, &result->format, e);
  if (r == 0 && (result->format.corruptions_fixed
                 || result->format.leaks_fixed))
    r = check_again (im, opts, &fopts, &result->format, e);
  image_thaw (im);
  return r;
}
