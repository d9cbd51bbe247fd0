/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* common/{hash,cipher,disk_cipher,afsplit,secure}.c against published vectors:
 * RFC 1321, 3174, 6070, 7914, 2144 (CAST-128), FIPS 180 and 197, IEEE P1619
 * (XTS), RIPEMD-160's paper, the Twofish paper, NESSIE (Serpent).
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "common/afsplit.h"
#include "common/bytes.h"
#include "common/cipher.h"
#include "common/hash.h"
#include "common/secure.h"
#include "tests/unit/unit.h"

static size_t
unhex (const char *hex, uint8_t *out)
{
  size_t n = 0;
  unsigned v;

  for (; sscanf (hex, "%2x", &v) == 1 && hex[1]; hex += 2)
    out[n++] = (uint8_t) v;
  return n;
}

static bool
is_hex (const uint8_t *got, const char *hex)
{
  uint8_t want[1024];
  size_t n = unhex (hex, want);

  return n > 0 && memcmp (got, want, n) == 0;
}

#ifdef HAVE_NETTLE
static const bool have_nettle = true;
#else
static const bool have_nettle = false;
#endif

/* ---- digests ---- */

static const struct {
  enum hash hash;
  const char *abc;
} digests[] = {
  { HASH_MD5, "900150983cd24fb0d6963f7d28e17f72" },
  { HASH_SHA1, "a9993e364706816aba3e25717850c26c9cd0d89d" },
  { HASH_SHA224, "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7" },
  { HASH_SHA256, "ba7816bf8f01cfea414140de5dae2223"
    "b00361a396177a9cb410ff61f20015ad" },
  { HASH_SHA384, "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163"
    "1a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7" },
  { HASH_SHA512, "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea2"
    "0a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd"
    "454d4423643ce80e2a9ac94fa54ca49f" },
  { HASH_RIPEMD160, "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc" },
};

static void
test_digests (void)
{
  struct error e = ERROR_INIT;
  uint8_t out[HASH_MAX_SIZE];
  enum hash h;

  unit_begin ("digests are those of their standards");
  for (size_t i = 0; i < sizeof digests / sizeof digests[0]; ++i) {
    if (digests[i].hash == HASH_RIPEMD160 && !have_nettle)
      continue;
    CHECK_OK (hash_compute (digests[i].hash, "a", 1, "bc", 2, out, &e), &e);
    CHECK (is_hex (out, digests[i].abc));
    CHECK (strlen (digests[i].abc) == 2 * hash_size (digests[i].hash));
    CHECK (hash_by_name (hash_name (digests[i].hash), &h) == 0
           && h == digests[i].hash);
  }
  CHECK (hash_by_name ("whirlpool", &h) == -1);
}

/* ---- PBKDF2 ---- */

static const struct {
  enum hash hash;
  const char *password, *salt;
  uint32_t iterations;
  const char *key;
} keys[] = {
  { HASH_SHA1, "password", "salt", 1,
    "0c60c80f961f0e71f3a9b524af6012062fe037a6" },
  { HASH_SHA1, "password", "salt", 2,
    "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957" },
  { HASH_SHA1, "password", "salt", 4096,
    "4b007901b765489abead49d926f721d065a429c1" },
  { HASH_SHA1, "passwordPASSWORDpassword",
    "saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096,
    "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038" },
  { HASH_SHA256, "passwd", "salt", 1,
    "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
    "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783" },
};

static void
test_pbkdf2 (void)
{
  struct error e = ERROR_INIT;
  uint8_t out[64];

  unit_begin ("PBKDF2 gives the keys of RFC 6070 and 7914");
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
    const struct pbkdf2 p = {
      .hash = keys[i].hash, .iterations = keys[i].iterations,
      .password = keys[i].password, .password_len = strlen (keys[i].password),
      .salt = keys[i].salt, .salt_len = strlen (keys[i].salt),
    };

    CHECK_OK (pbkdf2 (&p, out, strlen (keys[i].key) / 2, &e), &e);
    CHECK (is_hex (out, keys[i].key));
  }
}

static void
test_pbkdf2_cancel (void)
{
  struct error e = ERROR_INIT;
  bool cancel = true;
  const struct pbkdf2 p = {
    .hash = HASH_SHA256, .iterations = UINT32_MAX, .password = "x",
    .password_len = 1, .salt = "y", .salt_len = 1, .cancel = &cancel,
  };
  uint8_t out[16] = { 1, 2, 3 }, zeroes[16] = { 0 };

  unit_begin ("a derivation can be cancelled, and leaves nothing behind");
  CHECK_FAILS (pbkdf2 (&p, out, sizeof out, &e), &e, ECANCELED);
  CHECK (memcmp (out, zeroes, sizeof out) == 0);
}

static void
test_calibrate (void)
{
  struct error e = ERROR_INIT;
  uint32_t few, many, most;

  unit_begin ("the number of iterations follows the time, within limits");
  CHECK_OK (pbkdf2_calibrate (HASH_SHA256, 32, 0, &few, &e), &e);
  CHECK_OK (pbkdf2_calibrate (HASH_SHA256, 32, 100, &many, &e), &e);
  CHECK_OK (pbkdf2_calibrate (HASH_SHA256, 32, UINT64_C (1) << 40, &most, &e),
            &e);
  CHECK (few == 1000);
  CHECK (many > 1000 && many < PBKDF2_MAX_ITERATIONS);
  CHECK (most == PBKDF2_MAX_ITERATIONS);
}

/* ---- ciphers ---- */

static const struct {
  enum cipher_alg alg;
  enum cipher_mode mode;
  const char *key, *iv, *plain, *coded;
} vectors[] = {
  /* SP 800-38A, F.2.1, F.2.5, F.5.1 */
  { CIPHER_AES, CIPHER_CBC, "2b7e151628aed2a6abf7158809cf4f3c",
    "000102030405060708090a0b0c0d0e0f",
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
    "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2" },
  { CIPHER_AES, CIPHER_CBC,
    "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
    "000102030405060708090a0b0c0d0e0f", "6bc1bee22e409f96e93d7e117393172a",
    "f58c4c04d6e5f1ba779eabfb5f7bfbd6" },
  { CIPHER_AES, CIPHER_CTR, "2b7e151628aed2a6abf7158809cf4f3c",
    "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
    "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff" },
  /* FIPS 197, C.2 */
  { CIPHER_AES, CIPHER_ECB,
    "000102030405060708090a0b0c0d0e0f1011121314151617", "",
    "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191" },
  /* IEEE P1619, vectors 1, 4 and 10: their first blocks */
  { CIPHER_AES, CIPHER_XTS,
    "0000000000000000000000000000000000000000000000000000000000000000", "",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e" },
  { CIPHER_AES, CIPHER_XTS,
    "2718281828459045235360287471352631415926535897932384626433832795", "",
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c" },
  { CIPHER_AES, CIPHER_XTS,
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592",
    "ff", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b" },
  { CIPHER_CAST5, CIPHER_ECB, "0123456712345678234567893456789a", "",
    "0123456789abcdef", "238b4fe5847e44b2" },
  { CIPHER_TWOFISH, CIPHER_ECB, "00000000000000000000000000000000", "",
    "00000000000000000000000000000000", "9f589f5cf6122c32b6bfec2f2ae8c35a" },
  { CIPHER_TWOFISH, CIPHER_ECB,
    "0000000000000000000000000000000000000000000000000000000000000000", "",
    "00000000000000000000000000000000", "57ff739d4dc92c1bd7fc01700cc8216f" },
  { CIPHER_SERPENT, CIPHER_ECB, "00000000000000000000000000000000", "",
    "80000000000000000000000000000000", "a3b35de7c358ddd82644678c64b8bcbb" },
  { CIPHER_SERPENT, CIPHER_ECB,
    "8000000000000000000000000000000000000000000000000000000000000000", "",
    "00000000000000000000000000000000", "a223aa1288463c0e2be38ebd825616c0" },
};

static void
check_vector (size_t i)
{
  uint8_t key[CIPHER_MAX_KEY], iv[CIPHER_MAX_BLOCK] = { 0 };
  uint8_t plain[64], buf[64];
  struct error e = ERROR_INIT;
  size_t key_len = unhex (vectors[i].key, key);
  size_t len = unhex (vectors[i].plain, plain);
  struct cipher *c;
  struct cipher_handle *h;

  unhex (vectors[i].iv, iv);
  memcpy (buf, plain, len);
  c = cipher_new (vectors[i].alg, vectors[i].mode, key, key_len, &e);
  h = c ? cipher_acquire (c, &e) : NULL;
  if (!h) {
    CHECK_OK (-1, &e);
    cipher_free (c);
    return;
  }
  CHECK_OK (cipher_run (h, true, iv, buf, len, &e), &e);
  if (!is_hex (buf, vectors[i].coded))
    unit_fail (__FILE__, __LINE__, "vector %zu", i);
  CHECK_OK (cipher_run (h, false, iv, buf, len, &e), &e);
  CHECK (memcmp (buf, plain, len) == 0);
  cipher_release (c, h);
  cipher_free (c);
}

static void
test_vectors (void)
{
  unit_begin ("ciphers and modes give the published blocks, and back");
  for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; ++i)
    if (cipher_available (vectors[i].alg, vectors[i].mode))
      check_vector (i);
    else
      CHECK (!have_nettle);
}

/* ---- sectors ---- */

/* Sector by sector is the same as all at once, and another number is another
 * text, for all that is built in.
 */
static void
check_sectors (const struct cipher_spec *spec)
{
  enum { LEN = 4 * SECTOR_SIZE };
  static const uint64_t first = UINT64_C (0x123456789);
  uint8_t key[CIPHER_MAX_KEY], plain[LEN], all[LEN], each[LEN];
  struct error e = ERROR_INIT;
  struct disk_cipher *c;

  unit_random (key, sizeof key, 3);
  unit_random (plain, LEN, 4);
  memcpy (plain + SECTOR_SIZE, plain, SECTOR_SIZE);
  memcpy (all, plain, LEN);
  memcpy (each, plain, LEN);
  c = disk_cipher_new (spec, key, &e);
  if (!c) {
    CHECK_OK (-1, &e);
    return;
  }
  CHECK_OK (disk_encrypt (c, all, LEN, first, &e), &e);
  for (size_t i = 0; i < 4; ++i)
    CHECK_OK (disk_encrypt (c, each + i * SECTOR_SIZE, SECTOR_SIZE, first + i,
                            &e), &e);
  CHECK (memcmp (all, each, LEN) == 0);
  CHECK ((memcmp (all, all + SECTOR_SIZE, SECTOR_SIZE) == 0)
         == (spec->mode == CIPHER_ECB));
  CHECK_OK (disk_decrypt (c, all, LEN, first, &e), &e);
  CHECK (memcmp (all, plain, LEN) == 0);
  disk_cipher_free (c);
}

static void
test_sectors (void)
{
  unit_begin ("every cipher, mode and IV: each sector stands by itself");
  for (int a = 0; a < NR_CIPHER_ALGS; ++a)
    for (int m = 0; m < NR_CIPHER_MODES; ++m)
      for (int i = 0; i < NR_CIPHER_IVGENS; ++i)
        for (size_t len = 16; len <= 32; len += 8) {
          const struct cipher_spec spec = {
            .alg = (enum cipher_alg) a, .mode = (enum cipher_mode) m,
            .ivgen = (enum cipher_ivgen) i,
            .ivgen_hash = len == 16 ? HASH_MD5 : HASH_SHA256,
            .key_len = m == CIPHER_XTS ? 2 * len : len,
          };
          struct error e = ERROR_INIT;

          if (cipher_check (&spec, &e) == 0)
            check_sectors (&spec);
          else
            CHECK (e.err == ENOTSUP && (!have_nettle || a == CIPHER_CAST5));
        }
}

/* The numbers that dm-crypt would have in the IV, by one block in CBC: the
 * block cipher of (text xor IV).
 */
static void
check_iv (enum cipher_ivgen ivgen, uint64_t sector, const uint8_t *iv)
{
  static const uint8_t key[16] = { 7 }, none[16];
  const struct cipher_spec spec = {
    .alg = CIPHER_AES, .mode = CIPHER_CBC, .ivgen = ivgen,
    .ivgen_hash = HASH_SHA256, .key_len = sizeof key,
  };
  uint8_t sector_text[SECTOR_SIZE] = { 0 }, want[16];
  struct error e = ERROR_INIT;
  struct disk_cipher *d = disk_cipher_new (&spec, key, &e);
  struct cipher *c = cipher_new (CIPHER_AES, CIPHER_CBC, key, sizeof key, &e);
  struct cipher_handle *h = c ? cipher_acquire (c, &e) : NULL;

  CHECK (d && h);
  memcpy (want, iv, sizeof want);
  if (d && h) {
    CHECK_OK (disk_encrypt (d, sector_text, SECTOR_SIZE, sector, &e), &e);
    CHECK_OK (cipher_run (h, true, none, want, sizeof want, &e), &e);
    CHECK (memcmp (sector_text, want, sizeof want) == 0);
    cipher_release (c, h);
  }
  cipher_free (c);
  disk_cipher_free (d);
}

/* The IV of essiv:sha256 by its definition. */
static void
essiv (uint64_t sector, uint8_t iv[16])
{
  static const uint8_t key[16] = { 7 }, none[16];
  uint8_t salt[32];
  struct error e = ERROR_INIT;
  struct cipher *c;
  struct cipher_handle *h;

  CHECK_OK (hash_compute (HASH_SHA256, key, sizeof key, NULL, 0, salt, &e),
            &e);
  c = cipher_new (CIPHER_AES, CIPHER_CBC, salt, sizeof salt, &e);
  h = c ? cipher_acquire (c, &e) : NULL;
  CHECK (h);
  memset (iv, 0, 16);
  put_le64 (iv, sector);
  if (h) {
    CHECK_OK (cipher_run (h, true, none, iv, 16, &e), &e);
    cipher_release (c, h);
  }
  cipher_free (c);
}

static void
test_ivs (void)
{
  const uint64_t sector = UINT64_C (0x1122334455);
  uint8_t iv[16] = { 0x55, 0x44, 0x33, 0x22, 0x11 };

  unit_begin ("IVs are those of dm-crypt: plain, plain64, essiv");
  check_iv (IVGEN_PLAIN64, sector, iv);
  iv[4] = 0;
  check_iv (IVGEN_PLAIN, sector, iv);
  essiv (sector, iv);
  check_iv (IVGEN_ESSIV, sector, iv);
}

static void
check_refused (struct cipher_spec spec, const char *text)
{
  struct error e = ERROR_INIT;

  CHECK (cipher_check (&spec, &e) == -1 && e.err == ENOTSUP);
  if (!strstr (e.text, text))
    unit_fail (__FILE__, __LINE__, "'%s' is not in: %s", text, e.text);
}

static void
test_refused (void)
{
  unit_begin ("what does not go together is refused by name");
  check_refused ((struct cipher_spec) {
    .alg = CIPHER_CAST5, .mode = CIPHER_XTS, .key_len = 32 }, "xts");
  check_refused ((struct cipher_spec) {
    .alg = CIPHER_AES, .mode = CIPHER_CBC, .key_len = 20 }, "20 bytes");
  check_refused ((struct cipher_spec) {
    .alg = CIPHER_AES, .mode = CIPHER_CBC, .key_len = 32,
    .ivgen = IVGEN_ESSIV, .ivgen_hash = HASH_SHA512 }, "essiv:sha512");
}

/* Many threads with one cipher. */
static void *
thread (void *arg)
{
  struct disk_cipher *c = arg;
  uint8_t plain[8 * SECTOR_SIZE], buf[sizeof plain];
  struct error e = ERROR_INIT;

  for (uint64_t i = 0; i < 300; ++i) {
    unit_random (plain, sizeof plain, i);
    memcpy (buf, plain, sizeof buf);
    CHECK_OK (disk_encrypt (c, buf, sizeof buf, i, &e), &e);
    CHECK_OK (disk_decrypt (c, buf, sizeof buf, i, &e), &e);
    CHECK (memcmp (buf, plain, sizeof buf) == 0);
  }
  return NULL;
}

static void
test_threads (void)
{
  const struct cipher_spec spec = {
    .alg = CIPHER_AES, .mode = CIPHER_XTS, .ivgen = IVGEN_PLAIN64,
    .key_len = 64,
  };
  uint8_t key[64];
  struct error e = ERROR_INIT;
  struct disk_cipher *c;
  pthread_t t[4];

  unit_begin ("one cipher serves many threads at once");
  unit_random (key, sizeof key, 9);
  c = disk_cipher_new (&spec, key, &e);
  CHECK (c);
  for (int i = 0; c && i < 4; ++i)
    pthread_create (&t[i], NULL, thread, c);
  for (int i = 0; c && i < 4; ++i)
    pthread_join (t[i], NULL);
  disk_cipher_free (c);
}

/* ---- splitting ---- */

static void
test_split (void)
{
  enum { LEN = 48, STRIPES = 7 };
  uint8_t key[LEN], back[LEN], split[LEN * STRIPES];
  struct error e = ERROR_INIT;

  unit_begin ("a split key comes back, and not when one bit is changed");
  unit_random (key, LEN, 1);
  CHECK_OK (af_split (HASH_SHA256, key, LEN, STRIPES, split, &e), &e);
  CHECK_OK (af_merge (HASH_SHA256, split, LEN, STRIPES, back, &e), &e);
  CHECK (memcmp (key, back, LEN) == 0);
  split[3] ^= 1;
  CHECK_OK (af_merge (HASH_SHA256, split, LEN, STRIPES, back, &e), &e);
  CHECK (memcmp (key, back, LEN) != 0);
}

/* Two stripes, by the formula: the second is H (first) xor key, and H hashes
 * pieces of the digest's size with their numbers in front.
 */
static void
test_split_formula (void)
{
  enum { LEN = 48 };
  uint8_t key[LEN], split[2 * LEN], want[64], number[4] = { 0 };
  struct error e = ERROR_INIT;

  unit_begin ("the splitter is that of the LUKS specification");
  unit_random (key, LEN, 5);
  CHECK_OK (af_split (HASH_SHA256, key, LEN, 2, split, &e), &e);
  CHECK_OK (hash_compute (HASH_SHA256, number, 4, split, 32, want, &e), &e);
  number[3] = 1;
  CHECK_OK (hash_compute (HASH_SHA256, number, 4, split + 32, 16, want + 32,
                          &e), &e);
  for (size_t i = 0; i < LEN; ++i)
    want[i] ^= key[i];
  CHECK (memcmp (want, split + LEN, LEN) == 0);
}

static void
test_secure (void)
{
  uint8_t a[32], b[32], zeroes[32] = { 0 };
  struct error e = ERROR_INIT;

  unit_begin ("random bytes differ, and what is wiped is gone");
  CHECK_OK (secure_random (a, sizeof a, &e), &e);
  CHECK_OK (secure_random (b, sizeof b, &e), &e);
  CHECK (!secure_equal (a, b, sizeof a) && secure_equal (a, a, sizeof a));
  secure_wipe (a, sizeof a);
  CHECK (secure_equal (a, zeroes, sizeof a));
}

/* ---- registers ---- */

/* The frame of a signal has all registers in it. */
static uint8_t frame[64 * 1024];

static void
on_signal (int sig)
{
  (void) sig;
}

static void
save_registers (void)
{
  const stack_t on = { .ss_sp = frame, .ss_size = sizeof frame };
  const stack_t off = { .ss_flags = SS_DISABLE };
  const struct sigaction action = {
    .sa_handler = on_signal, .sa_flags = SA_ONSTACK,
  };

  sigaltstack (&on, NULL);
  sigaction (SIGUSR1, &action, NULL);
  raise (SIGUSR1);
  sigaltstack (&off, NULL);
}

/* memcpy leaves it there, and nothing that is called here takes it away. */
static void
test_registers (void)
{
  uint8_t key[256], copy[256];
  struct error e = ERROR_INIT;

  unit_begin ("what is wiped is in no register either");
  for (volatile size_t n = 16; n <= sizeof key; n *= 2) {
    CHECK_OK (secure_random (key, n, &e), &e);
    memcpy (copy, key, n);
    explicit_bzero (copy, n);
    secure_wipe (frame, sizeof frame);
    save_registers ();
    for (size_t i = 0; i < n; i += 16)
      CHECK (!memmem (frame, sizeof frame, key + i, 16));
  }
}

int
main (void)
{
  test_digests ();
  test_pbkdf2 ();
  test_pbkdf2_cancel ();
  test_calibrate ();
  test_vectors ();
  test_sectors ();
  test_ivs ();
  test_refused ();
  test_threads ();
  test_split ();
  test_split_formula ();
  test_secure ();
  test_registers ();
  return unit_end ();
}
