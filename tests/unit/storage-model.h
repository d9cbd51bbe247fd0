/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A storage beside a plain array: the same random requests to both, and after
 * each of them the same bytes and the same size.
 */

#ifndef NBDIMG_STORAGE_MODEL_H
#define NBDIMG_STORAGE_MODEL_H

#include <pthread.h>
#include <unistd.h>

#include "common/bytes.h"
#include "storage/storage.h"
#include "tests/unit/unit.h"

enum { MODEL_SIZE = 400000, MODEL_EDGE = 64 };

struct model {
  struct storage *st;
  unsigned char *bytes;       /* MODEL_SIZE of them */
  unsigned char *buf;         /* MODEL_SIZE + MODEL_EDGE */
  uint64_t size;
  uint64_t seed;
  bool fixed;                 /* requests stay inside SIZE */
};

static inline uint64_t
model_random (struct model *m, uint64_t below)
{
  m->seed = m->seed * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return below ? (m->seed >> 33) % below : 0;
}

static inline void
model_compare (struct model *m, int step)
{
  unsigned char *buf = m->buf + step % 7;
  struct error e = ERROR_INIT;

  CHECK_OK (storage_pread (m->st, buf, MODEL_SIZE, 0, &e), &e);
  CHECK (storage_size (m->st) == m->size);
  if (memcmp (buf, m->bytes, MODEL_SIZE) != 0)
    for (size_t i = 0; i < MODEL_SIZE; ++i)
      if (buf[i] != m->bytes[i]) {
        unit_fail (__FILE__, __LINE__, "step %d: byte %zu differs", step, i);
        break;
      }
}

static inline void
model_write (struct model *m, uint64_t offset, size_t len, unsigned flags)
{
  unsigned char *buf = m->buf + model_random (m, 2);
  struct error e = ERROR_INIT;

  unit_random (buf, len, m->seed);
  CHECK_OK (storage_pwrite (m->st, buf, len, offset, flags, &e), &e);
  memcpy (m->bytes + offset, buf, len);
}

static inline void
model_truncate (struct model *m, uint64_t size)
{
  struct error e = ERROR_INIT;

  CHECK_OK (storage_truncate (m->st, size, &e), &e);
  memset (m->bytes + size, 0, MODEL_SIZE - size);
  m->size = size;
}

/* Afterwards the range may read as anything: learn it. */
static inline void
model_trim (struct model *m, uint64_t offset, size_t len, unsigned flags)
{
  struct error e = ERROR_INIT;

  CHECK_OK (storage_trim (m->st, offset, len, flags, &e), &e);
  CHECK_OK (storage_pread (m->st, m->buf, len, offset, &e), &e);
  memcpy (m->bytes + offset, m->buf, len);
}

/* Extents without a gap, and what is not data reads as zeroes. */
static inline void
model_extents (struct model *m)
{
  struct storage_extent x[5];
  struct error e = ERROR_INIT;
  uint64_t pos = 0;
  size_t nr;

  while (pos < m->size) {
    nr = 0;
    CHECK_OK (storage_extents (m->st, pos, m->size - pos, x, 5, &nr, &e), &e);
    CHECK (nr >= 1 && nr <= 5);
    for (size_t i = 0; i < nr; ++i) {
      CHECK (x[i].length > 0 && x[i].length <= m->size - pos);
      if (x[i].length == 0 || x[i].length > m->size - pos)
        return;
      CHECK (x[i].kind == EXTENT_DATA
             || is_zero (m->bytes + pos, (size_t) x[i].length));
      pos += x[i].length;
    }
    if (nr == 0)
      return;
  }
}

static inline void
model_step (struct model *m, int step)
{
  size_t most = model_random (m, 8) ? 9000 : 90000;
  uint64_t reach = m->fixed ? m->size : MODEL_SIZE;
  uint64_t offset = model_random (m, reach);
  size_t len = (size_t) min_u64 (model_random (m, most), reach - offset);
  unsigned fua = model_random (m, 16) ? 0 : STORAGE_FUA;
  unsigned unmap = model_random (m, 2) ? STORAGE_MAY_UNMAP : 0;
  struct error e = ERROR_INIT;
  uint64_t op = model_random (m, 12);

  if (op == 0 && !m->fixed)
    model_truncate (m, offset);
  else if (op == 1)
    CHECK_OK (storage_flush (m->st, &e), &e);
  else if (op == 2)
    model_extents (m);
  else if (op <= 4)
    model_trim (m, offset, len, fua);
  else {
    if (op <= 7) {
      CHECK_OK (storage_zero (m->st, offset, len, fua | unmap, &e), &e);
      memset (m->bytes + offset, 0, len);
    } else
      model_write (m, offset, len, fua);
    if (len)
      m->size = max_u64 (m->size, offset + len);
  }
  model_compare (m, step);
}

/* ST is empty, or all zeroes. */
static inline void
model_run (struct storage *st, bool fixed, int steps, uint64_t seed)
{
  struct model m = {
    .st = st, .size = storage_size (st), .seed = seed, .fixed = fixed,
    .bytes = unit_alloc (MODEL_SIZE),
    .buf = unit_alloc (MODEL_SIZE + MODEL_EDGE),
  };

  memset (m.bytes, 0, MODEL_SIZE);
  for (int i = 0; i < steps; ++i)
    model_step (&m, i);
  free (m.bytes);
  free (m.buf);
}

/* ---- many threads, each with bytes of its own ---- */

enum { NR_THREADS = 8, STRIPE = 100, STRIPES = 40, STRIPE_ROUNDS = 6 };

struct stripes {
  struct storage *st;
  unsigned thread;
};

/* The pattern of one stripe in one round; no byte of it is 0. */
static inline void
stripe_fill (unsigned char *buf, unsigned thread, unsigned stripe,
             unsigned round)
{
  memset (buf, (int) (1 + (thread * 31 + stripe * 7 + round * 101) % 255),
          STRIPE);
}

static inline uint64_t
stripe_offset (unsigned thread, unsigned stripe)
{
  return ((uint64_t) stripe * NR_THREADS + thread) * STRIPE;
}

static inline void *
stripes_thread (void *arg)
{
  const struct stripes *s = arg;
  unsigned char buf[STRIPE], back[STRIPE];
  struct error e = ERROR_INIT;

  for (unsigned round = 0; round < STRIPE_ROUNDS; ++round)
    for (unsigned i = 0; i < STRIPES; ++i) {
      uint64_t offset = stripe_offset (s->thread, i);
      unsigned flags = (i + round) % 16 == 0 ? STORAGE_FUA : 0;

      if ((i + round) % 5 == 0)
        CHECK_OK (storage_zero (s->st, offset, STRIPE,
                                i % 2 ? STORAGE_MAY_UNMAP : 0, &e), &e);
      stripe_fill (buf, s->thread, i, round);
      CHECK_OK (storage_pwrite (s->st, buf, STRIPE, offset, flags, &e), &e);
      CHECK_OK (storage_pread (s->st, back, STRIPE, offset, &e), &e);
      CHECK (memcmp (buf, back, STRIPE) == 0);
    }
  CHECK_OK (storage_flush (s->st, &e), &e);
  return NULL;
}

/* Threads write next to each other, inside and past the end, and nobody
 * disturbs the others' bytes.
 */
static inline void
stripes_run (struct storage *st)
{
  pthread_t threads[NR_THREADS];
  struct stripes s[NR_THREADS];
  unsigned char buf[STRIPE], want[STRIPE];
  struct error e = ERROR_INIT;

  for (unsigned t = 0; t < NR_THREADS; ++t) {
    s[t] = (struct stripes) { .st = st, .thread = t };
    if (pthread_create (&threads[t], NULL, stripes_thread, &s[t]) != 0)
      abort ();
  }
  for (unsigned t = 0; t < NR_THREADS; ++t)
    pthread_join (threads[t], NULL);
  for (unsigned t = 0; t < NR_THREADS; ++t)
    for (unsigned i = 0; i < STRIPES; ++i) {
      stripe_fill (want, t, i, STRIPE_ROUNDS - 1);
      CHECK_OK (storage_pread (st, buf, STRIPE, stripe_offset (t, i), &e),
                &e);
      CHECK (memcmp (buf, want, STRIPE) == 0);
    }
  CHECK (storage_size (st) >= stripe_offset (NR_THREADS, STRIPES - 1));
}

/* ---- a folder of its own, removed at exit ---- */

static char model_dir[4096];
static pid_t model_process;

static inline void
model_leave_dir (void)
{
  char command[sizeof model_dir + 16];

  if (getpid () == model_process && chdir ("/") == 0) {
    snprintf (command, sizeof command, "rm -rf '%s'", model_dir);
    if (system (command) != 0)
      printf ("# could not remove %s\n", model_dir);
  }
}

static inline void
model_enter_dir (void)
{
  const char *tmp = getenv ("TMPDIR");

  snprintf (model_dir, sizeof model_dir, "%s/nbdimg-XXXXXX",
            tmp && *tmp ? tmp : "/var/tmp");
  if (!mkdtemp (model_dir) || chdir (model_dir) != 0) {
    printf ("not ok no folder for the test: %s\n", model_dir);
    exit (EXIT_FAILURE);
  }
  model_process = getpid ();
  atexit (model_leave_dir);
}

#endif /* NBDIMG_STORAGE_MODEL_H */
