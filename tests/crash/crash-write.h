/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: a writer who goes on from a state. */

#ifndef NBDIMG_CRASH_WRITE_H
#define NBDIMG_CRASH_WRITE_H

#include "tests/crash/crash-read.h"

/* ---- a writer after the crash: what it does not touch stays ---- */

static bool
write_on (struct eval *v, struct image *im, uint8_t *guest, struct error *e)
{
  uint64_t cs = im->format->info.cluster_size, size = image_size (im), o, n;

  for (unsigned i = 0; i < 12; ++i) {
    o = next_random (&v->rnd) % (size / 512) * 512;
    n = min_u64 ((1 + next_random (&v->rnd) % 8) * 512, size - o);
    if (i % 4 == 3) {
      o = round_down (o, cs);
      n = min_u64 (cs, size - o);
      memset (guest + o, 0, n);
      if (image_zero (im, o, n, IMAGE_MAY_UNMAP, e) == -1)
        return false;
      continue;
    }
    memset (guest + o, (int) (i + 1), n);
    if (image_write (im, guest + o, n, o, i % 5 ? 0 : IMAGE_FUA, e) == -1)
      return false;
  }
  return true;
}

/* Go back to a snapshot, and make another one: where flags and refcounts do not
 * fit each other, writes behind that reach what a snapshot needs.
 */
static bool
use_snapshots (struct eval *v, struct image *im, struct error *e)
{
  const struct structure *s = &v->now->s;
  char name[16];

  if (s->nr == 0 || s->nr_marks)
    return true;
  snprintf (name, sizeof name, "s%u",
            s->numbers[next_random (&v->rnd) % s->nr]);
  return image_snapshot_apply (im, name, e) == 0
    && (next_random (&v->rnd) % 2
        || image_snapshot_create (im, &(struct format_snapshot)
                                  { .name = (char *) "after" }, e) == 0);
}

/* Returns what the guest must read then; NULL on errors. */
static uint8_t *
write_and_apply (struct eval *v, const struct guest *g, struct error *e)
{
  uint8_t *guest = guest_read (g, e);

  if (!guest || !write_on (v, g->im, guest, e))
    goto failed;
  if (v->now->s.nr == 0 || next_random (&v->rnd) % 2)
    return guest;
  if (!use_snapshots (v, g->im, e))
    goto failed;
  free (guest);
  guest = guest_read (g, e);
  if (guest && write_on (v, g->im, guest, e))
    return guest;
failed:
  free (guest);
  return NULL;
}

/* The bitmaps, when a writer has been there. */
static bool
check_marks (struct eval *v, struct image *im, const uint8_t *now,
             const char *when, uint64_t time)
{
  struct error e = ERROR_INIT;
  struct marks_found marks;
  char text[BITMAP_TEXT] = "";

  if (v->marks.nr == 0)
    return true;
  if (find_marks (im->format, &marks, &e) == 0
      && are_honest_then (v, &marks, v->guest, now, text))
    return true;
  found (v, when, e.err ? e.text : text, time);
  return false;
}

static void
judge_writing (struct eval *v, uint64_t time)
{
  static const char when[] = "a writer after the crash";
  struct error e = ERROR_INIT;
  uint8_t *guest = NULL, *now = NULL;
  struct guest g;

  guest_storages (v, &g);
  if (guest_open (v, &g, true, time))
    guest = write_and_apply (v, &g, &e);
  if (guest && guest_shut (&g, &e) && guest_open (v, &g, false, time))
    now = guest_read (&g, &e);
  if (!now) {
    found (v, when, e.text, time);
    v->errors++;
  }
  else if (memcmp (now, guest, image_size (g.im)) != 0) {
    found (v, when, "other sectors changed", time);
    v->third++;
  }
  else {
    v->corrupt += !check_format (v, g.im, "after a writer", time);
    v->snapshots += !check_snapshots (v, g.im, when, time)
      || !check_marks (v, g.im, now, when, time);
  }
  guest_free (&g);
  free (guest);
  free (now);
}

#endif /* NBDIMG_CRASH_WRITE_H */
