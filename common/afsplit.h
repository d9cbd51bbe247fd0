/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The anti-forensic splitter of LUKS: a key is stored as many stripes, all of
 * which are needed to get it back, so that wiping a part of them wipes it.
 */

#ifndef NBDIMG_AFSPLIT_H
#define NBDIMG_AFSPLIT_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"

/* OUT has STRIPES * LEN bytes. */
extern int af_split (enum hash h, const uint8_t *key, size_t len,
                     size_t stripes, uint8_t *out, struct error *e);

/* The reverse: KEY gets LEN bytes. */
extern int af_merge (enum hash h, const uint8_t *in, size_t len,
                     size_t stripes, uint8_t *key, struct error *e);

#endif /* NBDIMG_AFSPLIT_H */
