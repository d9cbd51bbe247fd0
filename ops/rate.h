/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The rate limit of an operation; internal to ops/. */

#ifndef NBDIMG_OPS_RATE_H
#define NBDIMG_OPS_RATE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/lock.h"

struct rate {
  uint64_t limit;               /* bytes a second; 0 = none; fixed */
  struct mutex mutex;
  uint64_t free_at;             /* guarded by mutex: CLOCK_MONOTONIC, ns */
};

extern void rate_init (struct rate *r, uint64_t limit);
extern void rate_destroy (struct rate *r);

/* Wait until BYTES more may be moved, or STOPPED (OPAQUE) says true.  From any
 * thread.
 */
extern void rate_wait (struct rate *r, uint64_t bytes,
                       bool (*stopped) (void *opaque), void *opaque);

#endif /* NBDIMG_OPS_RATE_H */
