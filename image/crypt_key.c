/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The secret of an encrypted image: at opening, and when its passphrases are
 * changed.  Layer: image.  Locking: under the gate; deriving keys takes
 * seconds, and comes seldom.
 */

#include <config.h>

#include <errno.h>

#include "common/secret.h"
#include "image/image.h"
#include "image/layer.h"

int
image_unlock (struct image *im, struct error *e)
{
  struct secret secret;
  const struct format_key key = {
    .secret = &secret, .max_iterations = im->max_iterations,
  };
  int r;

  if (secret_get (im->key_secret, &secret, e) == -1)
    return -1;
  r = im->format->ops->unlock (im->format, &key, e);
  secret_free (&secret);
  return r;
}

static int
check (const struct image *im, struct error *e)
{
  if (!__atomic_load_n (&im->writing, __ATOMIC_ACQUIRE))
    return error_set (e, EROFS, "%s: the image is open for reading only",
                      im->name);
  if (!im->format->ops->change_key || !im->format->encrypted)
    return error_set (e, ENOTSUP, "%s: the image is not encrypted, or its "
                      "format has no key slots", im->name);
  return 0;
}

int
image_change_key (struct image *im, const struct format_key_change *change,
                  const bool *cancel, struct error *e)
{
  struct secret secret;
  const struct format_key key = {
    .secret = &secret, .max_iterations = im->max_iterations, .cancel = cancel,
  };
  int r;

  if (check (im, e) == -1 || secret_get (im->key_secret, &secret, e) == -1)
    return -1;
  image_freeze (im);
  r = im->format->ops->change_key (im->format, &key, change, e);
  image_thaw (im);
  secret_free (&secret);
  return r == -1 ? error_prefix (e, "%s", im->name) : 0;
}
