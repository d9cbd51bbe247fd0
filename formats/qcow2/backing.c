/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Another backing file name and format in the header.  Layer: formats.
 * Locking: structural, nobody else is inside.  Specification: "Header".
 *
 * A crash at any point leaves the old name with the old format, or the new ones
 * (header_rewrite.c).
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "formats/qcow2/header_rewrite.h"

static int
check_arguments (const struct qcow2 *q, const char *name, struct error *e)
{
  const char *image = q->format.storage->name;

  if (!name)
    return 0;
  if (*name == '\0' || strlen (name) > MAX_BACKING_NAME)
    return error_set (e, EINVAL, "%s: the name of a backing file has 1 to %d"
                      " bytes, not %zu", image, MAX_BACKING_NAME,
                      strlen (name));
  if (q->data_file_raw)
    return error_set (e, EINVAL, "%s: an image with data_file_raw=on cannot"
                      " have a backing file", image);
  return 0;
}

int
qcow2_set_backing (struct format *f, const char *name, const char *format,
                   struct error *e)
{
  struct qcow2 *q = to_qcow2 (f);
  const struct header_change change = {
    .set_backing = true, .name = name, .format = name ? format : NULL,
  };
  char *copy = NULL;

  if (check_arguments (q, name, e) == -1)
    return -1;
  if (change.format && !(copy = strdup (change.format)))
    return error_nomem (e, "backing format", strlen (change.format));
  /* What was copied because the backing file is another one goes first. */
  if (qcow2_flush (f, e) == -1
      || qcow2_rewrite_header (q, &change, e) == -1) {
    free (copy);
    return -1;
  }
  free (q->backing_format);
  q->backing_format = copy;
  return 0;
}
