/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* resize: another virtual size.
 *
 * Layer: ops.  No locking: image/ lets no guest I/O in meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "ops/ops.h"

/* The size that is wanted, from the one that is there. */
static int
new_size (const struct resize_opts *opts, uint64_t old, uint64_t *size,
          struct error *e)
{
  bool ok = true;

  *size = opts->size;
  if (opts->relative > 0)
    ok = add_ok (old, opts->size, size) && *size <= INT64_MAX;
  else if (opts->relative < 0) {
    ok = old > opts->size;
    *size = old - opts->size;
  }
  if (!ok || *size == 0)
    return error_set (e, EINVAL, "New image size must be positive");
  return 0;
}

int
op_resize (struct image *im, const struct resize_opts *opts,
           struct resize_result *result, struct op_ctx *ctx, struct error *e)
{
  uint64_t size;

  *result = (struct resize_result) { .old_size = image_size (im) };
  if (new_size (opts, image_size (im), &size, e) == -1)
    return -1;
  result->new_size = size;
  if (opts->preallocation != PREALLOCATION_OFF && size <= image_size (im))
    return error_set (e, EINVAL, "Preallocation can only be used for growing"
                      " images");
  if (size < image_size (im) && !opts->shrink) {
    result->needs_shrink = true;
    return error_set (e, EINVAL, "Use the --shrink option to perform a shrink"
                      " operation.");
  }
  if (op_cancelled (ctx))
    return error_set (e, ECANCELED, "resize was cancelled");
  return image_resize_preallocated (im, size, opts->preallocation, e);
}
