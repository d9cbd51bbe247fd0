/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* --object secret,...: see secret.h and object.h.  Layer: common.  No locking:
 * no state.  No error repeats a value that may be secret.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cipher.h"
#include "common/object.h"
#include "common/secret.h"
#include "common/secure.h"

enum property { ID = OBJECT_ID, DATA, FILE_NAME, FORMAT, KEYID, IV };

/* ---- bytes ---- */

static int
base64_value (char c)
{
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz0123456789+/";
  const char *p = c ? strchr (digits, c) : NULL;

  return p ? (int) (p - digits) : -1;
}

/* In place; blanks and line ends are skipped.  -1 = it is not base64. */
static int
base64_decode (struct secret *s)
{
  size_t to = 0, digits = 0, padding = 0;
  uint32_t bits = 0;

  for (size_t i = 0; i < s->len; ++i) {
    char c = (char) s->data[i];
    int v = base64_value (c);

    if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
      continue;
    padding += c == '=';
    if ((v == -1 && c != '=') || (v != -1 && padding))
      return -1;
    bits = bits << 6 | (uint32_t) (v == -1 ? 0 : v);
    if (++digits % 4 == 0) {
      s->data[to++] = (uint8_t) (bits >> 16);
      s->data[to++] = (uint8_t) (bits >> 8);
      s->data[to++] = (uint8_t) bits;
    }
  }
  if (digits % 4 || padding > 2 || padding > to)
    return -1;
  s->len = to - padding;
  return 0;
}

static int
take_text (struct secret *s, const char *text, struct error *e)
{
  s->len = strlen (text);
  s->data = (uint8_t *) strdup (text);
  return s->data ? 0 : error_nomem (e, "a secret", s->len);
}

static int
load (const char *const *o, struct secret *s, struct error *e)
{
  const char *data = o[DATA], *file = o[FILE_NAME];

  if (data && file)
    return error_set (e, EINVAL, "'file' and 'data' are mutually exclusive");
  if (!data && !file)
    return error_set (e, EINVAL, "Either 'file' or 'data' must be provided");
  return data ? take_text (s, data, e) : secret_read_file (s, file, e);
}

static int
decode (const char *const *o, struct secret *s, struct error *e)
{
  const char *format = o[FORMAT];

  if (!format || strcmp (format, "raw") == 0)
    return 0;
  if (strcmp (format, "base64") != 0)
    return error_set (e, EINVAL, "Parameter 'format' does not accept value "
                      "'%s'", format);
  if (base64_decode (s) == 0)
    return 0;
  return error_set (e, EINVAL, "the secret '%s' is not base64", o[ID]);
}

/* ---- secrets under a key ---- */

enum { BLOCK = 16, KEY = 32 };

static int
get_iv (const char *const *o, uint8_t iv[BLOCK], struct error *e)
{
  struct secret s = { .data = NULL };
  int r;

  if (!o[IV])
    return error_set (e, EINVAL, "IV is required to decrypt secret");
  if (take_text (&s, o[IV], e) == -1)
    return -1;
  if (base64_decode (&s) == -1)
    r = error_set (e, EINVAL, "the iv of the secret is not base64");
  else if (s.len != BLOCK)
    r = error_set (e, EINVAL, "IV should be %d bytes in length not %zu",
                   BLOCK, s.len);
  else {
    memcpy (iv, s.data, BLOCK);
    r = 0;
  }
  secret_free (&s);
  return r;
}

static int
run_cipher (const struct secret *key, const uint8_t *iv, struct secret *s,
            struct error *e)
{
  struct cipher *c = cipher_new (CIPHER_AES, CIPHER_CBC, key->data, key->len,
                                 e);
  struct cipher_handle *h = c ? cipher_acquire (c, e) : NULL;
  int r = h ? cipher_run (h, false, iv, s->data, s->len, e) : -1;

  if (h)
    cipher_release (c, h);
  cipher_free (c);
  return r;
}

/* PKCS #7: N bytes of the value N. */
static int
remove_padding (struct secret *s, struct error *e)
{
  uint8_t n = s->data[s->len - 1];

  if (n < 1 || n > BLOCK)
    return error_set (e, EINVAL, "Incorrect number of padding bytes found on "
                      "decrypted data");
  for (size_t i = 1; i <= n; ++i)
    if (s->data[s->len - i] != n)
      return error_set (e, EINVAL, "Incorrect number of padding bytes found on "
                        "decrypted data");
  s->len -= n;
  return 0;
}

static int
decrypt_with (const struct secret *key, const char *const *o,
              struct secret *s, struct error *e)
{
  uint8_t iv[BLOCK];

  if (key->len != KEY)
    return error_set (e, EINVAL, "Key should be %d bytes in length, and that "
                      "in '%s' has %zu", KEY, o[KEYID], key->len);
  if (get_iv (o, iv, e) == -1)
    return -1;
  if (s->len == 0 || s->len % BLOCK)
    return error_set (e, EINVAL, "Length %zu must be a multiple of block size "
                      "%d", s->len, BLOCK);
  return run_cipher (key, iv, s, e) == -1 ? -1 : remove_padding (s, e);
}

static int
decrypt (const char *const *o, struct secret *s, struct error *e)
{
  struct secret key;
  int r;

  if (!o[KEYID])
    return o[IV] ? error_set (e, EINVAL, "iv needs keyid") : 0;
  if (secret_get (o[KEYID], &key, e) == -1)
    return -1;
  r = decrypt_with (&key, o, s, e);
  secret_free (&key);
  return r;
}

/* ---- */

static int
add (const char *const *o, struct error *e)
{
  struct secret s = { .data = NULL };
  size_t allocated;
  int r;

  r = load (o, &s, e);
  allocated = s.len;            /* the other steps make it shorter */
  if (r == 0)
    r = decode (o, &s, e);
  if (r == 0)
    r = decrypt (o, &s, e);
  if (r == 0)
    r = secret_add (o[ID], s.data, s.len, e);
  s.len = allocated;
  secret_free (&s);
  return r;
}

const struct object_type object_secret = {
  .name = "secret",
  .properties = {
    [ID] = "id", [DATA] = "data", [FILE_NAME] = "file", [FORMAT] = "format",
    [KEYID] = "keyid", [IV] = "iv",
  },
  .add = add,
};
