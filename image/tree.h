/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The tree of options that image_open takes (private to image/).
 *
 * A node is a JSON object.  A *layer* is a node of a format ("raw", "qcow2"),
 * whose "file" is a storage; without a driver it is probed.  A *storage* is a
 * node of a protocol ("file", "host_device", "nbd", "null-co"), or "raw" over
 * another storage: a window of its bytes.  A storage where a layer is wanted
 * is a probed layer.
 *
 * Values may be of their JSON type or text ("on", "64k"), as --image-opts has
 * them.  The getters expect a tree that tree_check has passed.
 */

#ifndef NBDIMG_IMAGE_TREE_H
#define NBDIMG_IMAGE_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/error.h"
#include "formats/format.h"
#include "storage/storage.h"

/* Nodes above each other: a chain of 256 layers, each with its storage. */
enum { TREE_MAX_DEPTH = 320 };

enum tree_driver {
  DRIVER_NONE,                  /* not said */
  DRIVER_RAW,
  DRIVER_FORMAT,                /* a format with metadata */
  DRIVER_FILE,
  DRIVER_DEVICE,
  DRIVER_NBD,
  DRIVER_NULL,
};

/* The driver of NODE; FORMAT (may be NULL) is set for a format. */
extern int tree_driver (const json_t *node, enum tree_driver *driver,
                        const struct format_ops **format, struct error *e);

static inline bool
tree_driver_is_format (enum tree_driver d)
{
  return d == DRIVER_RAW || d == DRIVER_FORMAT;
}

/* What the user wrote as JSON or key=value: dotted keys are unfolded, "file"
 * with nothing but a filename gets its driver, a protocol at the top is put
 * under "raw" (its bytes are wanted: QEMU does not probe there), and all is
 * checked.  FORMAT: -f, or NULL.  Borrows OPTIONS, returns owned.
 */
extern json_t *tree_from_user (const json_t *options, const char *format,
                               struct error *e);

/* Put STORAGE (takes it) under FORMAT; NULL = leave it to be probed. */
extern json_t *tree_with_format (json_t *storage, const char *format,
                                 struct error *e);

/* Is it a tree that image_open understands?  Each key must be known to its
 * driver and have a value that it can have; what is not built is refused by
 * name.
 */
extern int tree_check (const json_t *tree, struct error *e);

/* ---- getters ---- */

extern const char *tree_text (const json_t *node, const char *key);
extern bool tree_bool (const json_t *node, const char *key, bool otherwise);
extern uint64_t tree_size (const json_t *node, const char *key,
                           uint64_t otherwise);

/* MODE comes in as what the node inherits and is changed as cache.* says. */
extern void tree_cache_mode (const json_t *node, enum cache_mode *mode);

/* "discard" of NODE, or what it inherits. */
extern bool tree_discard (const json_t *node, bool inherited);

/* Does NODE, a storage or NULL, say where the bytes are, or has it only options
 * for a backing file that the image names?
 */
extern bool tree_says_where (const json_t *node);

/* The path of the file at the bottom of NODE, NULL = it is none. */
extern const char *tree_filename (const json_t *node);

/* The image's name as info shows it: a path or URI where that says all, else
 * json:{...}.  FORMAT is what a probed layer turned out to be.  Owned; NULL
 * when memory is out.
 */
extern char *tree_display_name (const json_t *tree, const char *format);

#endif /* NBDIMG_IMAGE_TREE_H */
