/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A set of places in an image, multiples of 512 and not 0, in bounded memory
 * (private to formats).
 *
 * It holds 512 Ki places in 8 MiB.  What does not fit, or finds no memory, is
 * not in it: it is for finding damage, where not to find any is harmless.
 * Locking: the owner's.
 */

#ifndef NBDIMG_HOST_SET_H
#define NBDIMG_HOST_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct host_set {
  uint64_t *slots;              /* owned; 0 = free */
  size_t nr_slots, nr_used;     /* nr_slots: power of 2, or 0 */
};

extern void host_set_add (struct host_set *set, uint64_t host);
extern void host_set_drop (struct host_set *set, uint64_t host);
extern bool host_set_has (const struct host_set *set, uint64_t host);
extern void host_set_clear (struct host_set *set);

#endif /* NBDIMG_HOST_SET_H */
