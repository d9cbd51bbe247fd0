/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Which backing file a layer has: what the image says, what the user says, or
 * both together.
 *
 * Layer: image.  No locking: nobody else sees the image yet.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "image/layer.h"
#include "image/policy.h"
#include "image/tree.h"

/* Put what OPTIONS say into NODE, both objects. */
static int
update (json_t *node, const json_t *options, struct error *e)
{
  if (json_object_update (node, (json_t *) options) == 0)
    return 0;
  return error_nomem (e, "image options", 0);
}

/* The same for a layer and its "file", of which OPTIONS have a part only. */
static int
update_layer (json_t *layer, const json_t *options, struct error *e)
{
  json_t *file = json_object_get (layer, "file");
  json_t *mine = json_object_get (options, "file");
  int r;

  json_incref (file);
  r = update (layer, options, e);
  if (r == 0 && mine) {
    r = update (file, mine, e);
    if (r == 0 && json_object_set (layer, "file", file) == -1)
      r = error_nomem (e, "image options", 0);
  }
  json_decref (file);
  return r;
}

/* The user gave options for the backing file, but left its name to the image:
 * {"driver": ..., "read-only": ..., "file": {"locking": ...}}.
 */
static json_t *
merge_backing (const struct layer *l, const json_t *partial, struct error *e)
{
  struct policy_image in = layer_policy_image (l);
  const char *format = tree_text (partial, "driver");
  json_t *tree, *outer;

  if (!l->needs.backing) {
    error_set (e, EINVAL, "%s: 'backing' gives no file, and the image has no "
               "backing file", l->im->name);
    return NULL;
  }
  tree = policy_backing (&in, l->needs.backing,
                         format ? format : l->needs.backing_format, e);
  if (!tree)
    return NULL;
  if (json_object_get (tree, "file"))
    outer = json_incref (tree);
  else
    outer = json_pack ("{sO}", "file", tree);
  if (!outer)
    error_nomem (e, "image options", 0);
  else if (update_layer (outer, partial, e) == -1) {
    json_decref (outer);
    outer = NULL;
  }
  json_decref (tree);
  return outer;
}

/* The user named the file.  If nobody says otherwise it has the format that the
 * image records for the one that it replaces: what was raw is not probed.
 */
static json_t *
replace_backing (const struct layer *l, json_t *given, struct error *e)
{
  const char *format = l->needs.backing_format;
  json_t *tree;

  if (!format || tree_text (given, "driver"))
    return json_incref (given);
  if (!format_lookup (format, e))
    return NULL;
  tree = json_copy (given);
  if (!tree
      || json_object_set_new (tree, "driver", json_string (format)) == -1) {
    error_nomem (e, "image options", 0);
    json_decref (tree);
    return NULL;
  }
  return tree;
}

int
layer_backing (const struct layer *l, json_t **tree, struct error *e)
{
  struct policy_image in = layer_policy_image (l);
  json_t *given = json_object_get (l->tree, "backing");

  *tree = NULL;
  if (given && !l->format->has_backing && !json_is_null (given))
    return error_set (e, EINVAL, "Block format '%s' does not support the "
                      "option 'backing'", l->format->name);
  if (l->im->options.no_backing || json_is_null (given)
      || (l->im->options.info_only && !l->im->options.info_chain))
    return 0;
  if (tree_says_where (json_object_get (given, "file")))
    *tree = replace_backing (l, given, e);
  else if (given)
    *tree = merge_backing (l, given, e);
  else if (l->needs.backing)
    *tree = policy_backing (&in, l->needs.backing, l->needs.backing_format, e);
  else
    return 0;
  return *tree ? 1 : -1;
}
