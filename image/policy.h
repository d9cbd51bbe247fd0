/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the content of an image may make us do (private to image/).
 *
 * Every name that is found inside an image goes through here before anything
 * is opened.  There are two profiles.  Normal: local files and NBD exports are
 * followed, and json: of a few drivers; never a command, a remote shell or a
 * file with TLS keys.  Closed (untrusted): no name is followed at all.
 */

#ifndef NBDIMG_IMAGE_POLICY_H
#define NBDIMG_IMAGE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "common/error.h"
#include "image/image.h"

/* The image in which a name was found. */
struct policy_image {
  const char *name;             /* for messages */
  const char *path;             /* of its file, NULL = it has no folder */
  bool untrusted;
};

/* The tree to open for the backing file NAME, with the recorded FORMAT (NULL =
 * none: it is probed).  Returns owned; NULL: the error says which name in which
 * image is not followed, and why.
 */
extern json_t *policy_backing (const struct policy_image *in,
                               const char *name, const char *format,
                               struct error *e);

/* The storage node of the external data file NAME.  A relative name is taken
 * from the current directory, as QEMU does it.
 */
extern json_t *policy_data_file (const struct policy_image *in,
                                 const char *name, struct error *e);

/* May ST, a data file that the image names and the user does not, be written
 * to?  EPERM: it cannot be one.  One that does not lie beside the image is
 * warned of.
 */
extern int policy_write_data_file (const struct policy_image *in,
                                   const struct storage *st,
                                   struct error *e);

/* May LEN bytes of BUF (NULL = zeroes) be written at OFFSET of the guest?  On
 * an image that nobody named a format for and that was taken as raw, a guest
 * must not write what makes the next one see another format, and follow the
 * names in it.  The caller holds [0, FORMAT_PROBE_SIZE) EXCLUSIVE when OFFSET
 * lies in it.  False = refuse with EPERM.
 */
extern bool image_probed_raw_write_ok (struct image *im, const void *buf,
                                       size_t len, uint64_t offset);

#endif /* NBDIMG_IMAGE_POLICY_H */
