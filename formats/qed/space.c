/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* New clusters at the end of the file, and the NEED_CHECK bit.  Layer: formats.
 * Locking: the mutex, dropped while the header is written or the file grows.
 *
 * The file always ends with a whole cluster when a table refers to one in its
 * last part: other programs take the bytes behind the last whole cluster for
 * free.  So it is made longer before a cluster is given out, and a bit more
 * than is needed, as that is one system call; the rest is cut off at close, or
 * after a crash by the check that NEED_CHECK asks for.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "formats/qed/qed.h"

#define GROWTH (4 * MiB)

int
qed_need_check_locked (struct qed *q, struct error *e)
{
  uint64_t features = q->features | QED_F_NEED_CHECK;
  int r;

  if (q->features & QED_F_NEED_CHECK)
    return 1;
  if (q->marking) {
    mutex_wait (q->cache.mutex, &q->cache.changed);
    return 0;
  }
  q->marking = true;
  mutex_unlock (q->cache.mutex);
  r = qed_write_field (q, H_FEATURES, features, e);
  mutex_lock (q->cache.mutex);
  if (r == 0)
    q->features = features;
  q->marking = false;
  pthread_cond_broadcast (&q->cache.changed);
  return r;
}

/* Make the file reach END at least.  0 = start over, -1. */
static int
grow_locked (struct qed *q, uint64_t end, struct error *e)
  REQUIRES (q->cache.mutex)
{
  struct storage *st = q->format.storage;
  uint64_t to = round_up (end + GROWTH, q->g.cluster_size);
  int r;

  if (!st->caps.can_grow)
    return error_set (e, ENOSPC, "%s: it has %" PRIu64 " bytes and cannot"
                      " grow, and a QED image takes all new space from its"
                      " end", st->name, storage_size (st));
  if (end > INT64_MAX - 2 * (uint64_t) MAX_CLUSTER_SIZE)
    return error_set (e, EFBIG, "%s: the file is too large to grow",
                      st->name);
  if (q->growing) {
    mutex_wait (q->cache.mutex, &q->cache.changed);
    return 0;
  }
  q->growing = true;
  mutex_unlock (q->cache.mutex);
  r = storage_truncate (st, to, e);
  mutex_lock (q->cache.mutex);
  if (r == 0)
    q->file_end = to;
  q->growing = false;
  pthread_cond_broadcast (&q->cache.changed);
  return r;
}

/* A spare run of LEAST to *LENGTH bytes. */
static bool
take_spare_locked (struct qed *q, uint64_t least, uint64_t *length,
                   uint64_t *host) REQUIRES (q->cache.mutex)
{
  for (unsigned i = 0; i < q->nr_spares; ++i) {
    struct spare *s = &q->spares[i];

    if (s->length < least)
      continue;
    *length = min_u64 (*length, s->length);
    *host = s->host;
    s->host += *length;
    s->length -= *length;
    if (s->length == 0)
      *s = q->spares[--q->nr_spares];
    return true;
  }
  return false;
}

int
qed_alloc_locked (struct qed *q, uint64_t least, uint64_t *length,
                  uint64_t *host, bool *fresh, struct error *e)
{
  *fresh = false;
  if (take_spare_locked (q, least, length, host))
    return 1;
  if (*length > q->file_end || q->end > q->file_end - *length)
    return grow_locked (q, q->end + *length, e);
  *host = q->end;
  *fresh = q->end >= q->fresh_from;
  q->end += *length;
  return 1;
}

/* The run of spares that ends at END; NULL = none. */
static struct spare *
spare_before_locked (struct qed *q, uint64_t end) REQUIRES (q->cache.mutex)
{
  for (unsigned i = 0; i < q->nr_spares; ++i)
    if (q->spares[i].host + q->spares[i].length == end)
      return &q->spares[i];
  return NULL;
}

/* What is spare at the end is no longer allocated; it may have been written
 * to.
 */
static void
step_back_locked (struct qed *q, uint64_t host) REQUIRES (q->cache.mutex)
{
  struct spare *last;

  if (q->fresh_from != UINT64_MAX)
    q->fresh_from = max_u64 (q->fresh_from, q->end);
  q->end = host;
  while ((last = spare_before_locked (q, q->end))) {
    q->end = last->host;
    *last = q->spares[--q->nr_spares];
  }
}

void
qed_spare_locked (struct qed *q, uint64_t host, uint64_t length)
{
  struct spare *before = spare_before_locked (q, host);

  if (host + length == q->end)
    step_back_locked (q, host);
  else if (before)
    before->length += length;
  else if (q->nr_spares < MAX_SPARES)
    q->spares[q->nr_spares++] = (struct spare) { host, length };
}

int
qed_cut (struct qed *q, struct error *e)
{
  uint64_t end;
  bool longer;

  mutex_lock (q->cache.mutex);
  end = q->end;
  longer = q->file_end > end;
  q->file_end = min_u64 (q->file_end, end);
  mutex_unlock (q->cache.mutex);
  if (!longer)
    return 0;
  if (storage_truncate (q->format.storage, end, e) == -1)
    return -1;
  return storage_flush (q->format.storage, e);
}
