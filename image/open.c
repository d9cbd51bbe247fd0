/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Opening and closing a chain of images: see image.h.
 *
 * Layer: image.  Locking: an image is not shared before image_open returns;
 * image_close has it for itself again.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "image/gate.h"
#include "image/hook.h"
#include "image/image.h"
#include "image/layer.h"
#include "image/packed.h"

/* As deep as anybody was seen to build one, times ten. */
enum { MAX_LAYERS = 256 };

#define DEFAULT_CACHE_SIZE (16 * MiB)

struct chain {
  const struct image_open_options *options;
  uint64_t cache_size;          /* of all layers */
  struct layer *layers[MAX_LAYERS];     /* owned; top first */
  unsigned nr;
};

/* Open one more layer at the bottom.  Takes TREE. */
static int
add_layer (struct chain *c, json_t *tree, struct error *e)
{
  struct layer *above = c->nr ? c->layers[c->nr - 1] : NULL;
  struct layer *top = c->nr ? c->layers[0] : NULL, *l = NULL;

  if (c->nr == MAX_LAYERS)
    error_set (e, ELOOP, "%s: the chain of backing files is longer than %d",
               above->im->name, MAX_LAYERS);
  else
    l = layer_new (tree, above, top, c->options, e);
  json_decref (tree);
  if (!l)
    return -1;
  c->layers[c->nr++] = l;
  if (above)
    above->im->backing = l->im;
  if (layer_parse (l, c->cache_size, e) == -1)
    return -1;
  return layer_open_data_file (l, c->layers[0], e);
}

/* A missing backing file is told together with who names it: by its file, since
 * a name may be json: with the whole chain in it.
 */
static int
add_backing (struct chain *c, json_t *tree, struct error *e)
{
  const char *parent = c->layers[c->nr - 1]->im->storage->name;

  if (add_layer (c, tree, e) == 0)
    return 0;
  if (e->err == ELOOP)
    return -1;
  return error_prefix (e, "%s: Could not open backing file", parent);
}

static int
add_all_layers (struct chain *c, json_t *options, struct error *e)
{
  json_t *tree;
  int r = add_layer (c, json_incref (options), e) == -1 ? -1 : 1;

  while (r == 1) {
    r = layer_backing (c->layers[c->nr - 1], &tree, e);
    if (r == 1 && add_backing (c, tree, e) == -1)
      r = -1;
  }
  return r;
}

/* Each layer with metadata gets an equal part of the budget.  How many there
 * are is known only now that all headers were read; they are read again, which
 * also sees a backing file's header under its lock.
 */
static int
divide_cache (struct chain *c, struct error *e)
{
  unsigned nr = 0;

  for (unsigned i = 0; i < c->nr; ++i)
    nr += !c->layers[i]->im->format->info.identity;
  if (nr < 2 || c->options->info_only)
    return 0;
  for (unsigned i = 0; i < c->nr; ++i)
    if (!c->layers[i]->im->format->info.identity
        && layer_parse (c->layers[i], c->cache_size / nr, e) == -1)
      return -1;
  return 0;
}

static int
activate_all (struct chain *c, struct error *e)
{
  for (unsigned i = c->nr; i-- > 0;)
    if (layer_activate (c->layers[i], e) == -1)
      return -1;
  return 0;
}

/* Take the image out of its layers, or (FAILED) close them. */
static struct image *
finish (struct chain *c, bool failed)
{
  struct image *top = c->nr && !failed ? c->layers[0]->im : NULL;

  for (unsigned i = c->nr; i-- > 0;) {
    if (failed)
      c->layers[i]->im->backing = NULL;
    else
      c->layers[i]->im = NULL;
    layer_free (c->layers[i]);
  }
  return top;
}

struct image *
image_open (json_t *options, const struct image_open_options *o,
            struct error *e)
{
  struct chain c = { .options = o, .nr = 0 };
  struct error ignored = ERROR_INIT;
  struct image *im;
  int r;

  c.cache_size = o->cache_size ? o->cache_size : DEFAULT_CACHE_SIZE;
  r = add_all_layers (&c, options, e);
  if (r == 0)
    r = divide_cache (&c, e);
  if (r == 0)
    r = activate_all (&c, e);
  im = finish (&c, r == -1);
  if (im && o->writable && !o->check && image_begin_write (im, e) == -1) {
    image_close (im, &ignored);
    return NULL;
  }
  return im;
}

/* ---- close ---- */

static int
close_layer (struct image *im, struct error *e)
{
  struct error bad = ERROR_INIT;        /* E may hold an earlier one */
  int r = 0;

  if (im->view)
    im->format->ops->close_view (im->format, im->view);
  if (im->format && im->format->ops->close (im->format, &bad) == -1)
    r = error_set (e, bad.err, "%s: %s", im->name, bad.text);
  hooks_free (im);
  packed_cache_free (im->packed);
  storage_close (im->data_file);
  storage_close (im->storage);
  range_locks_destroy (&im->ranges);
  gate_destroy (&im->gate);
  free ((char *) im->options.snapshot);
  free (im->name);
  free (im->backing_name);
  free (im->backing_format_name);
  free (im->data_file_name);
  free (im->key_secret);
  free (im);
  return r;
}

int
image_close (struct image *im, struct error *e)
{
  struct image *next;
  int r = 0;

  for (; im; im = next) {
    next = im->backing;
    if (close_layer (im, e) == -1)
      r = -1;
  }
  return r;
}
