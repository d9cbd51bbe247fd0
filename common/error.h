/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Errors that can be reported when memory is gone.
 *
 * Every function that can fail returns -1 or NULL and fills the struct error
 * that its caller keeps on the stack.  The text is of a fixed size, so that
 * ENOMEM can be told.  The first error wins: a filled struct error is never
 * overwritten; context is put in front of it on the way up, so that a message
 * reads "a.qcow2: L2 table at 0x50000: Input/output error".
 */

#ifndef NBDIMG_ERROR_H
#define NBDIMG_ERROR_H

#include <stddef.h>

/* Two names of PATH_MAX bytes do not fit: a cut text ends in "...". */
enum { ERROR_TEXT_SIZE = 1024 };

struct error {
  int err;                       /* errno value, 0 = nothing failed yet */
  char text[ERROR_TEXT_SIZE];    /* one line, no newline at its end */
};

#define ERROR_INIT { .err = 0, .text = "" }

/* Record an error.  ERR is an errno value (EINVAL if it is 0).  Always
 * returns -1, so that a caller can write "return error_set (...)".
 */
extern int error_set (struct error *e, int err, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

/* As error_set, and ": " with the text of ERR is put at the end. */
extern int error_errno (struct error *e, int err, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

/* Put "fmt: " in front of an error that was recorded.  Returns -1. */
extern int error_prefix (struct error *e, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

/* Out of memory while allocating SIZE bytes for WHAT.  Returns -1. */
extern int error_nomem (struct error *e, const char *what, size_t size);

/* Forget an error that the caller has dealt with. */
extern void error_clear (struct error *e);

#endif /* NBDIMG_ERROR_H */
