/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* --object: what a user gives a name to before images are opened, as with
 * QEMU: secrets (secret.h) and TLS credentials (tls_creds.h).
 */

#ifndef NBDIMG_OBJECT_H
#define NBDIMG_OBJECT_H

#include <stdint.h>

#include "common/error.h"

/* "TYPE,id=ID,NAME=VALUE,..." (a comma in a value is doubled) or the same as
 * JSON with "qom-type".  No error repeats a value that may be secret.  The
 * main thread, before it starts others.
 */
extern int object_add (const char *text, struct error *e);

/* Is ID an identifier as QEMU has them? */
extern int object_check_id (const char *id, struct error *e);

/* ---- for the files that have the types (private to common/) ---- */

enum { OBJECT_MAX_PROPERTIES = 8 };

/* The property "id" is the first of each type. */
enum { OBJECT_ID };

struct object_type {
  const char *name;
  const char *properties[OBJECT_MAX_PROPERTIES + 1];    /* NULL at the end */
  uint32_t booleans;            /* bit I: properties[I] is one in JSON */

  /* VALUES (borrowed) by the index of the property, NULL = not given.  The id
   * is one, and no other object has it.
   */
  int (*add) (const char *const *values, struct error *e);
};

extern const struct object_type object_secret, object_tls_x509,
  object_tls_psk;

#endif /* NBDIMG_OBJECT_H */
