/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the user's --object tls-creds-x509 and tls-creds-psk say: where the
 * keys and certificates lie with which a client of NBD servers shows who it is
 * and checks who they are.  One table for the program, as secret.h has.  All
 * functions may be called from any thread.
 */

#ifndef NBDIMG_TLS_CREDS_H
#define NBDIMG_TLS_CREDS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

struct tls_creds {
  bool psk;                     /* a pre-shared key, else certificates */
  char *dir;                    /* owned */
  char *username;               /* psk: owned */
  bool verify;                  /* certificates: check the server's */
};
extern void tls_creds_free (struct tls_creds *c);

/* A copy of those called ID in C (owned).  ENOENT: there are none; EINVAL: ID
 * is something else.
 */
extern int tls_creds_get (const char *id, struct tls_creds *c,
                          struct error *e);
extern bool tls_creds_exist (const char *id);

/* The text for --object that makes the credentials number I again.  Owned;
 * NULL behind the last, or, with an error, when memory is out.
 */
extern char *tls_creds_text (size_t i, struct error *e);

/* Empty the table. */
extern void tls_creds_forget_all (void);

#endif /* NBDIMG_TLS_CREDS_H */
