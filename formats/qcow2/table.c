/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The cache of table slices: L1, L2, refcount table and refcount blocks, as
 * they stand on disk.  Layer: formats.  Locking: qcow2.mutex guards the cache;
 * it is dropped around storage reads.
 *
 * The budget is hard.  An operation that must load takes a token first, and
 * pins at most TABLE_OP_PINS slices until it ends.  There are so few tokens
 * that pinned slices fill at most half of the cache, and dirty ones at most the
 * other half before an epoch is forced: a victim is always found, and nobody
 * waits for a slice while holding one that another needs to go on.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "formats/qcow2/qcow2.h"

/* 4 KiB: a page, and the unit in which L2 tables are hot.  Whole 64 KiB tables
 * would cost 16 times the memory for random access.
 */
#define MAX_SLICE_SIZE UINT64_C (4096)

enum {
  MIN_SLICES = 16,
  SLICES_PER_TOKEN = 2 * TABLE_OP_PINS,
};

int
table_cache_init (struct qcow2 *q, uint64_t bytes, struct error *e)
{
  struct table_cache *c = &q->cache;

  if (bytes == 0)
    bytes = 16 * MiB;
  c->slice_size = (uint32_t) min_u64 (q->cluster_size, MAX_SLICE_SIZE);
  c->max_slices = (size_t) max_u64 (bytes / c->slice_size, MIN_SLICES);
  c->nr_buckets = 16;
  while (c->nr_buckets < c->max_slices)
    c->nr_buckets *= 2;
  c->buckets = calloc (c->nr_buckets, sizeof c->buckets[0]);
  if (!c->buckets)
    return error_nomem (e, "the table cache",
                        c->nr_buckets * sizeof c->buckets[0]);
  c->free_tokens = (unsigned) (c->max_slices / SLICES_PER_TOKEN);
  pthread_cond_init (&c->changed, NULL);
  return 0;
}

void
table_cache_free (struct qcow2 *q)
{
  struct table_cache *c = &q->cache;
  struct slice *s, *next;

  if (!c->buckets)
    return;
  for (s = c->lru_first; s; s = next) {
    next = s->lru_next;
    free (s->data);
    free (s);
  }
  free (c->buckets);
  c->buckets = NULL;
  pthread_cond_destroy (&c->changed);
}

static struct slice **
bucket_of (struct table_cache *c, uint64_t host)
{
  uint64_t h = host / c->slice_size * UINT64_C (0x9e3779b97f4a7c15);

  return &c->buckets[(h >> 32) & (c->nr_buckets - 1)];
}

static struct slice *
lookup (struct table_cache *c, uint64_t host)
{
  struct slice *s = *bucket_of (c, host);

  while (s && s->host != host)
    s = s->hash_next;
  return s;
}

static void
lru_remove (struct table_cache *c, struct slice *s)
{
  if (s->lru_prev)
    s->lru_prev->lru_next = s->lru_next;
  else
    c->lru_first = s->lru_next;
  if (s->lru_next)
    s->lru_next->lru_prev = s->lru_prev;
  else
    c->lru_last = s->lru_prev;
}

static void
lru_append (struct table_cache *c, struct slice *s)
{
  s->lru_next = NULL;
  s->lru_prev = c->lru_last;
  if (c->lru_last)
    c->lru_last->lru_next = s;
  else
    c->lru_first = s;
  c->lru_last = s;
}

static void
hash_insert (struct table_cache *c, struct slice *s)
{
  struct slice **b = bucket_of (c, s->host);

  s->hash_next = *b;
  *b = s;
}

static void
hash_remove (struct table_cache *c, struct slice *s)
{
  struct slice **b = bucket_of (c, s->host);

  while (*b != s)
    b = &(*b)->hash_next;
  *b = s->hash_next;
}

static void
free_slice (struct table_cache *c, struct slice *s)
{
  c->nr_slices--;
  free (s->data);
  free (s);
}

static struct slice *
new_slice (struct table_cache *c)
{
  struct slice *s = calloc (1, sizeof *s);

  if (!s)
    return NULL;
  s->data = malloc (c->slice_size);
  if (!s->data) {
    free (s);
    return NULL;
  }
  c->nr_slices++;
  return s;
}

/* A slice that is nowhere linked: new, or the least recently used clean one.
 * NULL: all are dirty or in use, which out of memory may be very few.
 */
static struct slice *
take_slice (struct table_cache *c)
{
  struct slice *s = NULL;

  if (c->nr_slices < c->max_slices)
    s = new_slice (c);
  if (s)
    return s;
  for (s = c->lru_first; s; s = s->lru_next)
    if (!s->dirty && s->pins == 0)
      break;
  if (!s)
    return NULL;
  hash_remove (c, s);
  lru_remove (c, s);
  return s;
}

static size_t
nr_dirty (const struct table_cache *c)
{
  size_t nr = 0;

  for (unsigned i = 0; i < NR_SLICE_KINDS; ++i)
    nr += c->nr_dirty[i];
  return nr;
}

void
table_unpin_locked (struct qcow2 *q, struct slice *s)
{
  assert (s->pins > 0);
  if (--s->pins == 0 && s->dead) {
    lru_remove (&q->cache, s);
    free_slice (&q->cache, s);
  }
}

/* The oldest pin of OP gives way when there are too many. */
static void
pin_locked (struct qcow2 *q, struct table_op *op, struct slice *s)
  REQUIRES (q->mutex)
{
  struct slice **place = &op->pinned[op->next];

  if (*place)
    table_unpin_locked (q, *place);
  *place = s;
  s->pins++;
  op->next = (op->next + 1) % TABLE_OP_PINS;
}

void
table_op_end_locked (struct qcow2 *q, struct table_op *op)
{
  for (unsigned i = 0; i < TABLE_OP_PINS; ++i)
    if (op->pinned[i])
      table_unpin_locked (q, op->pinned[i]);
  if (op->token) {
    q->cache.free_tokens++;
    pthread_cond_broadcast (&q->cache.changed);
  }
  *op = (struct table_op) TABLE_OP_INIT;
}

static const char *
kind_name (enum slice_kind kind)
{
  static const char *const names[NR_SLICE_KINDS] = {
    "L1 table", "L2 table", "refcount table", "refcount block",
  };

  return names[kind];
}

/* Nobody finds S any more; it is freed with its last pin. */
static void
kill_slice (struct table_cache *c, struct slice *s)
{
  if (s->dirty) {
    s->dirty = false;
    c->nr_dirty[s->kind]--;
  }
  hash_remove (c, s);
  s->dead = true;
  if (s->pins == 0) {
    lru_remove (c, s);
    free_slice (c, s);
  }
}

/* Read the slice at HOST into the cache.  0 = start over, -1. */
static int
load_locked (struct qcow2 *q, struct table_op *op, enum slice_kind kind,
             uint64_t host, struct error *e) REQUIRES (q->mutex)
{
  struct table_cache *c = &q->cache;
  struct slice *s;
  int r;

  if (!op->token) {
    while (c->free_tokens == 0)
      mutex_wait (&q->mutex, &c->changed);
    c->free_tokens--;
    op->token = true;
    return 0;
  }
  s = take_slice (c);
  if (!s) {
    if (nr_dirty (c) == 0 && !q->epoch_running)
      return error_nomem (e, "a table slice", c->slice_size);
    return qcow2_epoch_locked (q, e) == -1 ? -1 : 0;
  }
  s->host = host;
  s->kind = kind;
  s->loading = true;
  s->dirty = s->dead = false;
  s->pins = 0;
  hash_insert (c, s);
  lru_append (c, s);
  pin_locked (q, op, s);

  mutex_unlock (&q->mutex);
  r = storage_pread (q->format.storage, s->data, c->slice_size, host, e);
  mutex_lock (&q->mutex);

  s->loading = false;
  pthread_cond_broadcast (&c->changed);
  if (r == 0)
    return 0;
  /* Others that wait for it look it up again, and try themselves.  Its table
   * may have gone meanwhile, and the slice with it.
   */
  if (!s->dead)
    kill_slice (c, s);
  return error_prefix (e, "%s at 0x%" PRIx64, kind_name (kind), host);
}

int
table_get_locked (struct qcow2 *q, struct table_op *op, enum slice_kind kind,
                  uint64_t host, struct slice **r, struct error *e)
{
  struct table_cache *c = &q->cache;
  struct slice *s;

  host = round_down (host, c->slice_size);
  s = lookup (c, host);
  if (!s)
    return load_locked (q, op, kind, host, e);
  if (s->loading) {
    mutex_wait (&q->mutex, &c->changed);
    return 0;
  }
  if (s->kind != kind)
    return qcow2_corrupt_locked (q, e, "the cluster at 0x%" PRIx64
                                 " is used as %s and as %s", host,
                                 kind_name (s->kind), kind_name (kind));
  if (s != c->lru_last) {
    lru_remove (c, s);
    lru_append (c, s);
  }
  *r = s;
  return 1;
}

int
table_make_room_locked (struct qcow2 *q, size_t nr, struct error *e)
{
  if (nr_dirty (&q->cache) + nr <= q->cache.max_slices / 2)
    return 1;
  return qcow2_epoch_locked (q, e) == -1 ? -1 : 0;
}

void
table_dirty_locked (struct qcow2 *q, struct slice *s)
{
  assert (!s->loading);
  if (s->dirty)
    return;
  s->dirty = true;
  q->cache.nr_dirty[s->kind]++;
}

void
table_drop_locked (struct qcow2 *q, uint64_t host, uint64_t length)
{
  struct table_cache *c = &q->cache;

  for (uint64_t o = host; o < host + length; o += c->slice_size) {
    struct slice *s = lookup (c, o);

    if (s)
      kill_slice (c, s);
  }
}

bool
table_cached_locked (struct qcow2 *q, uint64_t host, uint64_t length)
{
  struct table_cache *c = &q->cache;

  for (uint64_t o = round_down (host, c->slice_size); o < host + length;
       o += c->slice_size)
    if (lookup (c, o))
      return true;
  return false;
}
