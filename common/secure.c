/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Secret bytes: see secure.h.  Layer: common.  No locking: no state. */

#include <config.h>

#include <errno.h>
#include <stdint.h>
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

/* memcpy moves bytes through vector registers, and what went last through some
 * of them stays there for long: whoever saves them (a signal, or the dynamic
 * linker when a library's call is bound late) makes a copy of a key on the
 * stack.  So other bytes go the same ways; which registers these are depends
 * on the length.
 */
static void
overwrite_registers (void)
{
  static const uint8_t zeroes[512];
  uint8_t buf[sizeof zeroes];

  for (volatile size_t n = 8; n <= sizeof buf; n = n * 2)
    memcpy (buf, zeroes, n);
  explicit_bzero (buf, sizeof buf);     /* or the copies are left out */
}

void
secure_wipe (void *p, size_t len)
{
  if (!p)
    return;
  explicit_bzero (p, len);
  overwrite_registers ();
}

void
secure_free (void *p, size_t len)
{
  secure_wipe (p, len);
  free (p);
}
