/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A storage on which an image is to be made (private to formats). */

#ifndef NBDIMG_BLANK_H
#define NBDIMG_BLANK_H

#include <stdint.h>

#include "common/error.h"
#include "storage/storage.h"

/* Make [0, END) of ST read as zeroes, so that only what is not zero needs to be
 * written.  What begins an image goes first, durably: from then on until its
 * header is written, ST holds no image.
 */
extern int storage_blank (struct storage *st, uint64_t end, struct error *e);

#endif /* NBDIMG_BLANK_H */
