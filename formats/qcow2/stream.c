/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Reading ahead: see stream.h.  Layer: formats.
 *
 * Locking: the mutex guards the ring.  A slot belongs to the thread that fills
 * it while it is SLOT_LOADING, to the caller while it is SLOT_READY and the
 * first, else to nobody.  It is not held during a read.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/lock.h"
#include "formats/qcow2/stream.h"

enum {
  MAX_SLOTS = 8,
  NR_THREADS = 4,
  /* Fewer tables are read by the caller itself. */
  MIN_TABLES_FOR_THREADS = 16,
};

/* Tables up to this size that lie side by side are read together. */
#define SLOT_SIZE (256 * KiB)

/* From this size on it is cheaper to ask for a hole than to read it. */
#define MIN_SIZE_FOR_HOLES (64 * KiB)

enum slot_state { SLOT_FREE, SLOT_LOADING, SLOT_READY };

struct slot {
  enum slot_state state;
  size_t first, nr;             /* tables in it */
  bool zero;                    /* a hole: buf was not filled */
  struct error error;           /* of the read */
  uint8_t *buf;                 /* owned */
};

struct table_stream {
  /* fixed */
  struct storage *st;
  size_t size, nr;
  uint64_t (*host) (const void *opaque, size_t i);
  const void *opaque;
  size_t slot_tables;           /* of a full slot */
  unsigned nr_slots, nr_threads;
  pthread_t threads[NR_THREADS];

  struct mutex mutex;
  pthread_cond_t changed;
  /* guarded by mutex */
  struct slot slots[MAX_SLOTS];
  size_t next;                  /* first table that nobody took yet */
  unsigned fill;                /* the slot that it goes to */
  bool stop;

  /* the caller's */
  unsigned current;             /* its slot */
  size_t at;                    /* next table in it */
};

/* ---- filling ---- */

/* The tables from FIRST on that lie side by side. */
static size_t
run_length (const struct table_stream *s, size_t first)
{
  uint64_t host = s->host (s->opaque, first);
  size_t n = 1;

  while (n < s->slot_tables && first + n < s->nr
         && s->host (s->opaque, first + n) == host + n * s->size)
    ++n;
  return n;
}

static bool
is_hole (const struct table_stream *s, uint64_t host, uint64_t len)
{
  uint64_t file = storage_size (s->st);
  struct storage_extent extent;
  struct error ignored = ERROR_INIT;
  size_t nr;

  if (s->size < MIN_SIZE_FOR_HOLES || !s->st->caps.is_local_file)
    return false;
  if (host >= file)
    return true;
  len = min_u64 (len, file - host);
  return storage_extents (s->st, host, len, &extent, 1, &nr, &ignored) == 0
    && nr == 1 && extent.kind != EXTENT_DATA && extent.length >= len;
}

/* Take the next slot, if there is a table left and the slot is free.  NULL =
 * not now.
 */
static struct slot *
take_slot_locked (struct table_stream *s) REQUIRES (s->mutex)
{
  struct slot *slot = &s->slots[s->fill];

  if (s->next == s->nr || slot->state != SLOT_FREE)
    return NULL;
  slot->state = SLOT_LOADING;
  slot->first = s->next;
  slot->nr = run_length (s, s->next);
  s->next += slot->nr;
  s->fill = (s->fill + 1) % s->nr_slots;
  return slot;
}

static void
fill_slot (struct table_stream *s, struct slot *slot)
{
  uint64_t host = s->host (s->opaque, slot->first);
  size_t len = slot->nr * s->size;

  error_clear (&slot->error);
  slot->zero = is_hole (s, host, len);
  if (!slot->zero)
    storage_pread (s->st, slot->buf, len, host, &slot->error);
  mutex_lock (&s->mutex);
  slot->state = SLOT_READY;
  pthread_cond_broadcast (&s->changed);
  mutex_unlock (&s->mutex);
}

static void *
reader_thread (void *arg)
{
  struct table_stream *s = arg;
  struct slot *slot;

  for (;;) {
    slot = NULL;
    mutex_lock (&s->mutex);
    while (!s->stop && s->next < s->nr && !(slot = take_slot_locked (s)))
      mutex_wait (&s->mutex, &s->changed);
    mutex_unlock (&s->mutex);
    if (!slot)
      return NULL;
    fill_slot (s, slot);
  }
}

/* ---- the caller's side ---- */

static int
alloc_slots (struct table_stream *s, size_t memory, struct error *e)
{
  size_t slot_size = s->size > SLOT_SIZE ? s->size : SLOT_SIZE;

  s->slot_tables = slot_size / s->size;
  s->nr_slots = (unsigned) min_u64 (max_u64 (memory / slot_size, 2),
                                    MAX_SLOTS);
  for (unsigned i = 0; i < s->nr_slots; ++i) {
    s->slots[i].buf = malloc (slot_size);
    if (!s->slots[i].buf)
      return error_nomem (e, "tables", slot_size);
  }
  return 0;
}

/* A thread that cannot be had is done without. */
static void
start_threads (struct table_stream *s)
{
  if (s->nr < MIN_TABLES_FOR_THREADS)
    return;
  while (s->nr_threads < NR_THREADS
         && pthread_create (&s->threads[s->nr_threads], NULL, reader_thread,
                            s) == 0)
    s->nr_threads++;
}

struct table_stream *
table_stream_new (struct storage *st, size_t size, size_t nr,
                  uint64_t (*host) (const void *opaque, size_t i),
                  const void *opaque, size_t memory, struct error *e)
{
  struct table_stream *s = calloc (1, sizeof *s);

  if (!s) {
    error_nomem (e, "a table stream", sizeof *s);
    return NULL;
  }
  s->st = st;
  s->size = size;
  s->nr = nr;
  s->host = host;
  s->opaque = opaque;
  mutex_init (&s->mutex);
  pthread_cond_init (&s->changed, NULL);
  if (alloc_slots (s, memory, e) == -1) {
    table_stream_free (s);
    return NULL;
  }
  start_threads (s);
  return s;
}

void
table_stream_free (struct table_stream *s)
{
  if (!s)
    return;
  mutex_lock (&s->mutex);
  s->stop = true;
  pthread_cond_broadcast (&s->changed);
  mutex_unlock (&s->mutex);
  for (unsigned i = 0; i < s->nr_threads; ++i)
    pthread_join (s->threads[i], NULL);
  for (unsigned i = 0; i < s->nr_slots; ++i)
    free (s->slots[i].buf);
  pthread_cond_destroy (&s->changed);
  mutex_destroy (&s->mutex);
  free (s);
}

/* Give the caller's slot back if it was used up, and wait for the next one.
 * Returns NULL when there are no more tables.
 */
static struct slot *
current_slot (struct table_stream *s)
{
  struct slot *slot = &s->slots[s->current], *mine = NULL;

  mutex_lock (&s->mutex);
  if (slot->state == SLOT_READY && s->at == slot->nr) {
    slot->state = SLOT_FREE;
    s->current = (s->current + 1) % s->nr_slots;
    s->at = 0;
    slot = &s->slots[s->current];
    pthread_cond_broadcast (&s->changed);
  }
  while (slot->state == SLOT_LOADING
         || (slot->state == SLOT_FREE && s->next < s->nr
             && s->nr_threads > 0))
    mutex_wait (&s->mutex, &s->changed);
  if (slot->state == SLOT_FREE)
    mine = take_slot_locked (s);
  mutex_unlock (&s->mutex);
  if (mine)
    fill_slot (s, mine);
  return slot->state == SLOT_READY ? slot : NULL;
}

int
table_stream_next (struct table_stream *s, size_t *i, const uint8_t **table,
                   struct error *e)
{
  struct slot *slot = current_slot (s);
  size_t at = s->at;

  if (!slot)
    return 0;
  s->at++;
  *i = slot->first + at;
  if (slot->error.err)
    return error_set (e, slot->error.err, "%s", slot->error.text);
  *table = slot->zero ? NULL : slot->buf + at * s->size;
  return 1;
}
