/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: a writer who goes on from a state, to an end or a second crash.
 */

#ifndef NBDIMG_CRASH_WRITE_H
#define NBDIMG_CRASH_WRITE_H

#include "storage/wrapper.h"
#include "tests/crash/crash-read.h"

/* ---- a writer after the crash: what it does not touch stays ---- */

/* [o, o+n) becomes BYTE; MAY (NULL = nobody asks) gets its bit in the sectors'
 * sets.
 */
static void
note_written (uint8_t *guest, uint16_t *may, uint64_t o, uint64_t n,
              unsigned byte)
{
  memset (guest + o, (int) byte, n);
  for (uint64_t i = 0; may && i < n; i += SECTOR_SIZE)
    may[(o + i) / SECTOR_SIZE] |= (uint16_t) (1U << byte);
}

enum { NR_WRITES = 12 };        /* bytes 1 to 12 */

static bool
write_on (struct eval *v, struct image *im, uint8_t *guest, uint16_t *may,
          struct error *e)
{
  uint64_t cs = im->format->info.cluster_size, size = image_size (im), o, n;

  for (unsigned i = 0; i < NR_WRITES; ++i) {
    o = next_random (&v->rnd) % (size / 512) * 512;
    n = min_u64 ((1 + next_random (&v->rnd) % 8) * 512, size - o);
    if (i % 4 == 3) {
      o = round_down (o, cs);
      n = min_u64 (cs, size - o);
      note_written (guest, may, o, n, 0);
      if (image_zero (im, o, n, IMAGE_MAY_UNMAP, e) == -1)
        return false;
      continue;
    }
    note_written (guest, may, o, n, i + 1);
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

/* What was mended when it was opened to be written to must not show. */
static bool
reads_as_before (struct eval *v, const struct guest *g, const uint8_t *guest,
                 struct error *e)
{
  if (memcmp (guest, v->guest, image_size (g->im)) == 0)
    return true;
  error_set (e, EIO, "other sectors changed when it was opened");
  return false;
}

/* Returns what the guest must read then; NULL on errors. */
static uint8_t *
write_and_apply (struct eval *v, const struct guest *g, struct error *e)
{
  uint8_t *guest = guest_read (g, e);

  if (!guest || !reads_as_before (v, g, guest, e)
      || !write_on (v, g->im, guest, NULL, e))
    goto failed;
  if (v->now->s.nr == 0 || next_random (&v->rnd) % 2)
    return guest;
  if (!use_snapshots (v, g->im, e))
    goto failed;
  free (guest);
  guest = guest_read (g, e);
  if (guest && write_on (v, g->im, guest, NULL, e))
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
    v->corrupt += !check_format (v, g.im, after_writer, time);
    v->snapshots += !check_snapshots (v, g.im, when, time)
      || !check_marks (v, g.im, now, when, time);
  }
  guest_free (&g);
  free (guest);
  free (now);
}

/* ---- a crash again: of the repair at open, or of the writer ---- */

enum { MAX_REQUESTS = 80 };

/* Open the state and write on, up to some request to the image, which fails
 * with all that follow.  MAY: the values of the sectors that were written.
 * Returns what is left, owned.
 */
static struct storage *
cut_off (struct eval *v, struct guest *g, uint16_t *may)
{
  uint8_t *guest = must_alloc (v->now->s.size);
  struct error e = ERROR_INIT;
  struct storage *left;
  char spec[64];

  snprintf (spec, sizeof spec, "count=0,index=%" PRIu64,
            1 + next_random (&v->rnd) % MAX_REQUESTS);
  g->st = storage_fault_new (g->st, spec, &e);
  if (!g->st)
    die (spec, e.text);
  if (guest_try_open (v, g, true, &e))
    write_on (v, g->im, guest, may, &e);
  guest_shut (g, &e);
  left = copy_of (wrapper_inner (g->st));
  free (guest);
  return left;
}

static bool
may_follow (struct eval *v, const uint8_t *now, const uint16_t *may)
{
  for (uint64_t o = 0; o < v->now->s.size; o += SECTOR_SIZE)
    if (memcmp (now + o, v->guest + o, SECTOR_SIZE) != 0
        && (now[o] > NR_WRITES || !(may[o / SECTOR_SIZE] >> now[o] & 1)
            || memcmp (now + o, now + o + 1, SECTOR_SIZE - 1) != 0))
      return false;
  return true;
}

static void
judge_second_crash (struct eval *v, uint64_t time)
{
  static const char when[] = "after a second crash";
  uint16_t *may = must_alloc (v->now->s.size / SECTOR_SIZE * sizeof may[0]);
  struct error e = ERROR_INIT;
  struct storage *left;
  uint8_t *now = NULL;
  struct guest g;

  guest_storages (v, &g);
  left = cut_off (v, &g, may);
  storage_close (g.st);
  g.st = left;
  if (guest_open (v, &g, false, time))
    now = guest_read (&g, &e);
  if (!now) {
    found (v, when, e.text, time);
    v->errors++;
  }
  else if (!may_follow (v, now, may)) {
    found (v, when, "other sectors changed", time);
    v->third++;
  }
  else {
    v->corrupt += !check_format (v, g.im, when, time);
    v->snapshots += !check_snapshots (v, g.im, when, time);
  }
  guest_free (&g);
  free (may);
  free (now);
}

#endif /* NBDIMG_CRASH_WRITE_H */
