/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Tables that claim more than the file holds are not read (private to
 * formats).
 */

#ifndef NBDIMG_HOLES_H
#define NBDIMG_HOLES_H

#include <stdint.h>

#include "storage/storage.h"

/* The first byte from AT on, before END, that is not in a hole of a local file;
 * END = there is none.
 */
extern uint64_t skip_hole (struct storage *st, uint64_t at, uint64_t end);

#endif /* NBDIMG_HOLES_H */
