/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Bytes that nobody else may learn: random ones, comparing and wiping them. */

#ifndef NBDIMG_SECURE_H
#define NBDIMG_SECURE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

/* Fill BUF for use as a key, salt or padding of key material. */
extern int secure_random (void *buf, size_t len, struct error *e);

/* In a time that does not depend on where the first difference is. */
extern bool secure_equal (const void *a, const void *b, size_t len);

/* Zero P[0..LEN) although nobody reads it again.  P may be NULL. */
extern void secure_wipe (void *p, size_t len);

/* Wipe and free; P may be NULL. */
extern void secure_free (void *p, size_t len);

#endif /* NBDIMG_SECURE_H */
