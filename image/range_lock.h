/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A fair lock on ranges of guest addresses.
 *
 * Requests are granted in the order in which they came (FIFO), as soon as no
 * earlier one that overlaps is held or waiting, where two SHARED ones do not
 * hinder each other.  So nobody starves.  One range per thread and image; there
 * is no upgrade: drop SHARED, take EXCLUSIVE, look again.
 */

#ifndef NBDIMG_RANGE_LOCK_H
#define NBDIMG_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/lock.h"

enum range_mode { RANGE_SHARED, RANGE_EXCLUSIVE };

/* Lives on the caller's stack from range_lock to range_unlock. */
struct range {
  uint64_t start, end;          /* [start, end) */
  enum range_mode mode;
  /* guarded by range_locks.mutex: */
  unsigned nr_blockers;         /* earlier overlapping ones not yet gone */
  pthread_cond_t *wakeup;       /* set while the owner sleeps */
  struct range *prev, *next;    /* in order of arrival */
};

struct range_locks {
  struct mutex mutex;
  struct range *first, *last;
};

extern void range_locks_init (struct range_locks *rl);
extern void range_locks_destroy (struct range_locks *rl);

/* Wait for [start, start+length); R must stay valid until range_unlock. */
extern void range_lock (struct range_locks *rl, struct range *r,
                        uint64_t start, uint64_t length,
                        enum range_mode mode);
extern void range_unlock (struct range_locks *rl, struct range *r);

#endif /* NBDIMG_RANGE_LOCK_H */
