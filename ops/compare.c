/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* compare: do two disks have the same content, and where do they begin to
 * differ?
 *
 * Layer: ops.  Locking: the mutex of the run guards what its comment says; no
 * data is read while it is held.
 *
 * Workers take batches of segments in order of their offset.  A segment is a
 * range in which each image is of one kind; what is zero in both, or the same
 * place of one file, is never put into a batch.  The first event (a difference,
 * a failed read) ends the giving out of batches; since lower ones were given
 * out before, the lowest event is known when all workers are done.  What lies
 * above it does not count, not even a failure.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/lock.h"
#include "ops/ops.h"

/* Read in pieces that stay in a core's second level cache, both of them: the
 * comparison then costs no memory traffic of its own.
 */
enum { PIECE = 256 * 1024 };

/* A batch is large enough that the mutex does not matter, and small enough
 * that workers finish at about the same time.
 */
enum { BATCH_BYTES = 1024 * 1024, BATCH_SEGMENTS = 64 };

enum { MIN_WORKERS = 2, REMOTE_WORKERS = 4, MAX_WORKERS = 8 };

struct side {
  struct image *im;
  uint64_t size;
  struct image_extent extent;   /* ends at end */
  uint64_t end;
};

struct segment {
  uint64_t offset, length;
  bool zero[2];                 /* reads as zeroes, need not be read */
};

struct batch {
  struct segment segments[BATCH_SEGMENTS];
  size_t nr;
};

enum event_kind {
  EVENT_NONE, EVENT_CONTENT, EVENT_ALLOCATION, EVENT_READ, EVENT_EXTENTS,
  EVENT_CANCEL,
};

struct event {
  enum event_kind kind;
  uint64_t offset;
  int image;                    /* EVENT_READ, EVENT_EXTENTS: 1 or 2 */
  struct error error;
};

struct run {
  /* fixed */
  bool strict;
  uint64_t total;
  struct op_ctx *ctx;
  struct image *images[2];

  struct mutex mutex;
  /* guarded by mutex */
  struct side sides[2];
  uint64_t position;            /* all below was skipped or given out */
  struct event first;           /* the lowest so far */

  uint64_t limit;               /* atomic: first.offset, or UINT64_MAX */
};

/* ---- events ---- */

static void
add_event_locked (struct run *r, const struct event *ev)
  REQUIRES (&r->mutex)
{
  if (r->first.kind != EVENT_NONE && r->first.offset <= ev->offset)
    return;
  r->first = *ev;
  __atomic_store_n (&r->limit, ev->offset, __ATOMIC_RELAXED);
}

static void
add_event (struct run *r, const struct event *ev)
{
  mutex_lock (&r->mutex);
  add_event_locked (r, ev);
  mutex_unlock (&r->mutex);
}

static bool
is_beyond_limit (const struct run *r, uint64_t offset)
{
  return offset >= __atomic_load_n (&r->limit, __ATOMIC_RELAXED);
}

/* ---- giving out work ---- */

/* Know what SIDE has at the position.  Behind its end a disk is zero.
 *
 * Strict mode compares what the tables of an image say.  A hole of the file in
 * an allocated cluster is no difference: a copy of the file may have others.
 */
static int
look (struct run *r, int i)
  REQUIRES (&r->mutex)
{
  struct side *side = &r->sides[i];
  struct event ev = { .kind = EVENT_EXTENTS, .offset = r->position,
                      .image = i + 1, .error = ERROR_INIT };
  unsigned flags = r->strict ? EXTENTS_METADATA : 0;

  if (r->position < side->end)
    return 0;
  if (r->position >= side->size) {
    side->extent = (struct image_extent) { .zero = true };
    side->end = r->total;
    return 0;
  }
  if (image_extents (side->im, r->position, side->size - r->position, flags,
                     &side->extent, &ev.error) == -1) {
    add_event_locked (r, &ev);
    return -1;
  }
  side->end = r->position + side->extent.length;
  return 0;
}

static bool
same_status (const struct image_extent *a, const struct image_extent *b)
{
  return a->data == b->data && a->zero == b->zero && a->present == b->present
    && a->has_host == b->has_host && a->compressed == b->compressed;
}

/* Where the guest's byte 0 would lie, if all of the disk lay as this extent
 * does (wraps).
 */
static uint64_t
displacement (const struct side *s)
{
  return s->extent.host + s->extent.length - s->end;
}

/* Are these the same bytes of the same file, as where two overlays show their
 * base?  Windows of a file (slice.c) have its identity and other offsets.
 */
static bool
same_place (const struct side *a, const struct side *b)
{
  const struct image *x = a->extent.layer, *y = b->extent.layer;

  return a->extent.has_host && b->extent.has_host
    && displacement (a) == displacement (b)
    && strcmp (x->storage->ops->driver, "file") == 0
    && strcmp (y->storage->ops->driver, "file") == 0
    && !x->data_file && !y->data_file
    && storage_same (x->storage, y->storage);
}

static bool
need_not_read (const struct side *a, const struct side *b)
{
  return (a->extent.zero && b->extent.zero) || same_place (a, b);
}

/* Add what begins at the position, or step over it. */
static int
add_segment (struct run *r, struct batch *b, uint64_t room, uint64_t *added)
  REQUIRES (&r->mutex)
{
  const struct side *s = r->sides;
  struct event ev = { .kind = EVENT_ALLOCATION, .offset = r->position,
                      .error = ERROR_INIT };
  uint64_t length;

  *added = 0;
  if (look (r, 0) == -1 || look (r, 1) == -1)
    return -1;
  if (r->strict && !same_status (&s[0].extent, &s[1].extent)) {
    add_event_locked (r, &ev);
    return -1;
  }
  length = min_u64 (s[0].end, s[1].end) - r->position;
  if (!need_not_read (&s[0], &s[1])) {
    length = *added = min_u64 (length, room);
    b->segments[b->nr++] = (struct segment) {
      .offset = r->position, .length = length,
      .zero = { s[0].extent.zero, s[1].extent.zero },
    };
  }
  r->position += length;
  return 0;
}

static void
fill_batch_locked (struct run *r, struct batch *b)
  REQUIRES (&r->mutex)
{
  struct event cancelled = { .kind = EVENT_CANCEL, .error = ERROR_INIT };
  uint64_t bytes = 0, added;

  b->nr = 0;
  while (r->position < r->total && r->first.kind == EVENT_NONE
         && bytes < BATCH_BYTES && b->nr < BATCH_SEGMENTS) {
    if (op_cancelled (r->ctx))
      add_event_locked (r, &cancelled);
    else if (add_segment (r, b, BATCH_BYTES - bytes, &added) == 0)
      bytes += added;
  }
  if (r->ctx->progress)
    r->ctx->progress (r->ctx->opaque, r->position, r->total);
}

/* The progress callback runs under the mutex too, so that it never goes
 * backwards.
 */
static bool
next_batch (struct run *r, struct batch *b)
{
  mutex_lock (&r->mutex);
  fill_batch_locked (r, b);
  mutex_unlock (&r->mutex);
  return b->nr > 0;
}

/* ---- comparing ---- */

/* The number of bytes from the start that are the same. */
static size_t
same_bytes (const uint8_t *a, const uint8_t *b, size_t len)
{
  const size_t block = 512;
  size_t i = 0;

  if (memcmp (a, b, len) == 0)
    return len;
  while (len - i > block && memcmp (a + i, b + i, block) == 0)
    i += block;
  while (a[i] == b[i])
    i++;
  return i;
}

static size_t
zero_bytes (const uint8_t *p, size_t len)
{
  const size_t block = 512;
  size_t i = 0;

  if (is_zero (p, len))
    return len;
  while (len - i > block && is_zero (p + i, block))
    i += block;
  while (!p[i])
    i++;
  return i;
}

static int
read_side (struct run *r, int i, uint8_t *buf, size_t len, uint64_t offset)
{
  struct event ev = { .kind = EVENT_READ, .offset = offset, .image = i + 1,
                      .error = ERROR_INIT };

  if (image_read (r->images[i], buf, len, offset, &ev.error) == 0)
    return 0;
  add_event (r, &ev);
  return -1;
}

static int
compare_piece (struct run *r, const struct segment *s, uint64_t offset,
               size_t len, uint8_t *bufs[2])
{
  struct event ev = { .kind = EVENT_CONTENT, .error = ERROR_INIT };
  size_t same;

  for (int i = 0; i < 2; ++i)
    if (!s->zero[i] && read_side (r, i, bufs[i], len, offset) == -1)
      return -1;
  if (s->zero[0] || s->zero[1])
    same = zero_bytes (bufs[s->zero[0] ? 1 : 0], len);
  else
    same = same_bytes (bufs[0], bufs[1], len);
  if (same == len)
    return 0;
  ev.offset = offset + same;
  add_event (r, &ev);
  return -1;
}

static int
compare_segment (struct run *r, const struct segment *s, uint8_t *bufs[2])
{
  uint64_t end = s->offset + s->length;
  uint64_t n;

  for (uint64_t offset = s->offset; offset < end; offset += n) {
    n = min_u64 (PIECE, end - offset);
    if (is_beyond_limit (r, offset)
        || compare_piece (r, s, offset, (size_t) n, bufs) == -1)
      return -1;
  }
  return 0;
}

static void
compare_batch (struct run *r, const struct batch *b, uint8_t *bufs[2])
{
  for (size_t i = 0; i < b->nr; ++i)
    if (compare_segment (r, &b->segments[i], bufs) == -1)
      return;
}

static void *
worker (void *opaque)
{
  struct run *r = opaque;
  CLEANUP_FREE uint8_t *a = malloc (PIECE);
  CLEANUP_FREE uint8_t *b = malloc (PIECE);
  uint8_t *bufs[2] = { a, b };
  struct event ev = { .kind = EVENT_CANCEL, .error = ERROR_INIT };
  struct batch batch;

  if (!a || !b) {
    error_nomem (&ev.error, "comparing", PIECE);
    add_event (r, &ev);
    return NULL;
  }
  while (next_batch (r, &batch))
    compare_batch (r, &batch, bufs);
  return NULL;
}

/* ---- the run ---- */

/* One for each processor.  An export answers more requests at a time than
 * there are processors to wait for it.
 */
static size_t
nr_workers (const struct run *r)
{
  long processors = sysconf (_SC_NPROCESSORS_ONLN);
  size_t n = processors > MIN_WORKERS ? (size_t) processors : MIN_WORKERS;

  for (int i = 0; i < 2; ++i)
    if (!r->images[i]->storage->caps.is_local_file && n < REMOTE_WORKERS)
      n = REMOTE_WORKERS;
  return n < MAX_WORKERS ? n : MAX_WORKERS;
}

/* The caller's thread is one of the workers: a thread that cannot be made is
 * only missed.
 */
static void
run_workers (struct run *r)
{
  pthread_t threads[MAX_WORKERS];
  size_t wanted = nr_workers (r) - 1, nr = 0;

  while (nr < wanted && pthread_create (&threads[nr], NULL, worker, r) == 0)
    nr++;
  worker (r);
  for (size_t i = 0; i < nr; ++i)
    pthread_join (threads[i], NULL);
}

/* What the lowest event means. */
static int
conclude (const struct run *r, struct compare_result *result, struct error *e)
{
  const struct event *ev = &r->first;

  switch (ev->kind) {
  case EVENT_NONE:
    result->verdict = COMPARE_SAME;
    return 0;
  case EVENT_CONTENT:
  case EVENT_ALLOCATION:
    result->verdict = ev->kind == EVENT_CONTENT ? COMPARE_CONTENT
      : COMPARE_ALLOCATION;
    result->offset = ev->offset;
    return 0;
  case EVENT_READ:
  case EVENT_EXTENTS:
    result->failed_image = ev->image;
    result->failed_extents = ev->kind == EVENT_EXTENTS;
    result->failed_offset = ev->offset;
    *e = ev->error;
    return -1;
  case EVENT_CANCEL:
    break;
  }
  if (ev->error.err) {
    *e = ev->error;
    return -1;
  }
  return error_set (e, ECANCELED, "compare was cancelled");
}

int
op_compare (struct image *a, struct image *b, const struct compare_opts *opts,
            struct compare_result *result, struct op_ctx *ctx,
            struct error *e)
{
  struct run r = {
    .strict = opts->strict,
    .total = max_u64 (image_size (a), image_size (b)),
    .ctx = ctx,
    .images = { a, b },
    .mutex = MUTEX_INIT,
    .sides = { { .im = a, .size = image_size (a) },
               { .im = b, .size = image_size (b) } },
    .limit = UINT64_MAX,
  };

  *result = (struct compare_result) {
    .verdict = COMPARE_SIZE,
    .size_differs = image_size (a) != image_size (b),
    .first_is_longer = image_size (a) > image_size (b),
  };
  if (opts->strict && result->size_differs)
    return 0;
  run_workers (&r);
  mutex_destroy (&r.mutex);
  return conclude (&r, result, e);
}
