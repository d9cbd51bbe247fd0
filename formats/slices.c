/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The cache of table slices: see slices.h.  Layer: formats.  Locking: the
 * mutex of the format guards the cache; it is dropped around storage reads and
 * writes.
 *
 * The budget is hard.  An operation that must load takes a token first, and
 * pins at most SLICE_OP_PINS slices until it ends.  There are so few tokens
 * that pinned slices fill at most half of the cache, and dirty ones at most the
 * other half before an epoch is forced: a victim is always found, and nobody
 * waits for a slice while holding one that another needs to go on.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "formats/slices.h"

/* 4 KiB: a page, and the unit in which L2 tables are hot.  Whole 64 KiB tables
 * would cost 16 times the memory for random access.
 */
#define MAX_SLICE_SIZE UINT64_C (4096)

enum {
  MIN_SLICES = 16,
  SLICES_PER_TOKEN = 2 * SLICE_OP_PINS,
};

int
slices_init (struct slice_cache *c, const struct slice_cache_setup *setup,
             struct error *e)
{
  uint64_t bytes = setup->bytes ? setup->bytes : 16 * MiB;

  assert (setup->nr_kinds <= SLICE_MAX_KINDS);
  c->setup = *setup;
  c->mutex = setup->mutex;
  c->slice_size = (uint32_t) min_u64 (setup->unit, MAX_SLICE_SIZE);
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
slices_free (struct slice_cache *c)
{
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
bucket_of (struct slice_cache *c, uint64_t host)
{
  uint64_t h = host / c->slice_size * UINT64_C (0x9e3779b97f4a7c15);

  return &c->buckets[(h >> 32) & (c->nr_buckets - 1)];
}

static struct slice *
lookup (struct slice_cache *c, uint64_t host)
{
  struct slice *s = *bucket_of (c, host);

  while (s && s->host != host)
    s = s->hash_next;
  return s;
}

static void
lru_remove (struct slice_cache *c, struct slice *s)
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
lru_append (struct slice_cache *c, struct slice *s)
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
hash_insert (struct slice_cache *c, struct slice *s)
{
  struct slice **b = bucket_of (c, s->host);

  s->hash_next = *b;
  *b = s;
}

static void
hash_remove (struct slice_cache *c, struct slice *s)
{
  struct slice **b = bucket_of (c, s->host);

  while (*b != s)
    b = &(*b)->hash_next;
  *b = s->hash_next;
}

static void
free_slice (struct slice_cache *c, struct slice *s)
{
  c->nr_slices--;
  free (s->data);
  free (s);
}

static struct slice *
new_slice (struct slice_cache *c)
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
take_slice (struct slice_cache *c)
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
nr_dirty (const struct slice_cache *c)
{
  size_t nr = 0;

  for (unsigned i = 0; i < c->setup.nr_kinds; ++i)
    nr += c->nr_dirty[i];
  return nr;
}

bool
slices_dirty_locked (const struct slice_cache *c)
{
  return nr_dirty (c) > 0;
}

static void
unpin (struct slice_cache *c, struct slice *s)
{
  assert (s->pins > 0);
  if (--s->pins == 0 && s->dead) {
    lru_remove (c, s);
    free_slice (c, s);
  }
}

/* The oldest pin of OP gives way when there are too many. */
static void
pin (struct slice_cache *c, struct slice_op *op, struct slice *s)
{
  struct slice **place = &op->pinned[op->next];

  if (*place)
    unpin (c, *place);
  *place = s;
  s->pins++;
  op->next = (op->next + 1) % SLICE_OP_PINS;
}

void
slice_op_end_locked (struct slice_cache *c, struct slice_op *op)
{
  for (unsigned i = 0; i < SLICE_OP_PINS; ++i)
    if (op->pinned[i])
      unpin (c, op->pinned[i]);
  if (op->token) {
    c->free_tokens++;
    pthread_cond_broadcast (&c->changed);
  }
  *op = (struct slice_op) SLICE_OP_INIT;
}

/* Nobody finds S any more; it is freed with its last pin. */
static void
kill_slice (struct slice_cache *c, struct slice *s)
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
load_locked (struct slice_cache *c, struct slice_op *op, unsigned kind,
             uint64_t host, struct error *e) REQUIRES (c->mutex)
{
  struct slice *s;
  int r;

  if (!op->token) {
    while (c->free_tokens == 0)
      mutex_wait (c->mutex, &c->changed);
    c->free_tokens--;
    op->token = true;
    return 0;
  }
  s = take_slice (c);
  if (!s) {
    if (nr_dirty (c) == 0 && !c->epoch_running)
      return error_nomem (e, "a table slice", c->slice_size);
    return slices_epoch_locked (c, e) == -1 ? -1 : 0;
  }
  s->host = host;
  s->kind = kind;
  s->loading = true;
  s->dirty = s->dead = false;
  s->pins = 0;
  hash_insert (c, s);
  lru_append (c, s);
  pin (c, op, s);

  mutex_unlock (c->mutex);
  r = storage_pread (c->setup.storage, s->data, c->slice_size, host, e);
  mutex_lock (c->mutex);

  s->loading = false;
  pthread_cond_broadcast (&c->changed);
  if (r == 0)
    return 0;
  /* Others that wait for it look it up again, and try themselves.  Its table
   * may have gone meanwhile, and the slice with it.
   */
  if (!s->dead)
    kill_slice (c, s);
  return error_prefix (e, "%s at 0x%" PRIx64, c->setup.kinds[kind], host);
}

int
slices_get_locked (struct slice_cache *c, struct slice_op *op, unsigned kind,
                   uint64_t host, struct slice **r, struct error *e)
{
  struct slice *s;

  host = round_down (host, c->slice_size);
  s = lookup (c, host);
  if (!s)
    return load_locked (c, op, kind, host, e);
  if (s->loading) {
    mutex_wait (c->mutex, &c->changed);
    return 0;
  }
  *r = s;
  if (s->kind != kind)
    return SLICE_OTHER_KIND;
  if (s != c->lru_last) {
    lru_remove (c, s);
    lru_append (c, s);
  }
  return 1;
}

int
slices_make_room_locked (struct slice_cache *c, size_t nr, struct error *e)
{
  if (nr_dirty (c) + nr <= c->max_slices / 2)
    return 1;
  return slices_epoch_locked (c, e) == -1 ? -1 : 0;
}

void
slice_dirty_locked (struct slice_cache *c, struct slice *s)
{
  assert (!s->loading);
  if (s->dirty)
    return;
  s->dirty = true;
  c->nr_dirty[s->kind]++;
}

void
slices_drop_locked (struct slice_cache *c, uint64_t host, uint64_t length)
{
  for (uint64_t o = host; o < host + length; o += c->slice_size) {
    struct slice *s = lookup (c, o);

    if (s)
      kill_slice (c, s);
  }
}

void
slices_drop_all_locked (struct slice_cache *c)
{
  struct slice *s, *next;

  for (s = c->lru_first; s; s = next) {
    next = s->lru_next;
    assert (!s->dirty && s->pins == 0);
    kill_slice (c, s);
  }
}

void
slices_forget_locked (struct slice_cache *c)
{
  while (c->lru_first) {
    assert (!c->lru_first->loading && c->lru_first->pins == 0);
    kill_slice (c, c->lru_first);
  }
}

bool
slices_cached_locked (struct slice_cache *c, uint64_t host, uint64_t length)
{
  for (uint64_t o = round_down (host, c->slice_size); o < host + length;
       o += c->slice_size)
    if (lookup (c, o))
      return true;
  return false;
}

/* ---- epochs ---- */

static int
by_host (const void *a, const void *b)
{
  const struct slice *const *x = a, *const *y = b;

  return (*x)->host < (*y)->host ? -1 : (*x)->host > (*y)->host;
}

static size_t
nr_dirty_of (const struct slice_cache *c, unsigned kinds)
{
  size_t nr = 0;

  for (unsigned i = 0; i < c->setup.nr_kinds; ++i)
    if (kinds & 1u << i)
      nr += c->nr_dirty[i];
  return nr;
}

int
slices_collect_locked (struct slice_cache *c, unsigned kinds,
                       struct slice_batch *b, struct error *e)
{
  size_t nr = nr_dirty_of (c, kinds);

  *b = (struct slice_batch) { .nr = 0 };
  if (nr == 0)
    return 0;
  b->slices = malloc (nr * sizeof b->slices[0]);
  b->data = malloc (nr * c->slice_size);
  if (!b->slices || !b->data)
    return error_nomem (e, "writing out tables", nr * c->slice_size);
  for (struct slice *s = c->lru_first; s; s = s->lru_next) {
    if (!s->dirty || !(kinds & 1u << s->kind))
      continue;
    b->slices[b->nr++] = s;
    s->pins++;
    s->dirty = false;
    c->nr_dirty[s->kind]--;
  }
  qsort (b->slices, b->nr, sizeof b->slices[0], by_host);
  for (size_t i = 0; i < b->nr; ++i)
    memcpy (b->data + i * c->slice_size, b->slices[i]->data, c->slice_size);
  return 0;
}

/* Neighbours on disk are neighbours in the buffer: one write for each run. */
int
slices_write (const struct slice_cache *c, const struct slice_batch *b,
              struct error *e)
{
  uint32_t size = c->slice_size;
  size_t i, j;

  for (i = 0; i < b->nr; i = j) {
    for (j = i + 1; j < b->nr; ++j)
      if (b->slices[j]->host != b->slices[j - 1]->host + size)
        break;
    if (storage_pwrite (c->setup.storage, b->data + i * size,
                        (j - i) * size, b->slices[i]->host, 0, e) == -1)
      return error_prefix (e, "writing out tables");
  }
  return 0;
}

int
slices_write_out (const struct slice_cache *c, const struct slice_batch *b,
                  struct error *e)
{
  if (b->nr == 0)
    return 0;
  if (slices_write (c, b, e) == -1)
    return -1;
  return storage_flush (c->setup.storage, e);
}

void
slices_batch_end_locked (struct slice_cache *c, struct slice_batch *b,
                         bool failed)
{
  for (size_t i = 0; i < b->nr; ++i) {
    if (failed && !b->slices[i]->dead)
      slice_dirty_locked (c, b->slices[i]);
    unpin (c, b->slices[i]);
  }
  free (b->slices);
  free (b->data);
  *b = (struct slice_batch) { .nr = 0 };
}

static int
run_epoch_locked (struct slice_cache *c, struct error *e) REQUIRES (c->mutex)
{
  uint64_t number = ++c->epochs_started;
  int r;

  c->epoch_running = true;
  r = c->setup.epoch (c->setup.owner, e);
  if (r == 0)
    c->epochs_done = number;
  c->epoch_running = false;
  pthread_cond_broadcast (&c->changed);
  return r;
}

/* An epoch that is running has begun too early for the caller: it waits for
 * the next one, which serves all that wait.
 */
int
slices_epoch_locked (struct slice_cache *c, struct error *e)
{
  uint64_t ticket = c->epochs_started + 1;

  while (c->epochs_done < ticket) {
    if (c->epoch_running)
      mutex_wait (c->mutex, &c->changed);
    else if (run_epoch_locked (c, e) == -1)
      return -1;
  }
  return 0;
}

static bool
pending_locked (const struct slice_cache *c) REQUIRES (c->mutex)
{
  return c->epoch_running || slices_dirty_locked (c);
}

bool
slices_pending (struct slice_cache *c)
{
  bool r;

  mutex_lock (c->mutex);
  r = pending_locked (c);
  mutex_unlock (c->mutex);
  return r;
}

int
slices_flush (struct slice_cache *c, struct error *e)
{
  bool pending;
  int r = 0;

  mutex_lock (c->mutex);
  pending = pending_locked (c);
  if (pending)
    r = slices_epoch_locked (c, e);
  mutex_unlock (c->mutex);
  /* Only guest data may be waiting; several threads do this side by side. */
  return pending ? r : storage_flush (c->setup.storage, e);
}
