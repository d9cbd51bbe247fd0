/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The parameters of the nbdkit plugin: see params.c. */

#ifndef NBDIMG_PLUGIN_PARAMS_H
#define NBDIMG_PLUGIN_PARAMS_H

#include <stdbool.h>

#include <jansson.h>

#include "common/error.h"
#include "image/image.h"

/* nbdkit's .config_help. */
#define PARAMS_HELP \
  "[file=]NAME          Image: a file, an NBD URI, json:{...} (required).\n" \
  "image-opts=OPTS      Image as key=value,... instead of file=.\n" \
  "format=FORMAT        Format of file=; without it the content decides.\n" \
  "readonly=BOOL        Serve it read-only (as does nbdkit -r, for clients).\n"\
  "snapshot=NAME        Serve this internal snapshot, read-only.\n" \
  "backing=on|off       Follow the backing file (default on).\n" \
  "cache=MODE           writeback (default), none, writethrough, directsync\n"\
  "                     or unsafe.\n" \
  "discard=MODE         unmap (default): trim frees space; or ignore.\n" \
  "detect-zeroes=MODE   off (default), on or unmap.\n" \
  "share=on|off         Let other programs write to the image (default off).\n"\
  "force-share=BOOL     With readonly=on: take no notice of a writer.\n" \
  "untrusted=BOOL       The image is hostile: follow no name inside it.\n" \
  "metadata-cache=SIZE  Memory for the metadata of all layers (16M).\n" \
  "secret=ID:file:PATH  What key-secret=ID means: all bytes of PATH.\n" \
  "secret=ID:+FILE      The same, as nbdkit reads passwords: a line of\n" \
  "secret=ID:-  ID:-FD  FILE, the terminal, or a file descriptor.\n" \
  "object=TLS-CREDS     tls-creds-x509 or tls-creds-psk,id=ID,dir=FOLDER:\n" \
  "                     what tls-creds=ID in image-opts= means."

/* nbdkit's .config and .config_complete. */
extern int params_set (const char *key, const char *value);
extern int params_check (void);

/* After params_check.  The first returns owned, or NULL. */
extern json_t *params_image_tree (struct error *e);
extern const struct image_open_options *params_image_options (void);
extern bool params_readonly (void);

#endif /* NBDIMG_PLUGIN_PARAMS_H */
