/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* --object secret,...: see secret.h.  Layer: common.  No locking: no state.
 *
 * Copies of the argument are wiped, and no error repeats a value that may be
 * secret.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/cipher.h"
#include "common/secret.h"
#include "common/secure.h"

enum property { ID, DATA, FILE_NAME, FORMAT, KEYID, IV, NR_PROPERTIES };
static const char *const names[NR_PROPERTIES] = {
  [ID] = "id", [DATA] = "data", [FILE_NAME] = "file", [FORMAT] = "format",
  [KEYID] = "keyid", [IV] = "iv",
};

struct object {
  const char *value[NR_PROPERTIES];     /* borrowed */
};

/* ---- parse ---- */

static int
check_type (const char *type, struct error *e)
{
  if (strcmp (type, "secret") == 0)
    return 0;
  if (strncmp (type, "tls-creds-", 10) == 0)
    return error_set (e, ENOTSUP, "--object %s is not built yet; an nbds:// "
                      "URI takes tls-certificates=FOLDER and "
                      "tls-psk-file=FILE", type);
  return error_set (e, EINVAL, "--object: there is no object '%s'; secret is "
                    "the one that there is", type);
}

static int
set (struct object *o, const char *name, const char *value, struct error *e)
{
  for (int i = 0; i < NR_PROPERTIES; ++i)
    if (strcmp (names[i], name) == 0) {
      if (!value)
        return error_set (e, EINVAL, "Parameter '%s' expects a text", name);
      o->value[i] = value;
      return 0;
    }
  return error_set (e, EINVAL, "Parameter '%s' is unexpected", name);
}

/* Cut the item at *P off, "," undoubled in place, and step behind it. */
static char *
next_item (char **p)
{
  char *start = *p, *from = *p, *to = *p;

  for (; *from; ++from) {
    if (*from == ',' && *++from != ',') {
      *to = '\0';
      *p = from;
      return start;
    }
    *to++ = *from;
  }
  *to = '\0';
  *p = from;
  return start;
}

/* TEXT is changed. */
static int
parse_list (struct object *o, char *text, struct error *e)
{
  char *type = next_item (&text);

  if (strncmp (type, "qom-type=", 9) == 0)
    type += 9;
  if (check_type (type, e) == -1)
    return -1;
  while (*text) {
    char *name = next_item (&text), *value = strchr (name, '=');

    if (value)
      *value++ = '\0';
    if (set (o, name, value, e) == -1)
      return -1;
  }
  return 0;
}

static int
parse_json (struct object *o, const json_t *json, struct error *e)
{
  const char *type = json_string_value (json_object_get (json, "qom-type"));
  const char *name;
  json_t *value;

  if (!type)
    return error_set (e, EINVAL, "--object: the JSON text is not an object "
                      "with a qom-type");
  if (check_type (type, e) == -1)
    return -1;
  json_object_foreach ((json_t *) json, name, value)
    if (strcmp (name, "qom-type") != 0
        && set (o, name, json_string_value (value), e) == -1)
      return -1;
  return 0;
}

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
load (const struct object *o, struct secret *s, struct error *e)
{
  const char *data = o->value[DATA], *file = o->value[FILE_NAME];

  if (data && file)
    return error_set (e, EINVAL, "'file' and 'data' are mutually exclusive");
  if (!data && !file)
    return error_set (e, EINVAL, "Either 'file' or 'data' must be provided");
  return data ? take_text (s, data, e) : secret_read_file (s, file, e);
}

static int
decode (const struct object *o, struct secret *s, struct error *e)
{
  const char *format = o->value[FORMAT];

  if (!format || strcmp (format, "raw") == 0)
    return 0;
  if (strcmp (format, "base64") != 0)
    return error_set (e, EINVAL, "Parameter 'format' does not accept value "
                      "'%s'", format);
  if (base64_decode (s) == 0)
    return 0;
  return error_set (e, EINVAL, "the secret '%s' is not base64", o->value[ID]);
}

/* ---- secrets under a key ---- */

enum { BLOCK = 16, KEY = 32 };

static int
get_iv (const struct object *o, uint8_t iv[BLOCK], struct error *e)
{
  struct secret s = { .data = NULL };
  int r;

  if (!o->value[IV])
    return error_set (e, EINVAL, "IV is required to decrypt secret");
  if (take_text (&s, o->value[IV], e) == -1)
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
decrypt_with (const struct secret *key, const struct object *o,
              struct secret *s, struct error *e)
{
  uint8_t iv[BLOCK];

  if (key->len != KEY)
    return error_set (e, EINVAL, "Key should be %d bytes in length, and that "
                      "in '%s' has %zu", KEY, o->value[KEYID], key->len);
  if (get_iv (o, iv, e) == -1)
    return -1;
  if (s->len == 0 || s->len % BLOCK)
    return error_set (e, EINVAL, "Length %zu must be a multiple of block size "
                      "%d", s->len, BLOCK);
  return run_cipher (key, iv, s, e) == -1 ? -1 : remove_padding (s, e);
}

static int
decrypt (const struct object *o, struct secret *s, struct error *e)
{
  struct secret key;
  int r;

  if (!o->value[KEYID])
    return o->value[IV] ? error_set (e, EINVAL, "iv needs keyid") : 0;
  if (secret_get (o->value[KEYID], &key, e) == -1)
    return -1;
  r = decrypt_with (&key, o, s, e);
  secret_free (&key);
  return r;
}

/* ---- */

static int
add (const struct object *o, struct error *e)
{
  struct secret s = { .data = NULL };
  size_t allocated;
  int r;

  if (!o->value[ID])
    return error_set (e, EINVAL, "Parameter 'id' is missing");
  r = load (o, &s, e);
  allocated = s.len;            /* the other steps make it shorter */
  if (r == 0)
    r = decode (o, &s, e);
  if (r == 0)
    r = decrypt (o, &s, e);
  if (r == 0)
    r = secret_add (o->value[ID], s.data, s.len, e);
  s.len = allocated;
  secret_free (&s);
  return r;
}

/* jansson's copies of the values are wiped where they stand. */
static void
wipe_json (json_t *json)
{
  const char *name;
  json_t *value;

  json_object_foreach (json, name, value)
    if (json_is_string (value))
      secure_wipe ((void *) json_string_value (value),
                   json_string_length (value));
  json_decref (json);
}

int
secret_add_object (const char *text, struct error *e)
{
  struct object o = { .value = { NULL } };
  size_t len = strlen (text);
  char *copy;
  json_t *json;
  int r;

  if (*text == '{') {
    json = json_loads (text, JSON_REJECT_DUPLICATES, NULL);
    r = parse_json (&o, json, e) == -1 ? -1 : add (&o, e);
    wipe_json (json);
    return r;
  }
  copy = strdup (text);
  if (!copy)
    return error_nomem (e, "a secret", len);
  r = parse_list (&o, copy, e) == -1 ? -1 : add (&o, e);
  secure_free (copy, len);
  return r;
}
