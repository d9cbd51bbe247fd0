/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* bench: so many requests, so many at a time.
 *
 * Layer: ops.  Locking: struct bench has one mutex for what is next and what is
 * under way; it is not held during a request.  Each thread is one request at a
 * time, so that the depth is the number of threads.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
#include "common/lock.h"
#include "ops/ops.h"

/* O_DIRECT takes it without a copy. */
enum { BUFFER_ALIGNMENT = 4096 };

struct bench {
  /* fixed */
  struct image *image;
  const struct bench_opts *opts;
  const struct op_ctx *ctx;
  uint64_t size;                /* of the disk */

  struct mutex mutex;
  pthread_cond_t idle;          /* busy has become 0, or all is over */
  /* guarded by mutex */
  uint64_t left;                /* requests that nobody has taken */
  uint64_t offset;              /* of the next one */
  unsigned busy;                /* under way */
  bool flushing;                /* who drains: others take nothing */
  struct error error;           /* the first one */
};

struct worker {
  struct bench *b;
  pthread_t thread;
  uint8_t *buf;                 /* owned */
};

static void
fail_locked (struct bench *b, const struct error *e) REQUIRES (b->mutex)
{
  if (!b->error.err)
    b->error = *e;
}

static bool
flush_is_due (const struct bench *b)
{
  return b->opts->flush_interval && b->left < b->opts->count
    && b->left % b->opts->flush_interval == 0;
}

/* Wait until nothing is under way, and flush; or, without draining, flush
 * beside the others.
 */
static void
flush_locked (struct bench *b) REQUIRES (b->mutex)
{
  struct error e = ERROR_INIT;
  int r;

  b->flushing = !b->opts->no_drain;
  while (b->flushing && b->busy && !b->error.err)
    mutex_wait (&b->mutex, &b->idle);
  b->busy++;
  mutex_unlock (&b->mutex);
  r = image_flush (b->image, &e);
  mutex_lock (&b->mutex);
  b->busy--;
  if (r == -1)
    fail_locked (b, &e);
  b->flushing = false;
  pthread_cond_broadcast (&b->idle);
}

/* Take the next request: false = there is none.  A flush that is due comes
 * before it; the one who takes the request makes it.
 */
static bool
take_locked (struct bench *b, uint64_t *offset) REQUIRES (b->mutex)
{
  bool due;

  while (b->flushing && !b->error.err)
    mutex_wait (&b->mutex, &b->idle);
  if (b->error.err || b->left == 0)
    return false;
  if (op_cancelled (b->ctx)) {
    error_set (&b->error, ECANCELED, "bench was cancelled");
    return false;
  }
  due = flush_is_due (b);
  b->left--;
  *offset = b->offset;
  b->offset += b->opts->step;
  if (b->offset >= b->size && b->size)
    b->offset %= b->size;
  if (due)
    flush_locked (b);
  if (b->error.err)
    return false;
  b->busy++;
  return true;
}

static int
request (struct worker *w, uint64_t offset, struct error *e)
{
  const struct bench_opts *o = w->b->opts;

  return o->write
    ? image_write (w->b->image, w->buf, o->buffer_size, offset, 0, e)
    : image_read (w->b->image, w->buf, o->buffer_size, offset, e);
}

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  struct bench *b = w->b;
  uint64_t offset;

  mutex_lock (&b->mutex);
  while (take_locked (b, &offset)) {
    struct error e = ERROR_INIT;
    int r;

    mutex_unlock (&b->mutex);
    r = request (w, offset, &e);
    mutex_lock (&b->mutex);
    if (r == -1)
      fail_locked (b, &e);
    if (--b->busy == 0 || r == -1)
      pthread_cond_broadcast (&b->idle);
  }
  mutex_unlock (&b->mutex);
  return NULL;
}

static int
prepare (struct worker *w, struct bench *b, struct error *e)
{
  size_t len = max_u64 (b->opts->buffer_size, 1);

  w->b = b;
  if (posix_memalign ((void **) &w->buf, BUFFER_ALIGNMENT, len) != 0) {
    w->buf = NULL;
    return error_nomem (e, "buffers (fewer at a time, or smaller ones)", len);
  }
  memset (w->buf, (int) b->opts->pattern, len);
  return 0;
}

/* The threads, and after the last request the flush that is due then. */
static void
run (struct bench *b, struct worker *w, unsigned nr, uint64_t *nsec)
{
  struct timespec from, to;
  unsigned started;
  int err = 0;

  clock_gettime (CLOCK_MONOTONIC, &from);
  for (started = 0; started < nr && err == 0; started += err == 0)
    err = pthread_create (&w[started].thread, NULL, work, &w[started]);
  mutex_lock (&b->mutex);
  if (err && !b->error.err)
    error_errno (&b->error, err, "cannot start %u threads", nr);
  mutex_unlock (&b->mutex);
  for (unsigned i = 0; i < started; ++i)
    pthread_join (w[i].thread, NULL);
  mutex_lock (&b->mutex);
  if (!b->error.err && flush_is_due (b))
    flush_locked (b);
  mutex_unlock (&b->mutex);
  clock_gettime (CLOCK_MONOTONIC, &to);
  *nsec = (uint64_t) ((to.tv_sec - from.tv_sec) * 1000000000
                      + to.tv_nsec - from.tv_nsec);
}

int
op_bench (struct image *im, const struct bench_opts *opts, uint64_t *nsec,
          struct op_ctx *ctx, struct error *e)
{
  struct bench b = {
    .image = im, .opts = opts, .ctx = ctx, .size = image_size (im),
    .left = opts->count, .offset = opts->offset, .error = ERROR_INIT,
  };
  unsigned nr = (unsigned) min_u64 (opts->depth, opts->count);
  struct worker *w = calloc (nr + 1, sizeof *w);
  int r = 0;

  if (!w)
    return error_nomem (e, "threads", nr * sizeof *w);
  mutex_init (&b.mutex);
  pthread_cond_init (&b.idle, NULL);
  for (unsigned i = 0; r == 0 && i < nr; ++i)
    r = prepare (&w[i], &b, e);
  if (r == 0)
    run (&b, w, nr, nsec);
  for (unsigned i = 0; i < nr; ++i)
    free (w[i].buf);
  free (w);
  pthread_cond_destroy (&b.idle);
  mutex_destroy (&b.mutex);
  if (b.error.err)
    *e = b.error;
  return r == -1 || b.error.err ? -1 : 0;
}
