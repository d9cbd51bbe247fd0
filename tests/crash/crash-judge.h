/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: is a state one in which a crash may leave the image? */

#ifndef NBDIMG_CRASH_JUDGE_H
#define NBDIMG_CRASH_JUDGE_H

#include "tests/crash/crash-version.h"

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
guest_open (struct eval *v, struct guest *g, bool writable, uint64_t time)
{
  struct error e = ERROR_INIT;

  if (v->commits) {
    g->base = harness_open (g->second, &format_raw, NULL, NULL, false, 0, &e);
    if (!g->base)
      die ("the base", e.text);
  }
  g->im = harness_open (g->st, v->format, backing_of (v, g),
                        v->commits ? NULL : g->second, writable, 1 << 20, &e);
  if (!g->im)
    found (v, "open", e.text, time);
  return g->im != NULL;
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

/* Would it be fine after that repair? */
static bool
is_mended (struct image *im, enum check_repair repair)
{
  const struct format_ops *ops = im->format->ops;
  struct format_open_options open = { .writable = true, .check = true };
  struct format_check_options o = { .repair = repair }, none = { .memory = 0 };
  struct format_needs needs = { .backing = NULL };
  struct error e = ERROR_INIT;
  struct storage *copy = storage_memory_new ("copy", 0, &e);
  uint64_t size = storage_size (im->storage);
  uint8_t *buf = must_alloc (size);
  struct format_check_result r;
  struct format *f = NULL;
  bool ok = false;

  if (storage_pread (im->storage, buf, size, 0, &e) == 0
      && storage_pwrite (copy, buf, size, 0, 0, &e) == 0)
    f = ops->open (copy, &open, &needs, &e);
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
  storage_close (copy);
  free (buf);
  return ok;
}

/* What a crash may leave for check -r although the image has no bit to say so:
 * VDI's number of blocks, and in version 2 the COPIED flags of a snapshot that
 * was being made or deleted.  A writer that comes first does no harm: each such
 * state gets one.
 */
static bool
is_tolerated (struct eval *v, struct image *im, const char *when)
{
  uint8_t version[8] = { 0 };
  struct error e = ERROR_INIT;

  if (im->format->ops == &format_vdi)
    return strcmp (when, "after the crash") == 0 && vdi_count_is_enough (im)
      && is_mended (im, REPAIR_LEAKS);
  if (im->format->ops == &format_qcow2 && v->nr_versions > 1)
    v->flags = storage_pread (im->storage, version, 8, 0, &e) == 0
      && get_be32 (version + 4) == 2 && is_mended (im, REPAIR_ALL);
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
  if ((r.corruptions == 0 && r.check_errors == 0) || im->format->dirty_flag
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

/* ---- QEMU's opinion ---- */

static const char *
second_name (const struct eval *v)
{
  return v->commits ? "base" : "data";
}

static void
store (const struct eval *v, const struct disk *d, const char *name)
{
  char path[4096];
  FILE *fp;

  snprintf (path, sizeof path, "%s/state/%s", v->dir, name);
  remove (path);                /* a link, maybe */
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

/* What QEMU is to do, and what GUEST, of SIZE bytes, is after it; [skip,
 * skip+cluster) is discarded, and may be anything.
 */
struct plan {
  uint8_t *guest;
  uint64_t size, cluster, skip;
  char command[8192];
};

static void
plan_qemu_writes (struct eval *v, struct plan *p)
{
  size_t room = sizeof p->command;
  size_t n = (size_t) snprintf (p->command, room, "qemu-io -f %s -d unmap",
                                v->format->name);
  /* Around a write into a zero cluster of a QED image QEMU puts what the
   * backing file has.
   */
  bool whole = v->format == &format_qed && v->now->s.backing;
  uint64_t o, len;

  for (int i = 1; i <= 8; ++i) {
    o = next_random (&v->rnd) % (p->size / 512) * 512;
    len = (1 + next_random (&v->rnd) % 20) * 512;
    if (i % 4 == 0 || whole)
      o = round_down (o, p->cluster), len = p->cluster;
    len = min_u64 (len, p->size - o);
    memset (p->guest + o, i % 4 ? i : 0, len);
    n += (size_t) snprintf (p->command + n, room - n, i % 4
                            ? " -c 'write -q -P %3$d %1$" PRIu64 " %2$" PRIu64
                            "'"
                            : " -c 'write -q -z -u %1$" PRIu64 " %2$" PRIu64
                            "'", o, len, i);
  }
  p->skip = round_down (next_random (&v->rnd) % p->size, p->cluster);
  snprintf (p->command + n, room - n, " -c 'discard -q %" PRIu64 " %" PRIu64
            "' -c flush image%s", p->skip,
            min_u64 (p->cluster, p->size - p->skip),
            v->now->s.nr ? " && qemu-img snapshot -c after image" : "");
}

/* The same, with a snapshot applied before. */
static void
plan_qemu_apply (struct eval *v, struct plan *p)
{
  const struct structure *s = &v->now->s;
  unsigned number = s->numbers[next_random (&v->rnd) % s->nr];
  char *writes, name[32];

  snprintf (name, sizeof name, "content-s%u", number);
  free (p->guest);
  p->guest = load (v->dir, name, &p->size);
  if (!p->guest)
    die (name, "it is not there");
  plan_qemu_writes (v, p);
  writes = strdup (p->command);
  snprintf (p->command, sizeof p->command, "qemu-img snapshot -a s%u image"
            " && %s", number, writes);
  free (writes);
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

static bool
guest_fetch (struct eval *v, struct guest *g, uint64_t time)
{
  *g = (struct guest) { .st = fetch (v, "image") };
  if (v->state[1].buf)
    g->second = fetch (v, second_name (v));
  return guest_open (v, g, false, time);
}

/* What QEMU left: all sectors as planned, the snapshots as they were. */
static bool
judge_what_qemu_wrote (struct eval *v, const struct plan *p, uint64_t time)
{
  static const char when[] = "qemu-io after the crash";
  uint64_t end = min_u64 (p->skip + p->cluster, p->size);
  struct error e = ERROR_INIT;
  uint8_t *now = NULL;
  struct guest g;
  bool ok;

  if (guest_fetch (v, &g, time))
    now = guest_read (&g, &e);
  ok = now && image_size (g.im) == p->size
    && memcmp (now, p->guest, p->skip) == 0
    && memcmp (now + end, p->guest + end, p->size - end) == 0;
  if (!ok)
    found (v, when, "other sectors changed", time);
  else
    ok = check_snapshots (v, g.im, when, time)
      && check_marks (v, g.im, now, when, time);
  guest_free (&g);
  free (now);
  return ok;
}

static bool
qemu_writes_on (struct eval *v, uint64_t time)
{
  struct error e = ERROR_INIT;
  struct plan p = { .guest = NULL };
  struct guest g;
  bool ok;

  if (guest_fetch (v, &g, time)) {
    p.guest = guest_read (&g, &e);
    p.size = image_size (g.im);
    p.cluster = g.im->format->info.cluster_size;
  }
  guest_free (&g);
  if (!p.guest)
    return false;
  if (v->now->s.nr == 0 || v->marks.nr || next_random (&v->rnd) % 2)
    plan_qemu_writes (v, &p);
  else
    plan_qemu_apply (v, &p);
  ok = shell (v, p.command) == 0;
  if (!ok)
    found (v, "qemu-io after the crash", "it fails", time);
  ok = ok && qemu_agrees (v, v->flags, "after qemu-io", time)
    && judge_what_qemu_wrote (v, &p, time);
  free (p.guest);
  return ok;
}

/* FINE: we have found nothing, so QEMU can go on to write.  It repairs no VDI
 * image, and where two blocks share a place it writes to both.
 */
static void
judge_by_qemu (struct eval *v, bool dirty, bool fine, uint64_t time)
{
  if (v->damaged && v->format == &format_vdi)
    return;
  store (v, &v->state[0], "image");
  if (v->state[1].buf)
    store (v, &v->state[1], second_name (v));
  /* Flags that do not fit: QEMU writes before it repairs. */
  v->qemu += (!v->flags
              && !qemu_agrees (v, dirty || v->damaged, "qemu", time))
    || (fine && !qemu_writes_on (v, time));
}

/* ---- all of it ---- */

static void
judge (struct eval *v, uint64_t time)
{
  bool ok = false, dirty = false;
  struct error e = ERROR_INIT;
  struct guest g;

  v->states++;
  v->now = newest_version (v, time);
  v->flags = false;
  v->marks.nr = 0;
  v->damaged = v->nr_versions > 1 && v->versions[1].letter == 'K'
    && v->versions[1].done > time;
  guest_storages (v, &g);
  if (guest_open (v, &g, false, time)) {
    dirty = g.im->format->dirty_flag;
    ok = judge_reading (v, &g, time, "after the crash");
    guest_shut (&g, &e);
  }
  else
    v->errors++;
  guest_free (&g);
  if (ok && !v->damaged
      && (v->flags || next_random (&v->rnd) % 100 < v->write_percent))
    judge_writing (v, time);
  if (!ok || next_random (&v->rnd) % 1000 < v->qemu_permille)
    judge_by_qemu (v, dirty, ok, time);
}

#endif /* NBDIMG_CRASH_JUDGE_H */
