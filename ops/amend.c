/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* amend: other options for an image that is there.  Those of the format, then
 * the size, then key slots (amend_keys.c).
 *
 * Layer: ops.  No locking: image/ lets no guest I/O in meanwhile.
 */

#include <config.h>

#include <errno.h>

#include "common/text.h"
#include "ops/amend.h"

/* The size is not the format's own affair: what is new must read as zeroes.  0
 * is no change, as in qemu-img.
 */
static int
set_size (struct image *im, const char *text, struct error *e)
{
  uint64_t size;

  if (!text)
    return 0;
  if (parse_size ("size", text, &size, e) == -1)
    return -1;
  return size ? image_resize (im, size, e) : 0;
}

static int
set_options (struct image *im, json_t *options, struct op_ctx *ctx,
             struct error *e)
{
  const struct format_amend a = {
    .options = options, .progress = ctx->progress, .opaque = ctx->opaque,
  };

  if (!im->format->ops->amend)
    return 0;                   /* LUKS: there are but key slots */
  if (image_amend (im, &a, e) == -1)
    return -1;
  return set_size (im, json_string_value (json_object_get (options, "size")),
                   e);
}

/* What is wrong with the key slots is told before anything is changed. */
static int
change (struct image *im, json_t *options, const struct amend_opts *opts,
        struct op_ctx *ctx, struct error *e)
{
  bool has_keys = amend_has_keys (im, options);
  struct amend_keys keys;
  int r;

  if (has_keys
      && amend_keys_parse (im, options, opts->force, &keys, e) == -1)
    return -1;
  r = set_options (im, options, ctx, e);
  if (has_keys) {
    if (r == 0)
      r = image_change_key (im, &keys.change, ctx->cancel, e);
    amend_keys_free (&keys);
  }
  return r;
}

static bool
names_backing (const json_t *options)
{
  return json_object_get (options, "backing_file")
    || json_object_get (options, "backing_fmt");
}

int
op_amend (struct image *im, const struct amend_opts *opts,
          struct amend_result *result, struct op_ctx *ctx, struct error *e)
{
  const struct format_ops *format = im->format->ops;
  json_t *options;
  int r;

  *result = (struct amend_result) { .only_by_rebase = false };
  if (!format->amend_options)
    return error_set (e, ENOTSUP, "Format driver '%s' does not support option"
                      " amendment", format->name);
  options = op_amend_options (format, opts->options, e);
  if (!options) {
    result->only_for_creation = e->err == ENOENT;
    return -1;
  }
  if (op_cancelled (ctx))
    r = error_set (e, ECANCELED, "amend was cancelled");
  else
    r = change (im, options, opts, ctx, e);
  result->only_by_rebase = r == -1 && e->err == EPERM
    && names_backing (options);
  if (r == 0 && !format->amend && ctx->progress)
    ctx->progress (ctx->opaque, 1, 1);
  json_decref (options);
  return r;
}
