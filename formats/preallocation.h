/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Space that is taken before there are data for it (private to formats). */

#ifndef NBDIMG_PREALLOCATION_H
#define NBDIMG_PREALLOCATION_H

#include "formats/format.h"

/* The option preallocation of create; off where it was not given.  METADATA:
 * that is allowed too.
 */
extern int preallocation_option (const struct format_create_options *,
                                 bool metadata, enum preallocation *mode,
                                 struct error *e);

/* The same for a format whose new images have nothing but tables: the mode is
 * looked at, and a warning says that WHAT ("a qed image") takes its space
 * later.
 */
extern int preallocation_is_vain (const struct format_create_options *,
                                  const char *what, struct error *e);

/* Bytes [from, to) of ST read as zeroes, or nobody cares; make their space as
 * solid as MODE says.  ECANCELED: the program is to end.
 */
extern int preallocate (struct storage *st, uint64_t from, uint64_t to,
                        enum preallocation mode, struct error *e);

#endif /* NBDIMG_PREALLOCATION_H */
