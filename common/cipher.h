/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Ciphers for the sectors of a disk.
 *
 * A struct cipher is a key for one algorithm in one mode; a struct disk_cipher
 * adds how the IV of a sector is made, as LUKS and dm-crypt name it
 * ("aes-xts-plain64", "aes-cbc-essiv:sha256").  gnutls has AES in CBC and XTS;
 * all else is nettle's, and is refused by name in a program without it.
 *
 * All functions may be called from any thread: handles of gnutls are not
 * shared, each caller borrows one for as long as it works (cipher.c).
 */

#ifndef NBDIMG_CIPHER_H
#define NBDIMG_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/hash.h"

enum cipher_alg { CIPHER_AES, CIPHER_CAST5, CIPHER_SERPENT, CIPHER_TWOFISH };
enum cipher_mode { CIPHER_ECB, CIPHER_CBC, CIPHER_XTS, CIPHER_CTR };
enum cipher_ivgen { IVGEN_PLAIN, IVGEN_PLAIN64, IVGEN_ESSIV };
enum {
  NR_CIPHER_ALGS = CIPHER_TWOFISH + 1,
  NR_CIPHER_MODES = CIPHER_CTR + 1,
  NR_CIPHER_IVGENS = IVGEN_ESSIV + 1,

  CIPHER_MAX_BLOCK = 16,
  CIPHER_MAX_KEY = 64,          /* bytes: XTS with two keys of 256 bits */
};

/* "aes", "cast5", ...: the names in a LUKS header; "xts"; "plain64". */
extern const char *cipher_alg_name (enum cipher_alg alg);
extern const char *cipher_mode_name (enum cipher_mode mode);
extern const char *cipher_ivgen_name (enum cipher_ivgen ivgen);

/* 0, or -1 without an error: the name is unknown. */
extern int cipher_alg_by_name (const char *name, enum cipher_alg *alg);
extern int cipher_mode_by_name (const char *name, enum cipher_mode *mode);
extern int cipher_ivgen_by_name (const char *name, enum cipher_ivgen *ivgen);

/* Bytes of a block; may a key have LEN bytes (twice that many for XTS)? */
extern size_t cipher_block_size (enum cipher_alg alg);
extern bool cipher_key_size_ok (enum cipher_alg alg, size_t len);

struct cipher_spec {
  enum cipher_alg alg;
  enum cipher_mode mode;
  enum cipher_ivgen ivgen;
  enum hash ivgen_hash;         /* IVGEN_ESSIV only */
  size_t key_len;               /* bytes; XTS: of both keys together */
};

/* Does it exist, and was it built in?  The error names what is not so. */
extern int cipher_check (const struct cipher_spec *spec, struct error *e);

/* Is the pair built in (for a list)? */
extern bool cipher_available (enum cipher_alg alg, enum cipher_mode mode);

struct disk_cipher;

/* KEY has spec->key_len bytes, and is not needed afterwards.  Returns owned. */
extern struct disk_cipher *disk_cipher_new (const struct cipher_spec *spec,
                                            const void *key,
                                            struct error *e);
extern void disk_cipher_free (struct disk_cipher *c);   /* NULL is allowed */

/* In place, LEN bytes (a multiple of 512) at BUF, the first of which belong to
 * the sector SECTOR.
 */
extern int disk_encrypt (struct disk_cipher *c, void *buf, size_t len,
                         uint64_t sector, struct error *e);
extern int disk_decrypt (struct disk_cipher *c, void *buf, size_t len,
                         uint64_t sector, struct error *e);

/* ---- one key (cipher.c) ---- */

struct cipher;
struct cipher_handle;

extern struct cipher *cipher_new (enum cipher_alg alg, enum cipher_mode mode,
                                  const void *key, size_t key_len,
                                  struct error *e);
extern void cipher_free (struct cipher *c);             /* NULL is allowed */

/* Borrow a handle; NULL = error. */
extern struct cipher_handle *cipher_acquire (struct cipher *c,
                                             struct error *e);
extern void cipher_release (struct cipher *c, struct cipher_handle *h);

/* In place, whole blocks; IV has the size of a block. */
extern int cipher_run (struct cipher_handle *h, bool encrypt,
                       const uint8_t *iv, void *buf, size_t len,
                       struct error *e);

#endif /* NBDIMG_CIPHER_H */
