/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* create: make an empty image, perhaps over a backing file.
 *
 * Layer: ops.  No locking: nobody else knows the image yet.
 *
 * Everything is checked, and the backing file opened, before the file is
 * touched: a command that fails on its arguments has destroyed nothing.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "ops/ops.h"

/* What is to be made, as far as it is known. */
struct plan {
  const struct create_opts *opts;
  const struct format_ops *format;
  json_t *options;              /* what the user said; owned */
  const char *backing_file;     /* borrowed, or NULL */
  const char *backing_format;   /* borrowed, or NULL */
  bool has_size;
  uint64_t size;                /* bytes */
};

const struct format_ops *
op_create_format (const char *name, struct error *e)
{
  const struct format_ops *format = format_by_name (name);
  struct error why = ERROR_INIT;

  if (format)
    return format;
  format_lookup (name, &why);
  if (why.err == EINVAL)
    error_set (e, EINVAL, "Unknown file format '%s'", name);
  else
    *e = why;
  return NULL;
}

/* ---- options ---- */

static const char *
option (const struct plan *p, const char *name)
{
  return json_string_value (json_object_get (p->options, name));
}

static int
set_option (json_t *options, const char *name, const char *value,
            struct error *e)
{
  if (json_object_set_new (options, name, json_string_nocheck (value)) == 0)
    return 0;
  return error_nomem (e, "an option", strlen (value));
}

/* -b and -F stand for the options backing_file and backing_fmt. */
static int
merge_backing (struct plan *p, struct error *e)
{
  const struct create_opts *o = p->opts;

  if ((o->backing_file || o->backing_format) && !p->format->has_backing)
    return error_set (e, ENOTSUP, "Backing file%s not supported for file "
                      "format '%s'", o->backing_file ? "" : " format",
                      p->format->name);
  if (o->backing_file
      && set_option (p->options, "backing_file", o->backing_file, e) == -1)
    return -1;
  if (o->backing_format
      && set_option (p->options, "backing_fmt", o->backing_format, e) == -1)
    return -1;
  p->backing_file = option (p, "backing_file");
  p->backing_format = option (p, "backing_fmt");
  return 0;
}

static int
merge_size (struct plan *p, struct error *e)
{
  const char *text = option (p, "size");

  if (text && p->opts->has_size)
    return error_set (e, EINVAL, "The image size must be specified only once");
  p->has_size = text || p->opts->has_size;
  p->size = p->opts->size;
  return text ? parse_size ("size", text, &p->size, e) : 0;
}

/* ---- the backing file ---- */

/* Is the file that is to be made one of the chain that it is to be put on?  It
 * would be overwritten, and then be its own backing file.
 */
static int
refuse_loop (const struct plan *p, const struct image *backing,
             struct error *e)
{
  const struct image_open_options opts = {
    .info_only = true, .no_backing = true, .force_share = true,
  };
  struct error ignored = ERROR_INIT;
  struct image *target = NULL;
  const struct image *same;

  if (p->opts->name[0] != '[')          /* do not run a command for this */
    target = image_open_name (p->opts->name, "raw", &opts, &ignored);
  if (!target)
    return 0;
  for (same = backing; same; same = same->backing)
    if (storage_same (same->storage, target->storage)
        || (same->data_file && storage_same (same->data_file,
                                             target->storage)))
      break;
  if (same && same == backing)
    error_set (e, EINVAL, "%s is the backing file itself, and would be "
               "overwritten", p->opts->name);
  else if (same)
    error_set (e, EINVAL, "the backing file %s needs %s, which would be "
               "overwritten", p->backing_file, p->opts->name);
  error_clear (&ignored);
  image_close (target, &ignored);
  return same ? -1 : 0;
}

static int
use_backing (struct plan *p, const struct image *backing, struct error *e)
{
  if (refuse_loop (p, backing, e) == -1)
    return -1;
  if (!p->backing_format)
    return error_set (e, EINVAL, "Backing file specified without backing "
                      "format; detected format of %s: say -F %s if it is "
                      "right", backing->format->ops->name,
                      backing->format->ops->name);
  if (!p->has_size)
    p->size = image_size (backing);
  p->has_size = true;
  return 0;
}

static int
open_backing (struct plan *p, struct error *e)
{
  const struct image_open_options opts = { .writable = false };
  CLEANUP_FREE char *full = image_name_resolve (p->opts->name,
                                                p->backing_file);
  struct image *im;
  int r;

  if (!full)
    return error_nomem (e, "a backing file's name", 1);
  im = image_open_name (full, p->backing_format, &opts, e);
  if (!im)
    return error_prefix (e, "Could not open backing image");
  r = use_backing (p, im, e);
  return image_close (im, e) == -1 ? -1 : r;
}

static int
check_backing (struct plan *p, struct error *e)
{
  if (!p->backing_file)
    return 0;
  if (!*p->backing_file)
    return error_set (e, EINVAL, "Expected backing file name, got empty "
                      "string");
  if (strcmp (p->backing_file, p->opts->name) == 0)
    return error_set (e, EINVAL, "Error: Trying to create an image with the "
                      "same filename as the backing file");
  if (!p->opts->no_open_backing)
    return open_backing (p, e);
  if (!p->backing_format)
    return error_set (e, EINVAL, "Backing file specified without backing "
                      "format (-F, or backing_fmt)");
  return format_lookup (p->backing_format, e) ? 0 : -1;
}

/* ---- the result ---- */

/* All options in the format's order: what was said, else what is used. */
static json_t *
all_options (const struct plan *p, struct error *e)
{
  json_t *all = json_object ();

  if (!all) {
    error_nomem (e, "options", sizeof all);
    return NULL;
  }
  for (const struct format_option *o = p->format->create_options; o->name;
       ++o) {
    const char *text = option (p, o->name);
    char size[32];

    if (strcmp (o->name, "size") == 0) {
      snprintf (size, sizeof size, "%" PRIu64, p->size);
      text = size;
    }
    if (!text)
      text = o->initial;
    if (text && set_option (all, o->name, text, e) == -1) {
      json_decref (all);
      return NULL;
    }
  }
  return all;
}

/* A name that nothing can be made under is found before "Formatting ..." is
 * printed, which says that the arguments are right.
 */
static int
check_name (const char *name, struct error *e)
{
  json_t *tree = image_name_parse (name, NULL, e);

  json_decref (tree);
  return tree ? 0 : -1;
}

static int
prepare (struct plan *p, struct error *e)
{
  const struct create_opts *o = p->opts;

  p->format = op_create_format (o->format ? o->format : "raw", e);
  if (!p->format)
    return -1;
  p->options = op_format_options (p->format, o->options ? o->options : "", e);
  if (!p->options || merge_backing (p, e) == -1 || merge_size (p, e) == -1
      || check_backing (p, e) == -1)
    return -1;
  if (!p->has_size)
    return error_set (e, EINVAL, "Image creation needs a size parameter");
  return check_name (o->name, e);
}

static int
create (const struct plan *p, struct create_result *result,
        struct op_ctx *ctx, struct error *e)
{
  const struct format_create_options opts = {
    .size = p->size,
    .backing_file = p->backing_file,
    .backing_format = p->backing_format,
    .options = p->options,
    .cancel = ctx->cancel,
  };

  result->options = all_options (p, e);
  if (!result->options)
    return -1;
  if (!p->backing_file && p->backing_format)
    return error_set (e, EINVAL, "Backing format cannot be used without "
                      "backing file");
  if (op_cancelled (ctx))
    return error_set (e, ECANCELED, "create was cancelled");
  return image_create (p->opts->name, p->format, &opts, p->opts->cache, e);
}

int
op_create (const struct create_opts *opts, struct create_result *result,
           struct op_ctx *ctx, struct error *e)
{
  struct plan p = { .opts = opts };
  int r;

  result->options = NULL;
  r = prepare (&p, e);
  if (r == 0)
    r = create (&p, result, ctx, e);
  json_decref (p.options);
  return r;
}
