/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Numbers and names as people read and write them. */

#ifndef NBDIMG_TEXT_H
#define NBDIMG_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* Parse "10", "1.5G", "0x200", "64k": suffixes b k K M G T P E (powers of
 * 1024), no sign, at most INT64_MAX.  WHAT names the value in the error.
 */
extern int parse_size (const char *what, const char *text, uint64_t *r,
                       struct error *e);

/* A plain unsigned decimal number in [MIN, MAX]. */
extern int parse_number (const char *what, const char *text, uint64_t min,
                         uint64_t max, uint64_t *r, struct error *e);

/* "on", "off", "yes", "no", "true", "false", "y", "n". */
extern int parse_bool (const char *what, const char *text, bool *r,
                       struct error *e);

/* "1.5 GiB" as qemu-img prints sizes: three significant digits.  BUF has at
 * least 32 bytes.  Returns BUF.
 */
extern const char *human_size (uint64_t bytes, char *buf, size_t size);

/* A copy in which control characters and invalid UTF-8 are escaped as \xNN,
 * so that a name from an image cannot drive a terminal.  Returns owned, NULL
 * when memory is out.
 */
extern char *printable (const char *text);

/* A copy that is valid UTF-8, for JSON: each byte that is not part of a
 * character is replaced by U+FFFD.  Returns owned, NULL when memory is out.
 */
extern char *utf8_text (const char *text);

/* asprintf that returns the string (owned) or NULL. */
extern char *format_text (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));

#endif /* NBDIMG_TEXT_H */
