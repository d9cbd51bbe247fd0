/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz qcow2: a small valid image with bytes of it changed, opened,
 * checked, mapped, read and written to.
 *
 * Input: one byte chooses the template, whether to write (80) and whether to
 * check (40); then pieces:
 *   00-7f  a patch: table (u8), offset in it (u16), length (u8), the bytes
 *   80-ff  a request: offset in sectors (u16), length in sectors (u8)
 *
 * Whatever the image is, nothing crashes, hangs or wants much memory, and what
 * was written last reads back.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "formats/qcow2/qcow2.h"
#include "tests/unit/harness.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

static const char *const kinds[] = {
  "cluster_size=512", "cluster_size=4096",
  "cluster_size=4096,compat=0.10", "cluster_size=512,refcount_bits=1",
  "cluster_size=512,refcount_bits=64",
  "cluster_size=16384,extended_l2=on", "cluster_size=65536",
  "cluster_size=4096,lazy_refcounts=on",
};
enum { NR_KINDS = sizeof kinds / sizeof kinds[0] };

enum { GUEST_SIZE = 1 << 20, NR_TABLES = 6 };

/* A valid image with data, zeroes and compressed clusters, and where its
 * tables are.
 */
struct template {
  uint8_t *buf;
  size_t size;
  uint64_t tables[NR_TABLES];
};
static struct template templates[NR_KINDS];

static void
must (bool ok)
{
  if (!ok)
    abort ();
}

static void
find_tables (struct template *t)
{
  const uint8_t *b = t->buf;
  uint64_t l1 = get_be64 (b + H_L1_TABLE_OFFSET);
  uint64_t reftable = get_be64 (b + H_REFCOUNT_TABLE_OFFSET);

  t->tables[1] = l1;
  t->tables[2] = reftable;
  t->tables[3] = get_be64 (b + reftable);
  t->tables[4] = get_be64 (b + l1) & ENTRY_OFFSET_MASK;
  t->tables[5] = t->size / 2;
}

static void
fill_template (struct image *im, struct error *e)
{
  uint64_t cs = im->format->info.cluster_size;
  uint8_t *buf = malloc (cs);

  must (buf);
  memset (buf, 'a', cs);
  for (uint64_t o = 0; o < 8 * cs && o < GUEST_SIZE / 2; o += 2 * cs)
    must (image_write (im, buf, cs, o, 0, e) == 0);
  must (image_zero (im, 0, cs, IMAGE_MAY_UNMAP, e) == 0);
  must (image_write_packed (im, buf, cs, GUEST_SIZE / 2, e) == 0);
  must (image_write_packed (im, buf, cs, GUEST_SIZE / 2 + cs, e) == 0);
  free (buf);
}

static void
make_template (unsigned i)
{
  struct template *t = &templates[i];
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("template", 0, &e);
  struct image *im;

  must (st && harness_create (st, GUEST_SIZE, kinds[i], NULL, NULL, &e) == 0);
  im = harness_open (st, &format_qcow2, NULL, NULL, true, 0, &e);
  must (im);
  fill_template (im, &e);
  must (harness_close (im, &e) == 0);
  t->size = (size_t) storage_size (st);
  t->buf = malloc (t->size);
  must (t->buf && storage_pread (st, t->buf, t->size, 0, &e) == 0);
  storage_close (st);
  find_tables (t);
}

/* ---- one input ---- */

struct input {
  const uint8_t *p, *end;
};

static unsigned
take (struct input *in)
{
  return in->p < in->end ? *in->p++ : 0;
}

static void
patch (struct input *in, const struct template *t, struct storage *st)
{
  struct error e = ERROR_INIT;
  uint64_t at = t->tables[take (in) % NR_TABLES];
  unsigned offset = take (in) << 8, len;

  at += offset | take (in);
  len = take (in) % 16 + 1;
  if (len > (size_t) (in->end - in->p))
    len = (unsigned) (in->end - in->p);
  if (len)
    must (storage_pwrite (st, in->p, len, at, 0, &e) == 0);
  in->p += len;
}

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

static void
check_image (struct image *im)
{
  struct format_check_options o = { .memory = 16 * MiB };
  struct format_check_result r;
  struct error e = ERROR_INIT;

  memset (&r, 0, sizeof r);
  im->format->ops->check (im->format, &o, &r, &e);
}

/* What a write acknowledged reads back. */
static void
write_back (struct image *im, uint64_t offset, size_t len, uint8_t byte)
{
  struct error e = ERROR_INIT;
  uint8_t out[256 * 512], back[256 * 512];

  memset (out, byte, len);
  if (image_write (im, out, len, offset, 0, &e) == -1)
    return;
  if (image_read (im, back, len, offset, &e) == 0)
    must (memcmp (out, back, len) == 0);
}

static void
request (struct input *in, unsigned what, struct image *im)
{
  uint64_t size = image_size (im), offset = (uint64_t) take (in) << 8, len;
  struct error e = ERROR_INIT;

  offset = (offset | take (in)) * 512;
  len = (uint64_t) take (in) * 512;
  if (offset >= size)
    return;
  len = min_u64 (len, size - offset);
  switch (what % 5) {
  case 0: image_trim (im, offset, len, 0, &e); break;
  case 1: image_zero (im, offset, len, what & 8 ? IMAGE_MAY_UNMAP : 0, &e);
          break;
  case 2: image_flush (im, &e); break;
  default: write_back (im, offset, (size_t) len, (uint8_t) what); break;
  }
}

static void
open_and_use (struct input *in, struct storage *st, bool writable,
              bool check)
{
  struct error e = ERROR_INIT;
  struct image *im = harness_open (st, &format_qcow2, NULL, NULL, writable,
                                   1, &e);
  unsigned n = 0, what;

  if (!im)
    return;
  if (check)
    check_image (im);
  read_all (im);
  while (writable && in->p < in->end && n++ < 64) {
    what = take (in);
    if (what >= 0x80)
      request (in, what, im);
  }
  harness_close (im, &e);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, data + size };
  struct error e = ERROR_INIT;
  unsigned kind = take (&in);
  struct template *t = &templates[kind % NR_KINDS];
  struct storage *st;

  if (!t->buf)
    make_template (kind % NR_KINDS);
  st = storage_memory_new ("fuzz", 0, &e);
  must (st && storage_pwrite (st, t->buf, t->size, 0, 0, &e) == 0);
  while (in.p < in.end && *in.p < 0x80) {
    in.p++;
    patch (&in, t, st);
  }
  open_and_use (&in, st, kind & 0x80, kind & 0x40);
  storage_close (st);
  return 0;
}
