/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What a structural operation may do to an image: the disk and each snapshot of
 * it as plain arrays, and an operation that fails at every request in turn.
 */

#ifndef NBDIMG_QCOW2_STRUCTURE_H
#define NBDIMG_QCOW2_STRUCTURE_H

#include <errno.h>
#include <inttypes.h>

#include "tests/unit/crash-log.h"
#include "tests/unit/harness.h"

/* Set by a program whose operations never leave more than leaks. */
static bool only_leaks;

/* The backing file of all images, or NULL. */
static struct image *base_image;

/* ---- what an image holds ---- */

enum { MAX_STATES = 8 };

struct disk {
  char *name;                   /* owned; NULL = the active disk */
  struct bytes content;
};

struct state {
  struct disk disks[MAX_STATES];        /* the active one first */
  size_t nr;
};

static inline void
state_free (struct state *s)
{
  for (size_t i = 0; i < s->nr; ++i) {
    free (s->disks[i].name);
    free (s->disks[i].content.p);
  }
  s->nr = 0;
}

static inline void
state_read_disk (struct image *im, struct disk *d)
{
  uint64_t size = image_size (im);
  struct error e = ERROR_INIT;

  if (d->name) {
    im->view = im->format->ops->open_view (im->format, d->name, &im->size, &e);
    if (!im->view)
      unit_fail (__FILE__, __LINE__, "%s: %s", d->name, e.text);
  }
  d->content.len = image_size (im);
  d->content.p = unit_alloc (d->content.len);
  CHECK_OK (image_read (im, d->content.p, d->content.len, 0, &e), &e);
  if (im->view)
    im->format->ops->close_view (im->format, im->view);
  im->view = NULL;
  im->size = size;
}

static inline struct state
state_of (struct image *im)
{
  struct format_snapshot *list = NULL;
  struct state s = { .nr = 1 };
  struct error e = ERROR_INIT;
  size_t nr = 0;

  CHECK_OK (im->format->ops->snapshots (im->format, &list, &nr, &e), &e);
  for (size_t i = 0; i < nr && s.nr < MAX_STATES; ++i)
    s.disks[s.nr++].name = strdup (list[i].name);
  format_snapshots_free (list, nr);
  for (size_t i = 0; i < s.nr; ++i)
    state_read_disk (im, &s.disks[i]);
  return s;
}

static inline bool
state_same (const struct state *a, const struct state *b)
{
  if (a->nr != b->nr)
    return false;
  for (size_t i = 0; i < a->nr; ++i) {
    const struct disk *x = &a->disks[i], *y = &b->disks[i];

    if (x->content.len != y->content.len
        || memcmp (x->content.p, y->content.p, x->content.len) != 0
        || (x->name && strcmp (x->name, y->name) != 0))
      return false;
  }
  return true;
}

/* ---- checks ---- */

static inline struct image *
must_open (struct storage *st, bool writable)
{
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, &format_qcow2, base_image, NULL,
                                   writable, 0, &e);

  if (im)
    return im;
  unit_fail (__FILE__, __LINE__, "open: %s", e.text);
  unit_finish ();
  exit (EXIT_FAILURE);
}

static inline struct format_check_result
check_image (struct image *im)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result r;
  struct error e = ERROR_INIT;

  memset (&r, 0, sizeof r);
  CHECK_OK (im->format->ops->check (im->format, &o, &r, &e), &e);
  return r;
}

static inline void
must_be_clean (struct image *im)
{
  struct format_check_result r = check_image (im);

  if (r.corruptions || r.leaks || r.check_errors)
    unit_fail (__FILE__, __LINE__, "check: %" PRIu64 " corruptions, %" PRIu64
               " leaks, %" PRIu64 " errors", r.corruptions, r.leaks,
               r.check_errors);
}

/* Whatever the disk is overwritten with, the snapshots stay. */
static inline void
overwrite (struct storage *st, const struct state *s)
{
  struct image *im = must_open (st, true);
  uint8_t *buf = unit_alloc (image_size (im));
  struct error e = ERROR_INIT;
  struct state now;

  memset (buf, 0xee, image_size (im));
  CHECK_OK (image_write (im, buf, image_size (im), 0, 0, &e), &e);
  CHECK_OK (image_flush (im, &e), &e);
  CHECK (check_image (im).check_errors == 0);
  now = state_of (im);
  free (now.disks[0].content.p);
  now.disks[0].content.len = s->disks[0].content.len;
  now.disks[0].content.p = unit_alloc (now.disks[0].content.len);
  memcpy (now.disks[0].content.p, s->disks[0].content.p,
          now.disks[0].content.len);
  CHECK (state_same (&now, s));
  state_free (&now);
  CHECK_OK (harness_close (im, &e), &e);
  free (buf);
}


/* An operation on TEMPLATE ended in the middle and left ST: it is as before or
 * as after, no worse than leaks, or says that it must be mended (version 2
 * cannot say so); and once it was, no snapshot gets lost.
 */
static inline void
judge (struct storage *st, const struct state *before,
       const struct state *after, const char *when, unsigned k)
{
  struct image *im = must_open (st, false);
  bool dirty = im->format->dirty_flag && !only_leaks;
  bool old_version = !im->format->info.zero_is_fast && !only_leaks;
  struct state now = state_of (im);
  struct error e = ERROR_INIT;
  struct format_check_result r = check_image (im);

  if (!state_same (&now, before) && !state_same (&now, after))
    unit_fail (__FILE__, __LINE__, "%s %u: neither old nor new", when, k);
  if (r.check_errors || (r.corruptions && !dirty && !old_version))
    unit_fail (__FILE__, __LINE__, "%s %u: %" PRIu64 " corruptions", when, k,
               r.corruptions);
  CHECK_OK (harness_close (im, &e), &e);
  im = must_open (st, true);
  r = check_image (im);
  if (r.corruptions && !old_version)
    unit_fail (__FILE__, __LINE__, "%s %u: %" PRIu64 " corruptions after it was"
               " opened for writing", when, k, r.corruptions);
  CHECK_OK (harness_close (im, &e), &e);
  overwrite (st, &now);
  state_free (&now);
}

/* ---- an operation that fails ---- */

typedef int (*operation) (struct image *im, struct error *e);

/* Run OP with request K and (ALL) those after it failing.  false = it did not
 * get that far.
 */
static inline bool
fail_at (struct bytes template, operation op, unsigned k, bool all,
         const struct state *before, const struct state *after)
{
  struct error e = ERROR_INIT, ignored = ERROR_INIT;
  struct storage *st, *left;
  struct image *im;
  struct bytes b;
  char spec[80];
  int r = -1;

  snprintf (spec, sizeof spec, "index=%u,count=%d", k, all ? 0 : 1);
  st = storage_fault_new (storage_of (template), spec, &e);
  im = harness_open (st, &format_qcow2, base_image, NULL, true, 0, &e);
  if (im) {
    r = op (im, &e);
    if (harness_close (im, &ignored) == -1)
      r = -1;
  }
  b = bytes_of (wrapper_inner (st));
  left = storage_of (b);
  judge (left, before, after, all ? "all from request" : "request", k);
  storage_close (left);
  storage_close (st);
  free (b.p);
  return r == -1;
}

/* OP on TEMPLATE, failing at every request until it succeeds three times in a
 * row (failures of trims, and of a release, fail nothing).
 */
static inline void
fail_everywhere (struct bytes template, operation op)
{
  struct storage *st = storage_of (template);
  struct error e = ERROR_INIT;
  struct state before, after;
  struct image *im = must_open (st, true);
  unsigned good = 0, k;

  before = state_of (im);
  CHECK_OK (op (im, &e), &e);
  after = state_of (im);
  CHECK_OK (harness_close (im, &e), &e);
  im = must_open (st, false);
  must_be_clean (im);
  CHECK_OK (harness_close (im, &e), &e);
  for (k = 1; good < 8 && k < 2000 && !unit_bad; ++k) {
    good = fail_at (template, op, k, false, &before, &after) ? 0 : good + 1;
    fail_at (template, op, k, true, &before, &after);
  }
  CHECK (k > 10 && k < 2000);
  state_free (&before);
  state_free (&after);
  storage_close (st);
}

/* ---- a crash ---- */

/* OP on TEMPLATE, with a crash after each of its writes. */
static inline void
crash_everywhere (struct bytes template, operation op)
{
  struct error e = ERROR_INIT;
  struct storage *st = log_new (template);
  struct state before, after;
  struct image *im = must_open (st, true);
  uint64_t random[4];

  before = state_of (im);
  log_clear ();
  CHECK_OK (op (im, &e), &e);
  after = state_of (im);
  CHECK_OK (harness_close (im, &e), &e);
  CHECK (the_log.nr > 0);
  for (size_t end = 0; end <= the_log.nr && !unit_bad; ++end) {
    unit_random (random, sizeof random, end + 1);
    const uint64_t picks[] = {
      UINT64_MAX, 0, UINT64_MAX, random[0], random[1], random[2], random[3],
      random[0] & random[1], random[2] & random[3],
    };

    for (size_t i = 0; i < sizeof picks / sizeof picks[0]; ++i) {
      struct storage *state = crash_state (template, end, picks[i], i == 2);

      judge (state, &before, &after, "a crash after request", (unsigned) end);
      storage_close (state);
    }
  }
  state_free (&before);
  state_free (&after);
  storage_close (st);
  log_clear ();
}

#endif /* NBDIMG_QCOW2_STRUCTURE_H */
