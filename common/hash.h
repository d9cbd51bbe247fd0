/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Digests, and keys from passphrases (PBKDF2, RFC 8018).  gnutls computes them,
 * and nettle what gnutls lacks (ripemd160).  All functions may be called from
 * any thread.
 */

#ifndef NBDIMG_HASH_H
#define NBDIMG_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum hash {
  HASH_MD5, HASH_SHA1, HASH_SHA224, HASH_SHA256, HASH_SHA384, HASH_SHA512,
  HASH_RIPEMD160,
};
enum { NR_HASHES = HASH_RIPEMD160 + 1, HASH_MAX_SIZE = 64 };

/* "sha256", as LUKS headers and QEMU's options name it. */
extern const char *hash_name (enum hash h);

/* 0, or -1 without an error: the name is unknown. */
extern int hash_by_name (const char *name, enum hash *h);

/* Bytes of a digest. */
extern size_t hash_size (enum hash h);

/* Was it built in?  hash_need: if not, say so. */
extern bool hash_available (enum hash h);
extern int hash_need (enum hash h, struct error *e);

/* The digest of A followed by B. */
extern int hash_compute (enum hash h, const void *a, size_t a_len,
                         const void *b, size_t b_len, uint8_t *digest,
                         struct error *e);

/* What each open image may cost at most: 2^24 iterations take 2 to 10 s, and an
 * image can ask for 2^32.
 */
enum { PBKDF2_MAX_ITERATIONS = 1 << 24 };

struct pbkdf2 {
  enum hash hash;
  const void *password;
  size_t password_len;
  const void *salt;
  size_t salt_len;
  uint32_t iterations;          /* > 0; whoever calls has limited it */
  const bool *cancel;           /* atomic; set: stop (ECANCELED); or NULL.
                                   interrupt.h stops it too */
};

/* Derive LEN bytes. */
extern int pbkdf2 (const struct pbkdf2 *p, uint8_t *out, size_t len,
                   struct error *e);

/* How many iterations take MSEC ms of this processor for a key of LEN bytes: at
 * least 1000, at most PBKDF2_MAX_ITERATIONS.  Takes some 20 ms.
 */
extern int pbkdf2_calibrate (enum hash h, size_t len, uint64_t msec,
                             uint32_t *iterations, struct error *e);

#endif /* NBDIMG_HASH_H */
