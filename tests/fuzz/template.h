/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the fuzzers of images begin with: small valid images, and patches.  Who
 * includes this has defined format, kinds (options of create), nr_kinds (a
 * power of 2), and perhaps FUZZ_GUEST_SIZE.
 */

#ifndef NBDIMG_FUZZ_TEMPLATE_H
#define NBDIMG_FUZZ_TEMPLATE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "tests/unit/harness.h"

enum { MAX_KINDS = 16 };

#ifndef FUZZ_GUEST_SIZE
#define FUZZ_GUEST_SIZE (1 << 20)
#endif
enum { GUEST_SIZE = FUZZ_GUEST_SIZE, NR_TABLES = 6 };

/* A valid image with data, zeroes and compressed clusters, and where its
 * tables are.
 */
struct template {
  uint8_t *buf;
  size_t size;
  uint64_t tables[NR_TABLES];
};
static struct template templates[MAX_KINDS];

/* Where the patches of an input begin, by the fuzzer of the format. */
static void find_tables (struct template *t);

#define must(ok)                                                \
  do {                                                          \
    if (!(ok)) {                                                \
      fprintf (stderr, "%s:%d: not so: %s\n", __FILE__,         \
               __LINE__, #ok);                                  \
      abort ();                                                 \
    }                                                           \
  } while (0)

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
  if (im->format->info.can_pack) {
    must (image_write_packed (im, buf, cs, GUEST_SIZE / 2, e) == 0);
    must (image_write_packed (im, buf, cs, GUEST_SIZE / 2 + cs, e) == 0);
  }
  free (buf);
}

static void
make_template (unsigned i)
{
  struct template *t = &templates[i];
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("template", 0, &e);
  struct image *im;

  must (st && harness_create_format (st, format, GUEST_SIZE, kinds[i], NULL,
                                    NULL, &e) == 0);
  im = harness_open (st, format, NULL, NULL, true, 0, &e);
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

#endif /* NBDIMG_FUZZ_TEMPLATE_H */
