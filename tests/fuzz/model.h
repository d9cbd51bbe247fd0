/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The disk of a fuzzed image as a plain array.  An image that nobody changed,
 * or that check calls clean, is one: whatever is done to it, each sector reads
 * as what was written there last.
 */

#ifndef NBDIMG_FUZZ_MODEL_H
#define NBDIMG_FUZZ_MODEL_H

#include "tests/fuzz/template.h"

#define MAX_MODEL (8 * MiB)

struct model {
  uint8_t *now, *buf;           /* owned; now NULL = there is no model */
  uint64_t size;
  bool strict;                  /* nobody changed the image: nothing fails */
};

static bool
is_clean (struct image *im)
{
  struct format_check_options o = { .memory = 16 * MiB };
  struct format_check_result r;
  struct error e = ERROR_INIT;

  memset (&r, 0, sizeof r);
  if (im->format->ops->check (im->format, &o, &r, &e) == -1)
    return false;
  return r.corruptions == 0 && r.check_errors == 0;
}

/* The whole disk, or NULL where it is too large or cannot be read. */
static uint8_t *
read_disk (struct image *im)
{
  uint64_t size = image_size (im);
  struct error e = ERROR_INIT;
  uint8_t *buf;

  if (size > MAX_MODEL)
    return NULL;
  buf = malloc (size + 1);
  must (buf);
  if (image_read (im, buf, size, 0, &e) == 0)
    return buf;
  free (buf);
  return NULL;
}

static void
model_begin (struct model *m, struct image *im, bool strict)
{
  *m = (struct model) {
    .now = read_disk (im), .size = image_size (im), .strict = strict,
  };
  if (m->now)
    m->buf = malloc (m->size + 1);
  must (!m->now || m->buf);
}

static void
model_free (struct model *m)
{
  free (m->now);
  free (m->buf);
}

/* DONE: it was written to.  What failed may be there or not; the model ends. */
static void
model_write (struct model *m, uint64_t offset, uint64_t len, uint8_t byte,
             bool done)
{
  must (!m->now || done || !m->strict);
  if (m->now && done)
    memset (m->now + offset, byte, len);
  else {
    free (m->now);
    m->now = NULL;
  }
}

/* A sector that was trimmed has its old content, or zeroes; from then on it
 * keeps that.
 */
static void
model_trim (struct model *m, struct image *im, uint64_t offset, uint64_t len)
{
  static const uint8_t zeroes[SECTOR_SIZE];
  struct error e = ERROR_INIT;
  uint64_t n;

  if (!m->now)
    return;
  must (image_read (im, m->buf, len, offset, &e) == 0);
  for (uint64_t o = 0; o < len; o += n) {
    n = min_u64 (SECTOR_SIZE, len - o);
    must (memcmp (m->buf + o, zeroes, n) == 0
          || memcmp (m->buf + o, m->now + offset + o, n) == 0);
  }
  memcpy (m->now + offset, m->buf, len);
}

static void
model_compare (const struct model *m, struct image *im)
{
  struct error e = ERROR_INIT;

  if (!m->now)
    return;
  must (image_size (im) == m->size);
  must (image_read (im, m->buf, m->size, 0, &e) == 0);
  must (memcmp (m->buf, m->now, m->size) == 0);
}

/* The image has been closed: it is clean, for who opens it next. */
static void
model_end (const struct model *m, struct storage *st)
{
  struct error e = ERROR_INIT;
  struct image *im;

  if (!m->now)
    return;
  im = harness_open (st, format, NULL, NULL, false, 1, &e);
  must (im);
  model_compare (m, im);
  must (!format->check || !m->strict || is_clean (im));
  must (!im->format->dirty_flag || !m->strict);
  harness_close (im, &e);
}

#endif /* NBDIMG_FUZZ_MODEL_H */
