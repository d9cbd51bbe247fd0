/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Range locks: see range_lock.h.  Layer: image.  Locking: range_locks.mutex,
 * held for a walk over the ranges in use (at most the number of threads); no
 * other lock is taken with it.
 *
 * A new range counts the earlier overlapping ones; a range that goes counts
 * down in the later ones that it hindered.
 */

#include <config.h>

#include "image/range_lock.h"

void
range_locks_init (struct range_locks *rl)
{
  mutex_init (&rl->mutex);
  rl->first = rl->last = NULL;
}

void
range_locks_destroy (struct range_locks *rl)
{
  mutex_destroy (&rl->mutex);
}

static bool
hinders (const struct range *a, const struct range *b)
{
  return a->start < b->end && b->start < a->end
    && (a->mode == RANGE_EXCLUSIVE || b->mode == RANGE_EXCLUSIVE);
}

static void
wait_locked (struct range_locks *rl, struct range *r) REQUIRES (rl->mutex)
{
  pthread_cond_t wakeup = PTHREAD_COND_INITIALIZER;

  r->wakeup = &wakeup;
  while (r->nr_blockers > 0)
    mutex_wait (&rl->mutex, &wakeup);
  r->wakeup = NULL;
  pthread_cond_destroy (&wakeup);
}

void
range_lock (struct range_locks *rl, struct range *r, uint64_t start,
            uint64_t length, enum range_mode mode)
{
  *r = (struct range) { .start = start, .end = start + length, .mode = mode };
  mutex_lock (&rl->mutex);
  for (struct range *o = rl->first; o; o = o->next)
    r->nr_blockers += hinders (o, r);
  r->prev = rl->last;
  if (rl->last)
    rl->last->next = r;
  else
    rl->first = r;
  rl->last = r;
  if (r->nr_blockers > 0)
    wait_locked (rl, r);
  mutex_unlock (&rl->mutex);
}

static void
unlink_locked (struct range_locks *rl, struct range *r) REQUIRES (rl->mutex)
{
  if (r->prev)
    r->prev->next = r->next;
  else
    rl->first = r->next;
  if (r->next)
    r->next->prev = r->prev;
  else
    rl->last = r->prev;
}

void
range_unlock (struct range_locks *rl, struct range *r)
{
  mutex_lock (&rl->mutex);
  for (struct range *o = r->next; o; o = o->next)
    if (hinders (r, o) && --o->nr_blockers == 0)
      pthread_cond_signal (o->wakeup);
  unlink_locked (rl, r);
  mutex_unlock (&rl->mutex);
}
