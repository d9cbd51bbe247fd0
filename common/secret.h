/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Passphrases and keys that the user gave, by ID, as QEMU's --object secret
 * (object.h): one table for the program.  What is in it is never printed, and
 * wiped when it is no longer needed.  All functions may be called from any
 * thread.
 */

#ifndef NBDIMG_SECRET_H
#define NBDIMG_SECRET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* No passphrase is longer; a file that is says something else. */
enum { SECRET_MAX_SIZE = 1 << 20 };

struct secret {
  uint8_t *data;                /* owned; wiped by secret_free */
  size_t len;                   /* bytes, any */
};
extern void secret_free (struct secret *s);

/* Copies DATA.  An ID that is there already is an error (EEXIST). */
extern int secret_add (const char *id, const void *data, size_t len,
                       struct error *e);

/* The whole content of FILE, into S (owned) or into the table. */
extern int secret_read_file (struct secret *s, const char *file,
                             struct error *e);
extern int secret_add_file (const char *id, const char *file,
                            struct error *e);

extern bool secret_exists (const char *id);

/* A copy of it in S (owned); an unknown ID is an error (ENOENT). */
extern int secret_get (const char *id, struct secret *s, struct error *e);

/* The IDs in the order in which they came: NULL behind the last.  Borrowed,
 * good until secret_forget_all.
 */
extern const char *secret_id (size_t i);

/* Wipe the table. */
extern void secret_forget_all (void);

#endif /* NBDIMG_SECRET_H */
