/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* measure: how large an image will be.  Layer: ops.  No locking of its own. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "common/text.h"
#include "ops/ops.h"

/* Walks the disk from its beginning. */
struct counter {
  uint64_t unit;                /* bytes */
  uint64_t end;                 /* of the last unit that was counted */
  uint64_t bytes;               /* of all that were */
};

static void
count_data (struct counter *c, uint64_t offset, uint64_t length)
{
  uint64_t start = max_u64 (round_down (offset, c->unit), c->end);
  uint64_t end = round_up (offset + length, c->unit);

  if (end <= start)
    return;
  c->bytes += end - start;
  c->end = end;
}

/* BYTES = those of all units of the disk that are not known to be zero. */
static int
count_source (struct image *im, uint64_t unit, uint64_t *bytes,
              struct op_ctx *ctx, struct error *e)
{
  struct counter c = { .unit = unit };
  uint64_t size = image_size (im);
  struct image_extent x;

  for (uint64_t at = 0; at < size; at += x.length) {
    if (op_cancelled (ctx))
      return error_set (e, ECANCELED, "measure was cancelled");
    if (image_extents (im, at, size - at, 0, &x, e) == -1)
      return -1;
    if (x.data && !x.zero)
      count_data (&c, at, x.length);
  }
  *bytes = c.bytes;
  return 0;
}

static int
add_source (struct image *im, const struct format_create_options *create,
            const struct format_measure *m, struct measure_result *r,
            struct op_ctx *ctx, struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  uint64_t data = 0;
  int has = 0;

  if (r->required < r->fully_allocated
      && count_source (im, m->cluster_size, &data, ctx, e) == -1)
    return -1;
  /* Nobody knows yet what the backing file will have in common with it. */
  r->required = create->backing_file
    ? r->fully_allocated : r->required + data;
  if (m->keeps_bitmaps && ops->measure_bitmaps)
    has = ops->measure_bitmaps (im->format, m->cluster_size, &r->bitmaps, e);
  r->has_bitmaps = has == 1;
  return has == -1 ? -1 : 0;
}

/* -o size=N, as create and convert take it. */
static int
use_size_option (const struct measure_opts *opts, json_t *options,
                 uint64_t *size, struct error *e)
{
  const char *text = json_string_value (json_object_get (options, "size"));
  uint64_t n;

  if (!text)
    return 0;
  if (!opts->source)
    return error_set (e, EINVAL, "The image size must be specified only once");
  if (parse_size ("size", text, &n, e) == -1)
    return -1;
  if (n < *size)
    return error_set (e, EINVAL, "size=%" PRIu64 " is less than the %" PRIu64
                      " bytes of the disk", n, *size);
  *size = n;
  return 0;
}

static int
measure (const struct measure_opts *opts, const struct format_ops *format,
         json_t *options, struct measure_result *r, struct op_ctx *ctx,
         struct error *e)
{
  struct format_create_options create = {
    .size = opts->source ? image_size (opts->source) : opts->size,
    .options = options,
    .backing_file = json_string_value (json_object_get (options,
                                                        "backing_file")),
    .backing_format = json_string_value (json_object_get (options,
                                                          "backing_fmt")),
  };
  struct format_measure m;

  if (use_size_option (opts, options, &create.size, e) == -1
      || format->measure (&create, &m, e) == -1)
    return -1;
  *r = (struct measure_result) {
    .required = m.required, .fully_allocated = m.fully_allocated,
  };
  return opts->source ? add_source (opts->source, &create, &m, r, ctx, e) : 0;
}

int
op_measure (const struct measure_opts *opts, struct measure_result *result,
            struct op_ctx *ctx, struct error *e)
{
  const struct format_ops *format =
    op_create_format (opts->format ? opts->format : "raw", e);
  json_t *options;
  int r;

  if (!format)
    return -1;
  if (!format->measure)
    return error_set (e, ENOTSUP, "Block driver '%s' does not support size "
                      "measurement", format->name);
  options = op_format_options (format, opts->options ? opts->options : "", e);
  if (!options)
    return error_prefix (e, "Invalid options for file format '%s'",
                         format->name);
  r = measure (opts, format, options, result, ctx, e);
  json_decref (options);
  return r;
}
