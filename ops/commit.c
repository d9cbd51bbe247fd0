/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Commit: what an image and the layers below it have is written into a backing
 * file of theirs (ops.h).  The copy itself is convert's, with a layer of the
 * source's own chain as the target.
 *
 * Layer: ops.  Locking: none of its own.
 *
 * Order: the backing file grows, showing no byte through the image that it did
 * not show before; the data; barrier; then the image is emptied.  Up to there
 * the image hides whatever stands in the backing file, and from there on each
 * cluster reads the same from either of them: a crash or an error at any point
 * leaves the image's disk as it was.  The layers between the two are of no use
 * afterwards: the backing file below them has changed.
 */

#include <config.h>

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "ops/ops.h"

/* ---- the backing file ---- */

static bool
is_file (const struct storage *st, const char *name)
{
  struct stat sb;

  return st->identity.valid && stat (name, &sb) == 0
    && st->identity.device == sb.st_dev && st->identity.inode == sb.st_ino;
}

unsigned
op_commit_depth (const struct image *im, const char *name)
{
  unsigned depth = 0;

  for (; im->backing; im = im->backing) {
    ++depth;
    if ((im->backing_name && strcmp (im->backing_name, name) == 0)
        || strcmp (im->backing->name, name) == 0
        || is_file (im->backing->storage, name))
      return depth;
  }
  return 0;
}

static struct image *
find_base (struct image *im, unsigned depth, struct error *e)
{
  struct image *base = im;

  while (depth-- > 0 && base)
    base = base->backing;
  if (!base || base == im) {
    error_set (e, EINVAL, "Image does not have a backing file");
    return NULL;
  }
  return base;
}

/* A shorter backing file would lose the end of the disk. */
static int
grow (struct image *base, uint64_t size, struct error *e)
{
  if (size <= image_size (base))
    return 0;
  if (image_resize (base, size, e) == -1)
    return error_prefix (e, "the backing file cannot grow to the %llu bytes "
                         "of the image", (unsigned long long) size);
  return 0;
}

/* ---- */

static int
copy (struct image *im, struct image *base, struct convert_result *result,
      struct op_ctx *ctx, struct error *e)
{
  const struct convert_opts opts = {
    .sources = &im, .nr_sources = 1, .into_chain = true, .in_order = true,
    .sparse_size = 4096,
  };

  return op_convert (base, &opts, result, ctx, e);
}

int
op_commit (struct image *im, const struct commit_opts *opts,
           struct commit_result *result, struct op_ctx *ctx, struct error *e)
{
  struct image *base = find_base (im, opts->depth, e);

  memset (result, 0, sizeof *result);
  if (!base || image_begin_write (base, e) == -1
      || grow (base, image_size (im), e) == -1
      || copy (im, base, &result->copied, ctx, e) == -1)
    return -1;
  if (opts->keep)
    return 0;
  if (image_empty (im, e) == 0) {
    result->emptied = true;
    return 0;
  }
  if (e->err != ENOTSUP)
    return error_prefix (e, "everything was committed, but the image could not "
                         "be emptied");
  error_clear (e);
  return 0;
}
