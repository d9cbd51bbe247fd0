/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz a format: a small valid image with bytes of it changed, opened, checked,
 * repaired, mapped, read and written to.
 *
 * Input: one byte chooses the template, whether to write (80), whether to check
 * (40), whether to repair (20), and whether to compare the disk with an array
 * (10), which takes its time; then pieces:
 *   00-7f  a patch: table (u8), offset in it (u16), length (u8), the bytes
 *   80-ff  a request: offset in sectors (u16), length in sectors (u8)
 *
 * The fuzzer of a format defines format, kinds (options of create), nr_kinds (a
 * power of 2) and then includes this.
 *
 * Whatever the image is, nothing crashes, hangs or wants much memory, what was
 * written last reads back unless check finds damage, and a second repair
 * changes no byte.  An image that is clean reads as an array (model.h), stays
 * so, and is clean at the end; a repair that makes it clean changes nothing
 * that could be read, but for tables that an entry gives to the guest.
 */

#ifndef NBDIMG_FUZZ_IMAGE_H
#define NBDIMG_FUZZ_IMAGE_H

#include "tests/fuzz/model.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

static void
read_all (struct image *im)
{
  uint64_t size = image_size (im), step = size / 16 + 1;
  struct image_extent x;
  struct error e = ERROR_INIT;
  uint8_t buf[8192];
  unsigned n = 0;

  for (uint64_t o = 0; o < size && n++ < 2000; o += x.length)
    if (image_extents (im, o, size - o, 0, &x, &e) == -1) {
      error_clear (&e);
      x.length = min_u64 (size - o, im->format->info.cluster_size);
    }
  for (uint64_t o = 0; o < size; o += step) {
    image_read (im, buf, (size_t) min_u64 (sizeof buf, size - o), o, &e);
    error_clear (&e);
  }
}

/* Two entries may name one cluster, or one name a free one that is allocated
 * again, and what is written there is then written over.  Check must see it.
 */
static bool
has_damage (struct image *im)
{
  struct error e = ERROR_INIT;

  image_flush (im, &e);
  return im->format->ops->check && !is_clean (im);
}

/* What a write acknowledged reads back. */
static void
write_back (struct image *im, struct model *m, uint64_t offset, size_t len,
            uint8_t byte)
{
  struct error e = ERROR_INIT;
  uint8_t out[256 * 512], back[256 * 512];
  bool done;

  memset (out, byte, len);
  done = image_write (im, out, len, offset, 0, &e) == 0;
  model_write (m, offset, len, byte, done);
  if (!done)
    return;
  if (image_read (im, back, len, offset, &e) == 0)
    must (memcmp (out, back, len) == 0 || has_damage (im));
}

static void
request (struct input *in, unsigned what, struct image *im, struct model *m)
{
  uint64_t size = image_size (im), offset = (uint64_t) take (in) << 8, len;
  struct error e = ERROR_INIT;

  offset = (offset | take (in)) * 512;
  len = (uint64_t) take (in) * 512;
  if (offset >= size)
    return;
  len = min_u64 (len, size - offset);
  switch (what % 5) {
  case 0:
    image_trim (im, offset, len, 0, &e);
    model_trim (m, im, offset, len);
    break;
  case 1:
    model_write (m, offset, len, 0,
                 image_zero (im, offset, len, what & 8 ? IMAGE_MAY_UNMAP : 0,
                             &e) == 0);
    break;
  case 2: image_flush (im, &e); break;
  default: write_back (im, m, offset, (size_t) len, (uint8_t) what); break;
  }
}

static void
open_and_use (struct input *in, struct storage *st, unsigned kind,
              bool patched)
{
  bool writable = kind & 0x80, check = (kind & 0x40) && format->check, good;
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, format, NULL, NULL, writable, 1, &e);
  struct model m = { .now = NULL };
  unsigned n = 0, what;

  if (!im)
    return;
  good = check ? is_clean (im) : !patched;
  if (good && kind & 0x10)
    model_begin (&m, im, !patched);
  read_all (im);
  while (writable && in->p < in->end && n++ < 64) {
    what = take (in);
    if (what >= 0x80)
      request (in, what, im, &m);
  }
  model_compare (&m, im);
  must (harness_close (im, &e) == 0 || !m.now || !m.strict);
  model_end (&m, st);
  model_free (&m);
}

/* ---- repair ---- */

static uint8_t *
content (struct storage *st, size_t *size)
{
  struct error e = ERROR_INIT;
  uint8_t *buf;

  *size = (size_t) storage_size (st);
  buf = malloc (*size + 1);
  must (buf && storage_pread (st, buf, *size, 0, &e) == 0);
  return buf;
}

/* qcow2 names the cluster of a table that is something else, too: what the
 * guest reads there are entries, and a repair changes them.
 */
static void
finding (void *opaque, const char *text)
{
  bool *reads_tables = opaque;

  *reads_tables |= strstr (text, "(cluster ") != NULL;
}

/* As check -r all does it.  -1 = it was refused. */
static int
repair (struct storage *st, struct format_check_result *r, bool *reads_tables)
{
  const struct format_check_options o = {
    .memory = 16 * MiB, .repair = REPAIR_ALL,
    .finding = finding, .opaque = reads_tables,
  };
  const struct format_open_options open = { .writable = true, .check = true };
  struct format_needs needs = { .backing = NULL };
  struct error e = ERROR_INIT;
  struct format *f = format->open (st, &open, &needs, &e);
  int result = -1;

  format_needs_free (&needs);
  memset (r, 0, sizeof *r);
  if (!f)
    return -1;
  if (format->activate (f, NULL, false, &e) == 0)
    result = format->check (f, &o, r, &e);
  format->close (f, &e);
  return result;
}

/* What the guest reads now; NULL = not all of it can be read. */
static uint8_t *
guest_content (struct storage *st)
{
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, format, NULL, NULL, false, 1, &e);
  uint8_t *buf = im ? read_disk (im) : NULL;

  if (im)
    harness_close (im, &e);
  return buf;
}

/* The first repair left nothing to do: GUEST (taken) is still there. */
static void
must_read (struct storage *st, uint8_t *guest)
{
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, format, NULL, NULL, false, 1, &e);
  struct model m = { .now = guest };

  must (im);
  m.size = image_size (im);
  m.buf = malloc (m.size + 1);
  must (m.buf);
  model_compare (&m, im);
  harness_close (im, &e);
  model_free (&m);
}

static void
repair_twice (struct storage *st, bool compare)
{
  struct format_check_result first, second;
  uint8_t *before, *after, *guest;
  bool reads_tables = false;
  size_t size, new_size;

  if (storage_size (st) > 64 * MiB)
    return;
  guest = compare ? guest_content (st) : NULL;
  if (repair (st, &first, &reads_tables) == -1) {
    free (guest);
    return;
  }
  if (guest && !reads_tables && !first.corruptions && !first.check_errors)
    must_read (st, guest);
  else
    free (guest);
  before = content (st, &size);
  must (repair (st, &second, &reads_tables) == 0);
  must (second.corruptions_fixed == 0 && second.leaks_fixed == 0);
  after = content (st, &new_size);
  must (new_size == size && memcmp (before, after, size) == 0);
  free (before);
  free (after);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, data + size };
  struct error e = ERROR_INIT;
  unsigned kind = take (&in);
  struct template *t = &templates[kind % nr_kinds];
  struct storage *st;
  bool patched;

  if (!t->buf)
    make_template (kind % nr_kinds);
  st = storage_memory_new ("fuzz", 0, &e);
  must (st && storage_pwrite (st, t->buf, t->size, 0, 0, &e) == 0);
  patched = in.p < in.end && *in.p < 0x80;
  while (in.p < in.end && *in.p < 0x80) {
    in.p++;
    patch (&in, t, st);
  }
  if ((kind & 0x20) && format->check)
    repair_twice (st, kind & 0x10);
  open_and_use (&in, st, kind, patched);
  storage_close (st);
  return 0;
}

#endif /* NBDIMG_FUZZ_IMAGE_H */
