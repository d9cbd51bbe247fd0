/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A program without nettle: the two files that use it are built here once more,
 * as configure --without-nettle builds them.
 */

#include <config.h>
#undef HAVE_NETTLE

#include "common/cipher.c"
#include "common/hash.c"
#include "tests/unit/unit.h"

static void
check_absent (enum cipher_alg alg, enum cipher_mode mode, size_t key_len,
              const char *text)
{
  static const uint8_t key[CIPHER_MAX_KEY];
  struct error e = ERROR_INIT;

  CHECK (!cipher_new (alg, mode, key, key_len, &e));
  CHECK (e.err == ENOTSUP && strstr (e.text, "without nettle"));
  if (!strstr (e.text, text))
    unit_fail (__FILE__, __LINE__, "'%s' is not in: %s", text, e.text);
}

static void
check_present (enum cipher_mode mode, size_t key_len)
{
  const struct cipher_spec spec = {
    .alg = CIPHER_AES, .mode = mode, .ivgen = IVGEN_PLAIN64,
    .key_len = key_len,
  };
  struct error e = ERROR_INIT;

  CHECK_OK (cipher_check (&spec, &e), &e);
}

int
main (void)
{
  struct error e = ERROR_INIT;
  uint8_t out[HASH_MAX_SIZE];

  unit_begin ("without nettle AES in CBC and XTS is there");
  check_present (CIPHER_CBC, 16);
  check_present (CIPHER_CBC, 32);
  check_present (CIPHER_XTS, 32);
  check_present (CIPHER_XTS, 64);
  CHECK (cipher_available (CIPHER_AES, CIPHER_XTS));
  CHECK (!cipher_available (CIPHER_SERPENT, CIPHER_XTS));

  unit_begin ("without nettle the rest is refused by name");
  check_absent (CIPHER_SERPENT, CIPHER_XTS, 64, "'serpent-256' in mode 'xts'");
  check_absent (CIPHER_TWOFISH, CIPHER_CBC, 16, "'twofish-128'");
  check_absent (CIPHER_CAST5, CIPHER_CBC, 16, "'cast5-128'");
  check_absent (CIPHER_AES, CIPHER_CTR, 32, "mode 'ctr'");
  check_absent (CIPHER_AES, CIPHER_ECB, 32, "mode 'ecb'");
  check_absent (CIPHER_AES, CIPHER_XTS, 48, "'aes-192' in mode 'xts'");
  CHECK_FAILS (hash_compute (HASH_RIPEMD160, "x", 1, NULL, 0, out, &e), &e,
               ENOTSUP);
  CHECK_OK (hash_compute (HASH_SHA256, "x", 1, NULL, 0, out, &e), &e);
  return unit_end ();
}
