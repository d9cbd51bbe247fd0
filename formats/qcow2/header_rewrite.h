/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Other header extensions, or another backing file, in a header that a crash
 * may not tear (private to qcow2).
 */

#ifndef NBDIMG_QCOW2_HEADER_REWRITE_H
#define NBDIMG_QCOW2_HEADER_REWRITE_H

#include "formats/qcow2/qcow2.h"

enum { BITMAPS_EXTENSION = 24 };        /* bytes of its data */

/* What is not set stays as it is. */
struct header_change {
  const uint8_t *fixed;         /* the fields before the extensions (and
                                   FIXED_LENGTH of them); NULL = as they are */
  size_t fixed_length;          /* bytes, at most a sector */
  const char *data_file;        /* name of the data file; NULL = as it is */
  bool no_feature_names;        /* without that table */
  bool set_backing;
  const char *name, *format;    /* of the backing file; NULL = none */
  bool set_bitmaps;             /* and the autoclear bit that belongs to it */
  const uint8_t *bitmaps;       /* the extension's data; NULL = none */
};

/* Durable on return.  All that was written before is to be durable already.  A
 * crash leaves the old header or the new one; after an error it may be either.
 */
extern int qcow2_rewrite_header (const struct qcow2 *q,
                                 const struct header_change *c,
                                 struct error *e);

#endif /* NBDIMG_QCOW2_HEADER_REWRITE_H */
