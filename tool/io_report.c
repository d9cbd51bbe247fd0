/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg io: numbers, patterns, and the lines about a request.
 *
 * Layer: tool.  No locking: the main thread prints.  How a number or a line
 * looks was found by trying qemu-io.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/text.h"
#include "tool/io.h"
#include "tool/tool.h"

/* What -m adds to an address, and O_DIRECT does not like. */
enum { MISALIGN = 16 };

int
io_number (const char *text, uint64_t *r)
{
  struct error e = ERROR_INIT;

  if (parse_size ("number", text, r, &e) == 0)
    return 0;
  if (e.err == ERANGE)
    printf ("Parsing error: argument too large -- %s\n", text);
  else
    printf ("Parsing error: non-numeric argument, or extraneous/unrecognized "
            "suffix -- %s\n", text);
  return -1;
}

int
io_pattern (const char *text, uint8_t *r)
{
  char *end;
  long v;

  errno = 0;
  v = strtol (text, &end, 0);
  if (errno || end == text || *end || v < 0 || v > UINT8_MAX) {
    printf ("%s is not a valid pattern byte\n", text);
    return -1;
  }
  *r = (uint8_t) v;
  return 0;
}

/* Three digits after the point, six for bytes, none for a whole number. */
const char *
io_size_text (double bytes, char *buf, size_t size)
{
  static const char *const units[] = {
    "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB",
  };
  char number[48], *zeroes;
  unsigned i = 0;

  while (i + 1 < sizeof units / sizeof units[0] && bytes >= 1024) {
    bytes /= 1024;
    i++;
  }
  snprintf (number, sizeof number, i ? "%.3f" : "%f", bytes);
  zeroes = strstr (number, ".000");
  if (zeroes)
    *zeroes = '\0';
  snprintf (buf, size, "%s %s", number, units[i]);
  return buf;
}

/* ---- buffers ---- */

uint8_t *
io_alloc (const struct io_shell *sh, size_t len)
{
  size_t extra = sh->misalign ? MISALIGN : 0;
  void *p;

  if (posix_memalign (&p, 4096, len + extra + 1) != 0) {
    tool_error ("out of memory: %zu bytes for a request", len);
    return NULL;
  }
  return (uint8_t *) p + extra;
}

void
io_free (const struct io_shell *sh, uint8_t *buf)
{
  if (buf)
    free (buf - (sh->misalign ? MISALIGN : 0));
}

void
io_dump (const uint8_t *buf, size_t len, uint64_t offset)
{
  const size_t width = 16;

  for (size_t i = 0; i < len; i += width) {
    size_t n = len - i < width ? len - i : width;

    printf ("%08" PRIx64 ":  ", offset + i);
    for (size_t j = 0; j < n; ++j)
      printf ("%02x ", buf[i + j]);
    putchar (' ');
    for (size_t j = 0; j < n; ++j)
      putchar (buf[i + j] > ' ' && buf[i + j] < 0x7f ? buf[i + j] : '.');
    putchar ('\n');
  }
}

int
io_verify (const uint8_t *buf, size_t len, uint64_t offset, uint8_t pattern)
{
  if (len == 0 || (buf[0] == pattern && memcmp (buf, buf + 1, len - 1) == 0))
    return 0;
  printf ("Pattern verification failed at offset %" PRIu64 ", %zu bytes\n",
          offset, len);
  return -1;
}

int
io_failed (const char *verb, const struct error *e)
{
  printf ("%s failed: %s\n", verb, strerror (e->err));
  tool_error ("%s", e->text);
  return -1;
}

/* qemu-io calls it an input/output error, whatever the request. */
int
io_check_range (const struct image *im, uint64_t offset, uint64_t len,
                struct error *e)
{
  uint64_t size = image_size (im);

  if (offset <= size && len <= size - offset)
    return 0;
  return error_set (e, EIO, "%s: %" PRIu64 " bytes at offset %" PRIu64 " go "
                    "beyond the end of the disk, at %" PRIu64, im->name, len,
                    offset, size);
}

/* ---- times ---- */

void
io_start (struct io_timer *t)
{
  clock_gettime (CLOCK_MONOTONIC, &t->start);
}

void
io_stop (struct io_timer *t)
{
  clock_gettime (CLOCK_MONOTONIC, &t->end);
}

static double
seconds (const struct io_timer *t)
{
  double s = (double) (t->end.tv_sec - t->start.tv_sec)
    + (double) (t->end.tv_nsec - t->start.tv_nsec) / 1e9;

  return s > 0 ? s : 1e-9;
}

/* LONG_FORM: "0:00:00.00"; otherwise "00.00 sec" below a minute. */
static const char *
time_text (double s, bool long_form, char *buf, size_t size)
{
  uint64_t cs = (uint64_t) (s * 100);
  unsigned hundredths = (unsigned) (cs % 100), sec = (unsigned) (cs / 100 % 60);
  uint64_t minutes = cs / 6000;

  if (long_form || minutes)
    snprintf (buf, size, "%" PRIu64 ":%02" PRIu64 ":%02u.%02u", minutes / 60,
              minutes % 60, sec, hundredths);
  else
    snprintf (buf, size, "%02u.%02u sec", sec, hundredths);
  return buf;
}

void
io_report (const char *verb, const struct io_timer *t, uint64_t offset,
           uint64_t bytes, bool machine)
{
  double s = seconds (t), rate = (double) bytes / s;
  char size[64], speed[64], when[64];

  if (machine) {
    printf ("%" PRIu64 ",1,%s,%.3f,%.3f\n", bytes,
            time_text (s, true, when, sizeof when), rate, 1 / s);
    return;
  }
  printf ("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", verb,
          bytes, bytes, offset);
  printf ("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n",
          io_size_text ((double) bytes, size, sizeof size),
          time_text (s, false, when, sizeof when),
          io_size_text (rate, speed, sizeof speed), 1 / s);
}
