/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The gate of an image: guest I/O goes through it side by side, a structural
 * operation (snapshot, resize, amend, check, close) alone.
 */

#ifndef NBDIMG_GATE_H
#define NBDIMG_GATE_H

#include "image/image.h"

extern void gate_init (struct gate *g);
extern void gate_destroy (struct gate *g);
extern void gate_enter (struct gate *g);
extern void gate_leave (struct gate *g);

#endif /* NBDIMG_GATE_H */
