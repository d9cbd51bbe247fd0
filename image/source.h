/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Storages by the nodes of a tree (private to image/). */

#ifndef NBDIMG_IMAGE_SOURCE_H
#define NBDIMG_IMAGE_SOURCE_H

#include <stdbool.h>

#include <jansson.h>

#include "common/error.h"
#include "storage/storage.h"

/* What a storage inherits from the layer that it is for; its node may say
 * otherwise.
 */
struct source_options {
  struct storage_open_options open;     /* no_discard = discard=ignore */
  unsigned nbd_connections;
};

/* Open NODE (borrowed), which tree_check has passed. */
extern struct storage *source_open (const json_t *node,
                                    const struct source_options *,
                                    struct error *e);

/* The window [offset, offset+size) of INNER that a node of the driver raw asks
 * for; takes INNER, also when it fails.
 */
extern struct storage *source_window (const json_t *node,
                                      struct storage *inner,
                                      struct error *e);

/* As source_open, to make an image there: a file is created, or opened if it
 * exists and left as it is.  *CREATED is set to the path of a file that is ours
 * to unlink (borrowed from NODE), else NULL.
 */
extern struct storage *source_create (const json_t *node,
                                      const struct storage_new_file *how,
                                      const struct source_options *,
                                      const char **created, struct error *e);

#endif /* NBDIMG_IMAGE_SOURCE_H */
