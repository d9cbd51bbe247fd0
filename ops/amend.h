/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the files of amend share. */

#ifndef NBDIMG_AMEND_H
#define NBDIMG_AMEND_H

#include "ops/ops.h"

/* Does OPTIONS (as -o, parsed) change key slots? */
extern bool amend_has_keys (const struct image *im, const json_t *options);

/* Change them. */
extern int amend_keys (struct image *im, const json_t *options, bool force,
                       const bool *cancel, struct error *e);

#endif /* NBDIMG_AMEND_H */
