/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: what the log and the ledger say, and what disks a crash leaves of
 * it.
 */

#ifndef NBDIMG_CRASH_DISK_H
#define NBDIMG_CRASH_DISK_H

#include "storage/record.h"
#include "tests/crash/structure.h"
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

/* The image after an operation on its structure: structure.h. */
struct version {
  uint64_t submit, done;
  char letter;
  struct structure s;
  uint8_t *content;             /* s.size bytes */
};

struct eval {
  const struct format_ops *format;
  const char *dir;
  const char *key;              /* the option that names the secret, or NULL */
  struct event *events;         /* by done */
  size_t nr_events;
  struct guest_op *ops;         /* by submit */
  size_t nr_ops;
  struct disk ground[NR_OBJECTS], state[NR_OBJECTS];
  size_t *ground_done;          /* per event: is it in the ground? */
  bool commits;                 /* object 1 is the base */
  struct storage *base_st, *other_st;
  struct image *base, *other;   /* NULL = none, or it is object 1 */
  struct version *versions;     /* [0] = at first */
  size_t nr_versions;
  const struct version *now;    /* of the state that is judged */
  struct marks_found marks;     /* of the state that is judged */
  uint8_t *guest;               /* owned; what it reads.  NULL = it cannot */
  uint64_t first_leaks;         /* of the first image; qed only */
  bool damaged;                 /* the first image, up to the repair */
  bool flags;                   /* version 2: some do not fit (is_tolerated) */
  uint64_t rnd;
  uint64_t max_states;
  unsigned all_subsets, randoms, qemu_permille, write_percent;
  bool verbose;
  bool all_in_use;              /* a bitmap may be in use, enabled or not */
  uint64_t *seen;               /* hash set */
  size_t nr_seen;
  /* results */
  uint64_t states, third, lost, errors, corrupt, snapshots, qemu;
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

/* The file has grown, but what it grew for is not there. */
static void
apply_growth (struct disk *d, const struct event *ev)
{
  if (ev->op == RECORD_WRITE || ev->op == RECORD_ZERO)
    d->size = max_u64 (d->size, ev->offset + ev->length);
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

/* A write that is durable by itself is there in every state, but what it
 * replaced may still float: it goes to the ground only with that.
 */
static bool
must_be_there (const struct event *ev, uint64_t time)
{
  return ev->fua && ev->done <= time;
}

/* Has a flush that ended by TIME made event I durable? */
static bool
is_ground (const struct eval *v, size_t i, uint64_t time)
{
  const struct event *ev = &v->events[i];

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
      /* A trim is a hint, which may still do nothing. */
      if (v->events[i].op != RECORD_TRIM || next_random (&v->rnd) % 2)
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

#endif /* NBDIMG_CRASH_DISK_H */
