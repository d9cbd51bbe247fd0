/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg convert: the target is made, opened, and taken away again when the
 * copy fails.  Layer: tool.  No locking here.
 *
 * Only a file that was not there before is removed.  A file that was there is
 * overwritten when everything has been checked, and a failure after that says
 * so; devices, exports and -n targets stay as they are.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/text.h"
#include "tool/convert.h"

static int
refuse (const char *text)
{
  tool_error ("%s", text);
  return -1;
}

/* ---- options ---- */

static int
refuse_bitmaps (const struct format_ops *format)
{
  tool_error ("Format driver '%s' does not support bitmaps", format->name);
  return -1;
}

static const char *
option (const struct convert_target *t, const char *name)
{
  return json_string_value (json_object_get (t->options, name));
}

static int
find_format (const struct convert_request *rq, struct convert_target *t)
{
  struct error e = ERROR_INIT;

  t->format = format_by_name (rq->target.format);
  if (t->format)
    return 0;
  format_lookup (rq->target.format, &e);
  if (e.err != EINVAL)
    tool_fail (&e);
  else
    tool_error ("Unknown file format '%s'", rq->target.format);
  return -1;
}

static int
check_compression (const struct convert_request *rq,
                   const struct convert_target *t)
{
  const char *mode = option (t, "preallocation");

  if (!rq->opts.compressed)
    return 0;
  if (!t->format->packs)
    return refuse ("Compression not supported for this file format");
  if (mode && strcmp (mode, "off") != 0)
    return refuse ("Compression and preallocation not supported at the same "
                   "time");
  if (t->format->key_option && option (t, t->format->key_option))
    return refuse ("Compression and encryption not supported at the same "
                   "time");
  if (option (t, "data_file"))
    return refuse ("Compression is not possible with an external data file");
  return 0;
}

static int
check_backing (const struct convert_request *rq, struct convert_target *t)
{
  t->backing_file = rq->backing_file ? rq->backing_file
    : option (t, "backing_file");
  if (!t->backing_file)
    return 0;
  if (!t->format->has_backing) {
    tool_error ("Backing file not supported for file format '%s'",
                t->format->name);
    return -1;
  }
  if (rq->nr_names > 1)
    return refuse ("Having a backing file for the target makes no sense when "
                   "concatenating multiple input images");
  if (!rq->backing_format && !option (t, "backing_fmt"))
    return refuse ("Use of backing file requires explicit backing format");
  return 0;
}

/* -o size=: a larger target is what the user says; a smaller one would lose
 * the end.
 */
static int
check_size (const struct convert_request *rq, const struct convert_target *t)
{
  uint64_t total = convert_total (rq), size;
  const char *text = option (t, "size");
  struct error e = ERROR_INIT;

  if (total == UINT64_MAX)
    return refuse ("the sources are too large together");
  if (!text)
    return 0;
  if (parse_size ("size", text, &size, &e) == -1) {
    tool_fail (&e);
    return -1;
  }
  if (size >= total)
    return 0;
  tool_error ("-o size=%" PRIu64 " is smaller than what is to be copied "
              "(%" PRIu64 " bytes)", size, total);
  return -1;
}

static int
check_options (const struct convert_request *rq, struct convert_target *t)
{
  struct error e = ERROR_INIT;

  t->options = op_format_options (t->format, rq->options ? rq->options : "",
                                  &e);
  if (!t->options) {
    tool_fail (&e);
    return -1;
  }
  if (check_compression (rq, t) == -1
      || (rq->bitmaps && !t->format->bitmap_edit
          && refuse_bitmaps (t->format) == -1))
    return -1;
  if (rq->no_create)
    return 0;
  return check_backing (rq, t) == -1 ? -1 : check_size (rq, t);
}

/* ---- source and target are not the same ---- */

/* The storage at the bottom of a name; NULL = it has none, or an error that
 * opening it will tell.  Returns owned.
 */
static json_t *
bottom (const struct tool_image *ti)
{
  struct error e = ERROR_INIT;
  json_t *tree = ti->image_opts ? image_opts_parse (ti->name, &e)
    : image_name_parse (ti->name, NULL, &e);
  json_t *node = tree, *file;

  while ((file = json_object_get (node, "file")) && json_is_object (file))
    node = file;
  json_incref (node);
  json_decref (tree);
  return node;
}

/* The path at the bottom of a name.  Returns owned, or NULL. */
static char *
local_path (const struct tool_image *ti)
{
  json_t *node = bottom (ti);
  const char *path = json_string_value (json_object_get (node, "filename"));
  char *r = path ? strdup (path) : NULL;

  json_decref (node);
  return r;
}

static bool
is_storage (const struct storage *st, const struct stat *sb)
{
  if (!st || !st->identity.valid)
    return false;
  if (S_ISBLK (sb->st_mode))
    return st->identity.inode == 0 && st->identity.device == sb->st_rdev;
  return st->identity.inode == sb->st_ino && st->identity.device == sb->st_dev;
}

static bool
chain_has (const struct image *im, const struct stat *sb)
{
  for (; im; im = im->backing)
    if (is_storage (im->storage, sb) || is_storage (im->data_file, sb))
      return true;
  return false;
}

/* The same export: each command in brackets is a server of its own. */
static bool
same_export (const json_t *a, const json_t *b)
{
  const char *driver = json_string_value (json_object_get (a, "driver"));

  return driver && strcmp (driver, "nbd") == 0
    && !json_object_get (a, "command") && json_equal (a, b);
}

static int
refuse_same (const struct convert_request *rq, const char *name, size_t i)
{
  tool_error ("%s: the target is the source %s, or a file that it needs; "
              "nothing was changed", name, rq->names[i]);
  return -1;
}

static int
check_path (const struct convert_request *rq, const char *name,
            const char *path, bool *existed)
{
  struct stat sb;

  *existed = path && stat (path, &sb) == 0;
  for (size_t i = 0; *existed && i < rq->nr_names; ++i)
    if (chain_has (rq->opts.sources[i], &sb))
      return refuse_same (rq, name, i);
  return 0;
}

static int
check_exports (const struct convert_request *rq)
{
  json_t *target = bottom (&rq->target);
  int r = 0;

  for (size_t i = 0; r == 0 && i < rq->nr_names; ++i) {
    struct tool_image ti = rq->source;
    json_t *source;

    ti.name = rq->names[i];
    source = bottom (&ti);
    if (same_export (source, target))
      r = refuse_same (rq, rq->target.name, i);
    json_decref (source);
  }
  json_decref (target);
  return r;
}

static int
check_same (const struct convert_request *rq, struct convert_target *t)
{
  struct tool_image data = { .name = option (t, "data_file") };

  t->path = local_path (&rq->target);
  if (check_path (rq, rq->target.name, t->path, &t->existed) == -1)
    return -1;
  if (data.name) {
    t->data_path = local_path (&data);
    if (check_path (rq, data.name, t->data_path, &t->data_existed) == -1)
      return -1;
  }
  return check_exports (rq);
}

int
convert_check_target (struct convert_request *rq, struct convert_target *t)
{
  if (rq->target.format && find_format (rq, t) == -1)
    return -1;
  if (t->format && check_options (rq, t) == -1)
    return -1;
  return check_same (rq, t);
}

/* ---- make it ---- */

static int
create (const struct convert_request *rq, struct convert_target *t,
        struct op_ctx *ctx)
{
  struct create_opts opts = {
    .name = rq->target.name,
    .format = rq->target.format,
    .options = rq->options,
    .backing_file = rq->backing_file,
    .backing_format = rq->backing_format,
    .has_size = !option (t, "size"),
    .size = convert_total (rq),
    .cache = rq->target.open.cache,
  };
  struct create_result result = { .options = NULL };
  struct error e = ERROR_INIT;
  size_t n = strlen (opts.name);
  int r = op_create (&opts, &result, ctx, &e);

  json_decref (result.options);
  if (r == 0) {
    t->created = true;
    return 0;
  }
  if (strncmp (e.text, opts.name, n) != 0 || strncmp (e.text + n, ": ", 2) != 0)
    n = 0;
  if (rq->doing)
    tool_error ("%s: error while %s: %s", opts.name, rq->doing,
                e.text + (n ? n + 2 : 0));
  else
    tool_error ("%s: error while converting %s: %s", opts.name, opts.format,
                e.text + (n ? n + 2 : 0));
  return -1;
}

/* A new image reads as zeroes.  Raw on a device or an export shows what was
 * there before, and encrypted space what comes of decrypting it.
 */
static bool
reads_zero (const struct convert_target *t)
{
  const struct storage *st = t->im->storage;

  if (t->im->format->info.new_is_random)
    return false;
  return !t->im->format->info.identity || st->caps.is_local_file;
}

/* The options with which the image was made are what opens it. */
static const char *
created_secret (const struct convert_request *rq,
                const struct convert_target *t)
{
  if (rq->no_create || !t->format->key_option)
    return NULL;
  return option (t, t->format->key_option);
}

static int
check_opened (const struct convert_request *rq, const struct convert_target *t)
{
  if (convert_total (rq) > round_up (image_size (t->im), SECTOR_SIZE))
    return refuse ("output file is smaller than input file");
  if (rq->bitmaps && !t->im->format->info.keeps_bitmaps)
    return refuse_bitmaps (t->im->format->ops);
  if (rq->target_is_zero && t->im->backing)
    return refuse ("Cannot use --target-is-zero when the destination image "
                   "has a backing file");
  return 0;
}

int
convert_open_target (struct convert_request *rq, struct convert_target *t,
                     struct op_ctx *ctx)
{
  if (!rq->no_create && create (rq, t, ctx) == -1)
    return -1;
  rq->target.open.key_secret = created_secret (rq, t);
  rq->target.open.data_file_known = !rq->no_create;
  t->im = tool_open (&rq->target);
  if (!t->im || check_opened (rq, t) == -1)
    return -1;
  rq->opts.target_is_zero = rq->target_is_zero
    || (t->created && reads_zero (t));
  rq->opts.target_has_backing = rq->backing_file || t->backing_file;
  return 0;
}

/* ---- and take it away ---- */

/* The name may stand for another file by now: that one stays. */
static void
remove_file (const char *path, const struct storage_identity *id)
{
  struct stat sb;

  if (path && lstat (path, &sb) == 0 && S_ISREG (sb.st_mode)
      && (!id->valid || (id->device == sb.st_dev && id->inode == sb.st_ino)))
    unlink (path);
}

static void
clean_up (const struct convert_request *rq, const struct convert_target *t,
          const struct storage_identity *image,
          const struct storage_identity *data)
{
  if (!t->created)
    return;
  if (!t->existed)
    remove_file (t->path, image);
  else
    tool_error ("%s: its old content is gone, and what is there now is not "
                "complete", rq->target.name);
  if (t->data_path && !t->data_existed)
    remove_file (t->data_path, data);
}

int
convert_close_target (struct convert_request *rq, struct convert_target *t,
                      bool failed)
{
  struct storage_identity image = { .valid = false }, data = image;
  int r = 0;

  if (t->im)
    image = t->im->storage->identity;
  if (t->im && t->im->data_file)
    data = t->im->data_file->identity;
  if (t->im && tool_close (t->im) == -1)
    r = -1;
  if (failed || r == -1)
    clean_up (rq, t, &image, &data);
  json_decref (t->options);
  free (t->path);
  free (t->data_path);
  return r;
}
