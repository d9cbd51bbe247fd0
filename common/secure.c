/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Secret bytes: see secure.h.  Layer: common.  No locking: no state. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

#include "common/secure.h"

int
secure_random (void *buf, size_t len, struct error *e)
{
  int r = gnutls_rnd (GNUTLS_RND_KEY, buf, len);

  return r < 0 ? error_set (e, EIO, "random bytes: %s", gnutls_strerror (r))
    : 0;
}

bool
secure_equal (const void *a, const void *b, size_t len)
{
  return gnutls_memcmp (a, b, len) == 0;
}

void
secure_wipe (void *p, size_t len)
{
  if (p)
    explicit_bzero (p, len);
}

void
secure_free (void *p, size_t len)
{
  secure_wipe (p, len);
  free (p);
}
