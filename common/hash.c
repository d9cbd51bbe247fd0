/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Digests and PBKDF2: see hash.h.  Layer: common.  No locking: no state.
 *
 * PBKDF2 is written out here, on one keyed HMAC that is used again and again,
 * since gnutls' own can be neither interrupted nor timed and lacks ripemd160.
 */

#include <config.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#ifdef HAVE_NETTLE
#include <nettle/hmac.h>
#include <nettle/ripemd160.h>
#endif

#include "common/bytes.h"
#include "common/hash.h"
#include "common/interrupt.h"
#include "common/secure.h"

static const struct {
  const char *name;
  int digest, mac;              /* of gnutls; 0 = nettle's */
  size_t size;
} hashes[NR_HASHES] = {
  [HASH_MD5] = { "md5", GNUTLS_DIG_MD5, GNUTLS_MAC_MD5, 16 },
  [HASH_SHA1] = { "sha1", GNUTLS_DIG_SHA1, GNUTLS_MAC_SHA1, 20 },
  [HASH_SHA224] = { "sha224", GNUTLS_DIG_SHA224, GNUTLS_MAC_SHA224, 28 },
  [HASH_SHA256] = { "sha256", GNUTLS_DIG_SHA256, GNUTLS_MAC_SHA256, 32 },
  [HASH_SHA384] = { "sha384", GNUTLS_DIG_SHA384, GNUTLS_MAC_SHA384, 48 },
  [HASH_SHA512] = { "sha512", GNUTLS_DIG_SHA512, GNUTLS_MAC_SHA512, 64 },
  [HASH_RIPEMD160] = { "ripemd160", 0, 0, 20 },
};

#ifdef HAVE_NETTLE
static const bool has_nettle_hashes = true;
#else
static const bool has_nettle_hashes = false;
#endif

const char *
hash_name (enum hash h)
{
  return hashes[h].name;
}

int
hash_by_name (const char *name, enum hash *h)
{
  for (int i = 0; i < NR_HASHES; ++i)
    if (strcmp (hashes[i].name, name) == 0) {
      *h = (enum hash) i;
      return 0;
    }
  return -1;
}

size_t
hash_size (enum hash h)
{
  return hashes[h].size;
}

bool
hash_available (enum hash h)
{
  return hashes[h].digest || has_nettle_hashes;
}

int
hash_need (enum hash h, struct error *e)
{
  if (hash_available (h))
    return 0;
  return error_set (e, ENOTSUP, "hash algorithm '%s' is not supported: this "
                    "program was built without nettle", hash_name (h));
}

static int
gnutls_failed (enum hash h, int r, struct error *e)
{
  return error_set (e, EIO, "%s: %s", hash_name (h), gnutls_strerror (r));
}

static void
nettle_compute (const void *a, size_t a_len, const void *b, size_t b_len,
                uint8_t *digest)
{
#ifdef HAVE_NETTLE
  struct ripemd160_ctx ctx;

  ripemd160_init (&ctx);
  ripemd160_update (&ctx, a_len, a);
  ripemd160_update (&ctx, b_len, b);
  ripemd160_digest (&ctx, RIPEMD160_DIGEST_SIZE, digest);
  secure_wipe (&ctx, sizeof ctx);
#else
  (void) a, (void) a_len, (void) b, (void) b_len, (void) digest;
#endif
}

int
hash_compute (enum hash h, const void *a, size_t a_len, const void *b,
              size_t b_len, uint8_t *digest, struct error *e)
{
  gnutls_digest_algorithm_t id = (gnutls_digest_algorithm_t) hashes[h].digest;
  gnutls_hash_hd_t hd;
  int r;

  if (hash_need (h, e) == -1)
    return -1;
  if (!hashes[h].digest) {
    nettle_compute (a, a_len, b, b_len, digest);
    return 0;
  }
  r = gnutls_hash_init (&hd, id);
  if (r < 0)
    return gnutls_failed (h, r, e);
  r = gnutls_hash (hd, a, a_len);
  if (r >= 0 && b_len)
    r = gnutls_hash (hd, b, b_len);
  gnutls_hash_deinit (hd, r >= 0 ? digest : NULL);
  return r < 0 ? gnutls_failed (h, r, e) : 0;
}

/* ---- HMAC ---- */

/* A keyed HMAC; hmac_run leaves it as it was after hmac_init. */
struct hmac {
  enum hash hash;
  gnutls_hmac_hd_t hd;          /* NULL: nettle */
#ifdef HAVE_NETTLE
  struct hmac_ripemd160_ctx ripemd160;
#endif
};

static int
hmac_init (struct hmac *m, enum hash h, const void *key, size_t len,
           struct error *e)
{
  int r;

  *m = (struct hmac) { .hash = h, .hd = NULL };
  if (hash_need (h, e) == -1)
    return -1;
  if (hashes[h].mac) {
    r = gnutls_hmac_init (&m->hd, (gnutls_mac_algorithm_t) hashes[h].mac, key,
                          len);
    if (r < 0) {
      m->hd = NULL;
      return gnutls_failed (h, r, e);
    }
    return 0;
  }
#ifdef HAVE_NETTLE
  hmac_ripemd160_set_key (&m->ripemd160, len, key);
#endif
  return 0;
}

/* The digest of LEN bytes at P; it may overwrite them. */
static int
hmac_run (struct hmac *m, const void *p, size_t len, uint8_t *digest,
          struct error *e)
{
  int r;

  if (m->hd) {
    r = gnutls_hmac (m->hd, p, len);
    if (r < 0)
      return gnutls_failed (m->hash, r, e);
    gnutls_hmac_output (m->hd, digest);
    return 0;
  }
#ifdef HAVE_NETTLE
  hmac_ripemd160_update (&m->ripemd160, len, p);
  hmac_ripemd160_digest (&m->ripemd160, RIPEMD160_DIGEST_SIZE, digest);
#endif
  return 0;
}

static void
hmac_end (struct hmac *m)
{
  if (m->hd)
    gnutls_hmac_deinit (m->hd, NULL);
  secure_wipe (m, sizeof *m);
}

/* ---- PBKDF2 ---- */

/* Iterations between two looks at the flag: under a millisecond. */
enum { CANCEL_PERIOD = 1024 };

static bool
cancelled (const struct pbkdf2 *p, uint32_t i)
{
  if (i % CANCEL_PERIOD != 0)
    return false;
  return interrupted ()
    || (p->cancel && __atomic_load_n (p->cancel, __ATOMIC_RELAXED));
}

/* The first block of U: the HMAC of the salt and the number of the block. */
static int
first_round (const struct pbkdf2 *p, struct hmac *m, uint32_t block,
             uint8_t *u, struct error *e)
{
  uint8_t buf[128];
  int r;

  if (p->salt_len > sizeof buf - 4)
    return error_set (e, EINVAL, "a salt of %zu bytes is too long",
                      p->salt_len);
  memcpy (buf, p->salt, p->salt_len);
  put_be32 (buf + p->salt_len, block);
  r = hmac_run (m, buf, p->salt_len + 4, u, e);
  secure_wipe (buf, sizeof buf);
  return r;
}

static int
derive_block (const struct pbkdf2 *p, struct hmac *m, uint32_t block,
              uint8_t *t, struct error *e)
{
  size_t size = hash_size (p->hash);
  uint8_t u[HASH_MAX_SIZE] = { 0 };
  int r = first_round (p, m, block, u, e);

  memcpy (t, u, size);
  for (uint32_t i = 1; r == 0 && i < p->iterations; ++i) {
    if (cancelled (p, i))
      r = error_set (e, ECANCELED, "cancelled");
    else
      r = hmac_run (m, u, size, u, e);
    for (size_t k = 0; k < size; ++k)
      t[k] ^= u[k];
  }
  secure_wipe (u, sizeof u);
  return r;
}

int
pbkdf2 (const struct pbkdf2 *p, uint8_t *out, size_t len, struct error *e)
{
  size_t size = hash_size (p->hash), done = 0;
  uint8_t t[HASH_MAX_SIZE] = { 0 };
  struct hmac m;
  int r = hmac_init (&m, p->hash, p->password, p->password_len, e);

  if (r == -1)
    return -1;
  for (uint32_t block = 1; r == 0 && done < len; ++block) {
    size_t n = (size_t) min_u64 (size, len - done);

    r = derive_block (p, &m, block, t, e);
    memcpy (out + done, t, n);
    done += n;
  }
  hmac_end (&m);
  secure_wipe (t, sizeof t);
  if (r == -1)
    secure_wipe (out, len);
  return r;
}

/* ---- how many ---- */

static uint64_t
now (clockid_t clock)
{
  struct timespec t;

  clock_gettime (clock, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

/* Nanoseconds that ITERATIONS take.  The processor's time is what counts on a
 * busy machine, but some clocks of it are too coarse to be used.
 */
static int
measure (enum hash h, size_t len, uint32_t iterations, uint64_t *nsec,
         struct error *e)
{
  static const uint8_t salt[32];
  const struct pbkdf2 p = {
    .hash = h, .password = "password", .password_len = 8,
    .salt = salt, .salt_len = sizeof salt, .iterations = iterations,
  };
  uint64_t wall = now (CLOCK_MONOTONIC);
  uint64_t processor = now (CLOCK_THREAD_CPUTIME_ID);
  uint8_t out[128];

  if (pbkdf2 (&p, out, len < sizeof out ? len : sizeof out, e) == -1)
    return -1;
  wall = now (CLOCK_MONOTONIC) - wall;
  processor = now (CLOCK_THREAD_CPUTIME_ID) - processor;
  secure_wipe (out, sizeof out);
  *nsec = processor > wall / 4 && processor < wall ? processor : wall;
  return 0;
}

int
pbkdf2_calibrate (enum hash h, size_t len, uint64_t msec,
                  uint32_t *iterations, struct error *e)
{
  const uint64_t enough = 10 * 1000 * 1000;
  uint64_t nsec = 0;
  uint32_t n = 512;
  double wanted;

  for (; nsec < enough && n < PBKDF2_MAX_ITERATIONS / 2; n *= 2)
    if (measure (h, len, 2 * n, &nsec, e) == -1)
      return -1;
  wanted = (double) n / (double) (nsec ? nsec : 1) * (double) msec * 1e6;
  if (wanted > PBKDF2_MAX_ITERATIONS)
    wanted = PBKDF2_MAX_ITERATIONS;
  *iterations = wanted < 1000 ? 1000 : (uint32_t) wanted;
  return 0;
}
