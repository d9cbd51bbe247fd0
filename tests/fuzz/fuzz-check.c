/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz check and check -r of qcow2: a small valid image with bytes and entries
 * of it changed.
 *
 * Input: one byte chooses the template, -r all or -r leaks (80), and whether
 * there is a snapshot (40); then pieces:
 *   00-7f  a patch, see template.h
 *   80-ff  an entry: table (u8), index (u8), cluster that it points to (u8),
 *          flags (u8)
 *
 * Whatever the image is: check changes nothing; a repair ends clean, says what
 * it cannot repair, or is refused; the guest reads what it read before; a
 * second repair changes nothing; nothing crashes, hangs or wants much memory.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/qcow2-template.h"
#include "tests/unit/qcow2-snapshot.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* ---- the image ---- */

static void
aim (struct input *in, const struct template *t, struct storage *st)
{
  static const uint64_t bits[8] = {
    ENTRY_COPIED, L2_ZERO, L2_COMPRESSED, 0x200, UINT64_C (1) << 60,
    UINT64_C (1) << 40, 2, UINT64_C (1) << 55,
  };
  uint64_t at = t->tables[take (in) % NR_TABLES] + take (in) * 8;
  uint64_t entry = (uint64_t) take (in)
    << get_be32 (t->buf + H_CLUSTER_BITS);
  unsigned flags = take (in);
  struct error e = ERROR_INIT;
  uint8_t field[8];

  for (unsigned i = 0; i < 8; ++i)
    if (flags & (1 << i))
      entry |= bits[i];
  put_be64 (field, entry);
  must (storage_pwrite (st, field, 8, at, 0, &e) == 0);
}

static struct storage *
make_image (struct input *in, unsigned kind)
{
  struct template *t = &templates[kind % nr_kinds];
  struct error e = ERROR_INIT;
  struct storage *st;
  unsigned what;

  if (!t->buf)
    make_template (kind % nr_kinds);
  st = storage_memory_new ("fuzz", 0, &e);
  must (st && storage_pwrite (st, t->buf, t->size, 0, 0, &e) == 0);
  /* With one bit a refcount cannot say that there is a snapshot. */
  if ((kind & 0x40) && !strstr (kinds[kind % nr_kinds], "refcount_bits=1"))
    snapshot_make (st);
  while (in->p < in->end) {
    what = take (in);
    if (what < 0x80)
      patch (in, t, st);
    else
      aim (in, t, st);
  }
  return st;
}

/* ---- what the guest reads ---- */

enum { NR_SPOTS = 64, SPOT = 512 };

struct content {
  bool open;
  bool readable[NR_SPOTS];
  uint8_t bytes[NR_SPOTS][SPOT];
};

/* The first clusters, and those from the middle on. */
static uint64_t
spot (const struct image *im, unsigned i)
{
  uint64_t cs = im->format->info.cluster_size;

  return i % 2 * (GUEST_SIZE / 2) + i / 2 * cs;
}

static struct content *
read_content (struct storage *st)
{
  struct content *c = calloc (1, sizeof *c);
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, &format_qcow2, NULL, NULL, false, 1,
                                   &e);

  must (c);
  if (!im)
    return c;
  c->open = true;
  for (unsigned i = 0; i < NR_SPOTS; ++i) {
    c->readable[i] = spot (im, i) + SPOT <= image_size (im)
      && image_read (im, c->bytes[i], SPOT, spot (im, i), &e) == 0;
    error_clear (&e);
  }
  harness_close (im, &e);
  return c;
}

static void
compare_content (const struct content *before, struct storage *st)
{
  struct content *now = read_content (st);

  must (now->open);
  for (unsigned i = 0; i < NR_SPOTS; ++i)
    must (!before->readable[i]
          || (now->readable[i]
              && memcmp (before->bytes[i], now->bytes[i], SPOT) == 0));
  free (now);
}

/* ---- check ---- */

struct outcome {
  bool open;
  int status;
  struct format_check_result result;
  bool not_all;                 /* it said that it cannot repair all */
  bool shared;                  /* metadata are something else, too: then what
                                   the guest reads may be metadata */
};

static void
finding (void *opaque, const char *text)
{
  struct outcome *x = opaque;

  x->not_all |= strncmp (text, "Not repaired", 12) == 0;
  x->shared |= strstr (text, "(cluster ") != NULL;
}

static struct outcome
check (struct storage *st, enum check_repair repair)
{
  const struct format_open_options o = { .writable = true, .check = true };
  struct format_needs needs = { .backing = NULL };
  struct outcome x = { .open = false };
  struct format_check_options opts = {
    .repair = repair, .finding = finding, .opaque = &x, .memory = 16 * MiB,
  };
  struct error e = ERROR_INIT;
  struct format *f = format_qcow2.open (st, &o, &needs, &e);

  format_needs_free (&needs);
  if (!f)
    return x;
  x.open = f->ops->activate (f, NULL, false, &e) == 0;
  if (x.open)
    x.status = f->ops->check (f, &opts, &x.result, &e);
  must (x.status == 0 || e.text[0]);
  error_clear (&e);
  f->ops->close (f, &e);
  return x;
}

struct bytes {
  uint8_t *p;                   /* owned */
  size_t len;
};

static struct bytes
bytes_of (struct storage *st)
{
  struct bytes b = { .len = (size_t) storage_size (st) };
  struct error e = ERROR_INIT;

  b.p = malloc (b.len + 1);
  must (b.p && storage_pread (st, b.p, b.len, 0, &e) == 0);
  return b;
}

static void
must_be (struct storage *st, struct bytes b)
{
  struct bytes now = bytes_of (st);

  must (now.len == b.len && memcmp (now.p, b.p, b.len) == 0);
  free (now.p);
}

/* An image that became sparse and huge is not for comparing. */
#define MAX_IMAGE (8 * MiB)

static bool
is_clean (const struct outcome *x)
{
  return !x->result.corruptions && !x->result.check_errors;
}

static void
check_and_repair (struct storage *st, enum check_repair how)
{
  struct outcome first = check (st, REPAIR_NONE), repair, last;
  struct bytes before = bytes_of (st), after;
  struct content *content = read_content (st);

  must_be (st, before);
  repair = check (st, how);
  must (repair.open);
  if (repair.status == 0 && content->open && !first.shared)
    compare_content (content, st);
  free (before.p);
  free (content);
  if (storage_size (st) > MAX_IMAGE)
    return;
  after = bytes_of (st);
  check (st, how);
  must_be (st, after);
  free (after.p);
  last = check (st, REPAIR_NONE);
  must (last.open);
  if (how == REPAIR_ALL && repair.status == 0 && !repair.not_all)
    must (last.status == 0 && is_clean (&last) && !last.result.leaks);
}

/* With FUZZ_CHECK_IMAGE=FILE the image is left there, to be looked at. */
static void
keep_image (struct storage *st)
{
  const char *name = getenv ("FUZZ_CHECK_IMAGE");
  FILE *f = name ? fopen (name, "w") : NULL;
  struct bytes b;

  if (!f)
    return;
  b = bytes_of (st);
  must (fwrite (b.p, 1, b.len, f) == b.len && fclose (f) == 0);
  free (b.p);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, data + size };
  unsigned kind = take (&in);
  struct storage *st = make_image (&in, kind);

  keep_image (st);
  if (check (st, REPAIR_NONE).open)
    check_and_repair (st, kind & 0x80 ? REPAIR_LEAKS : REPAIR_ALL);
  storage_close (st);
  return 0;
}
