/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* map: what is where in a chain, in pieces as large as they are alike.
 *
 * Layer: ops.  No locking of its own: image_extents may be called beside
 * anything, and one entry may be older than the next.
 */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "formats/format.h"
#include "ops/ops.h"
#include "storage/storage.h"

/* Does NEXT continue what ENTRY says?  A compressed cluster has no address, so
 * that one continues another.
 */
static bool
continues (const struct map_entry *entry, const struct image_extent *next)
{
  const struct image_extent *x = &entry->extent;

  return x->data == next->data && x->zero == next->zero
    && x->present == next->present && x->compressed == next->compressed
    && x->depth == next->depth && x->layer == next->layer
    && x->has_host == next->has_host
    && (!x->has_host || x->host + x->length == next->host);
}

/* A raw image in a window of a file: the address is that in the file. */
static void
place_in_file (struct image_extent *x)
{
  if (x->has_host && x->layer->format->info.identity)
    storage_below_slices (x->layer->storage, &x->host);
}

int
op_map (struct image *im, const struct map_opts *opts,
        int (*emit) (void *opaque, const struct map_entry *, struct error *),
        void *opaque, struct op_ctx *ctx, struct error *e)
{
  uint64_t size = image_size (im);
  uint64_t offset = min_u64 (opts->start, size);
  uint64_t end = offset + min_u64 (opts->length, size - offset);
  struct map_entry entry = { .start = offset };
  struct image_extent next;

  for (; offset < end; offset += next.length) {
    if (op_cancelled (ctx))
      return error_set (e, ECANCELED, "map was cancelled");
    if (image_extents (im, offset, end - offset, 0, &next, e) == -1)
      return -1;
    place_in_file (&next);
    if (entry.extent.length && continues (&entry, &next)) {
      entry.extent.length += next.length;
      continue;
    }
    if (entry.extent.length && emit (opaque, &entry, e) == -1)
      return -1;
    entry = (struct map_entry) { .start = offset, .extent = next };
  }
  return entry.extent.length ? emit (opaque, &entry, e) : 0;
}
