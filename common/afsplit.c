/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Anti-forensic splitting: see afsplit.h.  Layer: common.  No locking.
 * LUKS1 On-Disk Format Specification, "Anti-forensic information splitting".
 *
 *   s1 ... s(n-1) random;  d0 = 0;  dk = H (d(k-1) xor sk);
 *   sn = d(n-1) xor key
 *
 * where H hashes each digest-sized piece with its number in front.
 */

#include <config.h>

#include <string.h>

#include "common/afsplit.h"
#include "common/bytes.h"
#include "common/secure.h"

/* H, in place. */
static int
diffuse (enum hash h, uint8_t *d, size_t len, struct error *e)
{
  size_t size = hash_size (h), done = 0;
  uint8_t digest[HASH_MAX_SIZE], number[4];
  int r = 0;

  for (uint32_t i = 0; r == 0 && done < len; ++i) {
    size_t n = (size_t) min_u64 (size, len - done);

    put_be32 (number, i);
    r = hash_compute (h, number, sizeof number, d + done, n, digest, e);
    memcpy (d + done, digest, n);
    done += n;
  }
  secure_wipe (digest, sizeof digest);
  return r;
}

static void
xor_into (uint8_t *d, const uint8_t *s, size_t len)
{
  for (size_t i = 0; i < len; ++i)
    d[i] ^= s[i];
}

/* d(n-1) of the first STRIPES - 1 stripes at S. */
static int
fold (enum hash h, const uint8_t *s, size_t len, size_t stripes, uint8_t *d,
      struct error *e)
{
  memset (d, 0, len);
  for (size_t i = 0; i + 1 < stripes; ++i) {
    xor_into (d, s + i * len, len);
    if (diffuse (h, d, len, e) == -1)
      return -1;
  }
  return 0;
}

int
af_split (enum hash h, const uint8_t *key, size_t len, size_t stripes,
          uint8_t *out, struct error *e)
{
  uint8_t *last = out + (stripes - 1) * len;

  if (secure_random (out, (stripes - 1) * len, e) == -1
      || fold (h, out, len, stripes, last, e) == -1)
    return -1;
  xor_into (last, key, len);
  return 0;
}

int
af_merge (enum hash h, const uint8_t *in, size_t len, size_t stripes,
          uint8_t *key, struct error *e)
{
  if (fold (h, in, len, stripes, key, e) == -1)
    return -1;
  xor_into (key, in + (stripes - 1) * len, len);
  return 0;
}
