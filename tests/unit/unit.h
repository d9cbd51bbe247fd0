/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the unit tests share.  A program runs its tests one after the other and
 * ends with "return unit_end ();":
 *
 *   unit_begin ("a promise");
 *   CHECK (x == 1);
 *   CHECK_OK (f (&e), &e);
 *   CHECK_FAILS (f (&e), &e, EIO);
 *
 * prints "ok a promise", or what was not so and "not ok a promise".
 */

#ifndef NBDIMG_UNIT_H
#define NBDIMG_UNIT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

static const char *unit_name;
static int unit_bad;            /* atomic: tests may have threads */
static int unit_failed, unit_run;

static inline void
unit_finish (void)
{
  if (!unit_name)
    return;
  unit_run++;
  unit_failed += unit_bad != 0;
  printf ("%s %s\n", unit_bad ? "not ok" : "ok", unit_name);
  fflush (stdout);
  unit_name = NULL;
}

/* Ends the test before, begins the next one. */
static inline void
unit_begin (const char *promise)
{
  unit_finish ();
  unit_name = promise;
  unit_bad = 0;
}

/* The program's exit status. */
static inline int
unit_end (void)
{
  unit_finish ();
  if (!unit_run)
    printf ("not ok this program has no test\n");
  return !unit_run || unit_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

static inline void __attribute__ ((format (printf, 3, 4)))
unit_fail (const char *file, int line, const char *fmt, ...)
{
  char text[2 * ERROR_TEXT_SIZE];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  printf ("# %s:%d: %s\n", file, line, text);
  __atomic_store_n (&unit_bad, 1, __ATOMIC_RELAXED);
}

#define CHECK(cond)                                             \
  do {                                                          \
    if (!(cond))                                                \
      unit_fail (__FILE__, __LINE__, "not so: %s", #cond);      \
  } while (0)

/* CALL returns 0; E is told if not, and cleared. */
#define CHECK_OK(call, e)                                       \
  do {                                                          \
    if ((call) != 0) {                                          \
      unit_fail (__FILE__, __LINE__, "%s: %s", #call, (e)->text); \
      error_clear (e);                                          \
    }                                                           \
  } while (0)

/* CALL returns -1 with the errno value ERRNUM, and says why. */
#define CHECK_FAILS(call, e, errnum)                            \
  do {                                                          \
    if ((call) != -1)                                           \
      unit_fail (__FILE__, __LINE__, "no failure: %s", #call);  \
    else if ((e)->err != (errnum) || (e)->text[0] == '\0')      \
      unit_fail (__FILE__, __LINE__, "%s: errno %d: %s", #call, \
                 (e)->err, (e)->text);                          \
    error_clear (e);                                            \
  } while (0)

#define CHECK_STR(got, want)                                    \
  do {                                                          \
    const char *got_ = (got), *want_ = (want);                  \
    if (!got_ || strcmp (got_, want_) != 0)                     \
      unit_fail (__FILE__, __LINE__, "%s: '%s', not '%s'", #got, \
                 got_ ? got_ : "(null)", want_);                \
  } while (0)

/* What a test needs and does not test: R is 0, or the program ends with E. */
static inline void
unit_must (int r, const struct error *e)
{
  if (r == 0)
    return;
  printf ("not ok the test itself: %s\n", e->text);
  exit (EXIT_FAILURE);
}

/* The same bytes for the same seed, anywhere (xorshift64*). */
static inline void
unit_random (void *buf, size_t len, uint64_t seed)
{
  unsigned char *p = buf;
  uint64_t x = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;

  for (size_t i = 0; i < len; ++i) {
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    p[i] = (unsigned char) (x * UINT64_C (0x2545f4914f6cdd1d) >> 56);
  }
}

/* The next number below BELOW of the row that begins with SEED. */
static inline uint64_t
unit_below (uint64_t *seed, uint64_t below)
{
  uint64_t v;

  unit_random (&v, sizeof v, ++*seed);
  return v % below;
}

static inline void *
unit_alloc (size_t size)
{
  void *p = malloc (size ? size : 1);

  if (!p) {
    printf ("not ok out of memory (%zu bytes)\n", size);
    exit (EXIT_FAILURE);
  }
  return p;
}

#endif /* NBDIMG_UNIT_H */
