/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Parts of names (private to image/); what everybody uses is in image.h. */

#ifndef NBDIMG_IMAGE_NAME_H
#define NBDIMG_IMAGE_NAME_H

#include <stdbool.h>

#include <jansson.h>

#include "common/error.h"

/* A storage node for a path, URI, URL or older nbd: form, but not for json:.
 * STRICT: a name with an unknown "protocol:" is an error even where a file of
 * that name exists.  Returns owned.
 */
extern json_t *name_to_storage (const char *name, bool strict,
                                struct error *e);

/* json:{...} (NAME begins with "json:") to a tree; see tree_from_user. */
extern json_t *name_json_to_tree (const char *name, const char *format,
                                  struct error *e);

/* Does NAME begin with "protocol:", as QEMU sees it (":" before any "/")? */
extern bool name_has_protocol (const char *name);

/* A string node of any bytes; NULL = out of memory and an error. */
extern json_t *name_string (const char *text, struct error *e);

/* ---- nbd_name.c ---- */

/* The URI that an older name (nbd:host:port, nbd:unix:path, each with
 * :exportname=x) means.  Returns owned.
 */
extern char *nbd_name_to_uri (const char *name, struct error *e);

/* The URI of an nbd node (uri, server, or host, port, path; export), without
 * looking at what may be wrong in a URI that was given.  Returns owned.
 */
extern char *nbd_node_uri (const json_t *node, struct error *e);

/* Does NAME begin as an NBD URI that we open? */
extern bool nbd_is_uri (const char *name);

/* A URI that stands in an image: it may name a server and an export, but no
 * file of ours (TLS keys).
 */
extern int nbd_check_untrusted_uri (const char *uri, struct error *e);

#endif /* NBDIMG_IMAGE_NAME_H */
