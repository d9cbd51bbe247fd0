/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz the names of images, in both directions: what a user may write, and
 * what an image may name.  The first byte says which.  Nothing is opened.
 *
 * A tree that a parser accepts must pass its own check and have a name to be
 * shown; a tree for a name in an image must hold no command, whatever the
 * name was.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "image/image.h"
#include "image/name.h"
#include "image/policy.h"
#include "image/tree.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* Does "command" stand anywhere in NODE? */
static bool
has_command (const json_t *node)
{
  const char *key;
  json_t *value;

  json_object_foreach ((json_t *) node, key, value)
    if (strcmp (key, "command") == 0 || has_command (value))
      return true;
  return false;
}

static json_t *
parse (unsigned how, const char *name, struct error *e)
{
  const struct policy_image normal = { "d/top", "d/top", false };
  const struct policy_image closed = { "d/top", "d/top", true };
  static const char *const format_names[] = { NULL, "raw", "qcow2", "vmdk" };

  switch (how % 8) {
  case 0: case 1: case 2: case 3:
    return image_name_parse (name, format_names[how % 8], e);
  case 4:
    return image_opts_parse (name, e);
  case 5:
    return policy_backing (&normal, name, format_names[how / 8 % 4], e);
  case 6:
    return policy_data_file (&normal, name, e);
  default:
    return policy_backing (&closed, name, "raw", e);
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct error e = ERROR_INIT;
  CLEANUP_FREE char *name = NULL, *shown = NULL, *full = NULL;
  unsigned how = size ? data[0] : 0;
  json_t *tree;

  if (size == 0 || !(name = strndup ((const char *) data + 1, size - 1)))
    return 0;
  tree = parse (how, name, &e);
  if (!tree != !!e.err)
    abort ();
  if (tree) {
    if (tree_check (tree, &e) == -1)
      abort ();
    shown = tree_display_name (tree, "raw");
    if (!shown || how % 8 == 7 || (how % 8 > 4 && has_command (tree)))
      abort ();
  }
  json_decref (tree);
  full = image_name_resolve (name, "base");
  if (!full)
    abort ();
  return 0;
}
