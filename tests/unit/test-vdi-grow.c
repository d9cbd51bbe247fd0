/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A VDI image that grows, on a disk of which request K is the last one that is
 * done, or the one that a crash before the next flush loses: for each K the
 * disk reads as before, in its old size or its new one.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "storage/wrapper.h"
#include "tests/unit/harness.h"
#include "tests/unit/unit.h"

enum { OLD_SIZE = 3 << 20 };
/* Its map has 1.2 MiB: two places move out of its way. */
#define NEW_SIZE (300 * GiB)

/* ---- a storage that stops ---- */

enum how { STOP_AFTER, LOSE };

static enum how how;
static unsigned nr_requests, chosen;    /* 0 = all goes well */
static bool lost;                       /* it was */
static bool ended;                      /* all fails from now on */

static bool
stopped (struct error *e)
{
  nr_requests++;
  if (chosen && how == STOP_AFTER && nr_requests > chosen)
    ended = true;
  if (ended)
    error_set (e, EIO, "stopped");
  return ended;
}

/* A request that is said to be done, and is not. */
static bool
is_lost (void)
{
  lost = lost || (how == LOSE && nr_requests == chosen);
  return lost && nr_requests == chosen;
}

static int
stop_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
            struct error *e)
{
  return storage_pread (wrapper_inner (st), buf, len, offset, e);
}

static int
stop_pwrite (struct storage *st, const void *buf, size_t len,
             uint64_t offset, unsigned flags, struct error *e)
{
  int r;

  if (stopped (e))
    return -1;
  if (is_lost ())
    return 0;
  r = storage_pwrite (wrapper_inner (st), buf, len, offset, flags, e);
  wrapper_note_growth (st);
  return r;
}

static int
stop_zero (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  int r;

  if (stopped (e))
    return -1;
  if (is_lost ())
    return 0;
  r = storage_zero (wrapper_inner (st), offset, len, flags, e);
  wrapper_note_growth (st);
  return r;
}

static int
stop_flush (struct storage *st, struct error *e)
{
  if (lost)
    ended = true;
  return stopped (e) ? -1 : storage_flush (wrapper_inner (st), e);
}

static const struct storage_ops stop_ops = {
  .driver = "stop",
  .close = wrapper_free,
  .pread = stop_pread,
  .pwrite = stop_pwrite,
  .zero = stop_zero,
  .flush = stop_flush,
  WRAPPER_OPS,
};

/* ---- */

static uint8_t first[OLD_SIZE], got[OLD_SIZE];

/* An image whose three blocks have places, in another order. */
static struct storage *
make_image (const char *kind)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);
  struct image *im;

  CHECK_OK (harness_create_kind (st, kind, OLD_SIZE, NULL, NULL, &e), &e);
  im = harness_open (st, &format_vdi, NULL, NULL, true, 0, &e);
  unit_random (first, OLD_SIZE, 5);
  for (uint64_t block = 3; block-- > 0;)
    CHECK_OK (image_write (im, first + block * MiB, MiB,
                           block * MiB, 0, &e), &e);
  CHECK_OK (harness_close (im, &e), &e);
  return st;
}

/* The old content, zeroes behind it, and a map that is right. */
static void
check_disk (struct image *im, unsigned k)
{
  struct format_check_options o = { .repair = REPAIR_LEAKS };
  struct format_check_result r;
  struct error e = ERROR_INIT;
  uint8_t sector[512];

  memset (&r, 0, sizeof r);
  CHECK_OK (format_vdi.check (im->format, &o, &r, &e), &e);
  CHECK_OK (image_read (im, got, OLD_SIZE, 0, &e), &e);
  if (r.corruptions || memcmp (got, first, OLD_SIZE) != 0)
    unit_fail (__FILE__, __LINE__, "after request %u: %" PRIu64
               " corruptions, content %s", k, r.corruptions,
               memcmp (got, first, OLD_SIZE) ? "differs" : "is right");
  if (image_size (im) == OLD_SIZE)
    return;
  CHECK (image_size (im) == NEW_SIZE);
  CHECK_OK (image_read (im, sector, 512, NEW_SIZE - 512, &e), &e);
  CHECK (is_zero (sector, 512));
}

/* Request K is the last one, or lost; true = there are not so many. */
static bool
grow_until (const char *kind, unsigned k)
{
  struct error e = ERROR_INIT;
  struct storage *inner = make_image (kind), *st;
  struct image *im;
  bool grown;

  st = wrapper_new (&stop_ops, sizeof (struct wrapper), inner, &e);
  im = harness_open (st, &format_vdi, NULL, NULL, true, 0, &e);
  nr_requests = 0;
  chosen = k;
  ended = lost = false;
  grown = image_resize (im, NEW_SIZE, &e) == 0;
  error_clear (&e);
  harness_close (im, &e);
  error_clear (&e);
  if (grown && lost)
    unit_fail (__FILE__, __LINE__, "no flush covers request %u", k);
  grown = grown && nr_requests <= k;
  chosen = 0;
  ended = lost = false;
  im = harness_open (inner, &format_vdi, NULL, NULL, true, 0, &e);
  if (im) {
    check_disk (im, k);
    CHECK_OK (harness_close (im, &e), &e);
  }
  else
    unit_fail (__FILE__, __LINE__, "after request %u: %s", k, e.text);
  storage_close (st);
  return grown;
}

static void
test_grow (const char *kind, const char *name)
{
  char *text = NULL;
  unsigned k;

  if (asprintf (&text, "%s: growing %s", kind, name) == -1)
    exit (EXIT_FAILURE);
  unit_begin (text);
  for (k = 1; !grow_until (kind, k) && !unit_bad && k < 1000; ++k)
    ;
  CHECK (k > 8 && k < 1000);
  unit_finish ();
  free (text);
}

int
main (void)
{
  test_grow ("vdi:static=off", "can stop at any request");
  test_grow ("vdi:static=on", "can stop at any request");
  how = LOSE;
  test_grow ("vdi:static=off", "can lose any request that no flush covers");
  test_grow ("vdi:static=on", "can lose any request that no flush covers");
  return unit_end ();
}
