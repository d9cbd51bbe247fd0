/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Opening one layer of a chain: see layer.h.
 *
 * Layer: image.  No locking: nobody else sees the image yet.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "image/gate.h"
#include "image/layer.h"
#include "image/packed.h"
#include "image/policy.h"
#include "image/source.h"
#include "image/tree.h"

/* Decoded clusters that a layer keeps: 4 MiB is two clusters of the largest
 * size and 64 of the usual one.
 */
#define PACKED_CACHE_SIZE (4 * MiB)

/* More metadata than that no image has whose tables QEMU would read: the L2
 * tables of 32 TiB in clusters of 64 KiB.
 */
#define MAX_CACHE_SIZE (4 * GiB)

/* ---- options ---- */

static int
check_options (const struct image_open_options *o, const json_t *tree,
               struct error *e)
{
  if (!o->writable)
    return 0;
  if (o->snapshot)
    return error_set (e, EROFS, "an internal snapshot is read-only");
  if (o->force_share || tree_bool (tree, "force-share", false))
    return error_set (e, EINVAL, "force-share=on can only be used with "
                      "read-only images");
  if (o->info_only)
    return error_set (e, EINVAL, "info does not write");
  if (tree_bool (tree, "read-only", false))
    return error_set (e, EROFS, "the image is to be written to, and "
                      "read-only=on forbids that");
  return 0;
}

static int
detect_zeroes (const json_t *tree, struct image_open_options *o,
               struct error *e)
{
  static const char *const names[] = { "off", "on", "unmap" };
  const char *text = tree_text (tree, "detect-zeroes");

  for (int i = 0; text && i < 3; ++i)
    if (strcmp (text, names[i]) == 0)
      o->detect_zeroes = (enum detect_zeroes) i;
  if (text && o->detect_zeroes == DETECT_ZEROES_UNMAP && !o->discard)
    return error_set (e, EINVAL, "setting detect-zeroes to unmap is not "
                      "allowed without setting discard operation to unmap");
  return 0;
}

/* What the layer's own node says goes before what the chain was opened with. */
static int
layer_options (struct layer *l, const struct layer *above,
               const struct image_open_options *options, struct error *e)
{
  struct image_open_options *o = &l->im->options;
  const json_t *tree = l->tree;

  *o = *options;
  o->force_share |= tree_bool (tree, "force-share",
                               above && above->im->options.force_share);
  o->snapshot = NULL;
  if (above) {
    o->writable = o->writable && l->depth == o->writable_depth;
    o->writable_if_permitted = false;
    if (!o->writable)
      o->cache = o->backing_cache;
    else if (tree_bool (tree, "read-only", false))
      return error_set (e, EROFS, "this backing file is to be written to, and "
                        "its read-only=on forbids that");
  }
  else if (options->snapshot
           && !(o->snapshot = strdup (options->snapshot)))
    return error_nomem (e, "a snapshot", strlen (options->snapshot));
  if (o->snapshot || o->force_share || o->info_only
      || tree_bool (tree, "read-only", false))
    o->writable_if_permitted = false;
  o->discard = tree_discard (tree, o->discard);
  tree_cache_mode (tree, &o->cache);
  return detect_zeroes (tree, o, e);
}

static struct source_options
storage_options (const struct image *im)
{
  const struct image_open_options *o = &im->options;

  return (struct source_options) {
    .open = {
      .writable = o->writable,
      .try_writable = !o->writable && o->writable_if_permitted,
      .cache = o->cache,
      .no_discard = !o->discard,
    },
    .nbd_connections = o->nbd_connections,
  };
}

/* ---- storage and format ---- */

/* I9: which image of the chain from TOP down has ST open already? */
static const struct image *
find_same (const struct layer *top, const struct storage *st)
{
  const struct image *im = top ? top->im : NULL;

  for (; im; im = im->backing)
    if ((im->storage && storage_same (im->storage, st))
        || (im->data_file && storage_same (im->data_file, st)))
      return im;
  return NULL;
}

static int
check_loop (const struct layer *top, const struct storage *st,
            const char *parent, const char *what, struct error *e)
{
  const struct image *same = find_same (top, st);

  if (!same)
    return 0;
  return error_set (e, ELOOP, "%s: its %s %s is the same object as %s, which "
                    "is in the chain already", parent, what, st->name,
                    same->name ? same->name : same->storage->name);
}

static const struct format_ops *
probe (struct storage *st, const uint8_t *head, struct error *e)
{
  const char *foreign;
  const struct format_ops *format;

  format = format_probe (head, FORMAT_PROBE_SIZE, storage_size (st), st,
                         &foreign);
  if (!foreign)
    return format;
  format_foreign_error (st->name, foreign, e);
  return NULL;
}

/* What the tree says, or what the content looks like. */
static int
choose_format (struct layer *l, struct error *e)
{
  struct storage *st = l->im->storage;
  uint8_t head[FORMAT_PROBE_SIZE];
  enum tree_driver driver;

  if (tree_driver (l->tree, &driver, &l->format, e) == -1)
    return -1;
  if (tree_driver_is_format (driver))
    return 0;
  l->im->probed = true;
  if (storage_pread (st, head, sizeof head, 0, e) == -1)
    return -1;
  l->format = probe (st, head, e);
  return l->format ? 0 : -1;
}

/* The detached header of a luks disk, which then is the data file; or NULL. */
static json_t *
detached_header (const struct layer *l)
{
  return json_object_get (l->tree, "header");
}

static int
open_storage (struct layer *l, struct error *e)
{
  struct source_options opts = storage_options (l->im);
  const json_t *header = detached_header (l);
  const json_t *file = header ? header : json_object_get (l->tree, "file");

  l->im->storage = source_open (file ? file : l->tree, &opts, e);
  return l->im->storage ? 0 : -1;
}

/* What the user said of a layer that had to be probed is looked at as if its
 * format had been named; then raw's window is cut.
 */
static int
apply_format (struct layer *l, struct error *e)
{
  struct image *im = l->im;
  json_t *named;
  int r;

  if (!json_object_get (l->tree, "file"))
    return 0;
  named = json_pack ("{ss}", "driver", l->format->name);
  if (!named || json_object_update_missing (named, l->tree) == -1) {
    json_decref (named);
    return error_nomem (e, "image options", 0);
  }
  r = tree_check (named, e);
  json_decref (named);
  if (r == -1 || l->format != &format_raw)
    return r;
  im->storage = source_window (l->tree, im->storage, e);
  return im->storage ? 0 : -1;
}

static struct layer *
layer_alloc (json_t *tree, const struct layer *above, struct error *e)
{
  struct layer *l = calloc (1, sizeof *l);
  struct image *im = calloc (1, sizeof *im);

  if (!l || !im) {
    error_nomem (e, "an image", sizeof *im);
    free (l);
    free (im);
    return NULL;
  }
  gate_init (&im->gate);
  range_locks_init (&im->ranges);
  l->im = im;
  l->tree = json_incref (tree);
  l->is_backing = above != NULL;
  l->depth = above ? above->depth + 1 : 0;
  return l;
}

static int
set_name (struct layer *l, struct error *e)
{
  l->im->name = tree_display_name (l->tree, l->format->name);
  return l->im->name ? 0 : error_nomem (e, "a name", 0);
}

/* Whoever asks about a stranger's file does not want a disk of the host. */
static int
check_untrusted (const struct image *im, struct error *e)
{
  const struct image_open_options *o = &im->options;

  if (!o->untrusted || !o->info_only || !im->storage->caps.is_device)
    return 0;
  return error_set (e, EPERM, "%s: it is a block device, and the image is "
                    "untrusted", im->storage->name);
}

static int
layer_init (struct layer *l, struct layer *above, struct layer *top,
            const struct image_open_options *options, struct error *e)
{
  bool is_backing = l->is_backing;

  if ((!is_backing && check_options (options, l->tree, e) == -1)
      || layer_options (l, above, options, e) == -1
      || open_storage (l, e) == -1
      || check_untrusted (l->im, e) == -1
      || (above && check_loop (top, l->im->storage, above->im->name,
                               "backing file", e) == -1))
    return -1;
  /* A writer takes its locks before it reads what it is going to change. */
  if (layer_lock (l->im, is_backing, l->im->options.writable, e) == -1
      || choose_format (l, e) == -1 || apply_format (l, e) == -1)
    return -1;
  return set_name (l, e);
}

struct layer *
layer_new (json_t *tree, struct layer *above, struct layer *top,
           const struct image_open_options *options, struct error *e)
{
  struct layer *l;

  if (tree_check (tree, e) == -1)
    return NULL;
  l = layer_alloc (tree, above, e);
  if (l && layer_init (l, above, top, options, e) == -1) {
    layer_free (l);
    return NULL;
  }
  return l;
}

/* ---- header ---- */

static int
copy_name (char **to, const char *from, struct error *e)
{
  free (*to);
  *to = NULL;
  if (from && !(*to = strdup (from)))
    return error_nomem (e, "a name", strlen (from));
  return 0;
}

static int
copy_names (struct layer *l, struct error *e)
{
  struct image *im = l->im;

  if (copy_name (&im->backing_name, l->needs.backing, e) == -1
      || copy_name (&im->backing_format_name, l->needs.backing_format, e) == -1)
    return -1;
  return copy_name (&im->data_file_name, l->needs.data_file_name, e);
}

/* May the image be written to, now or later? */
static int
decide_writable (struct layer *l, struct error *e)
{
  struct image *im = l->im;
  bool wanted = im->options.writable || im->options.writable_if_permitted;

  im->writable = wanted && im->storage->caps.writable
    && !l->data_file_readonly
    && (!l->needs.writable_refused || im->options.check);
  if (im->options.writable && !im->writable)
    return error_set (e, EROFS, "it cannot be written to: %s",
                      l->needs.refused ? l->needs.refused
                      : "it is read-only");
  return 0;
}

static void
close_format (struct image *im)
{
  struct error e = ERROR_INIT;

  if (im->format)
    im->format->ops->close (im->format, &e);
  im->format = NULL;
}

/* cache-size of the layer's node, or the sum of its parts: there is one cache
 * for all kinds of tables here.  INHERITED is its part of the chain's budget.
 */
static int
node_cache_size (const json_t *tree, uint64_t inherited, uint64_t *size,
                 struct error *e)
{
  uint64_t l2 = tree_size (tree, "l2-cache-size", UINT64_MAX);
  uint64_t refcount = tree_size (tree, "refcount-cache-size", 0), sum;
  uint64_t all = tree_size (tree, "cache-size", UINT64_MAX);

  if (!add_ok (l2 == UINT64_MAX ? 0 : l2, refcount, &sum) || sum > all)
    return error_set (e, EINVAL, "l2-cache-size and refcount-cache-size may "
                      "not exceed cache-size");
  if (all != UINT64_MAX)
    *size = all;
  else
    *size = (l2 == UINT64_MAX ? inherited : l2) + refcount;
  *size = min_u64 (*size, MAX_CACHE_SIZE);
  if (*size == 0)               /* 0 means the default to a format */
    *size = 1;
  return 0;
}

/* encrypt.format, if the user gave it, is what the header says. */
static int
check_encrypt (const struct layer *l, struct error *e)
{
  const json_t *encrypt = json_object_get (l->tree, "encrypt");
  const char *wanted = encrypt ? tree_text (encrypt, "format") : NULL;

  if (!wanted || (l->needs.crypto && strcmp (wanted, l->needs.crypto) == 0))
    return 0;
  if (l->needs.crypto)
    return error_set (e, EINVAL, "Header reported '%s' encryption format but "
                      "options specify '%s'", l->needs.crypto, wanted);
  return error_set (e, EINVAL, "No encryption in image header, but options "
                    "specified format '%s'", wanted);
}

static int
parse (struct layer *l, uint64_t cache_size, struct error *e)
{
  struct image *im = l->im;
  struct format_open_options opts = {
    .writable = im->storage->caps.writable
      && (im->options.writable || im->options.writable_if_permitted),
    .discard = im->options.discard,
    .info_only = im->options.info_only,
    .check = im->options.check,
    .detached = detached_header (l) != NULL,
  };

  if (node_cache_size (l->tree, cache_size, &opts.cache_size, e) == -1)
    return -1;
  close_format (im);
  format_needs_free (&l->needs);
  im->format = l->format->open (im->storage, &opts, &l->needs, e);
  if (!im->format || copy_names (l, e) == -1)
    return -1;
  if (check_encrypt (l, e) == -1)
    return -1;
  return decide_writable (l, e);
}

int
layer_parse (struct layer *l, uint64_t cache_size, struct error *e)
{
  if (parse (l, cache_size, e) == -1)
    return error_prefix (e, "%s", l->im->name);
  return layer_lock (l->im, l->is_backing, l->im->options.writable, e);
}

/* ---- what it needs ---- */

struct policy_image
layer_policy_image (const struct layer *l)
{
  return (struct policy_image) {
    .name = l->im->name,
    .path = tree_filename (l->tree),
    .untrusted = l->im->options.untrusted,
  };
}

/* The node of the data file.  Owned. */
static json_t *
data_file_node (const struct layer *l, struct error *e)
{
  struct policy_image in = layer_policy_image (l);
  json_t *node = json_object_get (l->tree, detached_header (l) ? "file"
                                  : "data-file");

  if (node)
    return json_incref (node);
  if (l->needs.data_file_name)
    return policy_data_file (&in, l->needs.data_file_name, e);
  error_set (e, EINVAL, "%s: it needs an external data file and names none; "
             "name it by data-file.filename=", l->im->name);
  return NULL;
}

/* QEMU takes a relative name of a data file from the current directory. */
static int
open_data_file (struct layer *l, json_t *node, struct error *e)
{
  struct source_options opts = storage_options (l->im);
  const char *name = l->needs.data_file_name;

  l->im->data_file = source_open (node, &opts, e);
  if (l->im->data_file)
    return 0;
  if (e->err == ENOENT && name && *name != '/')
    return error_prefix (e, "%s: its data file (a relative name is taken from "
                         "the current directory, not from the image's)",
                         l->im->name);
  return error_prefix (e, "%s: its data file", l->im->name);
}

/* The layer itself stands in the chain: look before its data file does. */
static int
check_data_file (struct layer *l, struct layer *top, struct error *e)
{
  struct image *im = l->im;
  struct storage *st = im->data_file;
  int r;

  im->data_file = NULL;
  r = check_loop (top, st, im->name, "data file", e);
  im->data_file = st;
  return r;
}

/* The user's own data-file is written to without further ado.  A server that
 * writes only where it may serves the image read-only instead.
 */
static int
may_write_data_file (struct layer *l, struct error *e)
{
  const struct image_open_options *o = &l->im->options;
  struct policy_image in = layer_policy_image (l);
  struct error why = ERROR_INIT;

  if (detached_header (l) || json_object_get (l->tree, "data-file")
      || o->data_file_known || !l->im->data_file->caps.writable
      || policy_write_data_file (&in, l->im->data_file, &why) == 0)
    return 0;
  if (o->writable)
    return error_set (e, why.err, "%s", why.text);
  log_warning ("%s", why.text);
  l->data_file_readonly = true;
  return 0;
}

int
layer_open_data_file (struct layer *l, struct layer *top, struct error *e)
{
  struct image *im = l->im;
  json_t *node;
  int r;

  if (im->options.info_only && !detached_header (l))
    return 0;
  if (!l->needs.data_file)
    return json_object_get (l->tree, "data-file")
      ? error_set (e, EINVAL, "%s: 'data-file' can only be set for images with "
                   "an external data file", im->name) : 0;
  node = data_file_node (l, e);
  if (!node)
    return -1;
  r = open_data_file (l, node, e);
  json_decref (node);
  if (r == -1 || check_data_file (l, top, e) == -1
      || may_write_data_file (l, e) == -1)
    return -1;
  if (!im->data_file->caps.writable)
    l->data_file_readonly = true;
  im->writable = im->writable && !l->data_file_readonly;
  return layer_lock (im, l->is_backing, im->options.writable, e);
}

/* ---- ready ---- */

/* An internal snapshot in place of the disk. */
static int
open_view (struct image *im, struct error *e)
{
  const struct format_ops *ops = im->format->ops;

  if (!im->options.snapshot)
    return 0;
  if (!ops->open_view)
    return error_set (e, ENOTSUP, "the format %s has no internal snapshots",
                      ops->name);
  im->view = ops->open_view (im->format, im->options.snapshot, &im->size, e);
  return im->view ? 0 : -1;
}

/* The id of the secret, and the node that has the other options of its kind. */
static const char *
key_secret (const struct layer *l, const json_t **node)
{
  const json_t *encrypt = json_object_get (l->tree, "encrypt");
  const char *id;

  *node = encrypt ? encrypt : l->tree;
  id = tree_text (*node, "key-secret");
  return id || l->is_backing ? id : l->im->options.key_secret;
}

static int
no_secret (const struct layer *l, struct error *e)
{
  const struct format_ops *ops = l->format;

  return error_set (e, EINVAL, "Parameter '%s' is required for cipher: the "
                    "image is encrypted (%s); give --object secret,id=ID,"
                    "file=PATH (nbdkit: secret=ID:file:PATH) and --image-opts "
                    "driver=%s,file.filename=...,%s=ID", ops->key_option,
                    l->needs.crypto, ops->name, ops->key_option);
}

/* check and info need no key: they read no guest data. */
static int
unlock (const struct layer *l, struct error *e)
{
  struct image *im = l->im;
  const json_t *node;
  const char *id = key_secret (l, &node);

  if (!l->needs.crypto || im->options.info_only
      || (!id && im->options.check))
    return 0;
  if (!id)
    return no_secret (l, e);
  im->key_secret = strdup (id);
  if (!im->key_secret)
    return error_nomem (e, "a name", strlen (id));
  im->max_iterations = tree_size (node, "max-iterations",
                                  PBKDF2_MAX_ITERATIONS);
  return image_unlock (im, e);
}

static int
activate (struct layer *l, struct error *e)
{
  struct image *im = l->im;

  if (unlock (l, e) == -1)
    return -1;
  if (im->format->ops->activate (im->format, im->data_file,
                                 im->backing != NULL, e) == -1)
    return -1;
  im->size = im->format->info.size;
  if (!im->format->info.identity
      && !(im->packed = packed_cache_new (PACKED_CACHE_SIZE, e)))
    return -1;
  return open_view (im, e);
}

/* For info nothing is mapped, and what only mapping needs (a data file, a key)
 * may be missing.
 */
int
layer_activate (struct layer *l, struct error *e)
{
  if (l->im->options.info_only && !l->im->data_file) {
    l->im->size = l->im->format->info.size;
    return 0;
  }
  if (activate (l, e) == 0)
    return 0;
  return error_prefix (e, "%s", l->im->name);
}

void
layer_free (struct layer *l)
{
  struct error e = ERROR_INIT;

  if (!l)
    return;
  image_close (l->im, &e);
  json_decref (l->tree);
  format_needs_free (&l->needs);
  free (l);
}
