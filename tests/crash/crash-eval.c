/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Make the states in which a crash could leave an image, and judge each: see
 * crash.h for the files.
 *
 *   crash-eval [-f FORMAT] [-m MAX] [-a ALL] [-r RANDOM] [-q PERMILLE]
 *              [-w PERCENT] [-s SEED] [-k OPTION] [-b] [-u] [-v] DIR
 *
 * -k: the image is encrypted, and QEMU's name of the option for the secret.
 * -b: the workload has commits, so the second object of the log is the base.
 * -u: any bitmap may be in use after a crash (QEMU marks those that are not
 * enabled too).
 *
 * A crash at time T leaves all writes that a flush covers which had ended by T
 * (the ground), and any of those that were submitted by T (floating): all of
 * them, none, each alone, all but one, prefixes, all subsets of up to ALL
 * writes, else RANDOM ones; the two of an overlapping pair in either order;
 * writes torn at 512 bytes or 4 KiB; the growth of the file without what it
 * grew for.  What a trim hit has its old content, or zeroes, durable or not.
 * Each different state is judged:
 *
 *   it opens; check finds no corruption (leaks are allowed, or, with the dirty
 *   bit, what check -r mends so that the disk stays as it is, or what a repair
 *   had to deal with that has not ended); size, snapshots, backing file,
 *   features and bitmaps are those after one operation, or, while another one
 *   was under way, after that; every guest sector has a value that was written
 *   and not followed by a durable one; each snapshot reads as before; a bitmap
 *   that is not in use is complete;
 *   in PERCENT of the states a writer goes on, maybe after it went back to a
 *   snapshot, and all this holds after it; in as many one goes on that is cut
 *   off, maybe as it mends; in
 *   PERMILLE of them, and wherever there was a finding, qemu-img check agrees,
 *   and qemu-io goes on to write, after which all this holds too.
 *
 * Prints one line: states, third values, lost flushes (a value older than one
 * that was flushed), errors, corrupt, structure (snapshots damaged; a size,
 * backing file, list of snapshots, or bitmap that
 * may not be), qemu disagrees.  Exit
 * status 1 if any of these but the first is not 0.
 */

#include <config.h>

#include <unistd.h>

#include "tests/crash/crash-judge.h"

/* ---- which states ---- */

static uint64_t
hash_state (const struct eval *v, uint64_t time)
{
  uint64_t h = 1;

  for (size_t i = 0; i < v->nr_ops; ++i)
    if ((v->ops[i].type == 'F' || v->ops[i].type == 'U')
        && v->ops[i].done <= time)
      h++;
  for (size_t i = 0; i < v->nr_versions; ++i)
    h += v->versions[i].done <= time ? 2U : v->versions[i].submit <= time;
  for (unsigned o = 0; o < NR_OBJECTS; ++o) {
    const struct disk *d = &v->state[o];
    uint64_t word;

    for (size_t i = 0; d->buf && i + 8 <= d->room; i += 8) {
      memcpy (&word, d->buf + i, 8);
      h = (h ^ word) * UINT64_C (0x9e3779b97f4a7c15);
      h ^= h >> 29;
    }
    h += d->size;
  }
  return h ? h : 1;
}

static bool
is_new (struct eval *v, uint64_t hash)
{
  size_t i = hash & (SEEN_SLOTS - 1);

  while (v->seen[i]) {
    if (v->seen[i] == hash)
      return false;
    i = (i + 1) & (SEEN_SLOTS - 1);
  }
  if (v->nr_seen < SEEN_SLOTS / 2) {
    v->seen[i] = hash;
    v->nr_seen++;
  }
  return true;
}

static void
try_state (struct eval *v, uint64_t time)
{
  if (v->states < v->max_states && is_new (v, hash_state (v, time)))
    judge (v, time);
}

/* What is there of one event. */
enum { NOTHING, ALL, TORN, GROWTH, NR_CHOICES };

static void
try_choice (struct eval *v, uint64_t time, const size_t *list, size_t nr,
            const uint8_t *chosen)
{
  start_state (v);
  for (size_t i = 0; i < nr; ++i) {
    const struct event *ev = &v->events[list[i]];
    struct disk *d = &v->state[ev->object];

    switch (must_be_there (ev, time) ? ALL : chosen[i]) {
    case ALL: apply (d, ev); break;
    case TORN: apply_torn (v, d, ev); break;
    case GROWTH: apply_growth (d, ev); break;
    default: break;
    }
  }
  try_state (v, time);
}

/* Moments are many: of each some events, pairs and subsets. */
enum { SINGLES = 6, PAIRS = 6 };

static void
try_random (struct eval *v, uint64_t time, const size_t *list, size_t nr,
            uint8_t *chosen, bool torn)
{
  for (size_t i = 0; i < nr; ++i)
    chosen[i] = (uint8_t) (next_random (&v->rnd) % (torn ? NR_CHOICES : 2));
  try_choice (v, time, list, nr, chosen);
}

/* One alone, and all but that one; and all up to it. */
static void
try_around (struct eval *v, uint64_t time, const size_t *list, size_t nr,
            uint8_t *chosen, size_t i)
{
  memset (chosen, NOTHING, nr);
  chosen[i] = ALL;
  try_choice (v, time, list, nr, chosen);
  memset (chosen, ALL, nr);
  chosen[i] = NOTHING;
  try_choice (v, time, list, nr, chosen);
  chosen[i] = GROWTH;
  try_choice (v, time, list, nr, chosen);
  memset (chosen, NOTHING, nr);
  memset (chosen, ALL, i);
  for (chosen[i] = NOTHING; chosen[i] < NR_CHOICES; ++chosen[i])
    if (chosen[i] != ALL)
      try_choice (v, time, list, nr, chosen);
}

/* I and J, which overlap, in the other order: both alone, all up to them, and
 * all.
 */
static void
try_swapped (struct eval *v, uint64_t time, size_t *list, size_t nr,
             uint8_t *chosen, size_t i, size_t j)
{
  size_t first = list[i];

  memmove (list + i, list + i + 1, (j - i) * sizeof list[0]);
  list[j] = first;
  memset (chosen, ALL, nr);
  try_choice (v, time, list, nr, chosen);
  memset (chosen + j + 1, NOTHING, nr - j - 1);
  try_choice (v, time, list, nr, chosen);
  memset (chosen, NOTHING, j - 1);
  try_choice (v, time, list, nr, chosen);
  memmove (list + i + 1, list + i, (j - i) * sizeof list[0]);
  list[i] = first;
}

static bool
events_overlap (const struct event *a, const struct event *b)
{
  return a->object == b->object && a->op != RECORD_TRUNCATE
    && b->op != RECORD_TRUNCATE
    && ranges_overlap (a->offset, a->length, b->offset, b->length);
}

/* May I be moved behind J?  Not past a durable write that replaced it. */
static bool
may_swap (const struct eval *v, const size_t *list, size_t i, size_t j,
          uint64_t time)
{
  const struct event *first = &v->events[list[i]], *next;

  for (size_t k = i; k <= j; ++k) {
    next = &v->events[list[k]];
    if (must_be_there (next, time) && events_overlap (first, next))
      return false;
  }
  return events_overlap (first, &v->events[list[j]]);
}

static void
try_pairs (struct eval *v, uint64_t time, size_t *list, size_t nr,
           uint8_t *chosen)
{
  unsigned nr_pairs = 0;

  for (size_t j = nr; j-- > 1;)
    for (size_t i = j; i-- > 0;)
      if (may_swap (v, list, i, j, time)) {
        if (++nr_pairs > PAIRS)
          return;
        try_swapped (v, time, list, nr, chosen, i, j);
      }
}

static void
try_subsets (struct eval *v, uint64_t time, const size_t *list, size_t nr,
             uint8_t *chosen)
{
  if (nr <= v->all_subsets)
    for (unsigned bits = 1; bits < 1U << nr; ++bits) {
      for (size_t i = 0; i < nr; ++i)
        chosen[i] = bits >> i & 1;
      try_choice (v, time, list, nr, chosen);
    }
  for (unsigned i = 0; i < v->randoms && nr > 0; ++i)
    try_random (v, time, list, nr, chosen, i % 2);
}

static void
crash_at (struct eval *v, uint64_t time, size_t *list, uint8_t *chosen)
{
  size_t nr;

  advance_ground (v, time);
  nr = floating (v, time, list);
  memset (chosen, NOTHING, nr);
  try_choice (v, time, list, nr, chosen);
  memset (chosen, ALL, nr);
  try_choice (v, time, list, nr, chosen);
  try_subsets (v, time, list, nr, chosen);
  try_pairs (v, time, list, nr, chosen);
  if (nr <= SINGLES)
    for (size_t i = 0; i < nr; ++i)
      try_around (v, time, list, nr, chosen, i);
  else
    for (unsigned i = 0; i < SINGLES; ++i)
      try_around (v, time, list, nr, chosen, next_random (&v->rnd) % nr);
}

static int
by_number (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* Is the next moment, of LEFT, to be looked at?  The moments so far say how
 * many states one yields.
 */
static bool
is_wanted (struct eval *v, uint64_t moments, uint64_t left)
{
  uint64_t yield = moments ? max_u64 (1, v->states / moments) : 20;

  return next_random (&v->rnd) % (left * yield)
    < v->max_states - v->states;
}

/* A crash after each beginning and each end of a request; of a long log, which
 * would yield more than max_states, only moments spread over all of it.
 */
static void
crash_everywhere (struct eval *v)
{
  uint64_t *times = must_alloc (2 * v->nr_events * sizeof times[0]);
  size_t *list = must_alloc (v->nr_events * sizeof list[0]), nr = 0;
  uint8_t *chosen = must_alloc (v->nr_events);
  uint64_t moments = 0;

  for (size_t i = 0; i < v->nr_events; ++i) {
    times[nr++] = v->events[i].submit;
    times[nr++] = v->events[i].done;
  }
  qsort (times, nr, sizeof times[0], by_number);
  for (size_t i = 0; i < nr && v->states < v->max_states; ++i)
    if (is_wanted (v, moments, nr - i)) {
      crash_at (v, times[i], list, chosen);
      moments++;
    }
  free (times);
  free (list);
  free (chosen);
}

/* ---- main ---- */

static struct image *
load_backing (const struct eval *v, const char *name, struct storage **st)
{
  struct error e = ERROR_INIT;
  size_t size;
  struct disk d = { .buf = load (v->dir, name, &size) };
  struct image *im;

  if (!d.buf)
    return NULL;
  d.size = size;
  *st = to_storage (&d, name);
  im = harness_open (*st, &format_raw, NULL, NULL, false, 0, &e);
  if (!im)
    die (name, e.text);
  free (d.buf);
  return im;
}

static void
count_first_leaks (struct eval *v)
{
  struct format_open_options open = { .check = true };
  struct format_check_options o = { .repair = REPAIR_NONE };
  struct format_needs needs = { .backing = NULL };
  struct error e = ERROR_INIT;
  struct storage *st = to_storage (&v->ground[0], "first");
  struct format_check_result r;
  struct format *f;

  if (v->format == &format_qed) {
    f = v->format->open (st, &open, &needs, &e);
    if (!f || v->format->check (f, &o, &r, &e) == -1)
      die ("the first image", e.text);
    v->first_leaks = r.leaks;
    v->format->close (f, &e);
    format_needs_free (&needs);
  }
  storage_close (st);
}

static void
options (struct eval *v, int argc, char **argv)
{
  int c;

  while ((c = getopt (argc, argv, "f:m:a:r:q:w:s:k:buv")) != -1)
    switch (c) {
    case 'f': v->format = format_option (optarg); break;
    case 'm': v->max_states = strtoull (optarg, NULL, 0); break;
    case 'a': v->all_subsets = (unsigned) strtoul (optarg, NULL, 0); break;
    case 'r': v->randoms = (unsigned) strtoul (optarg, NULL, 0); break;
    case 'q': v->qemu_permille = (unsigned) strtoul (optarg, NULL, 0); break;
    case 'w': v->write_percent = (unsigned) strtoul (optarg, NULL, 0); break;
    case 's': v->rnd = strtoull (optarg, NULL, 0) | 1; break;
    case 'k': v->key = optarg; break;
    case 'b': v->commits = true; break;
    case 'u': v->all_in_use = true; break;
    case 'v': v->verbose = true; break;
    default: exit (2);
    }
  if (optind != argc - 1)
    die ("usage", "crash-eval [-f FORMAT] [-m MAX] [-a ALL] [-r RANDOM]"
         " [-q PERMILLE] [-w PERCENT] [-s SEED] [-k OPTION] [-b] [-u] [-v]"
         " DIR");
  if (v->all_subsets > 16)
    die ("usage", "more than all subsets of 16 writes are too many");
  v->dir = argv[optind];
}

int
main (int argc, char **argv)
{
  struct eval v = {
    .max_states = UINT32_MAX, .all_subsets = 4, .randoms = 12,
    .qemu_permille = 50, .write_percent = 10, .format = &format_qcow2,
    .rnd = 88172645463325252u,
  };

  options (&v, argc, argv);
  load_log (&v);
  load_ledger (&v);
  load_disk (&v, 0, "image");
  count_first_leaks (&v);
  load_disk (&v, 1, second_name (&v));
  if (!v.commits) {
    v.base = load_backing (&v, "base", &v.base_st);
    v.other = load_backing (&v, "other", &v.other_st);
  }
  load_versions (&v);
  v.ground_done = must_alloc (v.nr_events * sizeof v.ground_done[0]);
  v.seen = must_alloc (SEEN_SLOTS * sizeof v.seen[0]);
  crash_everywhere (&v);
  printf ("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %"
          PRIu64 " %" PRIu64 "\n", v.states, v.third, v.lost, v.errors,
          v.corrupt, v.snapshots, v.qemu);
  return v.third || v.lost || v.errors || v.corrupt || v.snapshots || v.qemu;
}
