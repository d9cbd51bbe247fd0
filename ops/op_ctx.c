/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What every operation does with its op_ctx: end when it is cancelled, and
 * keep to the rate limit.  Layer: ops.  Locking: an op_pace has its own lock
 * and is shared by the workers of one run.
 */

#include <config.h>

#include <time.h>

#include "ops/ops.h"

bool
op_cancelled (const struct op_ctx *ctx)
{
  return ctx->cancel && __atomic_load_n (ctx->cancel, __ATOMIC_RELAXED);
}

static uint64_t
now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t) ts.tv_sec * UINT64_C (1000000000) + (uint64_t) ts.tv_nsec;
}

void
op_pace_init (struct op_pace *p)
{
  mutex_init (&p->mutex);
  p->due_ns = now_ns ();
}

void
op_pace_destroy (struct op_pace *p)
{
  mutex_destroy (&p->mutex);
}

/* What was not used in a pause is not made up for later: a run that waited for
 * its source does not go over the limit afterwards.
 */
static uint64_t
advance (struct op_pace *p, uint64_t rate, uint64_t bytes)
{
  uint64_t now = now_ns (), due;

  mutex_lock (&p->mutex);
  if (p->due_ns < now)
    p->due_ns = now;
  p->due_ns += (uint64_t) ((double) bytes * 1e9 / (double) rate);
  due = p->due_ns;
  mutex_unlock (&p->mutex);
  return due;
}

void
op_pace_wait (const struct op_ctx *ctx, struct op_pace *p, uint64_t bytes)
{
  const uint64_t slice = 100000000;     /* look for a cancel that often */
  uint64_t due, now;

  if (!ctx->rate_limit)
    return;
  due = advance (p, ctx->rate_limit, bytes);
  while ((now = now_ns ()) < due && !op_cancelled (ctx)) {
    uint64_t ns = due - now < slice ? due - now : slice;
    struct timespec ts = { .tv_sec = 0, .tv_nsec = (long) ns };

    nanosleep (&ts, NULL);
  }
}
