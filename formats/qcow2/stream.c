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
  MAX_SLOTS = 16,
  NR_THREADS = 8,
};

/* As many tables as fit, but at least one.  A thread fills a slot by itself,
 * what lies side by side in one request.
 */
#define SLOT_SIZE (256 * KiB)
#define MAX_SLOT_TABLES (SLOT_SIZE / SECTOR_SIZE)

/* From this size on it is cheaper to ask for a hole than to read it. */
#define MIN_SIZE_FOR_HOLES (64 * KiB)

enum slot_state { SLOT_FREE, SLOT_LOADING, SLOT_READY };

struct slot {
  enum slot_state state;
  size_t first, nr;             /* tables in it */
  struct error error;           /* of the first read that failed */
  bool bad[MAX_SLOT_TABLES];    /* could not be read */
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
  uint64_t hole_start, hole_end;        /* bytes of the file */
  bool stop;

  /* the caller's */
  unsigned current;             /* its slot */
  bool have;                    /* that slot is ready */
  size_t at;                    /* next table in it */
};

/* ---- filling ---- */

/* The tables of SLOT from AT on that lie side by side. */
static size_t
run_length (const struct table_stream *s, const struct slot *slot, size_t at)
{
  uint64_t host = s->host (s->opaque, slot->first + at);
  size_t n = 1;

  while (at + n < slot->nr
         && s->host (s->opaque, slot->first + at + n) == host + n * s->size)
    ++n;
  return n;
}

/* Is all of [host, host+size) known to be a hole?  Tables mostly come in order,
 * so that one question answers for all that lie in the same hole.
 */
static bool
is_hole_locked (struct table_stream *s, uint64_t host) REQUIRES (s->mutex)
{
  uint64_t file = storage_size (s->st);
  struct storage_extent extent;
  struct error ignored = ERROR_INIT;
  size_t nr;

  if (s->size < MIN_SIZE_FOR_HOLES || !s->st->caps.is_local_file)
    return false;
  if (host >= file)
    return true;
  if (host >= s->hole_start && host + s->size <= s->hole_end)
    return true;
  if (storage_extents (s->st, host, file - host, &extent, 1, &nr,
                       &ignored) == -1 || extent.kind == EXTENT_DATA)
    return false;
  s->hole_start = host;
  s->hole_end = extent.length < file - host ? host + extent.length
    : UINT64_MAX;
  return host + s->size <= s->hole_end;
}

static void
skip_holes_locked (struct table_stream *s) REQUIRES (s->mutex)
{
  while (s->next < s->nr && is_hole_locked (s, s->host (s->opaque, s->next)))
    s->next++;
}

/* Take the next slot, if there is a table left and the slot is free.  NULL =
 * not now.
 */
static struct slot *
take_slot_locked (struct table_stream *s) REQUIRES (s->mutex)
{
  struct slot *slot = &s->slots[s->fill];

  if (slot->state != SLOT_FREE)
    return NULL;
  skip_holes_locked (s);
  if (s->next == s->nr) {
    pthread_cond_broadcast (&s->changed);
    return NULL;
  }
  slot->state = SLOT_LOADING;
  slot->first = s->next;
  slot->nr = min_u64 (s->slot_tables, s->nr - s->next);
  s->next += slot->nr;
  s->fill = (s->fill + 1) % s->nr_slots;
  return slot;
}

static void
read_tables (struct table_stream *s, struct slot *slot)
{
  struct error e = ERROR_INIT;
  size_t n;

  error_clear (&slot->error);
  for (size_t at = 0; at < slot->nr; at += n) {
    bool bad;

    n = run_length (s, slot, at);
    bad = storage_pread (s->st, slot->buf + at * s->size, n * s->size,
                         s->host (s->opaque, slot->first + at), &e) == -1;
    memset (slot->bad + at, bad, n);
    if (bad && !slot->error.err)
      slot->error = e;
    error_clear (&e);
  }
}

static void
fill_slot (struct table_stream *s, struct slot *slot)
{
  read_tables (s, slot);
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

/* What fits into one slot is read by the caller itself, and a thread that
 * cannot be had is done without.
 */
static void
start_threads (struct table_stream *s)
{
  if (s->nr <= s->slot_tables)
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

/* The slot with the caller's next table.  One that was used up is given back,
 * and the next one waited for.  NULL = there are no more tables.
 */
static struct slot *
current_slot (struct table_stream *s)
{
  struct slot *slot = &s->slots[s->current], *mine = NULL;

  if (s->have && s->at < slot->nr)
    return slot;
  mutex_lock (&s->mutex);
  if (s->have) {
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
  s->have = slot->state == SLOT_READY;
  return s->have ? slot : NULL;
}

int
table_stream_next (struct table_stream *s, size_t *i, const uint8_t **table,
                   struct error *e)
{
  struct slot *slot = current_slot (s);
  size_t at;

  if (!slot)
    return 0;
  at = s->at++;
  *i = slot->first + at;
  if (slot->bad[at])
    return error_set (e, slot->error.err, "%s", slot->error.text);
  *table = slot->buf + at * s->size;
  return 1;
}
