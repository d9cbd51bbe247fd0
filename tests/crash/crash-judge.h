/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: is a state one in which a crash may leave the image? */

#ifndef NBDIMG_CRASH_JUDGE_H
#define NBDIMG_CRASH_JUDGE_H

#include "tests/crash/crash-write.h"

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

/* How QEMU's programs are told of DIR/state/image. */
static const char *
qemu_image (const struct eval *v)
{
  static char text[200];

  if (v->key)
    snprintf (text, sizeof text, "--object secret,id=s,data=%s --image-opts"
              " driver=%s,%s=s,file.filename=image", HARNESS_SECRET,
              v->format->name, v->key);
  else
    snprintf (text, sizeof text, "-f %s image", v->format->name);
  return text;
}

/* qemu-img's opinion: 0 = consistent, 3 = leaks, 63 = it has none; of VDI
 * images see above.
 */
static bool
qemu_agrees (struct eval *v, bool dirty, const char *when, uint64_t time)
{
  char text[400];
  int r;

  snprintf (text, sizeof text, "qemu-img check -q %s %s%s", qemu_image (v),
            dirty ? "-r all" : "", v->format == &format_vdi
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
  size_t n = (size_t) snprintf (p->command, room, "qemu-io -d unmap %s",
                                qemu_image (v));
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
            "' -c flush%s", p->skip,
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
    ok = judge_reading (v, &g, time, after_crash);
    guest_shut (&g, &e);
  }
  else
    v->errors++;
  guest_free (&g);
  if (ok && !v->damaged
      && (v->flags || next_random (&v->rnd) % 100 < v->write_percent))
    judge_writing (v, time);
  if (ok && !v->damaged && next_random (&v->rnd) % 100 < v->write_percent)
    judge_second_crash (v, time);
  if (!ok || next_random (&v->rnd) % 1000 < v->qemu_permille)
    judge_by_qemu (v, dirty, ok, time);
}

#endif /* NBDIMG_CRASH_JUDGE_H */
