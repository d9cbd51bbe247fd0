/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* crash-eval: which structure may the image have after a crash, and which does
 * it have?
 */

#ifndef NBDIMG_CRASH_VERSION_H
#define NBDIMG_CRASH_VERSION_H

#include "tests/crash/crash-disk.h"

enum { MAX_VERSIONS = 1000 };

static uint8_t *
load_content (const struct eval *v, const char *letter, unsigned number,
              uint64_t expected)
{
  char name[32];
  size_t size;
  uint8_t *buf;

  snprintf (name, sizeof name, "content-%s%u", letter, number);
  buf = load (v->dir, name, &size);
  if (!buf || size != expected)
    die (name, "it is not there, or has not that size");
  return buf;
}

static bool
read_version (FILE *fp, struct version *w)
{
  char backing[256];

  memset (w, 0, sizeof *w);
  if (fscanf (fp, "%" SCNu64 " %" SCNu64 " %c %" SCNu64 " %255s %u",
              &w->submit, &w->done, &w->letter, &w->s.size, backing, &w->s.nr)
      != 6)
    return false;
  if (w->s.nr > MAX_SNAPSHOTS)
    die ("versions", "too many snapshots");
  for (unsigned i = 0; i < w->s.nr; ++i)
    if (fscanf (fp, "%u", &w->s.numbers[i]) != 1)
      die ("versions", "a damaged line");
  if (fscanf (fp, "%u %u %u %u", &w->s.version, &w->s.refcount_order,
              &w->s.lazy, &w->s.nr_marks) != 4 || w->s.nr_marks > MAX_MARKS)
    die ("versions", "a damaged line");
  for (unsigned i = 0; i < w->s.nr_marks; ++i)
    if (!read_mark (fp, &w->s.marks[i]))
      die ("versions", "a damaged bitmap");
  for (unsigned i = 0; i < NR_BACKING_NAMES; ++i)
    if (strcmp (backing, backing_names[i]) == 0)
      w->s.backing = backing_names[i];
  return true;
}

static void
load_versions (struct eval *v)
{
  char path[4096];
  FILE *fp;

  snprintf (path, sizeof path, "%s/versions", v->dir);
  fp = fopen (path, "r");
  if (!fp)
    die (path, "cannot be read");
  v->versions = must_alloc (MAX_VERSIONS * sizeof v->versions[0]);
  while (v->nr_versions < MAX_VERSIONS
         && read_version (fp, &v->versions[v->nr_versions])) {
    struct version *w = &v->versions[v->nr_versions];

    w->content = load_content (v, "", (unsigned) v->nr_versions, w->s.size);
    v->nr_versions++;
  }
  fclose (fp);
  if (v->nr_versions == 0)
    die (path, "it is empty");
}

/* The newest operation on the structure that had begun at TIME. */
static const struct version *
newest_version (const struct eval *v, uint64_t time)
{
  size_t i = v->nr_versions - 1;

  while (i > 0 && v->versions[i].submit > time)
    --i;
  return &v->versions[i];
}

/* May it be there at TIME?  Each is durable when it has returned. */
static bool
may_be_version (const struct eval *v, const struct version *w, uint64_t time)
{
  const struct version *newest = newest_version (v, time);

  return w == newest
    || (newest > v->versions && w == newest - 1 && newest->done > time);
}

/* ---- what a state has ---- */

static bool
same_snapshots (struct image *im, const struct structure *s, struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  struct format_snapshot *list = NULL;
  size_t nr = 0, same = 0;
  char name[16];

  if (!ops->snapshots)
    return s->nr == 0;
  if (ops->snapshots (im->format, &list, &nr, e) == -1)
    return false;
  for (size_t i = 0; i < nr && i < s->nr; ++i) {
    snprintf (name, sizeof name, "s%u", s->numbers[i]);
    same += strcmp (list[i].name, name) == 0;
  }
  format_snapshots_free (list, nr);
  return nr == s->nr && same == nr;
}

/* QEMU writes paths, where we write names. */
static bool
is_named (const char *path, const char *name)
{
  const char *slash = strrchr (path, '/');

  return strcmp (slash ? slash + 1 : path, name) == 0;
}

/* Formats that record none are raw's. */
static bool
same_backing (struct image *im, const struct structure *s, struct error *e)
{
  struct format_open_options o = { .info_only = true };
  struct format_needs needs = { .backing = NULL };
  struct format *f = im->format->ops->open (im->storage, &o, &needs, e);
  bool same = false;

  if (f) {
    same = !s->backing == !needs.backing
      && (!s->backing || is_named (needs.backing, s->backing))
      && (!needs.backing_format || strcmp (needs.backing_format, "raw") == 0);
    im->format->ops->close (f, e);
  }
  format_needs_free (&needs);
  return same;
}

static bool
same_features (struct image *im, const struct structure *s, struct error *e)
{
  struct structure now = { .size = 0 };
  uint8_t header[512] = { 0 };

  if (storage_pread (im->storage, header, sizeof header, 0, e) == -1)
    return false;
  read_features (header, &now);
  return now.version == s->version && now.lazy == s->lazy
    && now.refcount_order == s->refcount_order;
}

/* Names, granularity, and whether they are enabled; nothing of their bits. */
static bool
same_marks (const struct marks_found *found, const struct structure *s)
{
  for (unsigned i = 0; i < s->nr_marks && i < found->nr; ++i)
    if (found->items[i].number != s->marks[i].number
        || found->items[i].granularity != s->marks[i].granularity
        || found->items[i].enabled != s->marks[i].enabled)
      return false;
  return found->nr == s->nr_marks;
}

static bool
same_structure (struct eval *v, struct image *im, const struct structure *s,
                struct error *e)
{
  return image_size (im) == s->size && same_snapshots (im, s, e)
    && same_backing (im, s, e) && same_features (im, s, e)
    && same_marks (&v->marks, s);
}

static bool
same_snapshot (struct eval *v, struct image *im, unsigned number,
               struct error *e)
{
  const struct format_ops *ops = im->format->ops;
  uint8_t *want, *buf = NULL;
  uint64_t size = 0;
  char name[16];
  bool ok = false;

  snprintf (name, sizeof name, "s%u", number);
  im->view = ops->open_view (im->format, name, &size, e);
  if (!im->view)
    return false;
  want = load_content (v, "s", number, size);
  buf = must_alloc (size);
  ok = image_read (im, buf, size, 0, e) == 0 && memcmp (buf, want, size) == 0;
  ops->close_view (im->format, im->view);
  im->view = NULL;
  free (want);
  free (buf);
  return ok;
}

/* ---- bitmaps ---- */

enum { BITMAP_TEXT = 100 };

/* The bits of the sectors in which A and B differ; the end of the shorter one
 * is zeroes.
 */
static void
add_difference (uint8_t *bits, unsigned granularity, const uint8_t *a,
                uint64_t a_size, const uint8_t *b, uint64_t b_size)
{
  static const uint8_t zeroes[SECTOR_SIZE];

  for (uint64_t o = 0; o < b_size; o += SECTOR_SIZE)
    if (memcmp (o < a_size ? a + o : zeroes, b + o, SECTOR_SIZE) != 0)
      bits_add (bits, granularity, o, SECTOR_SIZE);
}

/* Which bit of BITS is not in ALL? */
static bool
tell_bit (char *text, unsigned number, const char *what, const uint8_t *bits,
          const uint8_t *all)
{
  for (uint64_t i = 0; i < MARK_BYTES * 8; ++i)
    if (bit_is_set (bits, i) && !bit_is_set (all, i)) {
      snprintf (text, BITMAP_TEXT, "bitmap b%u: bit %" PRIu64 " %s", number, i,
                what);
      return false;
    }
  return true;
}

/* May bitmap I, as it was found in a state of version W, say what it says?  Its
 * disk reads as GUEST.
 */
static bool
is_honest (const struct eval *v, const struct version *w, unsigned i,
           const uint8_t *guest, uint64_t time, char *text)
{
  const struct mark *m = &w->s.marks[i], *found = &v->marks.items[i];
  const struct version *since = &v->versions[m->since];
  uint8_t must[MARK_BYTES], may[MARK_BYTES];

  memcpy (must, m->must, sizeof must);
  memcpy (may, m->may, sizeof may);
  if (m->enabled) {
    add_difference (must, m->granularity, since->content,
                    min_u64 (m->kept, since->s.size), guest, w->s.size);
    for (size_t k = 0; k < v->nr_ops; ++k)
      if (v->ops[k].type != 'F' && v->ops[k].submit >= w->done
          && v->ops[k].submit <= time)
        bits_add (may, m->granularity, v->ops[k].offset, v->ops[k].length);
  }
  return tell_bit (text, m->number, "is clear", must, found->must)
    && tell_bit (text, m->number, "is set", found->must, may);
}

/* May bitmap I be in use: enabled, or where an operation is under way that
 * touches all of them?
 */
static bool
may_be_in_use (const struct eval *v, unsigned number, uint64_t time,
               char *text)
{
  const struct version *w = newest_version (v, time);

  if (v->all_in_use)
    return true;
  for (; may_be_version (v, w, time); --w) {
    for (unsigned i = 0; i < w->s.nr_marks; ++i)
      if (w->s.marks[i].number == number
          && (w->s.marks[i].enabled || w->s.marks[i].maybe_in_use))
        return true;
    if (w == v->versions)
      break;
  }
  snprintf (text, BITMAP_TEXT, "bitmap b%u is in use", number);
  return false;
}

static bool
are_honest (const struct eval *v, const struct version *w,
            const uint8_t *guest, uint64_t time, char *text)
{
  for (unsigned i = 0; i < w->s.nr_marks; ++i)
    if (v->marks.in_use[i]
        ? !may_be_in_use (v, w->s.marks[i].number, time, text)
        : !is_honest (v, w, i, guest, time, text))
      return false;
  return true;
}

/* After a writer changed the disk of the state from BEFORE to AFTER: what was
 * in use stays so, nothing is forgotten, and what changed is there.
 */
static bool
are_honest_then (const struct eval *v, const struct marks_found *now,
                 const uint8_t *before, const uint8_t *after, char *text)
{
  const struct mark *m, *n;
  uint8_t must[MARK_BYTES];

  for (unsigned i = 0; i < now->nr; ++i) {
    m = &v->marks.items[i];
    n = &now->items[i];
    snprintf (text, BITMAP_TEXT, "bitmap %u of %u, b%u, is another one, or in"
              " use", i, v->marks.nr, m->number);
    if (n->number != m->number || n->enabled != m->enabled
        || now->in_use[i] != v->marks.in_use[i])
      return false;
    memcpy (must, m->must, sizeof must);
    if (m->enabled && !now->in_use[i])
      add_difference (must, m->granularity, before, v->now->s.size, after,
                      v->now->s.size);
    if (!tell_bit (text, m->number, "is clear", must, n->must)
        || (!m->enabled && !tell_bit (text, m->number, "is set", n->must,
                                      must)))
      return false;
  }
  return now->nr == v->marks.nr;
}

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

/* May sector at OFFSET read as BYTE after a crash at TIME, in version W?  Walk
 * back from the newest operation to the one that a flush made durable, or to
 * what W began with.
 */
static bool
may_read (const struct eval *v, const struct version *w, uint64_t offset,
          uint8_t byte, uint64_t time)
{
  uint64_t superseded_before = 0;

  for (size_t i = v->nr_ops; i-- > 0;) {
    const struct guest_op *op = &v->ops[i];

    if (op->submit < w->done)
      break;
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
  return superseded_before == 0 && byte == w->content[offset];
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
  return offset < v->versions[0].s.size
    && byte == v->versions[0].content[offset];
}

static bool
check_guest (const struct eval *v, const struct version *w,
             const uint8_t *guest, uint64_t time, uint64_t *where)
{
  for (uint64_t o = 0; o < w->s.size; o += SECTOR_SIZE) {
    *where = o;
    if (memcmp (guest + o, guest + o + 1, SECTOR_SIZE - 1) != 0
        || !may_read (v, w, o, guest[o], time))
      return false;
  }
  return true;
}

#endif /* NBDIMG_CRASH_VERSION_H */
