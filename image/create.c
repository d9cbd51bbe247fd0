/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Making images: see image.h.
 *
 * Layer: image.  No locking: nobody else knows the new image yet; other
 * programs are kept out by QEMU's image locks.
 *
 * Nothing is touched before all places are open and locked and the format has
 * agreed to the options.  A file that was made here goes away again when
 * something fails later on; devices and exports never do.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/text.h"
#include "image/image.h"
#include "image/name.h"
#include "image/source.h"
#include "image/tree.h"

/* One object that the image is made of: itself, or its data file. */
struct place {
  json_t *node;                 /* owned */
  struct storage *storage;      /* owned */
  const char *created;          /* path of a file that is ours to unlink,
                                   borrowed from node; or NULL */
  uint64_t old_size;            /* bytes */
};

/* The options that are about the file.  The hint is QEMU's: without one XFS
 * scatters an image that grows by single clusters.
 */
static int
file_options (const struct format_create_options *opts,
              struct storage_new_file *how, struct error *e)
{
  const char *nocow = format_option_text (opts, "nocow");
  const char *hint = format_option_text (opts, "extent_size_hint");
  uint64_t size = MiB;

  if (nocow && parse_bool ("nocow", nocow, &how->nocow, e) == -1)
    return -1;
  if (hint && parse_size ("extent_size_hint", hint, &size, e) == -1)
    return -1;
  if (size > UINT32_MAX)
    return error_set (e, ERANGE, "Extent size hint is too large");
  how->extent_size_hint = (uint32_t) size;
  how->hint_asked_for = hint && size;
  return 0;
}

/* QEMU takes write and resize before it truncates: creation over an image
 * that somebody has open fails and leaves it alone.
 */
static int
lock_place (struct place *p, struct error *e)
{
  return storage_lock (p->storage,
                       PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
                       PERM_WRITE | PERM_RESIZE, e);
}

/* Takes NODE. */
static int
open_place (struct place *p, json_t *node, const struct storage_new_file *how,
            enum cache_mode cache, struct error *e)
{
  struct source_options opts = { .open = { .writable = true, .cache = cache } };

  p->node = node;
  p->storage = source_create (node, how, &opts, &p->created, e);
  if (!p->storage)
    return -1;
  p->old_size = storage_size (p->storage);
  return 0;
}

/* The name may stand for another file by now: that one stays. */
static void
unlink_created (const struct place *p)
{
  const struct storage_identity *id = &p->storage->identity;
  struct stat st;

  if (p->created && id->valid && lstat (p->created, &st) == 0
      && st.st_dev == id->device && st.st_ino == id->inode)
    unlink (p->created);
}

static void
close_place (struct place *p, bool failed)
{
  if (p->storage && failed)
    unlink_created (p);
  storage_close (p->storage);
  json_decref (p->node);
}

/* ---- which places ---- */

/* Below the format, if the user gave one, lies what is to be written. */
static json_t *
image_node (const char *name, const struct format_ops *format,
            struct error *e)
{
  json_t *tree = image_name_parse (name, NULL, e), *file;
  const char *driver = tree ? tree_text (tree, "driver") : NULL;

  if (!tree)
    return NULL;
  file = json_object_get (tree, "file");
  if (!file)
    return tree;
  if (!driver
      && (json_object_set_new (tree, "driver", json_string (format->name)) == -1
          || tree_check (tree, e) == -1))
    file = NULL;
  else if (driver && strcmp (driver, format->name) != 0
           && strcmp (driver, "raw") != 0) {
    error_set (e, EINVAL, "the name says driver '%s', and a %s image is to be "
               "made", driver, format->name);
    file = NULL;
  }
  else if (json_object_get (tree, "offset") || json_object_get (tree, "size")) {
    error_set (e, ENOTSUP, "an image cannot be made in a window of a file");
    file = NULL;
  }
  json_incref (file);
  json_decref (tree);
  return file;
}

static int
open_data_file (struct place *p, const struct place *image,
                const struct format_create_options *opts,
                const struct storage_new_file *how, enum cache_mode cache,
                struct error *e)
{
  const char *name = format_option_text (opts, "data_file");
  json_t *node;

  if (!name)
    return 0;
  if (strncmp (name, "json:", 5) == 0)
    return error_set (e, EINVAL, "data_file: %s: it must be a path or an NBD "
                      "URI, since nothing else is followed when the image is "
                      "opened", name);
  node = name_to_storage (name, true, e);
  if (!node || open_place (p, node, how, cache, e) == -1)
    return error_prefix (e, "data_file");
  if (storage_same (p->storage, image->storage))
    return error_set (e, EINVAL, "%s: an image cannot be its own data file",
                      name);
  return lock_place (p, e);
}

/* ---- */

/* A file that was there before is not unlinked: say what became of it. */
static int
tell_what_is_lost (const struct place *p, struct error *e)
{
  if (p->storage && !p->created && p->old_size
      && p->storage->caps.is_local_file
      && storage_size (p->storage) != p->old_size)
    error_prefix (e, "%s (its old content is gone)", p->storage->name);
  return -1;
}

static int
create (struct place *image, struct place *data,
        const struct format_ops *format,
        const struct format_create_options *opts, struct error *e)
{
  struct format_create_options o = *opts;

  o.data_file = data->storage;
  if (format->create (image->storage, &o, e) == 0)
    return 0;
  tell_what_is_lost (image, e);
  return tell_what_is_lost (data, e);
}

int
image_create (const char *name, const struct format_ops *format,
              const struct format_create_options *opts, enum cache_mode cache,
              struct error *e)
{
  struct place image = { .node = NULL }, data = { .node = NULL };
  struct storage_new_file how = { .nocow = false };
  json_t *node;
  int r = -1;

  if (!format->create)
    return error_set (e, ENOTSUP, "images of the format %s cannot be made",
                      format->name);
  if (file_options (opts, &how, e) == -1)
    return -1;
  node = image_node (name, format, e);
  if (node && open_place (&image, node, &how, cache, e) == 0
      && lock_place (&image, e) == 0
      && open_data_file (&data, &image, opts, &how, cache, e) == 0)
    r = create (&image, &data, format, opts, e);
  close_place (&data, r == -1);
  close_place (&image, r == -1);
  return r;
}
