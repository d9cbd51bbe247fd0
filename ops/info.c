/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* info: what an image says of itself, as one JSON object for each layer.
 *
 * Layer: ops.  No locking: the images are opened here, for info only, and
 * nobody else sees them.
 *
 * Keys: those of qemu-img info --output=json (ImageInfo of QEMU's QAPI schema).
 * Names may be any bytes, JSON is UTF-8: other bytes become U+FFFD.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/text.h"
#include "ops/ops.h"

/* Put a member into OBJECT; takes VALUE, which may be NULL (no memory). */
static int
put (json_t *object, const char *key, json_t *value, struct error *e)
{
  if (json_object_set_new (object, key, value) == 0)
    return 0;
  return error_nomem (e, "the answer of info", sizeof (json_t *));
}

static int
put_text (json_t *object, const char *key, const char *text, struct error *e)
{
  CLEANUP_FREE char *utf8 = utf8_text (text);

  return put (object, key, utf8 ? json_string (utf8) : NULL, e);
}

/* Sizes are at most INT64_MAX. */
static int
put_number (json_t *object, const char *key, uint64_t n, struct error *e)
{
  return put (object, key, json_integer ((json_int_t) n), e);
}

static int
describe_snapshots (struct image *im, json_t *info, struct error *e)
{
  json_t *list;

  if (!im->format->ops->snapshots)
    return 0;
  if (op_snapshot_list (im, &list, e) == -1)
    return -1;
  if (json_array_size (list) > 0)
    return put (info, "snapshots", list, e);
  json_decref (list);
  return 0;
}

/* ---- one layer ---- */

static int
describe_backing (const struct image *im, json_t *info, struct error *e)
{
  CLEANUP_FREE char *full = NULL;

  if (!im->backing_name)
    return 0;
  full = image_name_resolve (im->name, im->backing_name);
  if (!full)
    return error_nomem (e, "a backing file's name", 1);
  if (put_text (info, "backing-filename", im->backing_name, e) == -1
      || (image_name_is_resolvable (im->name, im->backing_name)
          && put_text (info, "full-backing-filename", full, e) == -1))
    return -1;
  if (!im->backing_format_name)
    return 0;
  return put_text (info, "backing-filename-format", im->backing_format_name,
                   e);
}

static int
describe_specific (const struct image *im, json_t *info, struct error *e)
{
  json_t *specific, *data;

  if (!im->format->ops->info)
    return 0;
  specific = json_object ();
  data = json_object ();
  if (put (info, "format-specific", specific, e) == -1) {
    json_decref (data);
    return -1;
  }
  if (put_text (specific, "type", im->format->ops->name, e) == -1) {
    json_decref (data);
    return -1;
  }
  if (put (specific, "data", data, e) == -1)
    return -1;
  return im->format->ops->info (im->format, data, e);
}

/* Space on the medium is left out where nobody can say it (an export). */
static int
describe_storage (const struct image *im, json_t *info, struct error *e)
{
  struct error ignored = ERROR_INIT;
  uint64_t size;

  if (storage_disk_size (im->storage, &size, &ignored) == -1)
    return 0;
  return put_number (info, "actual-size", size, e);
}

/* QEMU does not say of a raw export whether it is dirty. */
static int
describe_state (const struct image *im, json_t *info, struct error *e)
{
  const struct storage_caps *caps = &im->storage->caps;
  const struct format *f = im->format;

  if (f->encrypted && put (info, "encrypted", json_true (), e) == -1)
    return -1;
  if (f->info.identity && !caps->is_local_file && !caps->is_device)
    return 0;
  return put (info, "dirty-flag", json_boolean (f->dirty_flag), e);
}

static int
describe (struct image *im, json_t *info, struct error *e)
{
  const struct format *f = im->format;

  if (put_text (info, "filename", im->name, e) == -1
      || put_text (info, "format", f->ops->name, e) == -1
      || put_number (info, "virtual-size", image_size (im), e) == -1
      || describe_storage (im, info, e) == -1)
    return -1;
  if (!f->info.identity && !f->info.flat
      && put_number (info, "cluster-size", f->info.cluster_size, e) == -1)
    return -1;
  if (describe_state (im, info, e) == -1
      || describe_backing (im, info, e) == -1
      || describe_snapshots (im, info, e) == -1)
    return -1;
  return describe_specific (im, info, e);
}

/* ---- the chain ---- */

static struct image *
open_image (const struct info_opts *opts, struct error *e)
{
  const struct image_open_options o = {
    .info_only = true,
    .info_chain = opts->backing_chain,
    .check = true,              /* a damaged image too says what it is */
    .force_share = opts->force_share,
    .untrusted = opts->untrusted,
  };
  struct image *im;
  json_t *tree;

  if (!opts->image_opts)
    return image_open_name (opts->name, opts->format, &o, e);
  tree = image_opts_parse (opts->name, e);
  im = tree ? image_open (tree, &o, e) : NULL;
  json_decref (tree);
  return im;
}

static int
describe_chain (struct image *im, json_t *array, struct op_ctx *ctx,
                struct error *e)
{
  for (; im; im = im->backing) {
    json_t *info = json_object ();

    if (op_cancelled (ctx)) {
      json_decref (info);
      return error_set (e, ECANCELED, "info was cancelled");
    }
    if (json_array_append_new (array, info) == -1)
      return error_nomem (e, "the answer of info", sizeof (json_t *));
    if (describe (im, info, e) == -1)
      return error_prefix (e, "%s", im->name);
  }
  return 0;
}

int
op_info (const struct info_opts *opts, json_t **result, struct op_ctx *ctx,
         struct error *e)
{
  struct image *im = open_image (opts, e);
  json_t *array;
  int r = -1;

  *result = NULL;
  if (!im)
    return -1;
  array = json_array ();
  if (array)
    r = describe_chain (im, array, ctx, e);
  else
    error_nomem (e, "the answer of info", sizeof (json_t *));
  if (image_close (im, e) == -1)
    r = -1;
  if (r == 0)
    *result = array;
  else
    json_decref (array);
  return r;
}
