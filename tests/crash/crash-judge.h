/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: is a state one in which a crash may leave the image? */

#ifndef NBDIMG_CRASH_JUDGE_H
#define NBDIMG_CRASH_JUDGE_H

#include "tests/crash/crash-disk.h"

/* ---- the guest's sectors ---- */

static bool
is_durable_op (const struct eval *v, const struct guest_op *op,
               uint64_t time)
{
  if (op->type == 'U' && op->done <= time)
    return true;
  for (size_t i = 0; i < v->nr_ops; ++i)
    if (v->ops[i].type == 'F' && v->ops[i].done <= time
        && op->done < v->ops[i].submit)
      return true;
  return false;
}

/* May sector at OFFSET read as BYTE after a crash at TIME?  Walk back from the
 * newest operation to the one that a flush made durable.
 */
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

/* Had the sector at OFFSET that value once? */
static bool
was_so (const struct eval *v, uint64_t offset, uint8_t byte, uint64_t time)
{
  for (size_t i = 0; i < v->nr_ops; ++i)
    if (v->ops[i].type != 'F' && v->ops[i].byte == byte
        && v->ops[i].submit <= time && offset >= v->ops[i].offset
        && offset < v->ops[i].offset + v->ops[i].length)
      return true;
  return byte == v->first[offset];
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

/* A VDI image's number of blocks may be too large after a crash: check says so,
 * QEMU's too, and it costs no data (QEMU then takes places further out, which
 * its check may call too large).  One that is smaller than the map uses would:
 * QEMU writes over the block that is there.
 */
static bool
vdi_count_is_enough (struct image *im)
{
  struct error e = ERROR_INIT;
  uint8_t header[512], entry[4];
  uint64_t map, blocks, end = 0;

  if (storage_pread (im->storage, header, sizeof header, 0, &e) == -1)
    return false;
  map = get_le32 (header + 340);
  blocks = get_le32 (header + 384);
  for (uint64_t i = 0; i < blocks; ++i) {
    if (storage_pread (im->storage, entry, 4, map + i * 4, &e) == -1)
      return false;
    if (get_le32 (entry) < UINT32_C (0xfffffffe))
      end = max_u64 (end, (uint64_t) get_le32 (entry) + 1);
  }
  return get_le32 (header + 388) >= end;
}

/* Is that number all that is wrong? */
static bool
is_tolerated (struct image *im, const char *when)
{
  struct format_check_options o = { .repair = REPAIR_LEAKS };
  struct format_check_result r;
  struct error e = ERROR_INIT;

  memset (&r, 0, sizeof r);
  return im->format->ops == &format_vdi && strcmp (when, "after the crash") == 0
    && vdi_count_is_enough (im)
    && im->format->ops->check (im->format, &o, &r, &e) == 0
    && r.corruptions == 0;
}

static bool
check_format (struct eval *v, struct image *im, const char *when,
              uint64_t time)
{
  struct format_check_options o = { .memory = 0 };
  struct format_check_result r;
  struct error e = ERROR_INIT;
  char text[100];

  if (!im->format->ops->check)
    return true;
  memset (&r, 0, sizeof r);
  if (im->format->ops->check (im->format, &o, &r, &e) == -1) {
    found (v, when, e.text, time);
    return false;
  }
  if ((r.corruptions == 0 && r.check_errors == 0) || is_tolerated (im, when))
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
  struct image *im = harness_open (st, v->format, v->base, data_st, writable,
                                   1 << 20, &e);

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
    bool old = was_so (v, where, guest[where], time);

    snprintf (text, sizeof text, "%s value 0x%02x at %" PRIu64,
              old ? "lost flush, old" : "third", guest[where], where);
    found (v, when, text, time);
    v->lost += old;
    v->third += !old;
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

/* ---- QEMU's opinion ---- */

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

/* Run COMMAND in DIR/state; its exit status. */
static int
shell (const struct eval *v, const char *command)
{
  char line[16384];
  int r;

  snprintf (line, sizeof line, "cd '%s/state' && { %s; } >out 2>&1", v->dir,
            command);
  r = system (line);
  return WIFEXITED (r) ? WEXITSTATUS (r) : 255;
}

/* qemu-img's opinion: 0 = consistent, 3 = leaks, 63 = it has none; of VDI
 * images see above.
 */
static bool
qemu_agrees (struct eval *v, bool dirty, const char *when, uint64_t time)
{
  char text[200];
  int r;

  snprintf (text, sizeof text, "qemu-img check -q -f %s %s image%s",
            v->format->name, dirty ? "-r all" : "", v->format == &format_vdi
            ? " || [ $? = 2 ] && ! grep -qvE 'mismatch|too large' out" : "");
  r = shell (v, text);
  if (r == 0 || r == 3 || (r == 63 && !v->format->check))
    return true;
  snprintf (text, sizeof text, "qemu-img check exits with %d", r);
  found (v, when, text, time);
  return false;
}

/* What QEMU is to do, and what GUEST is after it; [skip, skip+cluster) is
 * discarded, and may be anything.
 */
static void
plan_qemu_writes (struct eval *v, uint8_t *guest, char *text, size_t size,
                  uint64_t cluster, uint64_t *skip)
{
  size_t n = (size_t) snprintf (text, size, "qemu-io -f %s -d unmap",
                                 v->format->name);
  /* Around a write into a zero cluster of a QED image QEMU puts what the
   * backing file has.
   */
  bool whole = v->format == &format_qed && v->base;
  uint64_t o, len;

  for (int i = 1; i <= 8; ++i) {
    o = next_random (&v->rnd) % (v->guest_size / 512) * 512;
    len = min_u64 ((1 + next_random (&v->rnd) % 20) * 512,
                   v->guest_size - o);
    if (i % 4 == 0 || whole)
      o = round_down (o, cluster), len = cluster;
    memset (guest + o, i % 4 ? i : 0, len);
    n += (size_t) snprintf (text + n, size - n, i % 4
                            ? " -c 'write -q -P %3$d %1$" PRIu64 " %2$" PRIu64
                            "'"
                            : " -c 'write -q -z -u %1$" PRIu64 " %2$" PRIu64
                            "'", o, len, i);
  }
  *skip = round_down (next_random (&v->rnd) % v->guest_size, cluster);
  snprintf (text + n, size - n, " -c 'discard -q %" PRIu64 " %" PRIu64
            "' -c flush image%s", *skip, cluster,
            v->snapshot ? " && qemu-img snapshot -c s2 image" : "");
}

/* DIR/state/NAME; NULL = there is none. */
static struct storage *
fetch (const struct eval *v, const char *name)
{
  char path[4096];
  struct disk d = { .buf = NULL };
  struct storage *st;

  snprintf (path, sizeof path, "state/%s", name);
  d.buf = load (v->dir, path, &d.size);
  st = d.buf ? to_storage (&d, name) : NULL;
  free (d.buf);
  return st;
}

/* What QEMU left: all sectors as planned, the snapshot as it was. */
static bool
judge_what_qemu_wrote (struct eval *v, const uint8_t *guest, uint64_t skip,
                       uint64_t cluster, uint64_t time)
{
  struct storage *st = fetch (v, "image");
  struct storage *data_st = v->state[1].buf ? fetch (v, "data") : NULL;
  struct image *im = open_state (v, st, data_st, false, time);
  struct error e = ERROR_INIT;
  uint8_t *now = must_alloc (v->guest_size);
  uint64_t end = min_u64 (skip + cluster, v->guest_size);
  bool ok = im && image_read (im, now, v->guest_size, 0, &e) == 0;

  ok = ok && memcmp (now, guest, skip) == 0
    && memcmp (now + end, guest + end, v->guest_size - end) == 0;
  if (!ok)
    found (v, "qemu-io after the crash", "other sectors changed", time);
  else if (v->snapshot)
    ok = check_snapshot (v, im, time);
  if (im)
    harness_close (im, &e);
  storage_close (st);
  storage_close (data_st);
  free (now);
  return ok;
}

static bool
qemu_writes_on (struct eval *v, uint64_t time)
{
  struct storage *st = fetch (v, "image");
  struct storage *data_st = v->state[1].buf ? fetch (v, "data") : NULL;
  struct image *im = open_state (v, st, data_st, false, time);
  uint8_t *guest = must_alloc (v->guest_size);
  struct error e = ERROR_INIT;
  uint64_t cluster = 0, skip = 0;
  char command[8192];
  bool ok = im && image_read (im, guest, v->guest_size, 0, &e) == 0;

  if (ok) {
    cluster = im->format->info.cluster_size;
    plan_qemu_writes (v, guest, command, sizeof command, cluster, &skip);
  }
  if (im)
    harness_close (im, &e);
  storage_close (st);
  storage_close (data_st);
  if (ok && shell (v, command) != 0) {
    found (v, "qemu-io after the crash", "it fails", time);
    ok = false;
  }
  ok = ok && qemu_agrees (v, false, "after qemu-io", time)
    && judge_what_qemu_wrote (v, guest, skip, cluster, time);
  free (guest);
  return ok;
}

/* FINE: we have found nothing, so QEMU can go on to write. */
static void
judge_by_qemu (struct eval *v, bool dirty, bool fine, uint64_t time)
{
  store (v, &v->state[0], "image");
  if (v->state[1].buf)
    store (v, &v->state[1], "data");
  v->qemu += !qemu_agrees (v, dirty, "qemu", time)
    || (fine && !qemu_writes_on (v, time));
}

/* ---- all of it ---- */

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
    judge_by_qemu (v, dirty, ok, time);
}

#endif /* NBDIMG_CRASH_JUDGE_H */
