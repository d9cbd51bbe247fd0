/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The bits of a dirty bitmap beside a plain array, and set by many threads. */

#include <config.h>

#include <pthread.h>

#include "common/bytes.h"
#include "formats/qcow2/bits.h"
#include "tests/unit/unit.h"

enum { MAX_BITS = 40000, ROUNDS = 400, NR_THREADS = 8 };

static uint64_t seed = 1;

static uint64_t
dice (uint64_t n)
{
  seed = seed * UINT64_C (6364136223846793005) + 1442695040888963407;
  return (seed >> 33) % n;
}

/* Every run of B is one of the array's, and as long as it can be. */
static bool
same (const struct bits *b, const bool *model)
{
  uint64_t nr;

  for (uint64_t i = 0; i < b->nr; i += nr) {
    bool dirty = bits_run (b, i, &nr);

    if (nr == 0 || nr > b->nr - i || dirty != model[i])
      return false;
    for (uint64_t j = 0; j < nr; ++j)
      if (model[i + j] != dirty)
        return false;
    if (i + nr < b->nr && model[i + nr] == dirty)
      return false;
  }
  return true;
}

/* What a file would have of it: nothing behind the last bit. */
static bool
tail_is_clear (const struct bits *b)
{
  const uint8_t *p = b->nr_pieces ? b->pieces[b->nr_pieces - 1] : NULL;
  uint64_t per_piece = b->piece_size * 8;

  for (uint64_t i = b->nr; p && i < b->nr_pieces * per_piece; ++i)
    if (p[i % per_piece / 8] >> i % 8 & 1)
      return false;
  return true;
}

static bool
kinds_are_right (const struct bits *b, const bool *model)
{
  uint64_t per_piece = b->piece_size * 8, set, end;

  for (uint64_t i = 0; i < b->nr_pieces; ++i) {
    end = min_u64 ((i + 1) * per_piece, b->nr);
    set = 0;
    for (uint64_t j = i * per_piece; j < end; ++j)
      set += model[j];
    if (bits_kind (b, i) != (set == 0 ? BITS_CLEAR
                             : set == per_piece ? BITS_SET : BITS_MIXED))
      return false;
  }
  return true;
}

static void
change (struct bits *b, bool *model)
{
  struct error e = ERROR_INIT;
  uint64_t first = dice (b->nr), nr = 1 + dice (b->nr - first), size;

  if (dice (4))
    nr = min_u64 (nr, 1 + dice (20));
  switch (dice (20)) {
  case 0:
    bits_clear (b);
    memset (model, 0, MAX_BITS * sizeof model[0]);
    break;
  case 1:
    size = 1 + dice (MAX_BITS);
    CHECK_OK (bits_resize (b, size, &e), &e);
    memset (model + size, 0, (MAX_BITS - size) * sizeof model[0]);
    break;
  default:
    CHECK_OK (bits_set (b, first, nr, &e), &e);
    memset (model + first, 1, nr * sizeof model[0]);
  }
}

static void
test_model (void)
{
  static bool model[MAX_BITS];
  struct error e = ERROR_INIT;
  struct bits b;

  unit_begin ("bits are those of a plain array, whatever is done to them");
  CHECK_OK (bits_init (&b, 30000, 512, &e), &e);
  for (int i = 0; i < ROUNDS; ++i) {
    change (&b, model);
    CHECK (same (&b, model));
    CHECK (tail_is_clear (&b));
    CHECK (kinds_are_right (&b, model));
  }
  bits_free (&b);
}

static void
test_changed (void)
{
  struct error e = ERROR_INIT;
  struct bits b;

  unit_begin ("a bit that was set already is no change");
  CHECK_OK (bits_init (&b, 10000, 512, &e), &e);
  CHECK_OK (bits_set (&b, 100, 50, &e), &e);
  CHECK (b.changed);
  b.changed = false;
  CHECK_OK (bits_set (&b, 101, 49, &e), &e);
  CHECK (!b.changed);
  CHECK_OK (bits_set (&b, 149, 2, &e), &e);
  CHECK (b.changed);
  bits_free (&b);
}

/* Each thread sets every NR_THREADS-th bit, so that all share every byte. */
struct setter {
  struct bits *bits;
  uint64_t first;
  int failed;
};

static void *
set_some (void *opaque)
{
  struct setter *s = opaque;
  struct error e = ERROR_INIT;

  for (uint64_t i = s->first; i < s->bits->nr; i += NR_THREADS)
    s->failed |= bits_set (s->bits, i, 1, &e);
  return NULL;
}

static void
test_threads (void)
{
  struct setter setters[NR_THREADS];
  pthread_t threads[NR_THREADS];
  struct error e = ERROR_INIT;
  struct bits b;
  uint64_t nr;

  unit_begin ("no bit is lost that threads set side by side");
  CHECK_OK (bits_init (&b, 400000, 512, &e), &e);
  for (unsigned i = 0; i < NR_THREADS; ++i) {
    setters[i] = (struct setter) { .bits = &b, .first = i };
    CHECK (pthread_create (&threads[i], NULL, set_some, &setters[i]) == 0);
  }
  for (unsigned i = 0; i < NR_THREADS; ++i) {
    pthread_join (threads[i], NULL);
    CHECK (setters[i].failed == 0);
  }
  CHECK (bits_run (&b, 0, &nr));
  CHECK (nr == 400000);
  bits_free (&b);
}

int
main (void)
{
  test_model ();
  test_changed ();
  test_threads ();
  return unit_end ();
}
