/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Does the user want the program to end?  Operations have a flag of their own
 * for that, and stop at the next safe place.  This one is for who is busy below
 * them for long, or waits for somebody that may never answer.
 */

#ifndef NBDIMG_INTERRUPT_H
#define NBDIMG_INTERRUPT_H

#include <stdbool.h>

/* From a signal handler, or any thread. */
extern void interrupt_note (void);

extern bool interrupted (void);

#endif /* NBDIMG_INTERRUPT_H */
