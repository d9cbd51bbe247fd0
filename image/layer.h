/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* One layer of a chain while it is being opened (private to image/).
 *
 * layer_new       its storage, its locks, which format it is
 * layer_parse     the format's header: what else it needs
 * layer_activate  with everything it needs: it can be mapped
 * layer_free      gives the image away, or closes it
 *
 * A chain is parsed from the top down, and activated from the bottom up.
 */

#ifndef NBDIMG_IMAGE_LAYER_H
#define NBDIMG_IMAGE_LAYER_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/error.h"
#include "image/image.h"
#include "image/policy.h"

struct layer {
  struct image *im;             /* owned until it is taken out */
  json_t *tree;                 /* owned */
  const struct format_ops *format;
  struct format_needs needs;    /* after layer_parse */
  bool is_backing;
  bool data_file_readonly;      /* so is the image, each time it is parsed */
  unsigned depth;               /* 0 = the top */
};

/* Open the storage that TREE (borrowed, checked) names.  ABOVE is the layer
 * whose backing file it is, NULL = the top; the object must not be in its
 * chain already.
 */
extern struct layer *layer_new (json_t *tree, struct layer *above,
                                struct layer *top,
                                const struct image_open_options *options,
                                struct error *e);

/* Read the header, with CACHE_SIZE bytes for metadata.  May be called again
 * with another size before layer_activate.
 */
extern int layer_parse (struct layer *l, uint64_t cache_size,
                        struct error *e);

/* Open the external data file, if there is one.  TOP: as for layer_new. */
extern int layer_open_data_file (struct layer *l, struct layer *top,
                                 struct error *e);

/* What the policy is to know of an image that names others. */
extern struct policy_image layer_policy_image (const struct layer *l);

/* What stands in im->backing is activated already. */
extern int layer_activate (struct layer *l, struct error *e);

extern void layer_free (struct layer *l);

/* ---- layer_backing.c ---- */

/* The tree of its backing file: as the user said, or as the image does through
 * the policy.  1 = *TREE is it (owned); 0 = none, or not to be followed; -1.
 */
extern int layer_backing (const struct layer *l, json_t **tree,
                          struct error *e);

/* ---- crypt_key.c ---- */

/* Let the format derive its key from the secret im->key_secret. */
extern int image_unlock (struct image *im, struct error *e);

/* ---- locks.c ---- */

/* Take the locks for reading, or (WRITING) for writing.  A backing layer's
 * depend on its format: im->format may still be NULL.
 */
extern int layer_lock (struct image *im, bool is_backing, bool writing,
                       struct error *e);

#endif /* NBDIMG_IMAGE_LAYER_H */
