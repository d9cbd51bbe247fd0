/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* lock: who holds the image locks of a file.
 *
 * Layer: ops.  No locking: the file is opened here, for a look, and without a
 * lock of our own.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

static json_t *
permissions (unsigned bits)
{
  static const char *const names[] = {
    "consistent-read", "write", "write-unchanged", "resize",
  };
  json_t *list = json_array ();

  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i)
    if (bits & (1u << i))
      json_array_append_new (list, json_string (names[i]));
  return list;
}

static json_t *
describe (const struct storage_lock_holder *h)
{
  bool writes = h->held & (PERM_WRITE | PERM_RESIZE);
  json_t *o = json_object ();

  if (h->pid)
    json_object_set_new (o, "pid", json_integer (h->pid));
  if (*h->command)
    json_object_set_new (o, "command", json_string (h->command));
  json_object_set_new (o, "writes", json_boolean (writes));
  json_object_set_new (o, "held", permissions (h->held));
  json_object_set_new (o, "unshared", permissions (h->unshared));
  return o;
}

static int
list_holders (struct storage *st, json_t **result, struct error *e)
{
  struct storage_lock_holder *holders;
  size_t nr;

  if (storage_lock_holders (st, &holders, &nr, e) == -1)
    return -1;
  *result = json_array ();
  for (size_t i = 0; i < nr; ++i)
    json_array_append_new (*result, describe (&holders[i]));
  if (json_array_size (*result) != nr) {
    json_decref (*result);
    error_nomem (e, "holders of locks", nr);
    nr = SIZE_MAX;
  }
  free (holders);
  return nr == SIZE_MAX ? -1 : 0;
}

/* What the file holds does not matter, so nothing is probed. */
static struct image *
open_file (const struct lock_opts *opts, struct error *e)
{
  const struct image_open_options o = {
    .info_only = true, .no_backing = true, .force_share = true,
  };
  const char *format = opts->format ? opts->format : "raw";
  struct image *im;
  json_t *tree;

  if (!opts->image_opts)
    return image_open_name (opts->name, strncmp (opts->name, "json:", 5) == 0
                            ? opts->format : format, &o, e);
  tree = image_opts_parse (opts->name, e);
  im = tree ? image_open (tree, &o, e) : NULL;
  json_decref (tree);
  return im;
}

int
op_lock (const struct lock_opts *opts, json_t **result, struct error *e)
{
  struct image *im = open_file (opts, e);
  struct error ignored = ERROR_INIT;
  int r;

  if (!im)
    return -1;
  r = list_holders (im->storage, result, e);
  image_close (im, &ignored);
  return r;
}
