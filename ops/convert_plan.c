/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Convert: who copies what.  Workers claim the disk in guest order, a chunk at
 * a time, so that both sides are read and written nearly in sequence.  What
 * need not be touched is passed over here, in one step for a whole extent: an
 * empty disk of some terabytes takes no time.
 *
 * Layer: ops.  Locking: convert.mutex; the look at a source's extents happens
 * under it, which keeps the claims in order, and the other workers are busy
 * with chunks of theirs meanwhile.
 */

#include <config.h>

#include <errno.h>

#include "common/bytes.h"
#include "ops/convert.h"

/* A claim of zeroes is cut so, for the sake of progress and cancellation. */
static const uint64_t max_zero = 256 * MiB;

/* What a state is said about begins here, if it shall end a claim. */
static uint64_t
claim_unit (const struct convert *c)
{
  return max_u64 (c->detect, max_u64 (c->grain, c->share_unit));
}

static struct worker **
waiting_at (struct convert *c, uint64_t number)
{
  return &c->waiting[number % CONVERT_MAX_WORKERS];
}

static void
set_error_locked (struct convert *c, uint64_t offset, const struct error *e)
  REQUIRES (&c->mutex)
{
  if (!c->error.err || offset < c->error_offset) {
    c->error = *e;
    c->error_offset = offset;
  }
  __atomic_store_n (&c->stop, true, __ATOMIC_RELEASE);
  for (size_t i = 0; i < CONVERT_MAX_WORKERS; ++i)
    if (c->waiting[i])
      pthread_cond_signal (&c->waiting[i]->turn_came);
}

void
convert_fail (struct convert *c, uint64_t offset, const struct error *e)
{
  mutex_lock (&c->mutex);
  set_error_locked (c, offset, e);
  mutex_unlock (&c->mutex);
}

/* The end of what is known to be alike, where a claim may end. */
static uint64_t
known_end_locked (struct convert *c)
  REQUIRES (&c->mutex)
{
  return c->known_end == c->total ? c->total
    : max_u64 (round_down (c->known_end, claim_unit (c)), c->next);
}

/* Learn the state at c->next.  Where it cannot be told and the user wants to
 * save what there is, the chunk is read, sector by sector if need be.
 */
static bool
look_ahead_locked (struct convert *c)
  REQUIRES (&c->mutex)
{
  struct error e = ERROR_INIT;
  uint64_t length;

  if (c->next < c->known_end)
    return true;
  if (convert_state (c, c->next, c->total - c->next, &length, &c->known,
                     &e) == 0) {
    c->known_end = c->next + length;
    return true;
  }
  if (convert_can_salvage (c, &e)) {
    c->known = BLOCK_DATA;
    c->known_end = c->next + min_u64 (c->chunk, c->total - c->next);
    return true;
  }
  error_prefix (&e, "error while reading at byte %llu",
                (unsigned long long) c->next);
  set_error_locked (c, c->next, &e);
  return false;
}

static void
add_done_locked (struct convert *c, uint64_t bytes)
  REQUIRES (&c->mutex)
{
  c->done += bytes;
  if (c->ctx && c->ctx->progress)
    c->ctx->progress (c->ctx->opaque, c->done, c->total);
}

static void
take_locked (struct convert *c, struct claim *claim, uint64_t end,
             enum block_state state)
  REQUIRES (&c->mutex)
{
  claim->start = c->next;
  claim->end = end;
  claim->state = state;
  claim->number = c->nr_claims++;
  c->next = end;
}

static bool
claim_locked (struct convert *c, struct claim *claim)
  REQUIRES (&c->mutex)
{
  while (c->next < c->total && !c->stop) {
    uint64_t chunk_end = min_u64 (round_down (c->next, c->chunk) + c->chunk,
                                  c->total);
    uint64_t alike;

    if (c->ctx && op_cancelled (c->ctx)) {
      struct error e = ERROR_INIT;

      error_set (&e, ECANCELED, "cancelled");
      set_error_locked (c, 0, &e);
      return false;
    }
    if (!look_ahead_locked (c))
      return false;
    alike = known_end_locked (c);
    if (c->known == BLOCK_SKIP && alike > c->next) {
      add_done_locked (c, alike - c->next);
      c->next = alike;
      continue;
    }
    if (c->known == BLOCK_ZERO && alike >= chunk_end)
      take_locked (c, claim, min_u64 (alike, c->next + max_zero), BLOCK_ZERO);
    else
      take_locked (c, claim, chunk_end, c->known_end >= chunk_end
                   ? c->known : BLOCK_UNKNOWN);
    return true;
  }
  return false;
}

bool
convert_claim (struct convert *c, struct claim *claim)
{
  bool r;

  mutex_lock (&c->mutex);
  r = claim_locked (c, claim);
  mutex_unlock (&c->mutex);
  return r;
}

/* ---- turns ---- */

static bool
wait_turn_locked (struct convert *c, struct worker *w, bool filled)
  REQUIRES (&c->mutex)
{
  w->filled = filled;
  w->taken = false;
  while (c->turn != w->claim.number && !w->taken && !c->stop) {
    *waiting_at (c, w->claim.number) = w;
    mutex_wait (&c->mutex, &w->turn_came);
  }
  if (w->taken)
    return false;
  *waiting_at (c, w->claim.number) = NULL;
  return !c->stop;
}

bool
convert_wait_turn (struct worker *w, bool filled)
{
  struct convert *c = w->c;
  bool r;

  if (!c->in_order)
    return !convert_stopped (c);
  mutex_lock (&c->mutex);
  r = wait_turn_locked (c, w, filled);
  mutex_unlock (&c->mutex);
  return r;
}

/* W gets the claim of FROM with its buffers, FROM those of W.  With c->mutex
 * held.
 */
static void
take_over (struct worker *w, struct worker *from)
{
  uint8_t *buf = w->buf, *other = w->other, *states = w->states;
  size_t *packed = w->packed;

  w->claim = from->claim;
  w->buf = from->buf;
  w->other = from->other;
  w->states = from->states;
  w->packed = from->packed;
  from->buf = buf;
  from->other = other;
  from->states = states;
  from->packed = packed;
  from->taken = true;
}

/* Whose turn it is now is asleep.  If all it would do is write, W does it:
 * nobody waits until the other one runs, which on a busy machine takes longer
 * than the write, and that one can fill another buffer meanwhile.  1.4 GB of
 * raw disk to qcow2 beside 20 other processes: 0.34 s, where waking the other
 * one for each chunk took 2.2 s and a single worker 0.34 s.
 */
static bool
pass_turn_locked (struct convert *c, struct worker *w)
  REQUIRES (&c->mutex)
{
  struct worker **slot, *next;

  c->turn = w->claim.number + 1;
  slot = waiting_at (c, c->turn);
  next = *slot;
  if (!next || c->stop)
    return false;
  pthread_cond_signal (&next->turn_came);
  if (!next->filled)
    return false;
  *slot = NULL;
  take_over (w, next);
  return true;
}

bool
convert_claim_done (struct worker *w)
{
  struct convert *c = w->c;
  bool r;

  mutex_lock (&c->mutex);
  add_done_locked (c, w->claim.end - w->claim.start);
  r = c->in_order && pass_turn_locked (c, w);
  mutex_unlock (&c->mutex);
  return r;
}
