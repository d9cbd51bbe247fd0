/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A disk of which one request fails, and an allocator of which one call does.
 * What was not flushed may be lost in a crash, and some of it is for good when
 * a flush fails, though reads still show it.
 */

#ifndef NBDIMG_FAILING_DISK_H
#define NBDIMG_FAILING_DISK_H

#include <errno.h>

#include "tests/unit/qcow2-fixture.h"

enum failure {
  FAIL_EIO,                     /* nothing is done */
  FAIL_SHORT,                   /* the first half is done, then ENOSPC */
  FAIL_DONE,                    /* all is done, but the answer is an error */
  FAIL_FOR_GOOD,                /* and everything after it too */
  FAIL_MEMORY,                  /* not a request, but an allocation */
  NR_FAILURES,
};
static const char *const failure_names[NR_FAILURES] = {
  "an error", "a short write", "a wrong error", "a disk that is gone",
  "out of memory",
};

/* ---- allocations that fail ---- */

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define CAN_FAIL_MALLOC false   /* the sanitizer has its own malloc */
#elif !defined __GLIBC__ || defined __clang__
#define CAN_FAIL_MALLOC false
#else
#define CAN_FAIL_MALLOC true
#endif

/* Only while the driver runs, not what the test and its storages need. */
static bool counting;
static uint64_t nr_allocations, failing_allocation;

#if CAN_FAIL_MALLOC
extern void *__libc_malloc (size_t);
extern void *__libc_calloc (size_t, size_t);
extern void *__libc_realloc (void *, size_t);

static bool
allocation_fails (void)
{
  if (!counting || ++nr_allocations != failing_allocation)
    return false;
  errno = ENOMEM;
  return true;
}

__attribute__ ((visibility ("default"))) void *
malloc (size_t size)
{
  return allocation_fails () ? NULL : __libc_malloc (size);
}

__attribute__ ((visibility ("default"))) void *
calloc (size_t nr, size_t size)
{
  return allocation_fails () ? NULL : __libc_calloc (nr, size);
}

__attribute__ ((visibility ("default"))) void *
realloc (void *p, size_t size)
{
  return allocation_fails () ? NULL : __libc_realloc (p, size);
}
#endif

/* ---- a disk that fails ---- */

struct write {
  uint64_t offset, length;
  uint8_t *data;                /* owned; NULL = zeroes */
  bool truncate;                /* to LENGTH, instead */
};

struct disk {
  struct wrapper wrapper;       /* around what reads show */
  struct storage *durable;      /* owned */
  struct write *pending;        /* owned; not flushed yet */
  size_t nr_pending;
};

static enum failure failure;
static uint64_t nr_requests, failing_request, random_state;
static bool hit, hit_change, flush_failed;

/* Number k, or one after it when the disk is gone. */
static bool
request_fails (bool change)
{
  if (!counting || failure == FAIL_MEMORY)
    return false;
  nr_requests++;
  if (failing_request == 0 || nr_requests < failing_request
      || (nr_requests > failing_request && failure != FAIL_FOR_GOOD))
    return false;
  hit = true;
  hit_change = hit_change || change;
  return true;
}

static int
fail (struct error *e)
{
  return error_set (e, failure == FAIL_SHORT ? ENOSPC : EIO,
                    "fault of a test");
}

static void
apply (struct storage *st, const struct write *w)
{
  struct error e = ERROR_INIT;

  if (w->truncate)
    unit_must (storage_truncate (st, w->length, &e), &e);
  else if (w->data)
    unit_must (storage_pwrite (st, w->data, w->length, w->offset, 0, &e), &e);
  else
    unit_must (storage_zero (st, w->offset, w->length, 0, &e), &e);
}

/* All of it; or, ODDS out of 4 of it, and the rest is lost. */
static void
settle (struct disk *d, unsigned odds)
{
  for (size_t i = 0; i < d->nr_pending; ++i) {
    if (random_below (&random_state, 4) < odds)
      apply (d->durable, &d->pending[i]);
    free (d->pending[i].data);
  }
  d->nr_pending = 0;
}

static void
add (struct disk *d, const struct write *w)
{
  d->pending = realloc (d->pending,
                        (d->nr_pending + 1) * sizeof d->pending[0]);
  if (!d->pending)
    abort ();
  d->pending[d->nr_pending++] = *w;
  apply (d->wrapper.inner, w);
}

static void
change (struct disk *d, const void *data, uint64_t length, uint64_t offset)
{
  struct write w = { .offset = offset, .length = length };
  bool was_counting = counting;

  counting = false;
  if (length) {
    if (data) {
      w.data = unit_alloc (length);
      memcpy (w.data, data, length);
    }
    add (d, &w);
  }
  counting = was_counting;
  wrapper_note_growth (&d->wrapper.base);
}

/* DATA NULL = zeroes. */
static int
disk_change (struct storage *st, const void *data, uint64_t length,
             uint64_t offset, unsigned flags, struct error *e)
{
  struct disk *d = (struct disk *) st;
  bool fails = request_fails (true);

  if (!fails || failure == FAIL_DONE)
    change (d, data, length, offset);
  else if (failure == FAIL_SHORT)
    change (d, data, round_down (length / 2, 512), offset);
  if (fails)
    return fail (e);
  return flags & STORAGE_FUA ? storage_flush (st, e) : 0;
}

static int
disk_pwrite (struct storage *st, const void *buf, size_t len, uint64_t offset,
             unsigned flags, struct error *e)
{
  return disk_change (st, buf, len, offset, flags, e);
}

static int
disk_zero (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  return disk_change (st, NULL, len, offset, flags, e);
}

/* What is trimmed reads as zeroes, or still as before. */
static int
disk_trim (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  (void) flags;
  if (request_fails (false))
    return fail (e);
  if (random_below (&random_state, 2))
    change ((struct disk *) st, NULL, len, offset);
  return 0;
}

static int
disk_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
            struct error *e)
{
  bool was_counting = counting;
  int r;

  if (request_fails (false))
    return fail (e);
  counting = false;
  r = storage_pread (wrapper_inner (st), buf, len, offset, e);
  counting = was_counting;
  return r;
}

static int
disk_flush (struct storage *st, struct error *e)
{
  bool was_counting = counting;
  bool fails = request_fails (true);

  counting = false;
  settle ((struct disk *) st, fails && failure != FAIL_DONE ? 2 : 4);
  counting = was_counting;
  flush_failed = flush_failed || fails;
  return fails ? fail (e) : 0;
}

static int
disk_truncate (struct storage *st, uint64_t size, struct error *e)
{
  const struct write w = { .length = size, .truncate = true };
  bool fails = request_fails (true), was_counting = counting;

  counting = false;
  if (!fails || failure == FAIL_DONE)
    add ((struct disk *) st, &w);
  counting = was_counting;
  wrapper_copy_size (st);
  return fails ? fail (e) : 0;
}

static void
disk_close (struct storage *st)
{
  struct disk *d = (struct disk *) st;

  settle (d, 0);
  free (d->pending);
  storage_close (d->durable);
  wrapper_free (st);
}

static const struct storage_ops disk_ops = {
  .driver = "a disk that fails",
  .close = disk_close,
  .pread = disk_pread,
  .pwrite = disk_pwrite,
  .zero = disk_zero,
  .trim = disk_trim,
  .flush = disk_flush,
  .truncate = disk_truncate,
  WRAPPER_OPS,
};

static struct storage *
new_disk (const char *name)
{
  struct error e = ERROR_INIT;
  struct storage *inner = storage_memory_new (name, 0, &e);
  struct disk *d;

  unit_must (inner ? 0 : -1, &e);
  d = wrapper_new (&disk_ops, sizeof *d, inner, &e);
  unit_must (d ? 0 : -1, &e);
  d->durable = storage_memory_new (name, 0, &e);
  unit_must (d->durable ? 0 : -1, &e);
  return &d->wrapper.base;
}

/* What a crash leaves; owned by the disk. */
static struct storage *
after_crash (struct storage *st)
{
  if (!st)
    return NULL;
  settle ((struct disk *) st, 2);
  return ((struct disk *) st)->durable;
}

#endif /* NBDIMG_FAILING_DISK_H */
