/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Numbers and names as people read and write them: see text.h.  Layer: common.
 * No state, no locking.  What a size may look like, and how one is rounded
 * when it is printed, was found by trying qemu-img.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/bytes.h"
#include "common/text.h"

static const char units[] = "BKMGTPE";

/* Read digits of BASE at *P, as many as there are; false when there is none,
 * or (with errno ERANGE) when they do not fit.
 */
static bool
read_digits (const char **p, unsigned base, uint64_t *r)
{
  const char *start = *p;
  uint64_t v = 0;

  for (;; ++*p) {
    unsigned char c = (unsigned char) **p;
    unsigned digit;

    if (c >= '0' && c <= '9')
      digit = c - '0';
    else if (base == 16 && isxdigit (c))
      digit = (unsigned) (tolower (c) - 'a' + 10);
    else
      break;
    if (!mul_ok (v, base, &v) || !add_ok (v, digit, &v)) {
      errno = ERANGE;
      return false;
    }
  }
  errno = EINVAL;
  *r = v;
  return *p != start;
}

/* The digits after a point, as a number in [0, 1].  Nineteen of them fill 64
 * bits; what comes later is less than a byte of an exbibyte.
 */
static long double
read_fraction (const char **p)
{
  uint64_t v = 0, scale = 1;

  for (; **p >= '0' && **p <= '9'; ++*p) {
    if (scale <= UINT64_MAX / 100) {
      v = v * 10 + (uint64_t) (**p - '0');
      scale *= 10;
    }
  }
  return (long double) v / (long double) scale;
}

/* The power of 1024 that the suffix at *P asks for; none is bytes. */
static bool
read_suffix (const char **p, unsigned *shift)
{
  const char *unit;

  *shift = 0;
  if (**p == '\0')
    return true;
  unit = strchr (units, toupper ((unsigned char) **p));
  if (!unit)
    return false;
  ++*p;
  *shift = (unsigned) (unit - units) * 10;
  return **p == '\0';
}

/* WHOLE + FRACTION, times 2^SHIFT, to the nearest byte; ERANGE. */
static int
scale_size (uint64_t whole, long double fraction, unsigned shift, uint64_t *r)
{
  uint64_t unit = UINT64_C (1) << shift;
  /* In double, as qemu-img has it: "1.1E" is the same number of bytes. */
  uint64_t part = (uint64_t) ((double) fraction * (double) unit + 0.5);

  if (!mul_ok (whole, unit, r) || !add_ok (*r, part, r) || *r > INT64_MAX)
    return ERANGE;
  return 0;
}

/* Returns an errno value. */
static int
read_size (const char *p, uint64_t *r)
{
  long double fraction = 0;
  unsigned base = 10, shift;
  uint64_t whole;

  while (isspace ((unsigned char) *p))
    p++;
  if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X')) {
    base = 16;
    p += 2;
  }
  if (!read_digits (&p, base, &whole))
    return errno;
  if (base == 10 && *p == '.') {
    p++;
    fraction = read_fraction (&p);
  }
  if (!read_suffix (&p, &shift))
    return EINVAL;
  if (shift == 0 && fraction > 0)       /* a part of a byte */
    return EINVAL;
  return scale_size (whole, fraction, shift, r);
}

int
parse_size (const char *what, const char *text, uint64_t *r, struct error *e)
{
  int err = read_size (text, r);

  if (err == ERANGE)
    return error_set (e, err, "%s: %s is too large (at most %" PRIu64 ")",
                      what, text, (uint64_t) INT64_MAX);
  if (err)
    return error_set (e, err, "%s: '%s' is not a size: give a number, with a "
                      "suffix k, M, G, T, P or E if you like", what, text);
  return 0;
}

int
parse_number (const char *what, const char *text, uint64_t min, uint64_t max,
              uint64_t *r, struct error *e)
{
  const char *p = text;
  bool ok = read_digits (&p, 10, r);

  if (*p != '\0' && !(!ok && errno == ERANGE))
    ok = false;
  if (!ok && errno != ERANGE)
    return error_set (e, EINVAL, "%s: '%s' is not a number", what, text);
  if (!ok || *r < min || *r > max)
    return error_set (e, ERANGE, "%s: %s is not between %" PRIu64
                      " and %" PRIu64, what, text, min, max);
  return 0;
}

int
parse_bool (const char *what, const char *text, bool *r, struct error *e)
{
  static const char *const yes[] = { "on", "yes", "true", "y" };
  static const char *const no[] = { "off", "no", "false", "n" };

  for (size_t i = 0; i < sizeof yes / sizeof yes[0]; ++i) {
    if (strcmp (text, yes[i]) == 0) {
      *r = true;
      return 0;
    }
    if (strcmp (text, no[i]) == 0) {
      *r = false;
      return 0;
    }
  }
  return error_set (e, EINVAL, "%s: '%s' is not on or off", what, text);
}

/* qemu-img takes the next unit from 1000 on, not from 1024: 1000 KiB is
 * "0.977 MiB", and what lies just below it "1e+03 KiB".
 */
const char *
human_size (uint64_t bytes, char *buf, size_t size)
{
  unsigned i = 0;

  while (i + 2 < sizeof units && bytes >= UINT64_C (1000) << (10 * i))
    i++;
  snprintf (buf, size, "%.3g %.1s%s",
            (double) bytes / (double) (UINT64_C (1) << (10 * i)), &units[i],
            i ? "iB" : "");
  return buf;
}

/* How many bytes at P form one character of UTF-8 (RFC 3629: no overlong form,
 * no surrogate)?  0 = none.  The code point goes to *C.
 */
static size_t
utf8_length (const unsigned char *p, uint32_t *c)
{
  static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
  size_t n;

  if (p[0] < 0x80)
    n = 1, *c = p[0];
  else if (p[0] >= 0xc2 && p[0] <= 0xdf)
    n = 2, *c = p[0] & 0x1fU;
  else if (p[0] >= 0xe0 && p[0] <= 0xef)
    n = 3, *c = p[0] & 0x0fU;
  else if (p[0] >= 0xf0 && p[0] <= 0xf4)
    n = 4, *c = p[0] & 0x07U;
  else
    return 0;
  for (size_t i = 1; i < n; ++i) {      /* the final NUL is no such byte */
    if ((p[i] & 0xc0) != 0x80)
      return 0;
    *c = *c << 6 | (p[i] & 0x3fU);
  }
  if (*c < least[n] || *c > 0x10ffff || (*c >= 0xd800 && *c <= 0xdfff))
    return 0;
  return n;
}

/* Control characters, C0 and C1, and those that turn the direction of text
 * around, so that a name would show as another one.
 */
static bool
is_unprintable (uint32_t c)
{
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x200e || c == 0x200f
    || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

char *
printable (const char *text)
{
  const unsigned char *p = (const unsigned char *) text;
  size_t len = strlen (text);
  char *r, *q;

  r = q = len < SIZE_MAX / 4 ? malloc (4 * len + 1) : NULL;
  if (!r)
    return NULL;
  while (*p) {
    uint32_t c;
    size_t n = utf8_length (p, &c);

    if (n && !is_unprintable (c)) {
      memcpy (q, p, n);
      q += n;
      p += n;
      continue;
    }
    for (n = n ? n : 1; n; --n)
      q += sprintf (q, "\\x%02x", *p++);
  }
  *q = '\0';
  return r;
}

char *
utf8_text (const char *text)
{
  const unsigned char *p = (const unsigned char *) text;
  size_t len = strlen (text);
  char *r, *q;

  r = q = len < SIZE_MAX / 3 ? malloc (3 * len + 1) : NULL;
  if (!r)
    return NULL;
  while (*p) {
    uint32_t c;
    size_t n = utf8_length (p, &c);
    const void *from = n ? (const void *) p : "\xef\xbf\xbd";
    size_t nr = n ? n : 3;

    memcpy (q, from, nr);
    q += nr;
    p += n ? n : 1;
  }
  *q = '\0';
  return r;
}

char *
format_text (const char *fmt, ...)
{
  va_list ap;
  char *r;
  int n;

  va_start (ap, fmt);
  n = vasprintf (&r, fmt, ap);
  va_end (ap);
  return n < 0 ? NULL : r;
}
