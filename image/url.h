/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* URLs that a plugin of nbdkit can read (private to image/). */

#ifndef NBDIMG_IMAGE_URL_H
#define NBDIMG_IMAGE_URL_H

#include <stdbool.h>

#include <jansson.h>

#include "common/error.h"

/* http, https, ftp, ftps, ssh? */
extern bool url_is_known (const char *name);

/* An nbd node whose server is an nbdkit that is started for it:
 * {"driver": "nbd", "command": [...], "url": NAME}.  An error when that plugin
 * is not installed.  Returns owned.
 */
extern json_t *url_to_storage (const char *name, struct error *e);

/* The command of an nbd node as it is to be run: for a URL that is only read,
 * nbdkit is told so.  Borrows NODE; the array is owned (NULL = no memory), its
 * texts belong to NODE.  Free it with free.
 */
extern char **url_command (const json_t *node, bool writable);

#endif /* NBDIMG_IMAGE_URL_H */
