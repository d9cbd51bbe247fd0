/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A qcow2 image on memory, of any kind, for tests with threads and faults: the
 * storages below it, its backing and data file, and what a test may ask of it.
 */

#ifndef NBDIMG_QCOW2_FIXTURE_H
#define NBDIMG_QCOW2_FIXTURE_H

#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "common/bytes.h"
#include "storage/wrapper.h"
#include "tests/unit/harness.h"
#include "tests/unit/unit.h"

struct kind {
  const char *options;
  bool backing, data_file;
};

struct fixture {
  const struct kind *kind;
  uint64_t size;                /* of the disk, bytes */
  uint64_t cache_size;
  struct storage *top, *base, *data;    /* owned; NULL = none */
  struct image *base_im, *im;           /* owned */
};

/* ---- random numbers: each thread has a state of its own ---- */

static inline uint64_t
random_next (uint64_t *state)
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static inline uint64_t
random_below (uint64_t *state, uint64_t below)
{
  return (random_next (state) >> 11) % below;
}

/* ---- a storage that lets other threads in at odd moments ---- */

static inline void
jitter_pause (void)
{
  static _Thread_local uint64_t state;
  uint64_t n;

  if (!state)
    state = (uint64_t) (uintptr_t) &state;
  n = random_below (&state, 64);
  if (n == 0)
    usleep ((useconds_t) random_below (&state, 60));
  else if (n < 16)
    sched_yield ();
}

static inline int
jitter_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
              struct error *e)
{
  jitter_pause ();
  return storage_pread (wrapper_inner (st), buf, len, offset, e);
}

static inline int
jitter_pwrite (struct storage *st, const void *buf, size_t len,
               uint64_t offset, unsigned flags, struct error *e)
{
  int r;

  jitter_pause ();
  r = storage_pwrite (wrapper_inner (st), buf, len, offset, flags, e);
  wrapper_note_growth (st);
  jitter_pause ();
  return r;
}

static inline int
jitter_zero (struct storage *st, uint64_t offset, uint64_t len,
             unsigned flags, struct error *e)
{
  int r;

  jitter_pause ();
  r = storage_zero (wrapper_inner (st), offset, len, flags, e);
  wrapper_note_growth (st);
  return r;
}

/* What is trimmed may read as anything: here as something that no test
 * writes, so that nobody can rely on it.
 */
static inline int
jitter_trim (struct storage *st, uint64_t offset, uint64_t len,
             unsigned flags, struct error *e)
{
  uint8_t *buf = unit_alloc (len);
  int r;

  (void) flags;
  jitter_pause ();
  memset (buf, 0xda, len);
  r = storage_pwrite (wrapper_inner (st), buf, len, offset, 0, e);
  free (buf);
  jitter_pause ();
  return r;
}

static inline int
jitter_flush (struct storage *st, struct error *e)
{
  jitter_pause ();
  return storage_flush (wrapper_inner (st), e);
}

static inline int
jitter_truncate (struct storage *st, uint64_t size, struct error *e)
{
  int r = storage_truncate (wrapper_inner (st), size, e);

  wrapper_copy_size (st);
  return r;
}

static const struct storage_ops jitter_ops = {
  .driver = "jitter",
  .close = wrapper_free,
  .pread = jitter_pread,
  .pwrite = jitter_pwrite,
  .zero = jitter_zero,
  .trim = jitter_trim,
  .flush = jitter_flush,
  .truncate = jitter_truncate,
  WRAPPER_OPS,
};

/* SIZE bytes of memory behind a storage that pauses. */
static inline struct storage *
jitter_new (const char *name, uint64_t size)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new (name, size, &e);

  st = st ? wrapper_new (&jitter_ops, sizeof (struct wrapper), st, &e) : NULL;
  if (!st) {
    printf ("not ok %s\n", e.text);
    exit (EXIT_FAILURE);
  }
  return st;
}

/* ---- the image ---- */

static inline void
fixture_open (struct fixture *f)
{
  struct error e = ERROR_INIT;

  f->im = harness_open (f->top, harness_kind_format (f->kind->options),
                        f->base_im, f->data, true,
                        f->cache_size, &e);
  if (f->im)
    return;
  unit_fail (__FILE__, __LINE__, "open: %s", e.text);
  unit_finish ();
  exit (EXIT_FAILURE);
}

static inline void
fixture_reopen (struct fixture *f)
{
  struct error e = ERROR_INIT;

  CHECK_OK (harness_close (f->im, &e), &e);
  fixture_open (f);
}

/* What the backing file has at each offset; no 8 bytes of it are zero. */
static inline void
fixture_base_bytes (uint8_t *buf, uint64_t offset, size_t len)
{
  for (size_t i = 0; i < len; ++i)
    buf[i] = (uint8_t) (0x80 | (((offset + i) >> 9) * 31 + offset + i));
}

/* It ends before the disk does. */
static inline uint64_t
fixture_base_size (const struct fixture *f)
{
  return f->kind->backing ? round_down (f->size * 3 / 4 + 512, 512) : 0;
}

/* What the disk reads as when nothing was written. */
static inline void
fixture_first_bytes (const struct fixture *f, uint8_t *buf, uint64_t offset,
                     size_t len)
{
  uint64_t base = fixture_base_size (f);
  size_t n = offset < base ? (size_t) min_u64 (len, base - offset) : 0;

  fixture_base_bytes (buf, offset, n);
  memset (buf + n, 0, len - n);
}

static inline void
fixture_make_base (struct fixture *f)
{
  size_t len = (size_t) fixture_base_size (f);
  struct error e = ERROR_INIT;
  uint8_t *buf = unit_alloc (len);

  fixture_base_bytes (buf, 0, len);
  f->base = jitter_new ("base", len);
  CHECK_OK (storage_pwrite (f->base, buf, len, 0, 0, &e), &e);
  free (buf);
  f->base_im = harness_open (f->base, &format_raw, NULL, NULL, false, 0, &e);
}

/* TOP is taken; it may have content already, which goes. */
static inline void
fixture_set_up (struct fixture *f, const struct kind *k, uint64_t size,
                uint64_t cache_size, struct storage *top)
{
  struct error e = ERROR_INIT;

  *f = (struct fixture) {
    .kind = k, .size = size, .cache_size = cache_size, .top = top,
  };
  if (k->backing)
    fixture_make_base (f);
  if (k->data_file)
    f->data = jitter_new ("data", size);
  CHECK_OK (harness_create_kind (f->top, k->options, size,
                                 k->backing ? "base" : NULL, f->data, &e),
            &e);
  fixture_open (f);
  /* What was never written to a LUKS disk reads as anything. */
  if (f->im->format->encrypted && f->im->format->info.flat)
    CHECK_OK (image_zero (f->im, 0, size, 0, &e), &e);
}

static inline void
fixture_tear_down (struct fixture *f)
{
  struct error e = ERROR_INIT;

  CHECK_OK (harness_close (f->im, &e), &e);
  if (f->base_im)
    CHECK_OK (harness_close (f->base_im, &e), &e);
  storage_close (f->top);
  storage_close (f->base);
  storage_close (f->data);
}

/* Consistent: no corruption, no leak, and nobody set the corrupt bit. */
static inline void
fixture_check_clean (const struct fixture *f)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result r;
  struct error e = ERROR_INIT;

  if (!f->im->format->ops->check)
    return;
  memset (&r, 0, sizeof r);
  CHECK_OK (f->im->format->ops->check (f->im->format, &o, &r, &e), &e);
  if (r.corruptions || r.leaks || r.check_errors || f->im->format->corrupt_flag)
    unit_fail (__FILE__, __LINE__, "check: %" PRIu64 " corruptions, %" PRIu64
               " leaks, %" PRIu64 " errors%s", r.corruptions, r.leaks,
               r.check_errors,
               f->im->format->corrupt_flag ? ", marked corrupt" : "");
}

/* Say where GOT, which was read from OFFSET, is not WANT.  true = it is. */
static inline bool
same_bytes (const uint8_t *got, const uint8_t *want, uint64_t offset,
            size_t len)
{
  size_t i;

  if (memcmp (got, want, len) == 0)
    return true;
  for (i = 0; got[i] == want[i]; ++i)
    ;
  unit_fail (__FILE__, __LINE__, "offset %" PRIu64 ": 0x%02x, not 0x%02x",
             offset + i, got[i], want[i]);
  return false;
}

static inline void
fixture_check_content (const struct fixture *f, const uint8_t *want)
{
  struct error e = ERROR_INIT;
  uint8_t *buf = unit_alloc (f->size);

  CHECK_OK (image_read (f->im, buf, f->size, 0, &e), &e);
  same_bytes (buf, want, 0, f->size);
  free (buf);
}

/* ---- a test that hangs is a test that failed ---- */

static inline void
watchdog_bark (int sig)
{
  static const char text[] = "not ok hangs: a deadlock?\n";

  (void) sig;
  if (write (STDOUT_FILENO, text, sizeof text - 1) >= 0)
    abort ();
  _exit (EXIT_FAILURE);
}

static inline void
watchdog (unsigned seconds)
{
  signal (SIGALRM, watchdog_bark);
  alarm (seconds);
}

#endif /* NBDIMG_QCOW2_FIXTURE_H */
