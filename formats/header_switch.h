/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Rewriting a header that a crash may not tear (private to formats). */

#ifndef NBDIMG_HEADER_SWITCH_H
#define NBDIMG_HEADER_SWITCH_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "storage/storage.h"

/* The storage begins with the LEN bytes OLD (whole sectors); make them NEW.
 * Sectors that are the same are not written.  What NEW has behind its first
 * sector must be of no meaning to a reader of OLD's first sector: it is made
 * durable before the first sector, which is then written at once.  So a crash
 * leaves OLD or NEW, as a reader sees them.
 */
extern int header_switch (struct storage *st, const uint8_t *old,
                          const uint8_t *new, size_t len, struct error *e);

#endif /* NBDIMG_HEADER_SWITCH_H */
