/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the files of amend share. */

#ifndef NBDIMG_AMEND_H
#define NBDIMG_AMEND_H

#include "ops/ops.h"

/* Does OPTIONS (as -o, parsed) change key slots? */
extern bool amend_has_keys (const struct image *im, const json_t *options);

/* How; it points into itself. */
struct amend_keys {
  struct format_key_change change;
  struct secret new, old;       /* owned */
};

/* Does it make sense, and are its secrets there? */
extern int amend_keys_parse (const struct image *im, const json_t *options,
                             bool force, struct amend_keys *k,
                             struct error *e);
extern void amend_keys_free (struct amend_keys *k);

#endif /* NBDIMG_AMEND_H */
