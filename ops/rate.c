/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The rate limit of an operation: each move is given the time after the one
 * before it, so that workers together keep to the limit and an idle time is
 * not saved up for a burst.
 *
 * Layer: ops.  Locking: see rate.h; nobody sleeps with the mutex held.
 */

#include <config.h>

#include <time.h>

#include "common/bytes.h"
#include "ops/rate.h"

static const uint64_t second = UINT64_C (1000000000);

/* A cancelled operation ends so soon. */
static const uint64_t longest_nap = UINT64_C (50000000);

static uint64_t
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t) ts.tv_sec * second + (uint64_t) ts.tv_nsec;
}

void
rate_init (struct rate *r, uint64_t limit)
{
  r->limit = limit;
  r->free_at = 0;
  mutex_init (&r->mutex);
}

void
rate_destroy (struct rate *r)
{
  mutex_destroy (&r->mutex);
}

/* How long BYTES take at the limit, without overflow: a 128 bit product. */
static uint64_t
duration (const struct rate *r, uint64_t bytes)
{
  unsigned __int128 ns = (unsigned __int128) bytes * second / r->limit;

  return ns > INT64_MAX ? INT64_MAX : (uint64_t) ns;
}

/* The time at which the caller may go on. */
static uint64_t
book (struct rate *r, uint64_t bytes)
{
  uint64_t start, end;

  mutex_lock (&r->mutex);
  start = max_u64 (r->free_at, now ());
  if (!add_ok (start, duration (r, bytes), &end))
    end = UINT64_MAX;
  r->free_at = end;
  mutex_unlock (&r->mutex);
  return start;
}

static void
nap (uint64_t ns)
{
  struct timespec ts = { .tv_sec = 0, .tv_nsec = (long) ns };

  clock_nanosleep (CLOCK_MONOTONIC, 0, &ts, NULL);
}

void
rate_wait (struct rate *r, uint64_t bytes, bool (*stopped) (void *opaque),
           void *opaque)
{
  uint64_t start, t;

  if (r->limit == 0)
    return;
  start = book (r, bytes);
  while ((t = now ()) < start && !stopped (opaque))
    nap (min_u64 (start - t, longest_nap));
}
