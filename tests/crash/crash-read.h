/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: what can be read of a state, and may it be so? */

#ifndef NBDIMG_CRASH_READ_H
#define NBDIMG_CRASH_READ_H

#include "tests/crash/crash-version.h"

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

/* When a state is looked at.  What a crash may leave a writer may not. */
static const char after_crash[] = "after the crash";
static const char after_writer[] = "after a writer";

/* The storages of a state, and the image on them. */
struct guest {
  struct storage *st, *second;  /* second: see eval.commits; or NULL */
  struct image *base, *im;
};

static void
guest_storages (const struct eval *v, struct guest *g)
{
  *g = (struct guest) { .st = to_storage (&v->state[0], "state") };
  if (v->state[1].buf)
    g->second = to_storage (&v->state[1], "second");
}

/* What the image names; one that it does not open with finds that out. */
static struct image *
backing_of (const struct eval *v, const struct guest *g)
{
  struct format_open_options o = { .info_only = true };
  struct format_needs needs = { .backing = NULL };
  struct image *found = v->commits ? g->base : v->base;
  struct error e = ERROR_INIT;
  struct format *f;

  if (!v->other)
    return found;
  f = v->format->open (g->st, &o, &needs, &e);
  if (f && !needs.backing)
    found = NULL;
  else if (f && is_named (needs.backing, backing_names[OTHER_BACKING]))
    found = v->other;
  if (f)
    v->format->close (f, &e);
  format_needs_free (&needs);
  return found;
}

static bool
guest_try_open (struct eval *v, struct guest *g, bool writable,
                struct error *e)
{
  if (v->commits) {
    g->base = harness_open (g->second, &format_raw, NULL, NULL, false, 0, e);
    if (!g->base)
      die ("the base", e->text);
  }
  g->im = harness_open (g->st, v->format, backing_of (v, g),
                        v->commits ? NULL : g->second, writable, 1 << 20, e);
  return g->im != NULL;
}

static bool
guest_open (struct eval *v, struct guest *g, bool writable, uint64_t time)
{
  struct error e = ERROR_INIT;

  if (guest_try_open (v, g, writable, &e))
    return true;
  found (v, "open", e.text, time);
  return false;
}

static bool
guest_shut (struct guest *g, struct error *e)
{
  bool ok = !g->im || harness_close (g->im, e) == 0;
  struct error ignored = ERROR_INIT;

  if (g->base)
    harness_close (g->base, &ignored);
  g->im = g->base = NULL;
  return ok;
}

static void
guest_free (struct guest *g)
{
  struct error e = ERROR_INIT;

  guest_shut (g, &e);
  storage_close (g->st);
  storage_close (g->second);
}

/* What the guest reads; NULL = it cannot. */
static uint8_t *
guest_read (const struct guest *g, struct error *e)
{
  uint8_t *buf = must_alloc (image_size (g->im));

  if (image_read (g->im, buf, image_size (g->im), 0, e) == 0)
    return buf;
  free (buf);
  return NULL;
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

static struct storage *
copy_of (struct storage *st)
{
  struct disk d = { .size = storage_size (st) };
  struct error e = ERROR_INIT;
  struct storage *copy;

  d.buf = must_alloc (d.size);
  if (storage_pread (st, d.buf, d.size, 0, &e) == -1)
    die ("a copy", e.text);
  copy = to_storage (&d, "copy");
  free (d.buf);
  return copy;
}

/* Repair ST, and look again. */
static bool
mend (struct eval *v, struct storage *st, enum check_repair repair)
{
  const struct format_ops *ops = v->format;
  struct format_open_options open = { .writable = true, .check = true };
  struct format_check_options o = { .repair = repair }, none = { .memory = 0 };
  struct format_needs needs = { .backing = NULL };
  struct error e = ERROR_INIT;
  struct format_check_result r;
  struct format *f = ops->open (st, &open, &needs, &e);
  bool ok = false;

  if (f) {
    memset (&r, 0, sizeof r);
    ok = ops->activate (f, NULL, needs.backing != NULL, &e) == 0
      && ops->check (f, &o, &r, &e) == 0;
    memset (&r, 0, sizeof r);
    ok = ok && ops->check (f, &none, &r, &e) == 0
      && r.corruptions == 0 && r.check_errors == 0;
    ops->close (f, &e);
  }
  format_needs_free (&needs);
  return ok;
}

/* Would it be fine after that repair, and the disk read as it does now? */
static bool
is_mended (struct eval *v, struct image *im, enum check_repair repair)
{
  struct guest before = { .im = im }, after = { .st = copy_of (im->storage) };
  struct error e = ERROR_INIT;
  uint8_t *old = guest_read (&before, &e), *new = NULL;
  bool ok = mend (v, after.st, repair);

  if (ok)
    after.im = harness_open (after.st, v->format, im->backing, im->data_file,
                             false, 0, &e);
  if (after.im)
    new = guest_read (&after, &e);
  ok = ok && (!old || (new && image_size (after.im) == image_size (im)
                       && memcmp (old, new, image_size (im)) == 0));
  free (old);
  free (new);
  guest_free (&after);
  return ok;
}

/* What a crash may leave for check -r: anything that it mends, with a mark in
 * the header; without one VDI's number of blocks, and in version 2 the COPIED
 * flags of a snapshot that was being made or deleted.  A writer that comes
 * first does no harm: each such state gets one.
 */
static bool
is_tolerated (struct eval *v, struct image *im, const char *when)
{
  uint8_t version[8] = { 0 };
  struct error e = ERROR_INIT;

  if (im->format->dirty_flag)
    return is_mended (v, im, REPAIR_ALL);
  if (im->format->ops == &format_vdi)
    return when != after_writer && vdi_count_is_enough (im)
      && is_mended (v, im, REPAIR_LEAKS);
  if (im->format->ops == &format_qcow2 && v->nr_versions > 1)
    v->flags = storage_pread (im->storage, version, 8, 0, &e) == 0
      && get_be32 (version + 4) == 2 && is_mended (v, im, REPAIR_ALL);
  return v->flags;
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
  /* NEED_CHECK goes when all is in order, and nothing is left to be cut; what
   * leaks in the middle of the file no repair takes away.
   */
  if (v->format == &format_qed && when == after_crash
      && !im->format->dirty_flag && r.leaks > v->first_leaks) {
    found (v, when, "leaks, but no NEED_CHECK", time);
    return false;
  }
  if ((r.corruptions == 0 && r.check_errors == 0)
      || (v->damaged && r.check_errors == 0) || is_tolerated (v, im, when))
    return true;
  snprintf (text, sizeof text, "%" PRIu64 " corruptions, %" PRIu64 " errors",
            r.corruptions, r.check_errors);
  found (v, when, text, time);
  return false;
}

/* Each snapshot of the version that the state is of. */
static bool
check_snapshots (struct eval *v, struct image *im, const char *when,
                 uint64_t time)
{
  const struct structure *s = &v->now->s;
  struct error e = ERROR_INIT;
  char text[ERROR_TEXT_SIZE + 32];

  for (unsigned i = 0; i < s->nr; ++i)
    if (!same_snapshot (v, im, s->numbers[i], &e)) {
      snprintf (text, sizeof text, "snapshot s%u: %s", s->numbers[i],
                e.err ? e.text : "it reads otherwise");
      found (v, when, text, time);
      return false;
    }
  return true;
}

/* Which version is it?  Where two are alike but for the content, the one that
 * the content fits, and the bitmaps.
 */
static bool
find_version (struct eval *v, struct image *im, const uint8_t *guest,
              uint64_t time)
{
  const struct version *w = newest_version (v, time);
  struct error e = ERROR_INIT;
  unsigned fits = 0, best = 0;
  char text[BITMAP_TEXT];
  uint64_t where;

  v->now = NULL;
  for (; may_be_version (v, w, time); --w) {
    fits = same_structure (v, im, &w->s, &e);
    if (fits && guest && check_guest (v, w, guest, time, &where))
      fits += 1U + are_honest (v, w, guest, time, text);
    if (fits > best) {
      v->now = w;
      best = fits;
    }
    if (w == v->versions)
      break;
  }
  return v->now != NULL;
}

static bool
judge_content (struct eval *v, const uint8_t *guest, uint64_t time,
               const char *when)
{
  uint64_t where = 0;
  char text[100];
  bool old;

  if (check_guest (v, v->now, guest, time, &where))
    return true;
  old = was_so (v, where, guest[where], time);
  snprintf (text, sizeof text, "%s value 0x%02x at %" PRIu64,
            old ? "lost flush, old" : "third", guest[where], where);
  found (v, when, text, time);
  v->lost += old;
  v->third += !old;
  return false;
}

/* Everything that can be read: structure, content, snapshots, tables. */
static bool
judge_reading (struct eval *v, const struct guest *g, uint64_t time,
               const char *when)
{
  struct error e = ERROR_INIT;
  uint8_t *guest = guest_read (g, &e);
  char text[BITMAP_TEXT];
  bool ok = true;

  if (!guest || find_marks (g->im->format, &v->marks, &e) == -1) {
    found (v, when, e.text, time);
    v->errors++;
    ok = false;
  }
  if (!find_version (v, g->im, guest, time)) {
    found (v, when, "size, backing file, snapshots, features and bitmaps are"
           " neither as before nor as after", time);
    v->snapshots++;
    free (guest);
    return false;
  }
  if (guest && !judge_content (v, guest, time, when))
    ok = false;
  if (!check_format (v, g->im, when, time)) {
    v->corrupt++;
    ok = false;
  }
  if (!check_snapshots (v, g->im, when, time)) {
    v->snapshots++;
    ok = false;
  }
  if (guest && ok && !are_honest (v, v->now, guest, time, text)) {
    found (v, when, text, time);
    v->snapshots++;
    ok = false;
  }
  free (v->guest);
  v->guest = guest;
  return ok;
}

#endif /* NBDIMG_CRASH_READ_H */
