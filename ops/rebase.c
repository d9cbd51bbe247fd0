/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Rebase: another backing file for an image (ops.h).  What the image itself has
 * stays; elsewhere the two backing files are compared, and where they differ
 * what the old one has is copied into the image.
 *
 * Layer: ops.  Locking: none of its own.
 *
 * Order: the copies, which change nothing that can be read as long as the old
 * backing file is recorded; barrier; the header.  A crash or an error before
 * the header is on disk leaves the image on its old backing file, one after it
 * on the new one, with the same disk.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "ops/ops.h"

/* So much is read of each side at a time, and never less than a cluster, the
 * largest of which has 2 MiB.
 */
#define CHUNK (2 * MiB)

struct rebase {
  struct image *im;
  struct image *old, *new;      /* NULL = none */
  const struct rebase_opts *opts;
  struct rebase_result *result;
  uint8_t *a, *b;               /* CHUNK bytes: of the old, of the new one */
};

/* ---- what is where ---- */

/* A backing file at OFFSET; behind its end there are zeroes. */
static int
look (struct image *im, uint64_t offset, uint64_t len, struct image_extent *x,
      struct error *e)
{
  uint64_t size = im ? image_size (im) : 0;

  *x = (struct image_extent) { .length = len, .zero = true };
  if (offset >= size)
    return 0;
  return image_extents (im, offset, min_u64 (len, size - offset),
                        EXTENTS_METADATA, x, e);
}

static bool
same_layer (const struct image_extent *a, const struct image_extent *b)
{
  return a->present && b->present
    && storage_same (a->layer->storage, b->layer->storage)
    && a->layer->format->ops == b->layer->format->ops
    && !a->layer->view && !b->layer->view;
}

/* Are the two alike from OFFSET on, without a look at the data?  *LENGTH = so
 * far this is said.
 */
static int
is_alike (struct rebase *r, uint64_t offset, uint64_t len, uint64_t *length,
          bool *alike, struct error *e)
{
  struct image_extent a, b;

  if (look (r->old, offset, len, &a, e) == -1
      || look (r->new, offset, len, &b, e) == -1)
    return error_prefix (e, "error while reading at byte %" PRIu64, offset);
  *length = min_u64 (a.length, b.length);
  *alike = (a.zero && b.zero) || same_layer (&a, &b);
  return 0;
}

/* ---- copying ---- */

static int
read_side (struct image *im, uint8_t *buf, uint64_t len, uint64_t offset,
           struct error *e)
{
  uint64_t size = im ? image_size (im) : 0;
  uint64_t n = offset < size ? min_u64 (len, size - offset) : 0;

  memset (buf + n, 0, len - n);
  if (n && image_read (im, buf, n, offset, e) == -1)
    return error_prefix (e, "error while reading at byte %" PRIu64, offset);
  return 0;
}

/* Zeroes that hide the new backing file.  A format with a mark for zeroes sets
 * it where there is a backing file to hide; in an image that has none so far it
 * may leave out what reads as zeroes anyhow, so there they go in as data.
 */
static int
write_zeroes (struct rebase *r, const uint8_t *zeroes, uint64_t len,
              uint64_t offset, struct error *e)
{
  r->result->bytes_zeroed += len;
  if (r->old && r->im->format->info.zero_is_fast)
    return image_zero (r->im, offset, len, IMAGE_MAY_UNMAP, e);
  return image_write (r->im, zeroes, len, offset, 0, e);
}

static int
write_unit (struct rebase *r, const uint8_t *buf, uint64_t len,
            uint64_t offset, bool whole_cluster, struct error *e)
{
  int result;

  if (is_zero (buf, len))
    result = write_zeroes (r, buf, len, offset, e);
  else {
    r->result->bytes_written += len;
    result = r->opts->compressed && whole_cluster
      ? image_write_packed (r->im, buf, len, offset, e)
      : image_write (r->im, buf, len, offset, 0, e);
  }
  if (result == -1)
    return error_prefix (e, "error while writing at byte %" PRIu64, offset);
  return 0;
}

/* The units of [offset, offset+len) in which the two sides differ.  The last
 * one may be a part of a cluster, the rest of which is in the image.
 */
static int
copy_differences (struct rebase *r, uint64_t offset, uint64_t len,
                  uint64_t unit, struct error *e)
{
  uint64_t cluster = r->im->format->info.cluster_size, n;
  bool whole;

  if (read_side (r->old, r->a, len, offset, e) == -1
      || read_side (r->new, r->b, len, offset, e) == -1)
    return -1;
  for (uint64_t at = 0; at < len; at += n) {
    n = min_u64 (unit, len - at);
    whole = n == cluster
      || (unit == cluster && offset + at + n == image_size (r->im));
    if (memcmp (r->a + at, r->b + at, n) != 0
        && write_unit (r, r->a + at, n, offset + at, whole, e) == -1)
      return -1;
  }
  return 0;
}

/* ---- the walk ---- */

/* A compressed cluster is written as a whole, so all of it must be free. */
static uint64_t
choose_unit (const struct rebase *r, uint64_t offset, uint64_t len)
{
  const struct format_info *info = &r->im->format->info;

  if (r->opts->compressed && is_aligned (offset, info->cluster_size)
      && (len >= info->cluster_size || offset + len == image_size (r->im)))
    return info->cluster_size;
  return info->cow_size;
}

/* [offset, offset+len) is not in the image itself: bring the first part of it
 * in order.  *DONE = its length.
 */
static int
merge (struct rebase *r, uint64_t offset, uint64_t len, uint64_t *done,
       struct error *e)
{
  uint64_t unit = choose_unit (r, offset, len), known = 0;
  bool alike = false;

  if (is_alike (r, offset, len, &known, &alike, e) == -1)
    return -1;
  *done = known == len ? len : round_down (known, unit);
  if (alike && *done)
    return 0;
  /* A unit in which the extents change is looked at as data. */
  *done = min_u64 (len, min_u64 (max_u64 (*done, unit), CHUNK));
  return copy_differences (r, offset, *done, unit, e);
}

static int
step (struct rebase *r, uint64_t offset, uint64_t *done, struct error *e)
{
  struct image_extent x;
  uint64_t len = image_size (r->im) - offset;

  if (image_extents (r->im, offset, len, EXTENTS_TOP_ONLY, &x, e) == -1)
    return -1;
  *done = x.length;
  return x.present ? 0 : merge (r, offset, x.length, done, e);
}

static int
walk (struct rebase *r, struct op_ctx *ctx, struct error *e)
{
  uint64_t size = image_size (r->im), done;

  for (uint64_t offset = 0; offset < size; offset += done) {
    if (ctx && op_cancelled (ctx))
      return error_set (e, ECANCELED, "cancelled");
    if (step (r, offset, &done, e) == -1)
      return -1;
    if (ctx && ctx->progress)
      ctx->progress (ctx->opaque, offset + done, size);
  }
  return image_flush (r->im, e);
}

static int
copy (struct image *im, const struct rebase_opts *opts,
      struct rebase_result *result, struct op_ctx *ctx, struct error *e)
{
  CLEANUP_FREE uint8_t *a = malloc (CHUNK), *b = malloc (CHUNK);
  struct rebase r = {
    .im = im, .old = im->backing, .new = opts->backing, .opts = opts,
    .result = result, .a = a, .b = b,
  };

  if (!a || !b)
    return error_nomem (e, "rebase", 2 * CHUNK);
  if (opts->compressed && !im->format->info.can_pack)
    return error_set (e, ENOTSUP, "%s: this image cannot hold compressed "
                      "clusters; leave out -c", im->name);
  return walk (&r, ctx, e);
}

/* All that can be refused is refused before anything is copied. */
static int
check_name (const struct image *im, const struct rebase_opts *opts,
            struct error *e)
{
  if (!im->format->ops->set_backing)
    return error_set (e, ENOTSUP, "Operation not supported: the backing file of"
                      " %s images cannot be changed", im->format->ops->name);
  if (opts->name && !opts->format)
    return error_set (e, EINVAL, "backing format must be specified");
  return 0;
}

static int
cannot_change (const struct rebase_opts *opts, struct error *e)
{
  return error_prefix (e, "Could not change the backing file to '%s'",
                       opts->name ? opts->name : "");
}

int
op_rebase (struct image *im, const struct rebase_opts *opts,
           struct rebase_result *result, struct op_ctx *ctx, struct error *e)
{
  memset (result, 0, sizeof *result);
  if (check_name (im, opts, e) == -1)
    return cannot_change (opts, e);
  if (!opts->unsafe && copy (im, opts, result, ctx, e) == -1)
    return -1;
  if (image_set_backing (im, opts->name, opts->format, e) == -1)
    return cannot_change (opts, e);
  return 0;
}
