/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Make the states in which a crash could leave an image, and judge each: see
 * crash.h for the files.
 *
 *   crash-eval [-m MAX] [-q PERMILLE] [-w PERCENT] [-s SEED] [-v] DIR
 *
 * A crash at time T leaves all writes that a flush covers which had ended by T
 * (the ground), and any of those that were submitted by T (floating): all of
 * them, none, each alone, all but one, prefixes, random subsets, and writes
 * torn at 512 bytes or 4 KiB.  Each different state is judged:
 *
 *   it opens; check finds no corruption (leaks are allowed, or the dirty bit,
 *   which check -r would deal with); every guest sector has a value that was
 *   written and not followed by a durable one; the snapshot reads as before;
 *   in PERCENT of the states a writer goes on, and all this holds after it; in
 *   PERMILLE of them qemu-img check agrees.
 *
 * Prints one line: states, third values, errors, corrupt, snapshots damaged,
 * qemu disagrees.  Exit status 1 if any of these but the first is not 0.
 */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include "storage/record.h"
#include "tests/crash/crash.h"
#include "tests/unit/harness.h"

/* ---- the log ---- */

struct event {
  enum record_op op;
  unsigned object;              /* 0 = image, 1 = data file */
  uint64_t submit, done, offset, length;
  bool fua;
  const uint8_t *data;          /* in the log */
};

struct guest_op {
  char type;
  uint64_t submit, done, offset, length;
  uint8_t byte;
};

struct disk {
  uint8_t *buf;                 /* with room for everything that is written */
  size_t size, room;
};

enum { NR_OBJECTS = 2 };

struct eval {
  const char *dir;
  struct event *events;         /* by done */
  size_t nr_events;
  struct guest_op *ops;         /* by submit */
  size_t nr_ops;
  struct disk ground[NR_OBJECTS], state[NR_OBJECTS];
  size_t *ground_done;          /* per event: is it in the ground? */
  struct storage *base_st;
  struct image *base;
  uint8_t *snapshot;            /* content of DIR/snapshot, NULL = none */
  size_t snapshot_size;
  uint8_t *first;               /* first content of the guest */
  size_t guest_size;
  uint64_t rnd;
  uint64_t max_states;
  unsigned qemu_permille, write_percent;
  bool verbose;
  uint64_t *seen;               /* hash set */
  size_t nr_seen;
  /* results */
  uint64_t states, third, errors, corrupt, snapshots, qemu;
};

enum { SEEN_SLOTS = 1 << 20 };

static int
event_by_done (const void *a, const void *b)
{
  const struct event *x = a, *y = b;

  return x->done < y->done ? -1 : x->done > y->done;
}

static int
op_by_submit (const void *a, const void *b)
{
  const struct guest_op *x = a, *y = b;

  return x->submit < y->submit ? -1 : x->submit > y->submit;
}

static bool
is_change (const struct event *ev)
{
  return ev->op == RECORD_WRITE || ev->op == RECORD_ZERO
    || ev->op == RECORD_TRIM || ev->op == RECORD_TRUNCATE;
}

static void
add_event (struct eval *v, const struct record *r, const uint8_t *payload,
           unsigned first_object)
{
  struct event ev = {
    .op = r->op, .object = r->object - first_object, .submit = r->seq_submit,
    .done = r->seq_done, .offset = r->offset, .length = r->length,
    .fua = r->flags & RECORD_FUA, .data = payload,
  };

  if (!is_change (&ev) && ev.op != RECORD_FLUSH)
    return;
  if (r->error || ev.object >= NR_OBJECTS)
    die ("log", "a request failed, or there are too many objects");
  v->events[v->nr_events++] = ev;
}

static void
load_log (struct eval *v)
{
  size_t size, o = 0;
  uint8_t *log = load (v->dir, "log", &size);
  unsigned first = 0;

  if (!log)
    die (v->dir, "no log");
  v->events = must_alloc ((size / sizeof (struct record) + 1)
                          * sizeof v->events[0]);
  while (o + sizeof (struct record) <= size) {
    const struct record *r = (const struct record *) (log + o);

    if (memcmp (r->magic, RECORD_MAGIC, 4) != 0
        || r->payload > size - o - sizeof *r)
      die ("log", "a damaged record");
    if (!first)
      first = r->object;
    add_event (v, r, log + o + sizeof *r, first);
    o += sizeof *r + r->payload;
  }
  qsort (v->events, v->nr_events, sizeof v->events[0], event_by_done);
}

static void
load_ledger (struct eval *v)
{
  char path[4096];
  struct guest_op op;
  unsigned byte;
  FILE *fp;

  snprintf (path, sizeof path, "%s/ledger", v->dir);
  fp = fopen (path, "r");
  if (!fp)
    die (path, "cannot be read");
  v->ops = must_alloc (100000 * sizeof v->ops[0]);
  while (fscanf (fp, " %c %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
                 " %u", &op.type, &op.submit, &op.done, &op.offset,
                 &op.length, &byte) == 6 && v->nr_ops < 100000) {
    op.byte = (uint8_t) byte;
    v->ops[v->nr_ops++] = op;
  }
  fclose (fp);
  qsort (v->ops, v->nr_ops, sizeof v->ops[0], op_by_submit);
}

static void
load_disk (struct eval *v, unsigned object, const char *name)
{
  struct disk *d = &v->ground[object];
  size_t size, room;
  uint8_t *buf = load (v->dir, name, &size);

  if (!buf)
    return;
  room = size;
  for (size_t i = 0; i < v->nr_events; ++i)
    if (v->events[i].object == object && is_change (&v->events[i]))
      room = max_u64 (room, v->events[i].offset + v->events[i].length);
  *d = (struct disk) { .buf = must_alloc (room), .size = size, .room = room };
  v->state[object] = (struct disk) { .buf = must_alloc (room), .room = room };
  memcpy (d->buf, buf, size);
  free (buf);
}

/* ---- states ---- */

/* Apply [from, to) of what EV writes. */
static void
apply_part (struct disk *d, const struct event *ev, uint64_t from,
            uint64_t to)
{
  if (ev->op == RECORD_TRUNCATE) {
    if (ev->offset < d->size)
      memset (d->buf + ev->offset, 0, d->size - ev->offset);
    d->size = min_u64 (ev->offset, d->room);
    return;
  }
  if (ev->op == RECORD_TRIM)
    to = min_u64 (to, d->size > ev->offset ? d->size - ev->offset : 0);
  if (from >= to)
    return;
  if (ev->op == RECORD_WRITE)
    memcpy (d->buf + ev->offset + from, ev->data + from, to - from);
  else
    memset (d->buf + ev->offset + from, 0, to - from);
  d->size = max_u64 (d->size, ev->offset + to);
}

static void
apply (struct disk *d, const struct event *ev)
{
  apply_part (d, ev, 0, ev->length);
}

/* A write that was cut: at a multiple of 512 bytes or of 4 KiB it ends, or it
 * begins there.
 */
static void
apply_torn (struct eval *v, struct disk *d, const struct event *ev)
{
  uint64_t unit = next_random (&v->rnd) % 2 ? 512 : 4096;
  uint64_t cut = next_random (&v->rnd) % (ev->length / unit + 1) * unit;

  if (ev->op == RECORD_TRUNCATE)
    return;
  if (next_random (&v->rnd) % 2)
    apply_part (d, ev, 0, cut);
  else
    apply_part (d, ev, cut, ev->length);
}

/* Is event I durable at TIME? */
static bool
is_ground (const struct eval *v, size_t i, uint64_t time)
{
  const struct event *ev = &v->events[i];

  if (ev->fua && ev->done <= time)
    return true;
  for (size_t j = i + 1; j < v->nr_events && v->events[j].done <= time; ++j)
    if (v->events[j].op == RECORD_FLUSH && v->events[j].object == ev->object
        && ev->done < v->events[j].submit)
      return true;
  return false;
}

/* Move to the ground what has become durable; returns how much there is. */
static size_t
advance_ground (struct eval *v, uint64_t time)
{
  size_t nr = 0;

  for (size_t i = 0; i < v->nr_events; ++i) {
    if (!is_change (&v->events[i]))
      continue;
    if (!v->ground_done[i] && is_ground (v, i, time)) {
      apply (&v->ground[v->events[i].object], &v->events[i]);
      v->ground_done[i] = 1;
    }
    nr += v->ground_done[i];
  }
  return nr;
}

/* What floats at TIME, in the order in which it ended. */
static size_t
floating (const struct eval *v, uint64_t time, size_t *list)
{
  size_t nr = 0;

  for (size_t i = 0; i < v->nr_events; ++i)
    if (is_change (&v->events[i]) && !v->ground_done[i]
        && v->events[i].submit <= time)
      list[nr++] = i;
  return nr;
}

static void
start_state (struct eval *v)
{
  for (unsigned o = 0; o < NR_OBJECTS; ++o) {
    if (!v->ground[o].buf)
      continue;
    memcpy (v->state[o].buf, v->ground[o].buf, v->ground[o].room);
    v->state[o].size = v->ground[o].size;
  }
}

/* ---- the guest's sectors ---- */

/* May sector at OFFSET read as BYTE after a crash at TIME?  Walk back from the
 * newest operation to the one that a flush made durable.
 */
static bool
is_durable_op (const struct eval *v, const struct guest_op *op,
               uint64_t time)
{
  for (size_t i = 0; i < v->nr_ops; ++i)
    if (v->ops[i].type == 'F' && v->ops[i].done <= time
        && op->done < v->ops[i].submit)
      return true;
  return false;
}

static bool
may_read (const struct eval *v, uint64_t offset, uint8_t byte, uint64_t time)
{
  uint64_t superseded_before = 0;

  for (size_t i = v->nr_ops; i-- > 0;) {
    const struct guest_op *op = &v->ops[i];

    if (op->type == 'F' || op->submit > time || offset < op->offset
        || offset >= op->offset + op->length)
      continue;
    if (op->done < superseded_before)
      continue;
    if (op->byte == byte)
      return true;
    /* A trim may have left what was there. */
    if (op->type != 'T' && is_durable_op (v, op, time))
      superseded_before = max_u64 (superseded_before, op->submit);
  }
  return superseded_before == 0 && byte == v->first[offset];
}

static bool
check_guest (const struct eval *v, const uint8_t *guest, uint64_t time,
             uint64_t *where)
{
  for (uint64_t o = 0; o < v->guest_size; o += SECTOR_SIZE) {
    *where = o;
    if (memcmp (guest + o, guest + o + 1, SECTOR_SIZE - 1) != 0
        || !may_read (v, o, guest[o], time))
      return false;
  }
  return true;
}

/* ---- judging ---- */

static struct storage *
to_storage (const struct disk *d, const char *name)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new (name, 0, &e);

  if (!st || storage_pwrite (st, d->buf, d->size, 0, 0, &e) == -1)
    die (name, e.text);
  return st;
}

static void
found (struct eval *v, const char *what, const char *text, uint64_t time)
{
  if (v->verbose)
    fprintf (stderr, "%s: state %" PRIu64 " at %" PRIu64 ": %s: %s\n",
             v->dir, v->states, time, what, text);
}

static bool
check_format (struct eval *v, struct image *im, const char *when,
              uint64_t time)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result r;
  struct error e = ERROR_INIT;
  char text[100];

  memset (&r, 0, sizeof r);
  if (im->format->ops->check (im->format, &o, &r, &e) == -1) {
    found (v, when, e.text, time);
    return false;
  }
  if (r.corruptions == 0 && r.check_errors == 0)
    return true;
  snprintf (text, sizeof text, "%" PRIu64 " corruptions, %" PRIu64 " errors",
            r.corruptions, r.check_errors);
  found (v, when, text, time);
  return im->format->dirty_flag;
}

static bool
check_snapshot (struct eval *v, struct image *im, uint64_t time)
{
  struct error e = ERROR_INIT;
  uint8_t *buf = must_alloc (v->snapshot_size);
  uint64_t size = 0;
  bool ok;

  im->view = im->format->ops->open_view (im->format, "s1", &size, &e);
  ok = im->view && size == v->snapshot_size
    && image_read (im, buf, size, 0, &e) == 0
    && memcmp (buf, v->snapshot, size) == 0;
  if (!ok)
    found (v, "snapshot", e.text, time);
  if (im->view)
    im->format->ops->close_view (im->format, im->view);
  im->view = NULL;
  free (buf);
  return ok;
}

static struct image *
open_state (struct eval *v, struct storage *st, struct storage *data_st,
            bool writable, uint64_t time)
{
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, &format_qcow2, v->base, data_st,
                                   writable, 1 << 20, &e);

  if (!im)
    found (v, "open", e.text, time);
  return im;
}

/* Everything that can be read: content, snapshot, tables. */
static bool
judge_reading (struct eval *v, struct image *im, uint64_t time,
               const char *when)
{
  struct error e = ERROR_INIT;
  uint8_t *guest = must_alloc (v->guest_size);
  uint64_t where = 0;
  char text[100];
  bool ok = true;

  if (image_read (im, guest, v->guest_size, 0, &e) == -1) {
    found (v, when, e.text, time);
    v->errors++;
    ok = false;
  }
  else if (!check_guest (v, guest, time, &where)) {
    snprintf (text, sizeof text, "third value 0x%02x at %" PRIu64,
              guest[where], where);
    found (v, when, text, time);
    v->third++;
    ok = false;
  }
  if (!check_format (v, im, when, time)) {
    v->corrupt++;
    ok = false;
  }
  if (v->snapshot && !check_snapshot (v, im, time)) {
    v->snapshots++;
    ok = false;
  }
  free (guest);
  return ok;
}

/* A writer after the crash: what it does not touch stays. */
static bool
write_on (struct eval *v, struct image *im, uint8_t *guest, struct error *e)
{
  uint64_t cs = im->format->info.cluster_size, o, n;

  if (image_read (im, guest, v->guest_size, 0, e) == -1)
    return false;
  for (unsigned i = 0; i < 12; ++i) {
    o = next_random (&v->rnd) % (v->guest_size / 512) * 512;
    n = min_u64 ((1 + next_random (&v->rnd) % 8) * 512, v->guest_size - o);
    if (i % 4 == 3) {
      o = round_down (o, cs);
      n = min_u64 (cs, v->guest_size - o);
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

static void
judge_writing (struct eval *v, uint64_t time)
{
  struct storage *st = to_storage (&v->state[0], "state");
  struct storage *data_st = v->state[1].buf
    ? to_storage (&v->state[1], "data") : NULL;
  struct image *im = open_state (v, st, data_st, true, time);
  uint8_t *guest = must_alloc (v->guest_size), *now;
  struct error e = ERROR_INIT;
  bool ok = im && write_on (v, im, guest, &e);

  if (im)
    ok = harness_close (im, &e) == 0 && ok;
  im = ok ? open_state (v, st, data_st, false, time) : NULL;
  now = must_alloc (v->guest_size);
  if (!im || image_read (im, now, v->guest_size, 0, &e) == -1) {
    found (v, "a writer after the crash", e.text, time);
    v->errors++;
  }
  else if (memcmp (now, guest, v->guest_size) != 0) {
    found (v, "a writer after the crash", "other sectors changed", time);
    v->third++;
  }
  else {
    v->corrupt += !check_format (v, im, "after a writer", time);
    v->snapshots += v->snapshot && !check_snapshot (v, im, time);
  }
  if (im)
    harness_close (im, &e);
  storage_close (st);
  storage_close (data_st);
  free (guest);
  free (now);
}

static void
store (const struct eval *v, const struct disk *d, const char *name)
{
  char path[4096];
  FILE *fp;

  snprintf (path, sizeof path, "%s/state/%s", v->dir, name);
  fp = fopen (path, "w");
  if (!fp || fwrite (d->buf, 1, d->size, fp) != d->size || fclose (fp) != 0)
    die (path, "cannot be written");
}

/* qemu-img's opinion: 0 = consistent, 3 = leaks. */
static void
judge_by_qemu (struct eval *v, bool dirty, uint64_t time)
{
  char command[8192];
  int r;

  store (v, &v->state[0], "image");
  if (v->state[1].buf)
    store (v, &v->state[1], "data");
  snprintf (command, sizeof command, "cd '%s/state' && qemu-img check -q "
            "-f qcow2 %s image >check.out 2>&1", v->dir,
            dirty ? "-r all" : "");
  r = system (command);
  r = WIFEXITED (r) ? WEXITSTATUS (r) : 255;
  if (r == 0 || r == 3)
    return;
  snprintf (command, sizeof command, "qemu-img check exits with %d", r);
  found (v, "qemu", command, time);
  v->qemu++;
}

static void
judge (struct eval *v, uint64_t time)
{
  struct storage *st = to_storage (&v->state[0], "state");
  struct storage *data_st = v->state[1].buf
    ? to_storage (&v->state[1], "data") : NULL;
  struct image *im = open_state (v, st, data_st, false, time);
  struct error e = ERROR_INIT;
  bool ok = false, dirty = false;

  v->states++;
  if (im) {
    dirty = im->format->dirty_flag;
    ok = judge_reading (v, im, time, "after the crash");
    harness_close (im, &e);
  }
  else
    v->errors++;
  storage_close (st);
  storage_close (data_st);
  if (ok && next_random (&v->rnd) % 100 < v->write_percent)
    judge_writing (v, time);
  if (!ok || next_random (&v->rnd) % 1000 < v->qemu_permille)
    judge_by_qemu (v, dirty, time);
}

/* ---- which states ---- */

static uint64_t
hash_state (const struct eval *v, uint64_t time)
{
  uint64_t h = 1;

  for (size_t i = 0; i < v->nr_ops; ++i)
    if (v->ops[i].type == 'F' && v->ops[i].done <= time)
      h++;
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

/* CHOSEN[i]: 0 = not there, 1 = there, 2 = torn. */
static void
try_choice (struct eval *v, uint64_t time, const size_t *list, size_t nr,
            const uint8_t *chosen)
{
  start_state (v);
  for (size_t i = 0; i < nr; ++i) {
    const struct event *ev = &v->events[list[i]];

    if (chosen[i] == 1)
      apply (&v->state[ev->object], ev);
    else if (chosen[i] == 2)
      apply_torn (v, &v->state[ev->object], ev);
  }
  try_state (v, time);
}

enum { SINGLES = 6, RANDOMS = 12, ALL_SUBSETS = 4 };

static void
try_random (struct eval *v, uint64_t time, const size_t *list, size_t nr,
            uint8_t *chosen, bool torn)
{
  for (size_t i = 0; i < nr; ++i)
    chosen[i] = (uint8_t) (next_random (&v->rnd) % (torn ? 3 : 2));
  try_choice (v, time, list, nr, chosen);
}

/* One alone, and all but that one; and all up to it. */
static void
try_around (struct eval *v, uint64_t time, const size_t *list, size_t nr,
            uint8_t *chosen, size_t i)
{
  memset (chosen, 0, nr);
  chosen[i] = 1;
  try_choice (v, time, list, nr, chosen);
  memset (chosen, 1, nr);
  chosen[i] = 0;
  try_choice (v, time, list, nr, chosen);
  memset (chosen, 0, nr);
  memset (chosen, 1, i);
  try_choice (v, time, list, nr, chosen);
  chosen[i] = 2;
  try_choice (v, time, list, nr, chosen);
}

static void
crash_at (struct eval *v, uint64_t time, size_t *list, uint8_t *chosen)
{
  size_t nr;

  advance_ground (v, time);
  nr = floating (v, time, list);
  memset (chosen, 0, nr);
  try_choice (v, time, list, nr, chosen);
  memset (chosen, 1, nr);
  try_choice (v, time, list, nr, chosen);
  if (nr <= ALL_SUBSETS)
    for (unsigned bits = 1; bits < 1U << nr; ++bits) {
      for (size_t i = 0; i < nr; ++i)
        chosen[i] = bits >> i & 1;
      try_choice (v, time, list, nr, chosen);
    }
  for (unsigned i = 0; i < RANDOMS && nr > 0; ++i)
    try_random (v, time, list, nr, chosen, i % 2);
  for (unsigned i = 0; i < SINGLES && nr > 0; ++i)
    try_around (v, time, list, nr, chosen, next_random (&v->rnd) % nr);
}

static int
by_number (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* States that one moment yields, about. */
enum { PER_MOMENT = 30 };

/* A crash after each beginning and each end of a request; of a long log, which
 * would yield more than max_states, only moments spread over all of it.
 */
static void
crash_everywhere (struct eval *v)
{
  uint64_t *times = must_alloc (2 * v->nr_events * sizeof times[0]);
  size_t *list = must_alloc (v->nr_events * sizeof list[0]), nr = 0;
  uint8_t *chosen = must_alloc (v->nr_events);
  uint64_t share;

  for (size_t i = 0; i < v->nr_events; ++i) {
    times[nr++] = v->events[i].submit;
    times[nr++] = v->events[i].done;
  }
  qsort (times, nr, sizeof times[0], by_number);
  share = max_u64 (1, nr * PER_MOMENT / max_u64 (1, v->max_states));
  for (size_t i = 0; i < nr && v->states < v->max_states; ++i)
    if (next_random (&v->rnd) % share == 0)
      crash_at (v, times[i], list, chosen);
  free (times);
  free (list);
  free (chosen);
}

/* ---- main ---- */

static void
load_guest (struct eval *v)
{
  struct error e = ERROR_INIT;
  struct storage *st = to_storage (&v->ground[0], "image");
  struct storage *data_st = v->ground[1].buf
    ? to_storage (&v->ground[1], "data") : NULL;
  struct image *im;
  size_t size;
  uint8_t *base = load (v->dir, "base", &size);

  if (base) {
    struct disk d = { .buf = base, .size = size };

    v->base_st = to_storage (&d, "base");
    v->base = harness_open (v->base_st, &format_raw, NULL, NULL, false, 0,
                            &e);
    free (base);
  }
  im = harness_open (st, &format_qcow2, v->base, data_st, false, 1 << 20, &e);
  if (!im)
    die ("the first image", e.text);
  v->guest_size = image_size (im);
  v->first = must_alloc (v->guest_size);
  if (image_read (im, v->first, v->guest_size, 0, &e) == -1)
    die ("the first image", e.text);
  harness_close (im, &e);
  storage_close (st);
  storage_close (data_st);
  v->snapshot = load (v->dir, "snapshot", &v->snapshot_size);
}

static void
options (struct eval *v, int argc, char **argv)
{
  int c;

  while ((c = getopt (argc, argv, "m:q:w:s:v")) != -1)
    switch (c) {
    case 'm': v->max_states = strtoull (optarg, NULL, 0); break;
    case 'q': v->qemu_permille = (unsigned) strtoul (optarg, NULL, 0); break;
    case 'w': v->write_percent = (unsigned) strtoul (optarg, NULL, 0); break;
    case 's': v->rnd = strtoull (optarg, NULL, 0) | 1; break;
    case 'v': v->verbose = true; break;
    default: exit (2);
    }
  if (optind != argc - 1)
    die ("usage", "crash-eval [-m MAX] [-q PERMILLE] [-w PERCENT] [-s SEED]"
         " [-v] DIR");
  v->dir = argv[optind];
}

int
main (int argc, char **argv)
{
  struct eval v = {
    .max_states = UINT32_MAX, .qemu_permille = 50, .write_percent = 10,
    .rnd = 88172645463325252u,
  };

  options (&v, argc, argv);
  load_log (&v);
  load_ledger (&v);
  load_disk (&v, 0, "image");
  load_disk (&v, 1, "data");
  load_guest (&v);
  v.ground_done = must_alloc (v.nr_events * sizeof v.ground_done[0]);
  v.seen = must_alloc (SEEN_SLOTS * sizeof v.seen[0]);
  crash_everywhere (&v);
  printf ("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %"
          PRIu64 "\n", v.states, v.third, v.errors, v.corrupt, v.snapshots,
          v.qemu);
  return v.third || v.errors || v.corrupt || v.snapshots || v.qemu;
}
