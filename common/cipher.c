/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* One key for one cipher and mode: see cipher.h.  Layer: common.
 *
 * Locking: a gnutls handle has a state, so each is used by one caller at a
 * time; those that nobody uses wait in a list under a mutex.  There are as many
 * as callers were ever inside at once.  A nettle key is constant: all share it.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#ifdef HAVE_NETTLE
#include <nettle/aes.h>
#include <nettle/cast128.h>
#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/serpent.h>
#include <nettle/twofish.h>
#include <nettle/xts.h>
#endif

#include "common/cipher.h"
#include "common/lock.h"
#include "common/secure.h"

/* ---- names ---- */

static const char *const alg_names[NR_CIPHER_ALGS] = {
  [CIPHER_AES] = "aes", [CIPHER_CAST5] = "cast5",
  [CIPHER_SERPENT] = "serpent", [CIPHER_TWOFISH] = "twofish",
};
static const char *const mode_names[NR_CIPHER_MODES] = {
  [CIPHER_ECB] = "ecb", [CIPHER_CBC] = "cbc", [CIPHER_XTS] = "xts",
  [CIPHER_CTR] = "ctr",
};

static int
find_name (const char *const *names, int nr, const char *name)
{
  for (int i = 0; i < nr; ++i)
    if (strcmp (names[i], name) == 0)
      return i;
  return -1;
}

const char *
cipher_alg_name (enum cipher_alg alg)
{
  return alg_names[alg];
}

const char *
cipher_mode_name (enum cipher_mode mode)
{
  return mode_names[mode];
}

int
cipher_alg_by_name (const char *name, enum cipher_alg *alg)
{
  int i = find_name (alg_names, NR_CIPHER_ALGS, name);

  if (i != -1)
    *alg = (enum cipher_alg) i;
  return i == -1 ? -1 : 0;
}

int
cipher_mode_by_name (const char *name, enum cipher_mode *mode)
{
  int i = find_name (mode_names, NR_CIPHER_MODES, name);

  if (i != -1)
    *mode = (enum cipher_mode) i;
  return i == -1 ? -1 : 0;
}

size_t
cipher_block_size (enum cipher_alg alg)
{
  return alg == CIPHER_CAST5 ? 8 : 16;
}

bool
cipher_key_size_ok (enum cipher_alg alg, size_t len)
{
  return len == 16 || (alg != CIPHER_CAST5 && (len == 24 || len == 32));
}

/* ---- gnutls ---- */

/* gnutls' name of it, KEY_LEN as for cipher_new; UNKNOWN = it has none. */
static gnutls_cipher_algorithm_t
gnutls_cipher (enum cipher_alg alg, enum cipher_mode mode, size_t key_len)
{
  if (alg == CIPHER_AES && mode == CIPHER_CBC)
    return key_len == 16 ? GNUTLS_CIPHER_AES_128_CBC
      : key_len == 24 ? GNUTLS_CIPHER_AES_192_CBC
      : GNUTLS_CIPHER_AES_256_CBC;
  if (alg == CIPHER_AES && mode == CIPHER_XTS && key_len != 48)
    return key_len == 32 ? GNUTLS_CIPHER_AES_128_XTS
      : GNUTLS_CIPHER_AES_256_XTS;
  return GNUTLS_CIPHER_UNKNOWN;
}

struct cipher_handle {
  struct cipher *cipher;
  gnutls_cipher_hd_t hd;
  struct cipher_handle *next;   /* in cipher.idle */
};

#ifdef HAVE_NETTLE

/* ---- nettle ---- */

static const bool has_nettle_ciphers = true;

/* The key schedules of one direction. */
union schedule {
  struct aes128_ctx aes128;
  struct aes192_ctx aes192;
  struct aes256_ctx aes256;
  struct cast128_ctx cast128;
  struct serpent_ctx serpent;
  struct twofish_ctx twofish;
};

struct nettle_key {
  union schedule encrypt, decrypt, tweak;       /* tweak: XTS */
  nettle_cipher_func *encrypt_block, *decrypt_block;
};

static void
set_aes_key (struct nettle_key *k, const uint8_t *key, size_t len)
{
  switch (len) {
  case 16:
    aes128_set_encrypt_key (&k->encrypt.aes128, key);
    aes128_set_decrypt_key (&k->decrypt.aes128, key);
    k->encrypt_block = (nettle_cipher_func *) aes128_encrypt;
    k->decrypt_block = (nettle_cipher_func *) aes128_decrypt;
    return;
  case 24:
    aes192_set_encrypt_key (&k->encrypt.aes192, key);
    aes192_set_decrypt_key (&k->decrypt.aes192, key);
    k->encrypt_block = (nettle_cipher_func *) aes192_encrypt;
    k->decrypt_block = (nettle_cipher_func *) aes192_decrypt;
    return;
  default:
    aes256_set_encrypt_key (&k->encrypt.aes256, key);
    aes256_set_decrypt_key (&k->decrypt.aes256, key);
    k->encrypt_block = (nettle_cipher_func *) aes256_encrypt;
    k->decrypt_block = (nettle_cipher_func *) aes256_decrypt;
  }
}

static void
set_key (struct nettle_key *k, enum cipher_alg alg, const uint8_t *key,
         size_t len)
{
  switch (alg) {
  case CIPHER_AES:
    set_aes_key (k, key, len);
    return;
  case CIPHER_CAST5:
    cast5_set_key (&k->encrypt.cast128, len, key);
    k->encrypt_block = (nettle_cipher_func *) cast128_encrypt;
    k->decrypt_block = (nettle_cipher_func *) cast128_decrypt;
    break;
  case CIPHER_SERPENT:
    serpent_set_key (&k->encrypt.serpent, len, key);
    k->encrypt_block = (nettle_cipher_func *) serpent_encrypt;
    k->decrypt_block = (nettle_cipher_func *) serpent_decrypt;
    break;
  case CIPHER_TWOFISH:
    twofish_set_key (&k->encrypt.twofish, len, key);
    k->encrypt_block = (nettle_cipher_func *) twofish_encrypt;
    k->decrypt_block = (nettle_cipher_func *) twofish_decrypt;
    break;
  }
  k->decrypt = k->encrypt;
}

static struct nettle_key *
nettle_key_new (enum cipher_alg alg, enum cipher_mode mode,
                const uint8_t *key, size_t len, struct error *e)
{
  struct nettle_key *k = calloc (1, sizeof *k), second;

  if (!k) {
    error_nomem (e, "a key", sizeof *k);
    return NULL;
  }
  if (mode != CIPHER_XTS) {
    set_key (k, alg, key, len);
    return k;
  }
  set_key (k, alg, key, len / 2);
  set_key (&second, alg, key + len / 2, len / 2);
  k->tweak = second.encrypt;
  secure_wipe (&second, sizeof second);
  return k;
}

static void
nettle_key_free (struct nettle_key *k)
{
  secure_free (k, sizeof *k);
}

static void
nettle_run (const struct nettle_key *k, enum cipher_mode mode, size_t block,
            bool encrypt, const uint8_t *iv, uint8_t *buf, size_t len)
{
  nettle_cipher_func *f = encrypt ? k->encrypt_block : k->decrypt_block;
  const union schedule *ctx = encrypt ? &k->encrypt : &k->decrypt;
  uint8_t iv_copy[CIPHER_MAX_BLOCK];

  memcpy (iv_copy, iv, block);
  switch (mode) {
  case CIPHER_ECB:
    f (ctx, len, buf, buf);
    return;
  case CIPHER_CBC:
    if (encrypt)
      cbc_encrypt (ctx, f, block, iv_copy, len, buf, buf);
    else
      cbc_decrypt (ctx, f, block, iv_copy, len, buf, buf);
    return;
  case CIPHER_CTR:
    ctr_crypt (&k->encrypt, k->encrypt_block, block, iv_copy, len, buf, buf);
    return;
  case CIPHER_XTS:
    if (encrypt)
      xts_encrypt_message (ctx, &k->tweak, f, iv_copy, len, buf, buf);
    else
      xts_decrypt_message (ctx, &k->tweak, f, k->encrypt_block, iv_copy, len,
                           buf, buf);
  }
}

#else /* !HAVE_NETTLE: cipher_new never comes so far */

static const bool has_nettle_ciphers = false;

struct nettle_key;

static struct nettle_key *
nettle_key_new (enum cipher_alg alg, enum cipher_mode mode,
                const uint8_t *key, size_t len, struct error *e)
{
  (void) mode, (void) key, (void) len;
  error_set (e, ENOTSUP, "%s needs nettle", cipher_alg_name (alg));
  return NULL;
}

static void
nettle_key_free (struct nettle_key *k)
{
  (void) k;
}

static void
nettle_run (const struct nettle_key *k, enum cipher_mode mode, size_t block,
            bool encrypt, const uint8_t *iv, uint8_t *buf, size_t len)
{
  (void) k, (void) mode, (void) block, (void) encrypt, (void) iv;
  (void) buf, (void) len;
}

#endif

/* ---- what there is ---- */

static bool
built_in (enum cipher_alg alg, enum cipher_mode mode, size_t key_len)
{
  return has_nettle_ciphers
    || gnutls_cipher (alg, mode, key_len) != GNUTLS_CIPHER_UNKNOWN;
}

bool
cipher_available (enum cipher_alg alg, enum cipher_mode mode)
{
  if (mode == CIPHER_XTS && cipher_block_size (alg) != 16)
    return false;
  return built_in (alg, mode, mode == CIPHER_XTS ? 32 : 16);
}

static int
check_pair (enum cipher_alg alg, enum cipher_mode mode, size_t key_len,
            struct error *e)
{
  size_t one = mode == CIPHER_XTS ? key_len / 2 : key_len;

  if (mode == CIPHER_XTS && cipher_block_size (alg) != 16)
    return error_set (e, ENOTSUP, "Unsupported cipher mode xts: %s has blocks "
                      "of %zu bytes", cipher_alg_name (alg),
                      cipher_block_size (alg));
  if (!cipher_key_size_ok (alg, one) || (mode == CIPHER_XTS && key_len % 2))
    return error_set (e, ENOTSUP, "cipher '%s' in mode '%s' has no keys of %zu "
                      "bytes", cipher_alg_name (alg), cipher_mode_name (mode),
                      key_len);
  if (!built_in (alg, mode, key_len))
    return error_set (e, ENOTSUP, "cipher '%s-%zu' in mode '%s' is not "
                      "supported: this program was built without nettle",
                      cipher_alg_name (alg), one * 8, cipher_mode_name (mode));
  return 0;
}

int
cipher_check (const struct cipher_spec *s, struct error *e)
{
  size_t size;

  if (check_pair (s->alg, s->mode, s->key_len, e) == -1)
    return -1;
  if (s->ivgen != IVGEN_ESSIV)
    return 0;
  size = hash_size (s->ivgen_hash);
  if (hash_need (s->ivgen_hash, e) == -1)
    return -1;
  if (!cipher_key_size_ok (s->alg, size))
    return error_set (e, ENOTSUP, "ivgen 'essiv:%s' does not go with cipher "
                      "'%s', which has no keys of %zu bytes",
                      hash_name (s->ivgen_hash), cipher_alg_name (s->alg),
                      size);
  return check_pair (s->alg, CIPHER_CBC, size, e);
}

/* ---- the cipher ---- */

struct cipher {
  /* fixed */
  enum cipher_alg alg;
  enum cipher_mode mode;
  gnutls_cipher_algorithm_t id; /* UNKNOWN: nettle's */
  uint8_t key[CIPHER_MAX_KEY];  /* gnutls: for more handles */
  size_t key_len;
  struct nettle_key *nettle;    /* owned; NULL = gnutls' */
  struct cipher_handle shared;  /* nettle: everybody's */

  struct mutex mutex;
  struct cipher_handle *idle;   /* guarded by mutex; owned */
};

struct cipher *
cipher_new (enum cipher_alg alg, enum cipher_mode mode, const void *key,
            size_t key_len, struct error *e)
{
  struct cipher *c;

  if (check_pair (alg, mode, key_len, e) == -1)
    return NULL;
  c = calloc (1, sizeof *c);
  if (!c) {
    error_nomem (e, "a cipher", sizeof *c);
    return NULL;
  }
  c->alg = alg;
  c->mode = mode;
  c->id = gnutls_cipher (alg, mode, key_len);
  c->shared.cipher = c;
  mutex_init (&c->mutex);
  if (c->id != GNUTLS_CIPHER_UNKNOWN) {
    memcpy (c->key, key, key_len);
    c->key_len = key_len;
  }
  else if (!(c->nettle = nettle_key_new (alg, mode, key, key_len, e))) {
    cipher_free (c);
    return NULL;
  }
  return c;
}

void
cipher_free (struct cipher *c)
{
  struct cipher_handle *next;

  if (!c)
    return;
  for (struct cipher_handle *h = c->idle; h; h = next) {
    next = h->next;
    gnutls_cipher_deinit (h->hd);
    free (h);
  }
  nettle_key_free (c->nettle);
  mutex_destroy (&c->mutex);
  secure_free (c, sizeof *c);
}

static struct cipher_handle *
handle_new (struct cipher *c, struct error *e)
{
  uint8_t iv[CIPHER_MAX_BLOCK] = { 0 };
  const gnutls_datum_t key_datum = { c->key, (unsigned) c->key_len };
  const gnutls_datum_t iv_datum = { iv, sizeof iv };
  struct cipher_handle *h = calloc (1, sizeof *h);
  int r;

  if (!h) {
    error_nomem (e, "a cipher", sizeof *h);
    return NULL;
  }
  h->cipher = c;
  r = gnutls_cipher_init (&h->hd, c->id, &key_datum, &iv_datum);
  if (r >= 0)
    return h;
  free (h);
  error_set (e, EIO, "cipher %s-%s: %s", cipher_alg_name (c->alg),
             cipher_mode_name (c->mode), gnutls_strerror (r));
  return NULL;
}

struct cipher_handle *
cipher_acquire (struct cipher *c, struct error *e)
{
  struct cipher_handle *h;

  if (c->nettle)
    return &c->shared;
  mutex_lock (&c->mutex);
  h = c->idle;
  if (h)
    c->idle = h->next;
  mutex_unlock (&c->mutex);
  return h ? h : handle_new (c, e);
}

void
cipher_release (struct cipher *c, struct cipher_handle *h)
{
  if (h == &c->shared)
    return;
  mutex_lock (&c->mutex);
  h->next = c->idle;
  c->idle = h;
  mutex_unlock (&c->mutex);
}

int
cipher_run (struct cipher_handle *h, bool encrypt, const uint8_t *iv,
            void *buf, size_t len, struct error *e)
{
  struct cipher *c = h->cipher;
  size_t block = cipher_block_size (c->alg);
  int r;

  if (c->nettle) {
    nettle_run (c->nettle, c->mode, block, encrypt, iv, buf, len);
    return 0;
  }
  gnutls_cipher_set_iv (h->hd, (void *) iv, block);
  r = encrypt ? gnutls_cipher_encrypt (h->hd, buf, len)
    : gnutls_cipher_decrypt (h->hd, buf, len);
  if (r >= 0)
    return 0;
  return error_set (e, EIO, "cipher %s-%s: %s", cipher_alg_name (c->alg),
                    cipher_mode_name (c->mode), gnutls_strerror (r));
}
